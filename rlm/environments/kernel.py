"""The host's end of one live worker: runs cells, loads and fetches values, answers calls, and stops what will not stop.

A kernel belongs to the event loop that started it and drives one worker over one `Transport`. A failing cell is a
result; `WorkerGone` says that the worker died with everything in it. Starting another one is not decided here (see
`repl`).
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlm.environments import codec, images, wire
from rlm.environments.images import FILES_LIMIT, Capture
from rlm.environments.limits import MAX_TEXT
from rlm.environments.payload import Payload
from rlm.errors import ContextError, ProtocolError, ReplError, SandboxError
from rlm.ports import Answer, CallFailed, SupportsFiles, SupportsInterrupt, SupportsSpool, Transport
from rlm.types import CallRecord, CellError, Draft, HeapImage, Lost, RemoteValue, REPLResult, Tool

START_SECONDS = 30.0  # a worker that has not said a word by then has failed to start
GRACE_SECONDS = 2.0  # between a timed-out cell's interrupt and its end by force
RESTORE_SECONDS = 60.0  # that a heap may take to come back, beside what its size lets it take
RESTORE_RATE = 1_000_000  # bytes a second, which also the slowest of places manage
OWN_SHARE = 0.8  # of that time in which the worker itself gives up what takes too long
CANCEL_GRACE_SECONDS = 0.5  # the same for a cancelled one: whoever cancels waits for it
MAX_FILES = 100  # that a worker is handed at once: it may have few open, and a socket carries few
MAX_CALLS = 5_000  # calls of one cell in flight; no program of a model's needs more threads than that
MAX_ASKED = 1 << 30  # characters of calls in flight
MAX_UNREAD = 1 << 28  # bytes on their way to a worker, while which no more calls are taken
MAX_UNREAD_FRAMES = 2 * MAX_CALLS  # that no worker leaves unread: whoever calls waits for the answer
MAX_OUTPUT = 2_000_000  # characters of output in one cell: a worker that is one sends far fewer (see capture)
PIECE = 8  # characters that a piece of output counts for beside its text, so that empty ones have an end too
MAX_NAMES = 1 << 27  # characters of names and types, and NAME for each
NAME = 100
MAX_LISTED = 40  # names in an error
MAX_CHANGES = 1_000  # reports of names that are kept as they came

DIED = "the worker died"
INTERRUPTED = "the cell was interrupted"

Printed = Callable[[str, str], None]
"""Told of a running cell's output: (stream, text)."""


class WorkerGone(ReplError):
    """The worker died, and with it its namespace. `stopped` is "timeout" where the kernel killed it."""

    def __init__(self, message: str, stopped: str | None = None) -> None:
        super().__init__(message)
        self.stopped = stopped
        self.partial = REPLResult()


@runtime_checkable
class SendsAtOnce(Protocol):
    """A transport that can often write without waiting."""

    def try_send(self, data: bytes) -> int:
        """Write what can be written now; returns the number of bytes taken."""
        ...


@runtime_checkable
class Delivers(Protocol):
    """A transport that hands over what arrives the moment it does, which spares a switch of tasks for each piece."""

    def deliver_to(self, receive: Callable[[bytes], None]) -> None:
        """Call `receive` with each piece from now on, the last time with b""; instead of `Transport.receive`."""
        ...


@runtime_checkable
class SurvivesFork(Protocol):
    """A transport whose worker must not be held on to by a forked child of this process."""

    def disown(self) -> None: ...


@runtime_checkable
class TellsItsEnd(Protocol):
    """A transport that knows how its worker ended, after close()."""

    def ended(self) -> str: ...


class Names(Mapping[str, str]):
    """The names of a namespace and their types as of one moment, put together when somebody looks."""

    __slots__ = ("_changes", "_count", "_names")

    def __init__(self, changes: Sequence[tuple[Mapping[str, str], Sequence[str]]]) -> None:
        self._changes = changes
        self._count = len(changes)
        self._names: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._names is None:
            names: dict[str, str] = {}
            for new, gone in self._changes[: self._count]:
                names.update(new)
                for name in gone:
                    names.pop(name, None)
            self._names, self._changes = names, ()
        return self._names

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


