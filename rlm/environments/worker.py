"""The program in every sandbox: one living Python namespace behind JSON lines on standard input and output.

It runs cells in a real `__main__` module, captures whatever they and their child processes print, and passes their
calls to the host. Standard library only, Python 3.9 and newer; the host sends or mounts this file and those it imports,
and runs none of them itself. It enforces nothing against the code it runs: it shares a process with it.

Cells run in the main thread. A second one sleeps until a child process prints or the host is gone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's own wrap answers in enums, which takes longer than a cell
import io
import json
import linecache
import mmap
import os
import select
import signal
import sys
import threading
import time
import types
from base64 import b64decode

import codec  # these stand beside this file, wherever it runs
from calls import QUERIES, Calls
from capture import Output, describe, printable
from channel import Channel
from handed import Handed
from heap import Heap
from names import Names

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from capture import Take

AWAIT, COROUTINE = 0x2000, 0x80  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, inspect.CO_COROUTINE, without those imports
FILES: tuple[str, ...] = ("worker", "calls", "channel", "handed", "capture", "codec", "names")
FILES += ("heap", "suspects", "known", "snapshot", "graph", "edges", "definitions", "sources")
FILES += ("pickles", "makers", "arrays", "blobs", "forks", "folder", "restore", "limits")
IN_LOOP = frozenset(("create_task", "ensure_future", "get_running_loop"))  # fail at once where no event loop runs


class Worker(Calls):
    """The namespace behind a channel.

    pipes: the reading ends of what child processes print, standard output and error. gone: called by the watching
    thread once the host has closed the channel, whatever the cell is doing. cloudpickle: the file of that module.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        pipes: Sequence[int] = (),
        listen: bool = False,
        gone: Callable[[], None] | None = None,
        cloudpickle: str | None = None,
        files: int | None = None,
    ) -> None:
        super().__init__(Channel(source, sink, listen))
        self.handed = Handed(files)
        self.send, self.masked, self.gone = self.channel.send, self.channel.masked, gone
        self.output, self.struck = Output(pipes, self.report), 0.0
        self.on_interrupt = self.masked.guard(self.interrupt)
        self.loop: Any = None
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.draft: Any = ""
        self.given: dict[str, Any] = {name: getattr(self, name) for name in (*QUERIES, "SHOW_VARS")}
        self.listing = Names(self.names, {*self.given, "answer"})
        self.names.update(self.given, answer={"content": "", "ready": False})
        self.heap = Heap(self, cloudpickle)

    def watch(self) -> None:
        """Sleeps until a child process prints, the host is gone, or (where it cannot signal) the host speaks."""
        watched = select.poll()
        for fd in self.output.pipes:
            watched.register(fd, select.POLLIN)
        watched.register(self.channel.source, select.POLLIN if self.channel.listen else 0)
        while not self.channel.closed:
            for fd, event in watched.poll():
                if fd in self.output.pipes:
                    if event & select.POLLIN:
                        self.output.drain()
                    else:  # a cell has closed standard output or error itself
                        watched.unregister(fd)
                elif event & select.POLLIN:
                    self.channel.read()
                    self.channel.hand_over(reading=True)
                else:
                    self.channel.closed = True
        self.channel.hand_over(reading=False)
        if self.gone:
            self.gone()

    def interrupt(self, number: int = 0, frame: Any = None) -> None:
        now = time.monotonic()
        if self.cell is not None and now - self.struck > 0.2:  # a second one must not strike while the first unwinds
            self.struck = now
            raise KeyboardInterrupt

    def report(self, take: Take) -> None:
        """Tell the host what the running cell printed."""
        if self.channel.sending._is_owned():  # type: ignore[attr-defined]  # a __del__ prints while a frame is sent
            return
        with self.masked, self.channel.sending:
            for stream, text in take() if self.cell is not None else ():
                self.send(type="out", id=self.cell, stream=stream, text=text)

    def SHOW_VARS(self) -> str:
        """The names of this namespace and their types."""
        names = self.listing.look()
        lines = [f"{name}: {kind}" for name, kind in list(names.items())[:500]]
        return "\n".join(lines + ([f"… and {len(names) - 500} more"] if len(names) > 500 else [])) or "(none)"

    # -- frames ----------------------------------------------------------------------------------------------------

    def setup(self, tools: Sequence[dict[str, Any]], captured: bool = False) -> None:
        self.heap.wanted = captured
        for entry in tools:
            function = self.tool(entry["name"])
            function.__doc__ = entry["doc"]
            self.given[entry["name"]] = function
            self.listing.hidden.add(entry["name"])
        self.names.update(self.given)

    def load(
        self,
        id: int,
        names: list[str],
        format: str,
        data: str | None = None,
        path: str | None = None,
        digest: str | None = None,
    ) -> None:
        try:
            laid = Laid(format, data, None if path is None else self.handed.open(path), digest)
            value = laid.read()
        except Exception as error:  # noqa: BLE001 - whatever building the user's own value raises is the host's to tell
            self.send(type="value", id=id, error=printable(f"{type(error).__name__}: {error}"))
            return
        self.given.update(dict.fromkeys(names, value))
        self.names.update(dict.fromkeys(names, value))
        self.heap.gave(names, value, laid.read)
        self.send(type="value", id=id, value=None)

    def get(self, id: int, name: str) -> None:
        if name not in self.names:
            self.send(type="value", id=id, error=name)
            return
        value = self.names[name]
        try:
            self.send(type="value", id=id, value=codec.encode(value, describe=True))
        except Exception as error:  # noqa: BLE001 - too large, or changed by a thread meanwhile: it stays where it is
            why = printable(f"<not sent: {type(error).__name__}: {error}>")
            self.send(type="value", id=id, value={codec.TAG: "remote", "v": [type(value).__name__, why]})

    def list_names(self, id: int) -> None:
        self.send(type="value", id=id, value=self.listing.all())

    def run(self, id: int, code: str, fresh: bool = False) -> None:
        if fresh:
            self.names["answer"], self.draft = {"content": "", "ready": False}, ""
            self.heap.touched("answer")
        if _signal.getsignal(signal.SIGINT) != self.on_interrupt:  # a cell before this one may have replaced it
            _signal.signal(signal.SIGINT, self.on_interrupt)
        filename, started = f"<cell {id}>", time.monotonic()
        linecache.cache[filename] = (len(code), None, list(io.StringIO(code, None)), filename)
        self.output.reported, self.struck, compiled = started, 0.0, None
        error: BaseException | None = None
        answer = None
        try:
            try:
                self.masked.depth = 0
                self.masked.strike()  # what came too late for the cell before must not stop this one
                self.cell = id
                compiled = compile(code, filename, "exec", AWAIT, dont_inherit=True)
                if compiled.co_flags & COROUTINE:
                    self.run_async(eval(compiled, self.names))
                elif not IN_LOOP.isdisjoint(compiled.co_names):
                    self.run_async(run_inside(compiled, self.names))
                else:
                    exec(compiled, self.names)
            finally:
                self.masked.depth = 1  # from here on an interrupt comes too late
        except BaseException as caught:  # noqa: BLE001 - SystemExit and KeyboardInterrupt end the cell, not the worker
            self.masked.depth, error = 1, caught
        if self.forked:
            self.output.flush()
            leave(error)
        try:
            answer = self.take_answer()
        except BaseException as caught:  # noqa: BLE001 - a __str__ of the user's
            error = caught if error is None else error
        described = None if error is None else describe(error)
        error = None  # with it go the frames of the cell, and what they hold
        self.names.update(self.given)
        names, gone = self.listing.changes(compiled, time.monotonic() - started)
        self.outlived = set(threading.enumerate()) - {threading.current_thread()}
        self.heap.ran(compiled, filename)
        streams = self.output.collect()
        with self.channel.sending:
            self.cell = None
            self.send(type="done", id=id, error=described, answer=answer, names=names, gone=gone, streams=streams)

    def run_async(self, coroutine: Any) -> None:
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        task = self.loop.create_task(coroutine)
        try:
            self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    def take_answer(self) -> dict[str, Any] | None:
        answer = self.names.get("answer")
        if not isinstance(answer, dict):
            return None
        content, ready = answer.get("content", ""), bool(answer.get("ready"))
        if not ready and content is self.draft:
            return None
        self.draft, answer["ready"] = content, False
        if isinstance(content, (dict, list, tuple)):
            try:
                content = json.dumps(content, ensure_ascii=False)
            except (TypeError, ValueError):
                content = str(content)
        return {"content": printable(str(content)), "ready": ready}

    def take_over(self) -> None:
        """A saved heap has been brought back: what was drafted in it is known, what its code printed is nobody's."""
        answer = self.names.get("answer")
        self.draft = answer.get("content", "") if isinstance(answer, dict) else ""
        self.output.collect()

    def serve(self) -> None:
        threading.Thread(target=self.watch, daemon=True, name="rlm-watch").start()
        self.send(type="ready", python=".".join(map(str, sys.version_info[:3])), pid=os.getpid())
        handlers: dict[str, Any] = {"run": self.run, "load": self.load, "get": self.get, "setup": self.setup}
        handlers.update(names=self.list_names, checkpoint=self.heap.checkpoint, restore=self.heap.restore)
        while True:
            try:
                self.channel.wait(lambda: self.channel.inbox, self.heap.chore())
            except BaseException as error:  # noqa: BLE001 - a signal handler of the user's own, between two cells
                self.output.print("stderr", describe(error)["text"] + "\n", 2)
                continue
            if not self.channel.inbox:
                return
            frame = self.channel.inbox.pop(0)
            handlers[frame.pop("type")](**frame)

    def after_fork(self) -> None:
        self.forked = True
        self.output.after_fork()
        self.channel.close()


