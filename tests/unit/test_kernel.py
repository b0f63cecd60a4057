"""The host's end of a worker: over a real process, over bare frames, and over workers that lie, die or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlm.environments import kernel as module
from rlm.environments import wire
from rlm.environments.kernel import Kernel, Names, WorkerGone
from rlm.environments.payload import pack
from rlm.environments.process import RUN, WORKER_FOLDER, ProcessTransport
from rlm.errors import ContextError, ProtocolError, SandboxError
from rlm.ports import CallFailed, Transport
from rlm.types import CellError, RemoteValue, REPLResult, Tool

PATIENCE = 30.0


class Bare:
    """A worker's standard input and output and nothing else: no signals, no files, a write that waits."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self._folder, self._python = folder, python
        self._process: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            self._python,
            "-c",
            RUN,
            str(WORKER_FOLDER),
            "listen",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._folder,
            start_new_session=True,
        )

    async def send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def receive(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        return await self._process.stdout.read(1 << 16)

    async def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


TRANSPORTS: dict[str, Callable[[Path], Transport]] = {"process": ProcessTransport, "bare": Bare}


@pytest.fixture(params=TRANSPORTS.values(), ids=TRANSPORTS.keys())
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Transport]:
    """Makes a transport to a real worker: one with every capability, then one with none."""
    return lambda: request.param(tmp_path)


@contextlib.asynccontextmanager
async def running(transport: Transport, **options: Any) -> AsyncIterator[Kernel]:
    kernel = Kernel(transport, **options)
    await kernel.start()
    try:
        yield kernel
    finally:
        await kernel.close()


def over(transport: Transport, script: Callable[[Kernel], Awaitable[Any]], **options: Any) -> Any:
    """What the script returns that is given a running kernel."""

    async def main() -> Any:
        async with asyncio.timeout(PATIENCE), running(transport, **options) as kernel:
            return await script(kernel)

    return asyncio.run(main())