@dataclass(slots=True, eq=False)
class _Cell:
    """A cell on its way."""

    number: int
    answer: Answer | None
    printed: Printed | None
    done: asyncio.Future[wire.Frame]
    streams: dict[str, list[str]] = field(default_factory=lambda: {"stdout": [], "stderr": []})
    output: int = 0
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    dropped: set[asyncio.Task[None]] = field(default_factory=set)
    records: list[CallRecord] = field(default_factory=list)
    stopped: str | None = None
    ended: bool = False
    failed: Exception | None = None


class Kernel:
    """One worker, started and driven. `dead` says why no more can be asked of it, None while it lives.

    tools: host functions that cells can call by name. captured: whether its heap will be; then it gets ready for that
    while it has nothing else to do. cells: the number of the last one, by which tracebacks name it;
    whoever goes on from an earlier worker sets it. start_seconds: how long the worker may take to say its first
    word. max_asked: characters of calls that the host holds at once; what is over it is refused.
    """

    def __init__(
        self,
        transport: Transport,
        tools: Sequence[Tool] = (),
        *,
        captured: bool = False,
        start_seconds: float = START_SECONDS,
        max_asked: int = MAX_ASKED,
    ) -> None:
        self.transport = transport
        self.python = ""
        self.dead: str | None = None
        self._at_once = transport.try_send if isinstance(transport, SendsAtOnce) else None
        self._tools, self._captured = tools, captured
        self._start_seconds, self._max_asked = start_seconds, max_asked
        self._wire = wire.Wire()
        self._cell: _Cell | None = None
        self.cells = 0
        self._number = 0
        self._parts = 0
        self._last_call = 0
        self._requests: dict[int, asyncio.Future[wire.Frame]] = {}
        self._changes: list[tuple[Mapping[str, str], Sequence[str]]] = []
        self._told = 0  # characters in these
        self._asked = 0  # characters of the calls in flight
        self._unread = 0  # bytes in the outbox
        self._outbox: deque[bytes] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[wire.Frame] | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the worker and wait for its first word. Raises `SandboxError` with the reason."""
        self._ready = asyncio.get_running_loop().create_future()
        try:
            await self.transport.open()
            if isinstance(self.transport, Delivers):
                self.transport.deliver_to(self._delivered)
            else:
                self._reader = asyncio.create_task(self._read())
            async with asyncio.timeout(self._start_seconds):
                ready = await self._ready
        except TimeoutError:
            await self.close()
            raise SandboxError(
                f"the worker did not start within {self._start_seconds:g} s{self._how_it_ended()}"
            ) from None
        except WorkerGone as gone:
            raise SandboxError(f"the worker did not start: {gone}") from gone
        except BaseException:
            await self.close()
            raise
        self.python = ready["python"][:20]
        if self._tools or self._captured:
            tools = [{"name": tool.name, "doc": tool.description} for tool in self._tools]
            self._send({"type": "setup", "tools": tools, "captured": self._captured})

    async def close(self) -> None:
        """End the worker. Always succeeds, twice too."""
        self.dead = self.dead or "the worker was closed"
        await self._end()
        tasks = [task for task in (self._reader, self._writer, self._ending) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def disown(self) -> None:
        """In a forked child: let go of a worker that stays the parent's."""
        if isinstance(self.transport, SurvivesFork):
            self.transport.disown()

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the namespace and their types, as of the last report."""
        return Names(self._changes)

    # -- what can be asked -----------------------------------------------------------------------------------------

    async def run(
        self,
        code: str,
        answer: Answer | None = None,
        *,
        timeout: float | None = None,
        fresh: bool = False,
        printed: Printed | None = None,
    ) -> REPLResult:
        """Run one cell. `timeout` in seconds; `fresh` begins a turn (a new `answer`).

        Cancelling interrupts the cell and waits until it has stopped, at most `CANCEL_GRACE_SECONDS`, or kills the
        worker. Calls that outlive their cell are cancelled, and given as long to end. Raises `WorkerGone`, and what
        `printed` raised, once the cell has ended; everything else that goes wrong in a cell is in the result.
        """
        loop = asyncio.get_running_loop()
        self._check()
        if self._cell is not None:
            raise RuntimeError("a kernel runs one cell at a time")
        self.cells += 1
        cell = self._cell = _Cell(self.cells, answer, printed, loop.create_future())
        timer = None if timeout is None else loop.call_later(timeout, self._stop, cell, "timeout", GRACE_SECONDS)
        started = time.perf_counter()
        try:
            self._send({"type": "run", "id": cell.number, "code": code, "fresh": fresh})
            try:
                frame = await cell.done
            except asyncio.CancelledError:
                await self._cancelled(cell)
                raise
        except WorkerGone as gone:
            gone.stopped = cell.stopped
            gone.partial = self._result(cell, None, time.perf_counter() - started)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._cell = None
            self._drop_calls(cell, "the cell that made this call has ended")
            if cell.dropped:  # what they cost, and what they clean up, belongs to this cell
                await asyncio.wait(cell.dropped, timeout=CANCEL_GRACE_SECONDS)
        if cell.failed is not None:
            raise cell.failed
        return self._result(cell, frame, time.perf_counter() - started, timeout)

    async def load(self, names: Sequence[str], payload: Payload, digest: str | None = None) -> None:
        """Bind the payload's value to all `names`, which the worker puts back whenever a cell rebinds them.

        digest: SHA-256 of the payload's bytes, which the worker verifies. Raises `ContextError` where the worker cannot
        build the value.
        """
        source: dict[str, Any]
        checked = {} if digest is None else {"digest": digest}
        if payload.format == "pickle" and not self._loads_our_code and payload.has_code():
            raise ContextError(
                f"{names[0]} holds functions or classes of this program, which Python {self.python} in the REPL cannot "
                f"load from Python {sys.version_info.major}.{sys.version_info.minor}: pass plain data"
            )
        if payload.path is None:
            source = {"data": payload.text}
        elif isinstance(self.transport, SupportsFiles):
            source = {"path": await self._lend(self.transport.put_file, payload.path)}
        else:
            source = {"data": payload.read()}
        load = {"type": "load", "names": list(names), "format": payload.format}
        frame = await self._request({**load, **source, **checked})
        if "error" in frame:
            raise ContextError(f"{names[0]} cannot be brought into the REPL: {frame['error'][:MAX_TEXT]}")
        self._changed(dict.fromkeys(names, payload.type), ())

    async def capture(self, spool: Path | None, *, whole: bool = False, limit: int = FILES_LIMIT) -> Capture:
        """What changed in the namespace, and in its folder, since the last capture or restore.

        spool: an empty file for large blobs, None where there is none. whole: look at every name,
        not only at those that cells can have changed. limit: bytes of the folder's files. A cell that was begun in the
        meantime may run before the answer is there. Raises `WorkerGone`, `ReplError` where the namespace cannot be
        captured, and `ProtocolError` where the worker answered what no worker does, and was stopped.
        """
        where = None
        if spool is not None and isinstance(self.transport, SupportsSpool):
            where = await self._lend(self.transport.lend_file, spool)
        frame = await self._request({"type": "checkpoint", "spool": where, "whole": whole, "limit": limit})
        if "error" in frame:
            raise ReplError(f"the namespace cannot be saved: {frame['error'][:MAX_TEXT]}")
        try:
            return images.capture(frame.get("value"), spool)
        except ProtocolError as error:
            raise self._distrust(error) from None

    async def restore(
        self, image: HeapImage, contents: Mapping[str, bytes | Path], *, seconds: float | None = None
    ) -> Mapping[str, Lost]:
        """Bring a heap back into a new worker, which has what the host gives it already.

        contents: blobs by digest, which the worker verifies. seconds: how long that may take; by default a minute and a
        second for each megabyte. Returns what could not be brought back, and why (a file as "./" and its path); without
        `image.lost`. Code of the user's that does not end is a loss like any other, where it can be interrupted. Where
        it cannot, raises `SandboxError`, and the worker is killed. Else raises as `capture` does.
        """
        limit = RESTORE_SECONDS + sum(g.size for g in image.groups) / RESTORE_RATE if seconds is None else seconds
        try:
            with tempfile.TemporaryDirectory(prefix="rlm-restore-") as folder:
                async with asyncio.timeout(limit):
                    sent = await self._hand_over(contents, Path(folder))
                    image_frame = images.frame(image)
                    restore = {"type": "restore", "image": image_frame, "contents": sent, "seconds": OWN_SHARE * limit}
                    frame = await self._request(restore)
        except TimeoutError:
            self.dead = f"the worker was killed, because what was brought back into it took over {round(limit, 1):g} s"
            self._kill()
            raise SandboxError(f"{self.dead}: the code of one of {_listed(image)} does not end") from None
        if "error" in frame:
            raise ReplError(f"the namespace cannot be brought back: {frame['error'][:MAX_TEXT]}")
        try:
            lost = images.lost(frame.get("value"))
        except ProtocolError as error:
            raise self._distrust(error) from None
        await self.refresh()
        return lost

    async def _hand_over(self, contents: Mapping[str, bytes | Path], folder: Path) -> Mapping[str, Mapping[str, Any]]:
        """Blobs as a frame names them: files where the transport takes any, the smaller of very many in one file."""
        files = {digest: content for digest, content in contents.items() if isinstance(content, Path)}
        joined: dict[str, tuple[int, int]] = {}
        if isinstance(self.transport, SupportsFiles) and len(files) > MAX_FILES:
            smaller = sorted(files, key=lambda digest: files[digest].stat().st_size)[: len(files) - MAX_FILES]
            joined = await asyncio.to_thread(_join, {digest: files[digest] for digest in smaller}, folder / "joined")
        whole = await self._put(folder / "joined") if joined else ""
        sent: dict[str, Mapping[str, Any]] = {}
        for digest, content in contents.items():
            if digest in joined:
                sent[digest] = dict(zip(("path", "at", "size"), (whole, *joined[digest]), strict=True))
            elif isinstance(content, Path) and isinstance(self.transport, SupportsFiles):
                sent[digest] = {"path": await self._put(content)}
            else:
                data = content if isinstance(content, bytes) else await asyncio.to_thread(content.read_bytes)
                sent[digest] = {"data": base64.b64encode(data).decode("ascii")}
        return sent

    async def _put(self, path: Path) -> str:
        assert isinstance(self.transport, SupportsFiles)
        return await self._lend(self.transport.put_file, path)

    async def _lend(self, hand_over: Callable[[Path], Awaitable[str]], path: Path) -> str:
        """The path of a file as the worker knows it. Raises `WorkerGone`, also where the worker takes no more files."""
        self._check()
        try:
            return await hand_over(path)
        except ConnectionError:
            self.dead = self.dead or DIED
            self._kill()
            if self._ending is not None:
                await asyncio.shield(self._ending)
            raise WorkerGone(self.dead) from None

    async def get(self, name: str) -> Any:
        """The value of a name; what has no exact JSON form as a `RemoteValue`. Raises KeyError."""
        frame = await self._request({"type": "get", "name": name})
        if "error" in frame:
            raise KeyError(name)
        return self._decode(frame.get("value"), RemoteValue)

    async def refresh(self) -> Mapping[str, str]:
        """Names and types as they are now; exact also where the reports after cells could not look at all names."""
        names = (await self._request({"type": "names"})).get("value")
        if not isinstance(names, dict) or not all(isinstance(kind, str) for kind in names.values()):
            raise self._distrust(ProtocolError("a list of names that is none"))
        self._changed(names, [name for name in self.names if name not in names])
        return names

    def _changed(self, new: Mapping[str, str], gone: Sequence[str]) -> None:
        self._changes.append((new, gone))
        self._told += _length(new, gone)
        if len(self._changes) > MAX_CHANGES or self._told > MAX_NAMES:
            names = dict(self.names)
            self._changes = [(names, ())]  # a new list: results of earlier cells look into the old one
            self._told = _length(names, ())
            if self._told > MAX_NAMES:
                raise self._distrust(ProtocolError(f"over {MAX_NAMES:,} characters of names"))

    @property
    def _loads_our_code(self) -> bool:
        return self.python.split(".")[:2] == [str(number) for number in sys.version_info[:2]]

    # -- frames ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.dead is not None:
            raise WorkerGone(self.dead)

    async def _request(self, frame: wire.Frame) -> wire.Frame:
        self._check()
        self._number += 1
        future: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
        self._requests[self._number] = future
        self._send({**frame, "id": self._number})
        return await future  # one that was cancelled stays known, so that its late answer is no offence

    def _send(self, frame: wire.Frame) -> None:
        """Put a frame on its way. Never waits: a cancelled caller must not leave half a frame behind."""
        self._parts += 1
        data = wire.encode(frame, self._parts)
        if self._at_once is not None and not self._outbox:
            data = data[self._at_once(data) :]
        if data:
            self._outbox.append(data)
            self._unread += len(data)
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._outbox:
                await self.transport.send(self._outbox[0])
                self._unread -= len(self._outbox.popleft())
        except Exception as error:  # noqa: BLE001 - a transport may be a stranger's
            self._outbox.clear()
            self._unread = 0
            if not isinstance(error, ConnectionError):  # there the reader sees the end too, and tells everybody
                self.dead = self.dead or _unreachable(error)
                await self._end()

    async def _read(self) -> None:
        try:
            while self._arrived(await self.transport.receive()):
                pass
        except Exception as error:  # noqa: BLE001 - a transport may be a stranger's, and whoever waits must hear of it
            self.dead = self.dead or _unreachable(error)
        await self._end()

    def _delivered(self, data: bytes) -> None:
        if self._ending is None and not self._arrived(data):
            self._kill()

    def _arrived(self, data: bytes) -> bool:
        """Take in a piece of what the worker says; False once there is nothing more to come."""
        if self.dead is not None:
            return bool(data)  # it is being ended
        try:
            for frame in self._wire.feed(data):
                self._receive(frame)
        except ProtocolError as error:
            self.dead = f"the worker was stopped, because it broke the protocol: {error}"
            return False
        if not data:
            self.dead = DIED
        return bool(data)

    async def _end(self) -> None:
        """The worker is gone, or must go: once it has, tell everybody who waits."""
        for task in (self._reader, self._writer):
            if task is not None and task is not asyncio.current_task():
                task.cancel()  # before what they wait for is closed
        try:
            await self.transport.close()
        finally:
            if self.dead is None or self.dead == DIED:
                self.dead = DIED + self._how_it_ended()
            self._fail(self.dead)

    def _how_it_ended(self) -> str:
        how = self.transport.ended() if isinstance(self.transport, TellsItsEnd) else ""
        return f" ({how})" if how else ""

    def _fail(self, reason: str) -> None:
        """Tell everybody who waits that nothing will come."""
        waiting = [*self._requests.values(), *([self._cell.done] if self._cell else ())]
        for future in [*waiting, *([self._ready] if self._ready else ())]:
            if not future.done():
                future.set_exception(WorkerGone(reason))
        self._requests.clear()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen; start() may have given up before

    def _receive(self, frame: wire.Heard) -> None:
        kind = frame["type"]
        if kind == "value":
            future = self._requests.pop(frame["id"], None)
            if future is None:
                raise ProtocolError(f"an answer to nothing: value {frame['id']}")
            if not future.done():
                future.set_result(frame)
            return
        if kind == "ready":
            if self._ready is None or self._ready.done():
                raise ProtocolError("a second 'ready'")
            self._ready.set_result(frame)
            return
        cell = self._cell
        if cell is None or cell.ended or frame["cell" if kind == "call" else "id"] != cell.number:
            raise ProtocolError(f"a {kind!r} of a cell that is not running")
        if kind == "done":
            _check_done(frame)
            cell.ended = True
            self._changed(frame["names"], frame["gone"])
            if not cell.done.done():
                cell.done.set_result(frame)
        elif kind == "out":
            self._print(cell, frame["stream"], frame["text"])
        elif frame["id"] <= self._last_call or len(cell.calls) >= MAX_CALLS:
            raise ProtocolError(f"call {frame['id']} twice, or over {MAX_CALLS:,} calls at once")
        elif len(frame["name"]) > MAX_TEXT or len(self._outbox) > MAX_UNREAD_FRAMES:
            raise ProtocolError(f"a call of a name that is none, or over {MAX_UNREAD_FRAMES:,} answers left unread")
        else:
            self._last_call = frame["id"]
            self._call(cell, frame)

    def _call(self, cell: _Cell, frame: wire.Heard) -> None:
        if self._asked + frame.size > self._max_asked or self._unread > MAX_UNREAD:
            error = f"over {self._max_asked:,} characters of calls at once, or too many answers that wait: ask for less"
            self._send({"type": "reply", "id": frame["id"], "error": error, "reason": "value"})
            return
        size = frame.size
        task = cell.calls[frame["id"]] = asyncio.create_task(self._answer(cell, frame))
        self._asked += size
        task.add_done_callback(lambda _: self._called(size))
        if cell.stopped is not None:
            self._drop_calls(cell, INTERRUPTED)

    def _called(self, size: int) -> None:
        self._asked -= size

    def _print(self, cell: _Cell, stream: str, text: str) -> None:
        pieces = _stream(cell.streams, stream)
        cell.output += len(text) + PIECE
        if cell.output > MAX_OUTPUT:
            raise ProtocolError(f"over {MAX_OUTPUT:,} characters of output")
        pieces.append(text)
        if cell.printed is not None:
            try:
                cell.printed(stream, text)
            except Exception as error:  # noqa: BLE001 - it is `run` that raises it, once the cell has ended
                cell.printed, cell.failed = None, error

    async def _answer(self, cell: _Cell, frame: wire.Frame) -> None:
        reply: wire.Frame = {"type": "reply", "id": frame["id"]}
        try:
            args = [codec.decode(arg) for arg in frame["args"]]
            kwargs = {key: codec.decode(arg) for key, arg in frame["kwargs"].items()}
            if cell.answer is None:
                raise CallFailed(f"{frame['name']}() has nobody to answer it: no model is connected", "disconnected")
            reply["value"] = codec.encode(await cell.answer(frame["name"], args, kwargs))
        except CallFailed as error:
            reply |= {"error": str(error), "reason": error.reason}
        except (codec.CodecError, RecursionError) as error:
            reply |= {"error": f"{frame['name']}(): {error}", "reason": "value"}
        except Exception as error:  # noqa: BLE001 - whatever a host function raises is the cell's to handle
            reply |= {"error": f"{type(error).__name__}: {error}", "reason": "tool"}
        if cell.calls.pop(frame["id"], None) is not None and self.dead is None:
            self._send(reply)

    def _drop_calls(self, cell: _Cell, error: str) -> None:
        """Calls that nobody needs the answer of end here; threads that wait for one are told."""
        for number, task in cell.calls.items():
            task.cancel()
            cell.dropped.add(task)
            task.add_done_callback(cell.dropped.discard)
            if self.dead is None:
                self._send({"type": "reply", "id": number, "error": error, "reason": "cancelled"})
        cell.calls.clear()

    def _decode(self, value: Any, remote: Any = None) -> Any:
        try:
            return codec.decode(value, remote)
        except (codec.CodecError, RecursionError) as error:
            raise self._distrust(ProtocolError(str(error))) from error

    def _distrust(self, error: ProtocolError) -> ProtocolError:
        self.dead = f"the worker was stopped, because it broke the protocol: {error}"
        self._kill()
        return error

    # -- stopping --------------------------------------------------------------------------------------------------

    def _stop(self, cell: _Cell, reason: str, grace: float) -> None:
        """Interrupt the cell; end the worker by force if it has not stopped after `grace` seconds.

        The first interrupt may come before the cell has begun, or be lost in its code, so there is a second one. Its
        calls are answered at once: with a pool of threads a cell cannot stop before they are.
        """
        if cell.stopped is None and self.dead is None:
            cell.stopped = reason
            loop = asyncio.get_running_loop()
            self._interrupt(cell)
            self._drop_calls(cell, INTERRUPTED)
            loop.call_later(grace / 2, self._interrupt, cell)
            loop.call_later(grace, self._overdue, cell)

    def _interrupt(self, cell: _Cell) -> None:
        if self._cell is cell and not cell.ended and self.dead is None:
            if isinstance(self.transport, SupportsInterrupt):
                self.transport.interrupt()
            else:
                self._send({"type": "interrupt"})

    def _overdue(self, cell: _Cell) -> None:
        if self._cell is cell and not cell.ended:
            self.dead = self.dead or "the worker was killed, because its cell ignored the interrupt"
            self._kill()

    def _kill(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())

    async def _cancelled(self, cell: _Cell) -> None:
        if cell.ended or (cell.done.done() and not cell.done.cancelled()):
            return  # at the same moment
        loop = asyncio.get_running_loop()
        cell.done = loop.create_future()
        self._stop(cell, "cancelled", CANCEL_GRACE_SECONDS)
        loop.call_later(CANCEL_GRACE_SECONDS, self._overdue, cell)  # also where a time limit is already stopping it
        try:
            await asyncio.shield(cell.done)
        except WorkerGone:
            return  # whoever cancelled does not wait for a new one; the next caller finds this one dead
        except asyncio.CancelledError:
            self._overdue(cell)
            raise

    # -- results ---------------------------------------------------------------------------------------------------

    def _result(
        self, cell: _Cell, frame: wire.Frame | None, seconds: float, timeout: float | None = None
    ) -> REPLResult:
        error = _error(frame["error"]) if frame and frame["error"] else None
        if cell.stopped == "timeout" and timeout is not None:
            text = f"The cell was interrupted after {timeout:g} s, its time limit. The namespace is kept."
            error = CellError("CellTimeout", f"{error.text}\n{text}" if error else text)
        if frame:
            for stream, rest in frame["streams"].items():
                _stream(cell.streams, stream).append(_joined(rest))
        stdout, stderr = ("".join(cell.streams[name]) for name in ("stdout", "stderr"))
        if error:
            stderr = f"{stderr}{'' if not stderr or stderr.endswith(chr(10)) else chr(10)}{error.text}\n"
        draft = _draft(frame["answer"]) if frame and frame["answer"] else None
        return REPLResult(
            stdout,
            stderr,
            error,
            draft.content if draft and draft.ready else None,
            self.names,
            cell.records,
            seconds,
            draft,
        )


def _listed(image: HeapImage) -> str:
    """Names of a heap; those first that have code of the user's."""
    groups = sorted(image.groups, key=lambda group: not group.code)
    names = [name for group in groups for name in group.names if name]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(name[:100] for name in names[:MAX_LISTED]) + more


