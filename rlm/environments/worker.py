"""The program in every sandbox: one living Python namespace behind JSON lines on standard input and output.

It runs cells in a real `__main__` module, captures whatever they and their child processes print, and passes their calls
to the host. Standard library only, Python 3.9 and newer; the host sends or mounts this file and `codec.py`, and never
imports either for its own use of a sandbox. It enforces nothing against the code it runs: it shares a process with it.

Cells run in the main thread. A second one sleeps until a child process prints or the host is gone.
"""

from __future__ import annotations

import json
import linecache
import mmap
import os
import pickle
import select
import signal
import sys
import threading
import time
import types
from _signal import getsignal as handler  # signal's own wraps each answer in an enum, which takes longer than a cell
from base64 import b64decode

import codec  # these stand beside this file, wherever it runs
from capture import Output, describe, printable
from channel import Channel

AWAIT, COROUTINE = 0x2000, 0x80  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, inspect.CO_COROUTINE, without those imports
SCAN = 64  # names that are looked at after every cell; of more, only where the cell took long beside the look
DYNAMIC = frozenset(("globals", "locals", "vars", "exec", "eval", "__dict__", "setattr", "delattr", "__import__"))
GIVEN = ("llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS")
POOLS = ("concurrent.futures.thread", "multiprocessing.pool")


class ToolError(RuntimeError):
    """A host function failed; the message is the host's."""


class Failure(str):
    """The text of a model call that failed: it starts with "Error: ", and `reason` says in a word of what kind."""

    reason = "error"


