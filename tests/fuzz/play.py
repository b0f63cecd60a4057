"""Plays a script of `scripts` to a kernel over the sandbox's own transport, and raises `Broken` where a promise is.

The worker, its guard and the host share one thread and a loop that never waits (`clock`), so that a script takes
milliseconds, comes out the same each time, and a hang is known at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlm.environments.images import Capture
from rlm.environments.kernel import Kernel, WorkerGone
from rlm.environments.payload import Payload
from rlm.environments.sandbox.transport import SandboxTransport
from rlm.environments.sandbox.zygotes import Session
from rlm.errors import ContextError, ProtocolError, ReplError, SandboxError
from rlm.ports import CallFailed, Part, Transport
from rlm.types import HeapImage, Lost, REPLResult, Saved, Tool
from tests.fuzz import scripts
from tests.fuzz.clock import Hang, Loop
from tests.fuzz.scripts import DATA, DIGEST, SPOOL, Act, Bytes, Do, Many, Say, Script, Step, Told

TURNS = 4  # of the loop, in which what was said is heard
PARTS = 20  # of those, in which a large frame of the host's comes, and what it asks for then is answered
PATIENCE = 500.0  # seconds of the loop's time, which cost nothing
MAX_ASKED = 3_000_000  # characters of calls in flight, as the host lets these workers have
SLICE = 250_000  # characters of a frame that ride in one line
BUSY = 4.0  # seconds of the processor's that no script needs
LONGEST = 30_000  # characters of an error: its text goes into logs, and to models

MAY_RAISE: Mapping[str, tuple[type[Exception], ...]] = {
    "start": (SandboxError,),
    "run": (WorkerGone,),
    "get": (KeyError, ProtocolError, WorkerGone),
    "names": (ProtocolError, WorkerGone),
    "load": (ContextError, WorkerGone),
    "checkpoint": (ReplError, ProtocolError, WorkerGone),
    "restore": (SandboxError, ReplError, ProtocolError, WorkerGone),
}
CHILD = Payload("str", "text", text="YQ==")
DIGESTS = [DIGEST, *(f"{number:064x}" for number in range(99))]  # files that fill a socket soon
IMAGE = HeapImage(groups=[Saved(["a"], ["list"], DIGEST, len(DATA), False, False, {})], python="3.11")


class Broken(AssertionError):
    """A promise that did not hold."""


class Plain:
    """A transport that can do nothing but carry bytes."""

    def __init__(self, transport: SandboxTransport) -> None:
        self.open, self.send, self.receive, self.close = (
            transport.open,
            transport.send,
            transport.receive,
            transport.close,
        )


class Observed(SandboxTransport):
    """at_end: called between the end of the worker and the moment in which anybody learns of it."""

    at_end: Callable[[], object] | None = None

    def ended(self) -> str:
        if self.at_end is not None:
            asyncio.get_running_loop().call_soon(self.at_end)
        return super().ended()


class Liar:
    """A worker and its guard, by their ends of a session's sockets."""

    def __init__(self, plain: bool, room: int) -> None:
        self.ends: list[socket.socket] = []
        self.session = Session(self._spawn, None)
        self.channel, self.files, self.control = self.ends
        sandbox = Observed(self.session, lambda: None, {"memory": "it took too much"})
        self.transport: Transport = Plain(sandbox) if plain else sandbox
        self.known = {"cell": 0, "next": 1, "call": 1, "last": 0, "request": 1}
        self.asked: list[dict[str, Any]] = []  # the host's requests without an answer
        self.calls: list[tuple[int, str, int, tuple[str, ...]]] = []  # well-formed ones: cell, name, arguments
        self.deaf = self.takes_no_files = False
        self.is_heard = True
        self.seconds = 0.0  # of the processor's, in which lies were made
        self.lent: dict[str, int] = {}
        self.alive, self.dying = os.pipe()  # what the guard hands out of itself, and what ends with it
        self._room, self._rest, self._parts = room, b"", ""

    def _spawn(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        self.ends = [socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors]
        for end in self.ends:
            end.setblocking(False)

    # -- hearing -------------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        while not self.takes_no_files and (received := self._received_file()):
            name, descriptors = received
            self.lent.update(zip([name], descriptors, strict=False))
        while not self.deaf:
            try:
                data = self.channel.recv(1 << 20)
            except OSError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))

    def _received_file(self) -> tuple[str, list[int]] | None:
        try:
            name, descriptors, _, _ = socket.recv_fds(self.files, 100, 4)
        except OSError:
            return None
        return (name.decode(), descriptors) if name else None

    def _heard(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "part":
                self._parts += frame["data"]
                if frame["last"]:
                    text, self._parts = self._parts, ""
                    self._heard(json.loads(text))
            case "run":
                self.known |= {"cell": frame["id"], "next": frame["id"] + 1}
                self.asked.append(frame)
            case "load" | "get" | "names" | "checkpoint" | "restore":
                self.known["request"] = frame["id"]
                self.asked.append(frame)
                if (spool := self.lent.get(str(frame.get("spool")))) is not None:
                    os.write(spool, SPOOL)

    # -- saying --------------------------------------------------------------------------------------------------------

    async def act(self, act: Act) -> None:
        match act:
            case Say():
                await self.send(self._lines(act))
            case Many(say, times):
                for _ in range(times):
                    if not self.is_heard:
                        break
                    await self.send(self._lines(say))
            case Bytes(data):
                await self.send(scripts.spelled(data))
            case Told(data, count, kind):
                self.tell(scripts.spelled(data), count, kind)
            case Do("deaf"):
                self.deaf = True
            case Do("no files"):
                self.takes_no_files = True
            case Do("hang up files"):
                self.files.close()
            case Do("hang up control"):
                self.control.close()
            case Do("cut spool"):
                for spool in self.lent.values():
                    with contextlib.suppress(OSError):  # one that may only be read
                        os.ftruncate(spool, 0)
            case Do("pass descriptors"):
                with contextlib.suppress(OSError):
                    socket.send_fds(self.channel, [b"\n"], [0, 0])

    async def send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_sendall(self.channel, data)
        except (OSError, TimeoutError):
            self.is_heard = False

    def tell(self, data: bytes, count: int = 0, kind: str = "pipe") -> None:
        made: list[int] = []
        for _ in range(count):
            if kind == "file":
                made.append(os.open("/dev/null", os.O_RDONLY))
            elif kind == "socket":
                made.extend(end.detach() for end in socket.socketpair())
            else:
                made.extend(os.pipe())
        silent = made.pop() if kind == "silent pipe" and made else None
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [data], [*made, *([] if silent is None else [silent])][::-1])
        for descriptor in [*made, *([] if silent is None else [silent])]:
            os.close(descriptor)

    def _lines(self, say: Say) -> bytes:
        began = time.thread_time()
        try:
            return self._made(say)
        finally:
            self.seconds += time.thread_time() - began

    def _made(self, say: Say) -> bytes:
        text = scripts.text_of(say.frame, self.known, self._room)
        if '"@call"' in json.dumps(say.frame):
            self.known |= {"last": self.known["call"], "call": self.known["call"] + 1}
        self._note(text)
        whole, at = text.encode() + b"\n", say.cut % (len(text) + 1)
        match say.how:
            case "whole":
                return whole
            case "twice":
                self._note(text)
                return whole * 2
            case "cut":
                return whole[:at] + b"\n"
            case "endless":
                return whole[:-1]
            case "open":
                return _part(7, text[:at], last=False)
            case "between":
                return (
                    _part(8, text[:at], last=False) + _part(9, text[:at], last=False) + _part(8, text[at:], last=True)
                )
            case "slices":
                starts = range(0, len(text), SLICE)
                return b"".join(_part(7, text[n : n + SLICE], last=n + SLICE >= len(text)) for n in starts)
        return _part(say.cut, text[:at], last=False) + _part(say.cut, text[at:], last=True)

    def _note(self, text: str) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(text):
                case {"type": "call", "cell": int(cell), "name": str(name), "args": list(args), "kwargs": dict(kwargs)}:
                    self.calls.append((int(cell), name, len(args), tuple(kwargs)))

    def ready(self) -> bytes:
        if isinstance(self.transport, SandboxTransport):
            with contextlib.suppress(OSError):
                socket.send_fds(self.control, [b"{}"], [self.alive])
        return json.dumps(scripts.READY).encode() + b"\n"

    def answers(self) -> bytes:
        """To everything that the host still waits for."""
        asked, self.asked = self.asked, []
        return b"".join(json.dumps(self._answer(frame)).encode() + b"\n" for frame in asked)

    def _answer(self, frame: dict[str, Any]) -> dict[str, Any]:
        match frame["type"]:
            case "run":
                return {**scripts.DONE, "id": frame["id"], "names": {"x": "int"}}
            case "checkpoint":
                value: Any = scripts.HEAP if frame["spool"] else scripts.NO_SPOOL
            case "restore":
                value = scripts.LOST
            case "names":
                value = {"x": "int"}
            case _:
                value = None
        return {"type": "value", "id": frame["id"], "value": value}

    def die(self) -> None:
        for end in (self.channel, self.files, self.control):
            end.close()
        if self.dying >= 0:
            os.close(self.dying)
            self.dying = -1

    def close(self) -> None:
        self.die()
        self.session.close()
        for descriptor in (self.alive, *self.lent.values()):
            os.close(descriptor)
        self.lent.clear()