class Laid:
    """A value that the host laid into a frame or a file, which stays open for as long as the value may be made again.

    A file is mapped, so that it is in memory once, decoded.
    """

    def __init__(self, format: str, data: str | None, file: int | None, digest: str | None) -> None:
        self.format, self.data, self.file, self.digest = format, data, file, digest

    def read(self) -> Any:
        """Make the value. Raises `ValueError` where the bytes have not the SHA-256 digest that the host named."""
        raw: Any = b""
        if self.file is None:
            raw = b64decode(self.data or "")
        elif os.fstat(self.file).st_size:
            raw = mmap.mmap(self.file, 0, access=mmap.ACCESS_READ)
        if self.digest is not None:
            import hashlib

            if hashlib.sha256(raw).hexdigest() != self.digest:
                raise ValueError(f"damaged: the bytes have another digest than {self.digest}")
        if self.format == "text":
            return str(raw, "utf-8", "surrogatepass")
        if self.format == "bytes":
            return bytes(raw)
        import pickle  # many a worker never needs it

        return pickle.loads(raw) if self.file is None or not raw else pickle.load(raw)

    def __del__(self) -> None:
        if self.file is not None:
            os.close(self.file)


def main(listen: bool = False, cloudpickle: str | None = None, files: int | None = None) -> None:
    """Take over this process: keep standard input and output for the channel, give cells pipes in their place.

    cloudpickle: the file of that module, which is loaded when it is first needed. files: where files are handed over.
    """
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    pipes = []
    for number in (1, 2):
        reading, writing = os.pipe()
        os.dup2(writing, number)
        os.close(writing)
        pipes.append(reading)
    worker = Worker(source, sink, pipes, listen, end, cloudpickle, files)
    sys.modules["__main__"] = worker.module
    step_aside()
    sys.stdout, sys.stderr = worker.output.streams()
    os.register_at_fork(after_in_child=worker.after_fork)
    worker.masked.guard_all()
    _signal.signal(signal.SIGINT, worker.on_interrupt)
    worker.serve()
    end()


def step_aside() -> None:
    """Leave the names of the worker's modules to the user's own. Once; before a fork, where there is one."""
    for module in FILES:
        if module in sys.modules:
            sys.modules["_rlm_" + module] = found = sys.modules.pop(module)
            for value in vars(found).values():
                if getattr(value, "__module__", None) == module:  # what blobs name is found where it stands
                    value.__module__ = "_rlm_" + module
    codec.CodecError.__module__ = "builtins"


async def run_inside(compiled: types.CodeType, names: dict[str, Any]) -> None:
    """For a cell that awaits nothing, but starts tasks for later ones."""
    exec(compiled, names)


def leave(error: BaseException | None) -> NoReturn:
    """End a child that a cell forked and that ran on to the cell's end, as Python ends a program."""
    status = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    elif error is not None:
        os.write(2, (describe(error)["text"] + "\n").encode())
    os._exit(status)


def end() -> NoReturn:
    """Nothing here outlives the host. The worker leads a process group of its own wherever it can be started so."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