class Worker:
    """The namespace behind a channel.

    pipes: the reading ends of what child processes print, standard output and error. gone: called by the watching
    thread once the host has closed the channel, whatever the cell is doing.
    """

    def __init__(self, source, sink, pipes=(), listen=False, gone=None):
        self.channel, self.gone = Channel(source, sink, listen), gone
        self.send, self.masked = self.channel.send, self.channel.masked
        self.output, self.struck = Output(pipes, self.report), 0.0
        self.cell, self.calls, self.forked, self.outlived, self.loop = None, 0, False, set(), None
        self.module = types.ModuleType("__main__")
        self.names, self.known, self.draft = self.module.__dict__, {}, ""
        self.given = {name: getattr(self, name) for name in GIVEN}
        self.hidden = set(GIVEN) | {"answer"}
        self.names.update(self.given, answer={"content": "", "ready": False})

    def watch(self):
        """Sleeps until a child process prints, the host is gone, or (where it cannot signal) the host speaks."""
        watched = select.poll()
        for fd in self.output.pipes:
            watched.register(fd, select.POLLIN)
        watched.register(self.channel.source, select.POLLIN if self.channel.listen else 0)
        while not self.channel.closed:
            for fd, event in watched.poll():
                if fd in self.output.pipes:
                    self.output.drain()
                elif event & select.POLLIN:
                    self.channel.read()
                    self.channel.hand_over(reading=True)
                else:
                    self.channel.closed = True
        self.channel.hand_over(reading=False)
        if self.gone:
            self.gone()

    def interrupt(self, *_):
        now = time.monotonic()
        if self.cell is None or now - self.struck < 0.2:  # a second one must not strike while the first unwinds
            return
        self.struck = now
        self.masked.pending = True
        self.masked.raise_pending()

    def report(self, take):
        """Tell the host what the running cell printed."""
        with self.masked, self.channel.sending:
            for stream, text in take() if self.cell is not None else ():
                self.send(type="out", id=self.cell, stream=stream, text=text)

    # -- calls of cells --------------------------------------------------------------------------------------------

    def call(self, name, args, kwargs):
        if self.forked:
            raise RuntimeError(name + "() reaches the host only from the REPL's own process, not from a fork of it")
        thread = threading.current_thread()
        args = [codec.encode(arg) for arg in args]
        kwargs = {key: codec.encode(arg) for key, arg in kwargs.items()}
        number, replies = None, self.channel.replies
        try:
            with self.masked, self.channel.sending:
                if self.cell is None or (thread in self.outlived and not pooled(thread)):
                    raise RuntimeError(name + "() was called by a thread whose cell has ended")
                self.calls = number = self.calls + 1
                replies[number] = None
                self.send(type="call", id=number, cell=self.cell, name=name, args=args, kwargs=kwargs)
            self.channel.wait(lambda: replies[number] is not None)
            reply = replies[number]
        finally:
            replies.pop(number, None)
        if reply is None:
            raise RuntimeError("the host is gone")
        if "error" in reply:
            raise ToolError(reply["error"], reply.get("reason", "error"))
        return codec.decode(reply["value"])

    def query(self, name, prompt, model):
        try:
            return self.call(name, [prompt], {} if model is None else {"model": model})
        except ToolError as error:
            return failure(*error.args)

    def query_batched(self, name, prompts, model):
        if isinstance(prompts, str):
            raise TypeError(name + "() takes a list of prompts; for one prompt use " + name[: -len("_batched")] + "()")
        prompts = list(prompts)
        try:
            items = self.call(name, [prompts], {} if model is None else {"model": model}) if prompts else []
        except ToolError as error:
            return [failure(*error.args) for _ in prompts]
        return [item["value"] if "value" in item else failure(item["error"], item.get("reason")) for item in items]

    def llm_query(self, prompt, model=None):
        """Ask a language model; returns its answer as text."""
        return self.query("llm_query", prompt, model)

    def llm_query_batched(self, prompts, model=None):
        """Ask a language model about many prompts at once; returns the answers in order."""
        return self.query_batched("llm_query_batched", prompts, model)

    def rlm_query(self, prompt, model=None):
        """Give a task to a recursive language model with a REPL of its own; returns its answer."""
        return self.query("rlm_query", prompt, model)

    def rlm_query_batched(self, prompts, model=None):
        """Give many tasks to recursive language models at once; returns the answers in order."""
        return self.query_batched("rlm_query_batched", prompts, model)

    def SHOW_VARS(self):
        """The names of this namespace and their types."""
        names = self.visible()
        lines = ["%s: %s" % pair for pair in list(names.items())[:500]]
        return "\n".join(lines + (["… and %d more" % (len(names) - 500)] if len(names) > 500 else [])) or "(none)"

    # -- frames ----------------------------------------------------------------------------------------------------

    def tool(self, name):
        def function(*args, **kwargs):
            return self.call(name, args, kwargs)

        function.__name__ = function.__qualname__ = name
        return function

    def setup(self, tools):
        for entry in tools:
            function = self.tool(entry["name"])
            function.__doc__ = entry["doc"]
            self.given[entry["name"]] = function
            self.hidden.add(entry["name"])
        self.names.update(self.given)

    def load(self, id, names, format, data=None, path=None):
        try:
            value = read_value(format, data, path)
        except Exception as error:  # whatever unpickling the user's own value raises is the host's to report
            self.send(type="value", id=id, error=describe(error)["text"])
            return
        self.given.update(dict.fromkeys(names, value))
        self.names.update(dict.fromkeys(names, value))
        self.send(type="value", id=id, value=None)

    def get(self, id, name):
        if name in self.names:
            self.send(type="value", id=id, value=codec.encode(self.names[name], describe=True))
        else:
            self.send(type="value", id=id, error=name)

    def list(self, id):
        self.known = self.visible()
        self.send(type="value", id=id, value=self.known)

    def visible(self):
        return {
            name: type(value).__name__
            for name, value in list(self.names.items())
            if name not in self.hidden and not name.startswith("__")
        }

    def run(self, id, code, fresh=False):
        if fresh:
            self.names["answer"], self.draft = {"content": "", "ready": False}, ""
        if handler(signal.SIGINT) != self.interrupt:  # a cell before this one may have replaced it
            signal.signal(signal.SIGINT, self.interrupt)
        filename, started = "<cell %d>" % id, time.monotonic()
        linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
        self.output.reported, compiled, error, answer = started, None, None, None
        try:
            self.cell = id
            compiled = compile(code, filename, "exec", AWAIT, dont_inherit=True)
            if compiled.co_flags & COROUTINE:
                self.run_async(eval(compiled, self.names))
            else:
                exec(compiled, self.names)
            self.masked.depth = 1  # from here on an interrupt comes too late
        except BaseException as caught:  # SystemExit and KeyboardInterrupt end the cell, not the worker
            self.masked.depth = 1
            error = caught
        if self.forked:
            os._exit(1 if error else 0)
        try:
            answer = self.take_answer()
        except Exception as caught:  # a __str__ of the user's
            error = error or caught
        described = error and describe(error)
        error = None  # with it go the frames of the cell, and what they hold
        self.names.update(self.given)
        names, gone = self.changes(compiled, time.monotonic() - started)
        self.outlived = set(threading.enumerate()) - {threading.current_thread()}
        streams = self.output.collect()
        with self.channel.sending:
            self.cell, self.masked.pending, self.masked.depth = None, False, 0
            self.send(type="done", id=id, error=described, answer=answer, names=names, gone=gone, streams=streams)

    def run_async(self, coroutine):
        import asyncio

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        task = self.loop.create_task(coroutine)
        try:
            self.loop.run_until_complete(task)
        except BaseException:
            task.cancel()
            self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    def take_answer(self):
        answer = self.names.get("answer")
        if not isinstance(answer, dict):
            return None
        content, ready = answer.get("content", ""), bool(answer.get("ready"))
        if not ready and content is self.draft:
            return None
        self.draft, answer["ready"] = content, False
        if isinstance(content, (dict, list, tuple)):
            try:
                content = json.dumps(content)
            except (TypeError, ValueError):
                content = str(content)
        return {"content": printable(str(content)), "ready": ready}

    def changes(self, compiled, seconds):
        """(name -> type of what is new or of another type, names that are gone) since the last report."""
        if len(self.names) > SCAN and seconds < len(self.names) * 2e-6 and compiled:
            used = code_names(compiled)
            if not used & DYNAMIC:
                return self.changes_among(used)
        current = self.visible()
        new = {name: kind for name, kind in current.items() if self.known.get(name) != kind}
        gone = [name for name in self.known if name not in current]
        self.known = current
        return new, gone

    def changes_among(self, used):
        seen = {name for name in used if name in self.names}
        for name in reversed(self.names):  # new names stand at the end
            if name in self.known:
                break
            seen.add(name)
        kinds = {n: type(self.names[n]).__name__ for n in seen if n not in self.hidden and not n.startswith("__")}
        new = {name: kind for name, kind in kinds.items() if self.known.get(name) != kind}
        gone = [name for name in used if name in self.known and name not in self.names]
        self.known.update(new)
        for name in gone:
            del self.known[name]
        return new, gone

    def serve(self):
        threading.Thread(target=self.watch, daemon=True, name="rlm-watch").start()
        self.send(type="ready", python="%d.%d.%d" % sys.version_info[:3], pid=os.getpid())
        handlers = {"run": self.run, "load": self.load, "get": self.get, "names": self.list, "setup": self.setup}
        while True:
            self.channel.wait(lambda: self.channel.inbox)
            if not self.channel.inbox:
                return
            frame = self.channel.inbox.pop(0)
            handlers[frame.pop("type")](**frame)

    def after_fork(self):
        self.forked = True
        self.output.after_fork()
        self.channel.close()