def _part(number: int, data: str, *, last: bool) -> bytes:
    return json.dumps({"type": "part", "id": number, "last": last, "data": data}).encode() + b"\n"


class Host:
    """A kernel, what it asks, and what its functions were called with."""

    def __init__(self, liar: Liar, folder: Path, deep: int) -> None:
        self.liar, self.folder, self.deep = liar, folder, deep
        self.kernel = Kernel(liar.transport, [Tool("tool", len, "Counts.")], captured=True, max_asked=MAX_ASKED)
        self.spools = self.held = 0
        self.called: list[tuple[int, str, int, tuple[str, ...]]] = []

    def asking(self, ask: str) -> Coroutine[Any, Any, Any]:
        return self._deeper(self.deep, self._ask(ask))

    async def _deeper(self, levels: int, asked: Coroutine[Any, Any, Any]) -> Any:
        return await (self._deeper(levels - 1, asked) if levels else asked)

    async def _ask(self, ask: str) -> Any:
        kernel = self.kernel
        match ask:
            case "start":
                return await kernel.start()
            case "run" | "timed":
                code = "pass" if ask == "run" else "x" * 3_000_000  # more than a socket takes
                return await kernel.run(
                    code, self._answer, timeout=None if ask == "run" else 5.0, printed=self._printed
                )
            case "get":
                return await kernel.get("x")
            case "names":
                return await kernel.refresh()
            case "load":
                return await kernel.load(["context"], CHILD)
            case "file":
                return await kernel.load(["context"], Payload("str", "text", path=self.folder / "context"))
            case "checkpoint":
                self.spools += 1
                spool = self.folder / f"spool-{self.spools}"
                spool.touch()
                return await kernel.capture(spool)
            case "restore":
                blob = DATA if isinstance(self.liar.transport, Plain) else self.folder / "blob"
                return await kernel.restore(IMAGE, dict.fromkeys(DIGESTS, blob), seconds=20.0)
        return await self._broken(ask)

    async def _broken(self, ask: str) -> Any:
        """A host that keeps no promises, to see that this is seen."""
        match ask:
            case "a host that unpickles":
                return pickle.loads(scripts.TRAP)
            case "a host that reads elsewhere":
                with open("/etc/passwd", "rb") as file:  # noqa: ASYNC230, PTH123 - so hosts that go wrong do
                    return file.read()
            case "a host that calls by itself":
                return await self._answer("tool", [], {})
            case "a host that waits for ever":
                self.kernel.close = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
                return await asyncio.Event().wait()
        raise AssertionError(ask)

    def _printed(self, stream: str, text: str) -> None:
        if stream not in ("stdout", "stderr") or type(text) is not str:
            raise Broken(f"printed {text!r} on {stream!r}")

    async def _answer(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.called.append((self.kernel.cells, name, len(args), tuple(kwargs)))
        size = sum(len(arg) for arg in args if isinstance(arg, str))
        self.held += size
        if self.held > MAX_ASKED:
            _seen.append(f"{self.held:,} characters of calls are held at once")
        try:
            if len(self.called) % 3 == 2:
                await asyncio.Event().wait()
            if "k" in kwargs:
                raise CallFailed("no", "budget")
            return [name, *args]
        finally:
            self.held -= size


def play(script: Script) -> str:
    """Returns why the worker was given up, "" where it was not. Raises `Broken`."""
    with tempfile.TemporaryDirectory(prefix="rlm-fuzz-") as name:
        folder = Path(name)
        (folder / "context").write_bytes(b"a" * 100)
        (folder / "blob").write_bytes(DATA)
        open_before = _open_files()
        try:
            with asyncio.Runner(loop_factory=Loop) as runner:
                open_within = _open_files()
                dead = runner.run(_play(script, folder))
                if (left := _open_files() - open_within) > 0:
                    raise Broken(f"{left} descriptors are left open")
        except Hang as hang:
            raise Broken(f"a hang: {hang}") from None
        if _open_files() > open_before:
            raise Broken("descriptors are left open")
    return dead


async def _play(script: Script, folder: Path) -> str:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    said: list[str] = []
    loop.set_exception_handler(lambda _, context: said.append(f"{context['message']}: {context.get('exception')!r}"))
    watched = loop.watched
    _seen.clear()
    began = time.thread_time()
    with nothing_forbidden(folder):
        liar = Liar(script.plain, _room())
        host = Host(liar, folder, script.deep)
        try:
            await _life(script, host, liar)
        finally:
            dead = host.kernel.dead or ""
            await host.kernel.close()
            liar.close()
            await _turns(liar)
        await _honest(folder)
    if loop.watched != watched:
        raise Broken("the loop still waits for a descriptor of a worker that is gone")
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        raise Broken(f"tasks are left: {left}")
    if (seconds := time.thread_time() - began - liar.seconds) > BUSY:
        raise Broken(f"the host was kept busy for {seconds:.1f} s")
    del host, liar
    gc.collect(1)
    if said or _seen:
        raise Broken("; ".join([*said, *_seen])[:2_000])
    return dead


async def _life(script: Script, host: Host, liar: Liar) -> None:
    start = asyncio.create_task(host.asking("start"))
    for act in script.first:
        await liar.act(act)
        await _turns(liar)
    await liar.send(liar.ready())
    await _outcome(start, "start", host)
    for step in script.steps:
        await _step(step, host, liar)
        _check_calls(host, liar)
        if host.kernel.dead is not None:
            await _finds_it_dead(host)
            return


async def _step(step: Step, host: Host, liar: Liar) -> None:
    task = asyncio.create_task(host.asking(step.ask))
    await _turns(liar)
    for act in step.acts:
        await liar.act(act)
        await _turns(liar)
    match step.end:
        case "answer":
            for _ in range(PARTS):
                await liar.send(liar.answers())
                await _turns(liar)
        case "die":
            liar.die()
        case "cancel" | "cancel twice":
            task.cancel()
            await _turns(liar)
            if step.end == "cancel twice":
                task.cancel()
            else:
                await liar.send(liar.answers())
        case "die and cancel":
            liar.die()
            for _ in range(len(step.acts)):
                await asyncio.sleep(0)
            task.cancel()
        case "die, and cancelled at that moment":
            if isinstance(liar.transport, Observed):
                liar.transport.at_end = task.cancel
            liar.die()
        case "close":
            await host.kernel.close()
    if not (await asyncio.wait([task], timeout=PATIENCE))[0]:
        await host.kernel.close()
        if not (await asyncio.wait([task], timeout=PATIENCE))[0]:
            raise Broken(f"{step.ask!r} does not end with its worker")
    asked = {"timed": "run", "file": "load"}.get(step.ask, step.ask)
    await _outcome(task, asked, host, "cancel" in step.end)


async def _outcome(task: asyncio.Task[Any], asked: str, host: Host, cancelled: bool = False) -> None:
    try:
        value = await task
    except asyncio.CancelledError:
        if not cancelled:
            raise Broken(f"{asked!r} was cancelled, by nobody") from None
        return
    except Exception as error:
        if type(error) not in MAY_RAISE.get(asked, ()):
            raise Broken(f"{asked!r} raised {type(error).__name__}: {str(error)[:500]}") from error
        if len(str(error)) > LONGEST:
            raise Broken(f"{asked!r} raised an error of {len(str(error)):,} characters: {str(error)[:100]}") from None
        if isinstance(error, ProtocolError) and host.kernel.dead is None:
            raise Broken(f"{asked!r} raised a ProtocolError, and the worker goes on") from error
        if len(host.kernel.dead or "") > LONGEST:
            raise Broken(f"the worker died of {len(host.kernel.dead or ''):,} characters") from None
        return
    _check_value(asked, value, host)


def _check_value(asked: str, value: Any, host: Host) -> None:
    if asked == "run" and not (isinstance(value, REPLResult) and isinstance(value.stdout + value.stderr, str)):
        raise Broken(f"a cell's result is {value!r:.200}")
    if asked == "restore" and not all(isinstance(loss, Lost) for loss in value.values()):
        raise Broken(f"losses are {value!r:.200}")
    if asked == "checkpoint":
        if not isinstance(value, Capture):
            raise Broken(f"a capture is {value!r:.200}")
        spool = host.folder / f"spool-{host.spools}"
        for blob in value.blobs.values():
            if isinstance(blob, Part) and (blob.path != spool or not 0 <= blob.start <= blob.start + blob.size):
                raise Broken(f"a part of the spool is {blob!r:.200}")


def _check_calls(host: Host, liar: Liar) -> None:
    possible = list(liar.calls)
    for call in host.called:
        if call not in possible:
            raise Broken(f"a function was called as nobody asked: {call!r:.200}")
        possible.remove(call)


async def _finds_it_dead(host: Host) -> None:
    for ask in ("run", "get", "checkpoint", "file"):
        try:
            await host._ask(ask)
        except WorkerGone:
            continue
        except Exception as error:
            raise Broken(f"{ask!r} of a dead worker raised {type(error).__name__}: {str(error)[:200]}") from error
        raise Broken(f"{ask!r} of a dead worker has an answer")


async def _honest(folder: Path) -> None:
    """A new worker works, whatever the one before has done."""
    liar = Liar(False, 0)
    host = Host(liar, folder, 0)
    start = asyncio.create_task(host.kernel.start())
    await liar.send(liar.ready())
    await start
    run = asyncio.create_task(host._ask("run"))
    await _turns(liar)
    await liar.act(Say(scripts.CALL))
    await _turns(liar)
    await liar.send(liar.answers())
    result = await run
    if result.error is not None or len(host.called) != 1 or dict(result.locals) != {"x": "int"}:
        raise Broken(f"a new worker does not work: {result!r:.200}")
    liar.die()
    await host.kernel.close()
    liar.close()


async def _turns(liar: Liar) -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
        liar.hear()


def _room() -> int:
    """How deep JSON may be nested here, some levels more or less."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return sys.getrecursionlimit() - depth


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - without an object for each


# -- what the host must not do -----------------------------------------------------------------------------------------

FORBIDDEN = (
    "pickle.",
    "exec",
    "compile",
    "import",
    "marshal.",
    "os.exec",
    "os.system",
    "os.posix_spawn",
    "subprocess.",
)
_allowed: list[str] = []


@contextlib.contextmanager
def nothing_forbidden(folder: Path) -> Iterator[None]:
    """Whatever evaluates code, or opens a file elsewhere, raises `Broken` meanwhile."""
    if not _hooked:
        sys.addaudithook(_audit)  # which stays for good, and does nothing outside of scripts
        _hooked.append(True)
    _allowed.extend([str(folder), f"{tempfile.gettempdir()}/rlm-restore-", "/dev/null"])
    try:
        yield
    finally:
        _allowed.clear()


_hooked: list[bool] = []
_seen: list[str] = []  # what was forbidden and done, also where the host has caught what told it so


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    elsewhere = event == "open" and isinstance(arguments[0], str) and not arguments[0].startswith(tuple(_allowed))
    if elsewhere or event.startswith(FORBIDDEN):
        _seen.append(f"{event} {arguments!r:.200}")
        raise Broken(_seen[-1])