async def echo(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return [name, list(args), dict(kwargs)]


class Heard:
    """A listener of a cell's output; `wait` until it has heard a text."""

    def __init__(self) -> None:
        self.text = {"stdout": "", "stderr": ""}
        self._more = asyncio.Event()

    def __call__(self, stream: str, text: str) -> None:
        self.text[stream] += text
        self._more.set()

    async def wait(self, text: str) -> None:
        while text not in self.text["stdout"]:
            self._more.clear()
            await self._more.wait()


# -- a real worker -----------------------------------------------------------------------------------------------------


def test_cells_values_and_names(connect: Callable[[], Transport], tmp_path: Path) -> None:
    async def script(kernel: Kernel) -> None:
        assert kernel.python == ".".join(map(str, sys.version_info[:3]))
        first = await kernel.run("x = [1, {2: b'3'}]\nprint('hello')\nanswer['content'] = 'draft'")
        assert (first.stdout, first.stderr, first.error, first.locals) == ("hello\n", "", None, {"x": "list"})
        assert first.draft is not None
        assert (first.draft.content, first.final_answer, first.execution_time > 0) == ("draft", None, True)
        assert await kernel.get("x") == [1, {2: b"3"}]
        failed = await kernel.run("y = 1\n1 / 0")
        assert failed.error is not None
        assert (failed.error.type, failed.stderr) == ("ZeroDivisionError", f"{failed.error.text}\n")
        assert failed.locals == {"x": "list", "y": "int"}
        assert (await kernel.run("answer['ready'] = True")).final_answer == "draft"
        await kernel.load(["context", "context_0"], pack("a\r\n\ud800", tmp_path))
        assert await kernel.get("context") == "a\r\n\ud800"
        large = "ä\r\n" * 500_000
        await kernel.load(["large"], pack(large, tmp_path))
        assert await kernel.get("large") == large
        await kernel.run("del x\nz = object")
        assert await kernel.refresh() == {"y": "int", "context": "str", "context_0": "str", "large": "str", "z": "type"}
        assert kernel.names == await kernel.refresh()
        assert await kernel.get("z") == RemoteValue("type", "<class 'object'>")
        with pytest.raises(KeyError, match="nothing"):
            await kernel.get("nothing")
        assert first.locals == {"x": "list"}  # as of then

    over(connect(), script)


def test_a_value_that_the_worker_cannot_build_is_an_error(connect: Callable[[], Transport], tmp_path: Path) -> None:
    async def script(kernel: Kernel) -> None:
        (tmp_path / "only_here.py").write_text("")
        payload = pack({"a"}, tmp_path)
        broken = type(payload)(payload.type, "pickle", text="AAAA")
        with pytest.raises(ContextError, match=r"context_0 cannot be brought into the REPL: UnpicklingError"):
            await kernel.load(["context_0"], broken)
        assert (await kernel.run("print('fine')")).stdout == "fine\n"

    over(connect(), script)


def test_calls_are_answered_concurrently(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        at_once = asyncio.Barrier(8)

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            await at_once.wait()  # passes only when all eight are here
            return "x" * 300_000 + args[0]

        code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print([answer[-1] for answer in pool.map(llm_query, "abcdefgh")])
"""
        assert (await kernel.run(code, answer)).stdout == f"{list('abcdefgh')}\n"

    over(connect(), script)


def test_what_can_go_wrong_with_a_call_is_the_cells_to_handle(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            match args:
                case ["refused"]:
                    raise CallFailed("no money left", "budget")
                case ["broken"]:
                    raise LookupError("no such row")
                case ["odd"]:
                    return object()
            return args[0]

        code = """
for prompt in ("refused", "broken", "odd", "fine"):
    answer_ = llm_query(prompt)
    print(getattr(answer_, "reason", None), answer_)
"""
        told = (await kernel.run(code, answer)).stdout.splitlines()
        assert told[:2] == ["budget Error: no money left", "tool Error: LookupError: no such row"]
        assert told[2].startswith("value Error: llm_query(): value is of type object")
        assert told[3] == "None fine"
        nobody = await kernel.run("print(llm_query('?').reason)")
        assert nobody.stdout == "disconnected\n"

    over(connect(), script)


def test_tools_are_functions_of_the_namespace(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        result = await kernel.run("print(lookup(1, key=b'2'), lookup.__doc__)", echo)
        assert result.stdout == "['lookup', [1], {'key': b'2'}] Finds rows.\n"
        assert result.locals == {}

    over(connect(), script, tools=[Tool("lookup", len, "Finds rows.")])


def test_output_is_heard_before_the_cell_ends(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        heard, go = Heard(), asyncio.Event()

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            await go.wait()

        cell = asyncio.create_task(
            kernel.run("print('now', flush=True)\nllm_query('?')\nprint('end')", answer, printed=heard)
        )
        await heard.wait("now\n")
        assert not cell.done()
        go.set()
        assert (await cell).stdout == "now\nend\n"

    over(connect(), script)


def test_a_listener_that_fails_is_heard_of_once_the_cell_has_ended(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        def broken(stream: str, text: str) -> None:
            raise LookupError("the spectator's own")

        with pytest.raises(LookupError):
            await kernel.run("print('a', flush=True)\nprint('b', flush=True)\nx = 1", printed=broken)
        assert (await kernel.run("print(x)")).stdout == "1\n"

    over(connect(), script)


BUSY = "kept = 1\nprint('busy', flush=True)\nwhile True:\n    pass"
STUBBORN = """
told = False
while True:
    try:
        if not told:
            told = True
            print('busy', flush=True)
        while True:
            pass
    except BaseException:
        pass
"""


def test_a_time_limit_interrupts_and_keeps_the_namespace(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        result = await kernel.run(BUSY, timeout=0.5)
        assert result.error is not None
        assert result.error.type == "CellTimeout"
        assert "KeyboardInterrupt" in result.error.text
        assert "0.5 s" in result.stderr
        assert result.stdout == "busy\n"
        assert (await kernel.run("print(kept)", timeout=PATIENCE)).stdout == "1\n"
        second = await kernel.run(BUSY, timeout=0.05)  # its interrupt comes soon after the first one
        assert second.error is not None
        assert second.error.type == "CellTimeout"

    over(connect(), script)


def test_a_cell_that_ignores_interrupts_is_killed(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        with pytest.raises(WorkerGone, match="ignored the interrupt") as gone:
            await kernel.run(STUBBORN, timeout=0.1)
        assert (gone.value.stopped, gone.value.partial.stdout) == ("timeout", "busy\n")
        assert kernel.dead is not None
        with pytest.raises(WorkerGone):
            await kernel.run("pass")
        with pytest.raises(WorkerGone):
            await kernel.get("x")

    over(connect(), script)


def test_a_cancelled_cell_is_interrupted_and_the_namespace_kept(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        heard = Heard()
        cell = asyncio.create_task(kernel.run(BUSY, printed=heard))
        await heard.wait("busy")
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert kernel.dead is None
        assert (await kernel.run("print(kept)")).stdout == "1\n"

    over(connect(), script)


def test_a_cell_cancelled_before_it_began_does_not_take_the_namespace_along(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        await kernel.run("kept = 1")
        for _ in range(3):
            cell = asyncio.create_task(kernel.run("while True: pass"))
            await asyncio.sleep(0)
            cell.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cell
        assert (await kernel.run("print(kept)")).stdout == "1\n"

    over(connect(), script)


def test_a_cancelled_cell_that_is_stubborn_is_killed(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        heard = Heard()
        cell = asyncio.create_task(kernel.run(STUBBORN, printed=heard))
        await heard.wait("busy")
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert kernel.dead is not None
        with pytest.raises(WorkerGone, match="ignored"):
            await kernel.run("pass")

    over(connect(), script)


def test_who_cancels_twice_does_not_wait(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        heard = Heard()
        cell = asyncio.create_task(kernel.run(STUBBORN, printed=heard))
        await heard.wait("busy")
        cell.cancel()
        await asyncio.sleep(0)
        cell.cancel()
        await asyncio.wait([cell])
        assert cell.cancelled()
        assert kernel.dead is not None

    over(connect(), script)


def test_a_pool_of_threads_that_wait_for_calls_can_be_interrupted(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        asked, all_asked = [], asyncio.Event()

        async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            asked.append(args)
            if len(asked) == 8:
                all_asked.set()
            await asyncio.Event().wait()

        code = """
from concurrent.futures import ThreadPoolExecutor
kept = []
with ThreadPoolExecutor(8) as pool:
    kept.extend(pool.map(llm_query, map(str, range(100))))
"""
        cell = asyncio.create_task(kernel.run(code, never))
        await all_asked.wait()
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert kernel.dead is None
        assert (await kernel.run("print(kept)")).stdout == "[]\n"

    over(connect(), script)


def test_the_answers_of_a_cells_calls_end_with_it(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        async def slow(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            if args == ["fast"]:
                await asked.wait()
                return ""
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)  # as who cleans up in a database does
                ended.set()

        code = """
import threading
answers = []
thread = threading.Thread(target=lambda: answers.append(llm_query("slow")))
thread.start()
llm_query("fast")
"""
        assert (await kernel.run(code, slow)).error is None
        assert ended.is_set()
        told = await kernel.run("thread.join()\nprint(answers, answers[0].reason)")
        assert told.stdout == "['Error: the cell that made this call has ended'] cancelled\n"

    over(connect(), script)


def test_cancelling_while_much_is_sent_leaves_no_half_frame(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        await kernel.run("kept = 1")
        cell = asyncio.create_task(kernel.run(f"x = {'x' * 3_000_000!r}"))
        for _ in range(3):
            await asyncio.sleep(0)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        load = asyncio.create_task(kernel.get("kept"))
        await asyncio.sleep(0)
        load.cancel()
        assert await kernel.get("kept") == 1  # the answer to the one before is no offence

    over(connect(), script)


def test_one_cell_at_a_time(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        heard = Heard()
        cell = asyncio.create_task(kernel.run(BUSY, printed=heard))
        await heard.wait("busy")
        with pytest.raises(RuntimeError, match="one cell at a time"):
            await kernel.run("pass")
        await kernel.close()
        with pytest.raises(WorkerGone, match="closed"):
            await cell

    over(connect(), script)


def test_death_is_told_with_what_was_printed(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        with pytest.raises(WorkerGone, match="died") as gone:
            await kernel.run("import os\nprint('last words', flush=True)\nos._exit(7)")
        assert (gone.value.stopped, gone.value.partial.stdout) == (None, "last words\n")
        if isinstance(kernel.transport, ProcessTransport):
            assert "exited with status 7" in str(gone.value)

    over(connect(), script)


def test_closing_twice_and_before_the_start(connect: Callable[[], Transport]) -> None:
    async def main() -> None:
        kernel = Kernel(connect())
        await kernel.close()
        await kernel.close()
        kernel = Kernel(connect())
        await kernel.start()
        await asyncio.gather(kernel.close(), kernel.close())
        await kernel.close()

    asyncio.run(main())


def test_changes_without_end_are_put_together(connect: Callable[[], Transport]) -> None:
    async def script(kernel: Kernel) -> None:
        results = [await kernel.run(f"x{n} = 1") for n in range(module.MAX_CHANGES + 5)]
        assert [len(results[n].locals) for n in (0, 500, module.MAX_CHANGES + 4)] == [1, 501, module.MAX_CHANGES + 5]

    if connect().__class__ is ProcessTransport:
        over(connect(), script)


def test_names_are_a_mapping_as_of_one_moment() -> None:
    changes: list[tuple[Mapping[str, str], Sequence[str]]] = [({"a": "int", "b": "str"}, ()), ({"a": "list"}, ("b",))]
    names = Names(changes)
    changes.append(({"c": "int"}, ()))
    assert (len(names), list(names), names["a"], "b" in names, repr(names)) == (
        1,
        ["a"],
        "list",
        False,
        "{'a': 'list'}",
    )


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_python_that_is_none(tmp_path: Path) -> None:
    async def main(python: str) -> None:
        await Kernel(ProcessTransport(tmp_path, python=python)).start()

    with pytest.raises(SandboxError, match=r"/nowhere/python cannot be started: .*No such file"):
        asyncio.run(main("/nowhere/python"))
    with pytest.raises(SandboxError, match=r"did not start: the worker died \(exited with status 0\)"):
        asyncio.run(main("/bin/true"))


def test_why_a_worker_did_not_start_is_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such interpreter >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(SandboxError, match="exited with status 3: no such interpreter"):
        asyncio.run(Kernel(ProcessTransport(tmp_path, python=str(python))).start())


def test_a_worker_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    with pytest.raises(SandboxError, match=r"did not start within 0.2 s \(killed by SIGKILL\)"):
        asyncio.run(Kernel(ProcessTransport(tmp_path, python=str(python)), start_seconds=0.2).start())


def test_a_cancelled_start_ends_its_worker(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    python.chmod(0o755)

    async def main() -> None:
        start = asyncio.create_task(Kernel(ProcessTransport(tmp_path, python=str(python))).start())
        # Another process writes it.
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    asyncio.run(main())


def test_how_a_process_ended_is_told_by_its_signal(tmp_path: Path) -> None:
    async def main(number: int) -> str:
        async with running(ProcessTransport(tmp_path)) as kernel:
            with pytest.raises(WorkerGone) as gone:
                await kernel.run(f"import os\nos.kill(os.getpid(), {number})")
            return str(gone.value)

    assert "killed by SIGSEGV" in asyncio.run(main(signal.SIGSEGV))
    assert "killed by signal 40" in asyncio.run(main(40))  # which has no name


# -- workers that are none ---------------------------------------------------------------------------------------------


class Scripted:
    """A transport whose worker is an async function of the test: it hears frames and says whatever it likes."""

    def __init__(self, script: Callable[[Scripted], Awaitable[None]]) -> None:
        self._script = script
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._rest = b""
        self._task: asyncio.Task[None] | None = None
        self.closed = 0

    async def open(self) -> None:
        async def play() -> None:
            await self._script(self)
            self._said.put_nowait(b"")

        self._task = asyncio.create_task(play())

    async def send(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._heard.put_nowait(json.loads(line))
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        return b"" if self.closed else await self._said.get()

    async def close(self) -> None:
        self.closed += 1
        if self._task is not None:
            self._task.cancel()
        self._said.put_nowait(b"")

    async def hear(self, type: str) -> dict[str, Any]:
        """The next frame of this type that the host sends."""
        while (frame := await self._heard.get())["type"] != type:
            pass
        return frame

    def say(self, *frames: Any) -> None:
        self._said.put_nowait(b"".join(map(wire.encode, frames)))

    def say_ready(self) -> None:
        self.say({"type": "ready", "python": "3.11.7", "pid": 1})


def done(id: int = 1, **changes: Any) -> dict[str, Any]:
    return {"type": "done", "id": id, "error": None, "answer": None, "names": {}, "gone": [], "streams": {}, **changes}


def out(**changes: Any) -> dict[str, Any]:
    return {"type": "out", "id": 1, "stream": "stdout", "text": "x", **changes}


def call(id: int = 1, **changes: Any) -> dict[str, Any]:
    return {"type": "call", "id": id, "cell": 1, "name": "llm_query", "args": ["?"], "kwargs": {}, **changes}


READY = {"type": "ready", "python": "3.11.7", "pid": 1}
HOSTILE: dict[str, list[Any]] = {
    "garbage": ["…"],
    "a second ready": [READY],
    "an answer nobody asked for": [{"type": "value", "id": 5, "value": 1}],
    "output of another cell": [out(id=2)],
    "output of a stream that is none": [out(stream="stdlog")],
    "output without end": [out(text="x" * 100_000)] * 21,
    "the end of another cell": [done(2)],
    "the end of the cell, twice": [done(), done()],
    "the end of the cell, and then output": [done(), out()],
    "a call of another cell": [call(cell=2)],
    "a call twice": [call(7), call(7)],
    "a call that steps back": [call(7), call(6)],
    "a call after the end": [done(), call()],
    "calls without end": [call(n) for n in range(1, module.MAX_CALLS + 2)],
    "names that are no names": [done(names={"x": 1})],
    "names gone that are no names": [done(gone=[1])],
    "streams that are none": [done(streams={"stdlog": {"text": "", "cut": 0, "tail": ""}})],
    "a stream without a tail": [done(streams={"stdout": {"text": "", "cut": 0}})],
    "a stream that is text": [done(streams={"stdout": "text"})],
    "a cut that is text": [done(streams={"stdout": {"text": "", "cut": "1", "tail": ""}})],
    "a huge tail": [done(streams={"stdout": {"text": "", "cut": 0, "tail": "x" * 2_000_001}})],
    "an error without a text": [done(error={"type": "ValueError"})],
    "an error whose text is none": [done(error={"type": "ValueError", "text": None})],
    "a huge error": [done(error={"type": "ValueError", "text": "x" * 2_000_001})],
    "an answer that is not ready or not": [done(answer={"content": "", "ready": 1})],
    "an answer that is no text": [done(answer={"content": ["x"], "ready": True})],
}


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_worker_that_breaks_the_protocol_is_stopped(frames: list[Any]) -> None:
    async def lie(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(*frames)
        await asyncio.Event().wait()

    async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async def script(kernel: Kernel) -> None:
        with contextlib.suppress(WorkerGone):
            await kernel.run("pass", never)  # which may have ended well before the lie came
        while kernel.dead is None:  # noqa: ASYNC110 - for as long as what arrived takes to be read
            await asyncio.sleep(0)
        assert "broke the protocol" in str(kernel.dead)
        with pytest.raises(WorkerGone, match="broke the protocol"):
            await kernel.run("pass")

    transport = Scripted(lie)
    over(transport, script)
    assert transport.closed


def test_half_a_frame_and_then_nothing_is_a_death() -> None:
    async def die(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker._said.put_nowait(b'{"type":"done","id":1,')

    async def script(kernel: Kernel) -> None:
        with pytest.raises(WorkerGone, match=r"^the worker died$"):
            await kernel.run("pass")

    over(Scripted(die), script)


@pytest.mark.parametrize("said", [[], [done()], [out()], ["…"], [{"type": "value", "id": 1}]], ids=str)
def test_a_first_word_other_than_ready_is_no_start(said: list[Any]) -> None:
    async def lie(worker: Scripted) -> None:
        worker.say(*said)

    async def script(kernel: Kernel) -> None:
        raise AssertionError("it has not started")

    transport = Scripted(lie)
    with pytest.raises(SandboxError, match="did not start"):
        over(transport, script)
    assert transport.closed


@pytest.mark.parametrize(
    ("value", "ask"),
    [
        ({"$": "int", "v": 5}, lambda kernel: kernel.get("x")),
        (json.loads("[" * 150 + "]" * 150), lambda kernel: kernel.get("x")),
        (["x"], lambda kernel: kernel.refresh()),
        ({"x": 1}, lambda kernel: kernel.refresh()),
        (None, lambda kernel: kernel.refresh()),
    ],
)
def test_a_value_that_is_none_stops_the_worker(value: Any, ask: Callable[[Kernel], Awaitable[Any]]) -> None:
    async def answer(worker: Scripted) -> None:
        worker.say_ready()
        frame = await worker._heard.get()
        worker.say({"type": "value", "id": frame["id"], "value": value})
        await asyncio.Event().wait()

    async def script(kernel: Kernel) -> None:
        with pytest.raises(ProtocolError):
            await ask(kernel)
        with pytest.raises(WorkerGone, match="broke the protocol"):
            await kernel.run("pass")

    over(Scripted(answer), script)


def test_a_cell_may_make_any_number_of_calls_one_after_the_other() -> None:
    async def ask(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        for start in range(0, 2 * module.MAX_CALLS, module.MAX_CALLS // 2):
            numbers = range(start + 1, start + 1 + module.MAX_CALLS // 2)
            worker.say(*(call(number) for number in numbers))
            assert {(await worker.hear("reply"))["id"] for _ in numbers} == set(numbers)
        worker.say(done())

    async def script(kernel: Kernel) -> None:
        assert (await kernel.run("pass", echo)).error is None

    over(Scripted(ask), script)


def test_hostile_arguments_of_a_call_are_refused() -> None:
    refused: list[Any] = []

    async def lie(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(call(1, args=[{"$": "pickle", "v": "…"}]), call(2, kwargs={"a": {"$": "set", "v": [[]]}}))
        refused.extend([await worker.hear("reply"), await worker.hear("reply")])
        worker.say(done())

    async def script(kernel: Kernel) -> None:
        assert (await kernel.run("pass", echo)).error is None

    over(Scripted(lie), script)
    assert [reply["reason"] for reply in refused] == ["value", "value"]


def test_a_worker_that_stays_silent_is_interrupted_twice_and_then_ended() -> None:
    interrupts: list[Any] = []

    async def ignore(worker: Scripted) -> None:
        worker.say_ready()
        while True:
            interrupts.append(await worker.hear("interrupt"))

    async def script(kernel: Kernel) -> None:
        with pytest.raises(WorkerGone, match="ignored"):
            await kernel.run("pass", timeout=0.05)

    over(Scripted(ignore), script)
    assert len(interrupts) == 2


@pytest.mark.parametrize("end", ["done", "cancelled", "death"])
def test_however_a_cell_ends_its_calls_have_ended_before(end: str) -> None:
    async def play(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(call(1), call(2))
        if end == "cancelled":
            await worker.hear("interrupt")
        if end != "death":
            worker.say(done())
            await worker.hear("no more")

    async def script(kernel: Kernel) -> None:
        begun, ended = asyncio.Semaphore(0), 0

        async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            nonlocal ended
            begun.release()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                ended += 1

        cell = asyncio.create_task(kernel.run("pass", never))
        for _ in range(2):
            await begun.acquire()
        if end == "cancelled":
            cell.cancel()
        [how] = await asyncio.gather(cell, return_exceptions=True)
        kinds = {"done": REPLResult, "cancelled": asyncio.CancelledError, "death": WorkerGone}
        assert (type(how), ended) == (kinds[end], 2)

    over(Scripted(play), script)


def test_a_call_that_does_not_end_holds_its_cell_up_no_longer_than_the_grace() -> None:
    async def play(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(call(1))
        await worker.hear("go on")

    async def script(kernel: Kernel) -> None:
        begun, released, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def stubborn(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await released.wait()
                ended.set()

        cell = asyncio.create_task(kernel.run("pass", stubborn))
        await begun.wait()
        kernel._receive(done())
        await cell
        assert not ended.is_set()
        released.set()
        await ended.wait()

    over(Scripted(play), script)


def test_calls_of_an_interrupted_cell_are_refused() -> None:
    replies: list[Any] = []

    async def go_on(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(call(1))
        await worker.hear("interrupt")
        replies.append(await worker.hear("reply"))
        worker.say(call(2))
        replies.append(await worker.hear("reply"))
        worker.say(done(error={"type": "KeyboardInterrupt", "text": "KeyboardInterrupt"}))

    async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        await asyncio.Event().wait()

    async def script(kernel: Kernel) -> REPLResult:
        return await kernel.run("pass", never, timeout=0.1)

    result = over(Scripted(go_on), script)
    assert [(reply["id"], reply["error"]) for reply in replies] == [(n, "the cell was interrupted") for n in (1, 2)]
    text = "KeyboardInterrupt\nThe cell was interrupted after 0.1 s, its time limit. The namespace is kept."
    assert result.error == CellError("CellTimeout", text)


def test_an_end_at_the_moment_of_cancelling_is_an_end() -> None:
    async def end(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        worker.say(done())
        await worker.hear("run")
        worker.say(done(2))

    async def script(kernel: Kernel) -> None:
        cell = asyncio.create_task(kernel.run("pass"))
        while not (kernel._cell and kernel._cell.ended):  # noqa: ASYNC110 - exactly until then
            await asyncio.sleep(0)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert (await kernel.run("pass")).error is None

    over(Scripted(end), script)


def test_a_transport_that_fails_to_close_leaves_nobody_waiting() -> None:
    class Broken(Scripted):
        async def close(self) -> None:
            await super().close()
            raise OSError("the provider's API is down")

    async def die(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")

    async def main() -> None:
        kernel = Kernel(Broken(die))
        await kernel.start()
        with pytest.raises(WorkerGone, match="died"):
            await kernel.run("pass")
        with pytest.raises(OSError, match="API is down"):
            await kernel.close()

    asyncio.run(main())


def test_a_send_that_fails_is_a_death_that_the_reader_tells() -> None:
    class Deaf(Scripted):
        async def send(self, data: bytes) -> None:
            self._said.put_nowait(b"")
            raise ConnectionResetError("gone")

    async def start(worker: Scripted) -> None:
        worker.say_ready()
        await asyncio.Event().wait()

    async def script(kernel: Kernel) -> None:
        with pytest.raises(WorkerGone, match="died"):
            await kernel.run("pass")

    over(Deaf(start), script)


def test_output_is_put_together_with_what_was_cut() -> None:
    async def print_much(worker: Scripted) -> None:
        worker.say_ready()
        await worker.hear("run")
        rest = {"text": "b", "cut": 12_345, "tail": "c"}
        worker.say(out(text="a"), done(streams={"stdout": rest, "stderr": {"text": "e", "cut": 0, "tail": "f"}}))

    async def script(kernel: Kernel) -> REPLResult:
        return await kernel.run("pass")

    result = over(Scripted(print_much), script)
    assert (result.stdout, result.stderr) == ("ab\n… [12,345 characters cut] …\nc", "ef")


def test_the_host_is_left_as_it_was(tmp_path: Path) -> None:
    before = (Path.cwd(), sys.stdout, dict(os.environ), signal.getsignal(signal.SIGINT), threading.active_count())

    async def script(kernel: Kernel) -> None:
        await kernel.run("import os, sys\nos.chdir('/')\nos.environ['X'] = '1'\nsys.stdout = None")

    over(ProcessTransport(tmp_path), script)
    after = (Path.cwd(), sys.stdout, dict(os.environ), signal.getsignal(signal.SIGINT), threading.active_count())
    assert after == before
