"""Large captures in a forked copy: the worker goes on meanwhile, and whatever the copy does harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from rlm.environments.kernel import Kernel, WorkerGone
from rlm.environments.process import ProcessTransport
from rlm.errors import ReplError
from rlm.ports import Part
from tests.heaps import Session, content, session
from tests.processes import children, gone, named, naming, token, wait_until
from tests.sandboxed import program, python_of

LARGE = "rows = [{'n': n, 'l': [n]} for n in range(60_000)]"


async def worker(s: Session) -> int:
    await s.run(naming(name := token()))
    return named(name)


async def copy_of(pid: int) -> int:
    """The forked copy, once there is one."""
    while not (found := children(pid)):  # noqa: ASYNC110 - the kernel tells of no child
        await asyncio.sleep(0.001)
    return found[0]


@pytest.mark.parametrize("captured", [True, False])
def test_a_worker_that_will_be_captured_imports_what_that_needs_while_nothing_comes(
    captured: bool, tmp_path: Path
) -> None:
    async def ready(kernel: Kernel) -> bool:
        return (await kernel.run("import sys; print('_rlm_cloudpickle' in sys.modules)")).stdout == "True\n"

    async def script() -> None:
        kernel = Kernel(ProcessTransport(tmp_path), captured=captured)
        await kernel.start()
        try:
            for _ in range(100 if captured else 3):
                await asyncio.sleep(0.05)
                if await ready(kernel):
                    break
            assert await ready(kernel) == captured
        finally:
            await kernel.close()

    asyncio.run(script())


def test_a_large_heap_is_captured_beside_the_next_cells() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        pid = await worker(s)
        capture = asyncio.create_task(s.capture())
        await copy_of(pid)
        assert await s.run("rows.append('later'); rows[0]['n'] = 'later'; print(len(rows))") == "60001"
        change = await capture
        assert "rows" in s.saved()
        assert change.seconds > change.pause > 0
        await s.capture()
        assert "rows" in s.saved()
        assert await s.restore() == {}
        assert await s.run("print(rows[-1], rows[0]['n'], len(rows))") == "later later 60001"

    session(script)


def test_the_answer_of_a_copy_may_come_while_a_cell_runs() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        capture = asyncio.create_task(s.capture())
        await asyncio.sleep(0)
        running = asyncio.create_task(s.run("import time\nfor _ in range(2_000): time.sleep(.01)\n"))
        await capture
        assert not running.done()
        assert "rows" in s.saved()
        s.kernel._interrupt(s.kernel._cell)  # type: ignore[arg-type]
        with contextlib.suppress(AssertionError):
            await running

    session(script)


def test_captures_that_come_while_one_is_under_way_follow_it_with_what_changed_since() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        first = asyncio.create_task(s.kernel.capture(s.spool()))
        await asyncio.sleep(0)
        await s.run("x = 1")
        second = asyncio.create_task(s.kernel.capture(s.spool()))
        third = asyncio.create_task(s.kernel.capture(s.spool()))
        names = [{n for group in (await task).change.groups for n in group.names} for task in (first, second, third)]
        assert names == [{"rows", "answer"}, {"x"}, set()]

    session(script)


def test_a_copy_that_is_killed_costs_nothing_the_next_capture_has_it_all() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        pid = await worker(s)
        capture = asyncio.create_task(s.capture())
        os.kill(await copy_of(pid), signal.SIGKILL)
        with pytest.raises(ReplError, match="has died"):
            await capture
        await s.capture()
        assert {"rows", "answer"} <= s.saved()

    session(script)


def test_a_reducer_that_ends_its_process_costs_its_own_names_in_the_end() -> None:
    async def script(s: Session) -> None:
        await s.cells("class A:\n    def __reduce__(self): import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        await s.run("a = A()\nb = [1]")
        for _ in range(2):
            with pytest.raises(ReplError, match="has died"):
                await s.capture()
        await s.capture()
        assert s.heap.lost["a"].reason == "its capture died"
        await s.cells("a = [2]")
        assert ("a",) in s.groups()
        await s.restore()
        assert await s.run("print(b, 'a' in globals())") == "[1] True"

    session(script)


def test_an_interrupt_of_a_cell_does_not_end_the_copy() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        capture = asyncio.create_task(s.capture())
        await asyncio.sleep(0)
        result = await s.kernel.run("while True: pass", timeout=0.05)
        assert result.error is not None
        await capture
        assert "rows" in s.saved()

    session(script)


def test_the_copy_ends_with_its_worker() -> None:
    async def script(s: Session) -> None:
        await s.run("class A:\n    def __reduce__(self):\n        import time; time.sleep(60)\na = A()")
        parent = await worker(s)
        capture = asyncio.create_task(s.capture())
        pid = await copy_of(parent)
        await s.kernel.close()
        with pytest.raises(WorkerGone):
            await capture
        wait_until(lambda: gone(pid))
        await s.start()

    session(script)


def test_while_a_thread_of_the_cells_lives_values_are_captured_whole() -> None:
    async def script(s: Session) -> None:
        await s.run(
            "import threading\npair = {'a': 0, 'b': 0}; stop = threading.Event()\n"
            "def work():\n    while not stop.is_set():\n        pair.update(a=pair['a'] + 1, b=pair['b'] + 1)\n"
            "t = threading.Thread(target=work, daemon=True); t.start()"
        )
        for _ in range(10):
            change = await s.capture()
            assert change.seconds > change.pause, "in a copy"
        assert set(s.heap.lost) == {"t", "stop"}
        await s.restore()
        assert await s.run("print(pair['a'] - pair['b'])") in "01"

    session(script)


def test_where_no_process_can_be_forked_the_capture_is_made_in_place() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        await s.run("import os\ndef none(): raise OSError('no more processes')\nos.fork = none")
        await s.capture()
        assert "rows" in s.saved()
        assert s.change.pause == s.change.seconds

    session(script)


def test_large_blobs_lie_in_the_spool_one_after_the_other_and_small_ones_do_not() -> None:
    async def script(s: Session) -> None:
        await s.run("text = 'x' * 1_000_000; other = 'y' * 500_000; small = [1]")
        captured = await s.kernel.capture(spool := s.spool())
        blobs = {group.names[0]: captured.blobs[group.digest] for group in captured.change.groups}
        assert isinstance(blobs["small"], bytes)
        parts = [blobs["text"], blobs["other"]]
        assert all(isinstance(part, Part) for part in parts)
        assert {type(content(part)) for part in parts} == {bytes}
        assert b"x" * 1_000_000 in content(blobs["text"])
        assert b"y" * 500_000 in content(blobs["other"])
        assert spool.stat().st_size == sum(len(content(part)) for part in parts)

    session(script)


def test_of_many_small_blobs_only_as_many_ride_in_the_answer_as_it_has_room_for() -> None:
    async def script(s: Session) -> None:
        await s.run("for i in range(180): globals()[f'v{i}'] = [bytes([i]) * 200_000]")
        captured = await s.kernel.capture(s.spool())
        riding = sum(len(blob) for blob in captured.blobs.values() if isinstance(blob, bytes))
        assert 30 << 20 < riding <= 32 << 20
        assert len(captured.blobs) > 180
        assert sum(isinstance(blob, Part) for blob in captured.blobs.values()) > 10

    session(script)


def test_without_a_spool_all_blobs_ride_in_the_answer() -> None:
    async def script(s: Session) -> None:
        await s.run("text = 'x' * 1_000_000")
        captured = await s.kernel.capture(None)
        assert max(len(blob) for blob in captured.blobs.values() if isinstance(blob, bytes)) > 1_000_000

    session(script)


def test_a_large_text_is_not_pickled_again_because_a_cell_reads_it() -> None:
    async def script(s: Session) -> None:
        await s.cells("text = 'x' * 30_000_000")
        await s.run("n = len(text)")
        assert (await s.capture()).pause == s.change.seconds, "in place"
        assert s.saved() == {"n"}
        await s.cells("other = text")
        assert ("other", "text") in s.groups()
        await s.cells("text = text + '!'")
        assert {("other",), ("text",)} <= s.groups()

    session(script)


def test_no_process_and_no_thread_of_the_cells_is_left_by_captures() -> None:
    async def script(s: Session) -> None:
        await s.run(LARGE)
        await s.capture()
        pid = await worker(s)
        assert children(pid) == []
        assert (
            await s.run("import threading; print([t.name for t in threading.enumerate() if t.name == 'rlm-capture'])")
            == "[]"
        )

    session(script)


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_a_fork_beside_threads_warns_nobody_and_leaves_filters_alone(version: str) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} here")

    async def script(s: Session) -> None:
        await s.run("import warnings, threading, time\nwarnings.simplefilter('error'); before = list(warnings.filters)")
        await s.run("t = threading.Thread(target=time.sleep, args=(30,), daemon=True); t.start()")
        await s.capture()
        assert "before" in s.saved()
        result = await s.kernel.run("print(warnings.filters == before)")
        assert (result.stdout, result.stderr) == ("True\n", "")

    session(script, python=python)


def test_a_worker_that_hears_interrupts_as_frames_captures_too(tmp_path: Path) -> None:
    with program(tmp_path, "listen") as host:
        host.expect("ready")
        host.run(LARGE)
        for id in (1, 2, 3):
            host.send("checkpoint", id=id, spool=None, whole=False, limit=0)
        answers = [host.expect("value") for _ in range(3)]
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert [{name for group in answer["value"]["groups"] for name in group[0]} for answer in answers] == [
        {"rows", "answer"},
        set(),
        set(),
    ]