def pooled(thread):
    """Whether the thread belongs to a pool, and so works for whichever cell gives it something to do."""
    return getattr(getattr(thread, "_target", None), "__module__", None) in POOLS


def failure(message, reason="error"):
    text = Failure("Error: " + message)
    text.reason = reason
    return text


def code_names(code):
    """Every name that the code, and the functions in it, may read or bind."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= code_names(constant)
    return names


def read_value(format, data, path):
    """A value that the host laid into a frame or a file. A file is mapped, so that it is in memory once, decoded."""
    if path is None:
        raw = b64decode(data)
    else:
        with open(path, "rb") as file:
            if format == "pickle":
                return pickle.load(file)
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.path.getsize(path) else b""
    if format == "text":
        return str(raw, "utf-8", "surrogatepass")
    return bytes(raw) if format == "bytes" else pickle.loads(raw)


def main(listen=False):
    """Take over this process: keep standard input and output for the channel, give cells pipes in their place."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    pipes = []
    for number in (1, 2):
        reading, writing = os.pipe()
        os.dup2(writing, number)
        os.close(writing)
        pipes.append(reading)
    worker = Worker(source, sink, pipes, listen, gone=end)
    sys.modules["__main__"] = worker.module
    for module in ("worker", "channel", "capture", "codec"):  # these names belong to the user's own modules
        sys.modules["_rlm_" + module] = sys.modules.pop(module)
    sys.stdout, sys.stderr = worker.output.streams()
    os.register_at_fork(after_in_child=worker.after_fork)
    signal.signal(signal.SIGINT, worker.interrupt)
    worker.serve()
    end()


def end():
    """Nothing here outlives the host. The worker leads a process group of its own wherever it can be started so."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