def _join(files: Mapping[str, Path], path: Path) -> dict[str, tuple[int, int]]:
    """Write the files one after the other into a new one; returns where each begins, and its bytes."""
    places = {}
    with path.open("xb") as whole:
        for digest, file in files.items():
            start = whole.tell()
            with file.open("rb") as source:
                shutil.copyfileobj(source, whole)
            places[digest] = start, whole.tell() - start
    return places


def _unreachable(error: Exception) -> str:
    return f"the worker cannot be reached any more: {type(error).__name__}: {error}"


def _length(new: Mapping[str, str], gone: Sequence[str]) -> int:
    return sum(sum(map(len, texts)) + NAME * len(texts) for texts in (new, new.values(), gone))


def _stream(streams: dict[str, list[str]], name: object) -> list[str]:
    if name not in streams:
        raise ProtocolError(f"output on {str(name)[:50]!r}")
    return streams[str(name)]


def _joined(rest: object) -> str:
    """What a `done` frame brings of a stream: the rest of the head, the count of what was cut, the tail."""
    match rest:
        case {"text": str(text), "cut": int(cut), "tail": str(tail)}:
            return f"{text}\n… [{cut:,} characters cut] …\n{tail}" if cut else text + tail
    raise ProtocolError("a 'done' with malformed streams")


def _check_done(frame: wire.Frame) -> None:
    """Raises `ProtocolError` where the parts of a `done` are not what `_result` takes them for."""
    names, gone = frame["names"], frame["gone"]
    if not all(isinstance(kind, str) for kind in names.values()) or not all(isinstance(name, str) for name in gone):
        raise ProtocolError("a 'done' with malformed names")
    for stream, rest in frame["streams"].items():
        _stream({"stdout": [], "stderr": []}, stream)
        if len(_joined(rest)) > MAX_OUTPUT:
            raise ProtocolError(f"over {MAX_OUTPUT:,} characters of output")
    if frame["error"] is not None and len(_error(frame["error"]).text) > MAX_OUTPUT:
        raise ProtocolError(f"a traceback of over {MAX_OUTPUT:,} characters")
    if frame["answer"] is not None:
        _draft(frame["answer"])


def _error(data: object) -> CellError:
    match data:
        case {"type": str(kind), "text": str(text)}:
            return CellError(kind[:MAX_TEXT], text)
    raise ProtocolError("a 'done' with a malformed error")


def _draft(data: object) -> Draft:
    match data:
        case {"content": str(content), "ready": bool(ready)}:
            return Draft(content, ready)
    raise ProtocolError("a 'done' with a malformed answer")
