"""The portal: one event loop that blocking code and other loops hop to; exceptions and Ctrl-C are handed on."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rlm.errors import RLMError
from rlm.portal import Portal, aiterate, blocking, hopping, in_thread, iterate, portal

PATIENCE = 30.0


async def add(one: int, other: int) -> int:
    await asyncio.sleep(0)
    return one + other


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("here")


# -- blocking callers --------------------------------------------------------------------------------------------------


def test_run_waits_for_the_result_or_the_exception() -> None:
    assert portal().run(add(1, 2)) == 3
    with pytest.raises(LookupError, match="here"):
        portal().run(fail())


@pytest.mark.parametrize("exit", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_coroutine_that_exits_ends_nothing_but_itself(exit: BaseException) -> None:
    async def leave() -> None:
        raise exit

    with pytest.raises(type(exit)):
        portal().run(leave())
    with pytest.raises(type(exit)):
        asyncio.run(portal().hop(leave()))
    assert portal().run(add(1, 2)) == 3


def test_there_is_one_portal() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: portal(), range(50)))) == 1


def test_everything_runs_on_one_loop() -> None:
    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with ThreadPoolExecutor(8) as pool:
        loops = set(pool.map(lambda _: portal().run(where()), range(50)))
    assert loops == {portal().loop}


def test_a_blocking_call_from_its_own_thread_is_refused() -> None:
    async def inside() -> None:
        portal().run(add(1, 2))

    with pytest.raises(RLMError, match="await the async form"):
        portal().run(inside())


def test_context_variables_travel_along() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def read() -> str:
        return variable.get() + await in_thread(variable.get)

    variable.set("mine")
    assert portal().run(read()) == "minemine"
    assert asyncio.run(portal().hop(read())) == "minemine"


INTERRUPTED = """
import asyncio, signal, sys, threading
from rlm.portal import portal

ended = []

async def work():
    threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError as cancelled:
        await asyncio.sleep(0.1)
        ended.append("ended")
        {way}

try:
    portal().run(work())
except BaseException as error:
    print(ended, type(error).__name__, error)
print(portal().run(asyncio.sleep(0, "usable")))
"""


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("raise", "['ended'] KeyboardInterrupt "),
        ("raise LookupError('of its own')", "['ended'] LookupError of its own"),
        ("raise asyncio.CancelledError from ValueError('why')", "['ended'] ValueError why"),
        ("return 5", "['ended'] KeyboardInterrupt "),
    ],
)
def test_ctrl_c_cancels_and_waits_for_the_end(way: str, told: str) -> None:
    script = INTERRUPTED.format(way=way)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout.splitlines(), done.stderr) == ([told, "usable"], "")


# -- other loops -------------------------------------------------------------------------------------------------------


def test_hop_awaits_from_any_loop() -> None:
    async def main() -> None:
        assert await portal().hop(add(1, 2)) == 3
        with pytest.raises(LookupError, match="here"):
            await portal().hop(fail())

    asyncio.run(main())
    portal().run(main())  # from the portal's own as well


def test_cancelling_a_hop_waits_for_the_end() -> None:
    ended: list[str] = []

    async def work(begun: threading.Event) -> None:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            ended.append("ended")

    async def main() -> None:
        for times in (1, 2):
            begun = threading.Event()
            task = asyncio.create_task(portal().hop(work(begun)))
            await asyncio.to_thread(begun.wait)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(ended) == times

    asyncio.run(main())


def test_cancelling_before_the_beginning_begins_nothing() -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)
        await asyncio.sleep(600)

    async def main() -> None:
        task = asyncio.create_task(portal().hop(work()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(20):
        asyncio.run(main())
    portal().run(asyncio.sleep(0))


def test_a_coroutine_that_cancels_itself_is_a_cancellation() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        portal().run(give_up())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(portal().hop(give_up()))


# -- methods, generators, threads --------------------------------------------------------------------------------------


class Counter:
    def __init__(self) -> None:
        self.value = 0

    async def _add(self, number: int, *, twice: bool = False) -> int:
        """Adds."""
        self.value += 2 * number if twice else number
        return self.value

    async def _count(self, to: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(to):
                await asyncio.sleep(0)
                yield number
        finally:
            self.value = -1

    add, aadd = blocking(_add), hopping(_add)


def test_both_forms_of_a_method_come_from_one() -> None:
    counter = Counter()
    assert counter.add(1) == 1
    assert asyncio.run(counter.aadd(2, twice=True)) == 5
    assert Counter.add.__doc__ == Counter.aadd.__doc__ == "Adds."


def test_generators_are_closed_where_they_are_left() -> None:
    counter = Counter()
    assert list(iterate(counter._count(3))) == [0, 1, 2]
    items = iterate(counter._count(10**9))
    assert (next(items), next(items)) == (0, 1)
    counter.value = 0
    items.close()
    assert counter.value == -1

    async def read() -> list[int]:
        return [number async for number in aiterate(counter._count(3))]

    assert asyncio.run(read()) == [0, 1, 2]


def test_in_thread_gives_results_and_exceptions() -> None:
    async def main() -> None:
        assert await in_thread(threading.get_ident) != threading.get_ident()
        for raised, expected in (
            (LookupError("x"), LookupError),
            (SystemExit(1), SystemExit),
            (StopIteration(), RuntimeError),
        ):

            def work(raised: BaseException = raised) -> Any:
                raise raised

            with pytest.raises(expected):
                await in_thread(work)

    asyncio.run(main())


@pytest.mark.parametrize("loop_ended", [False, True])
def test_a_cancelled_thread_is_left_to_itself(loop_ended: bool) -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(PATIENCE)
        ended.set()

    async def main() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not loop_ended:
            go.set()
            await in_thread(lambda: ended.wait(PATIENCE))
            await asyncio.sleep(0.05)

    asyncio.run(main())
    go.set()
    assert ended.wait(PATIENCE)


# -- forks -------------------------------------------------------------------------------------------------------------


def test_a_forked_host_has_a_portal_of_its_own() -> None:
    script = """
import asyncio, os, sys, threading
from rlm.portal import portal
before = portal()
assert before.run(asyncio.sleep(0, 1)) == 1
pid = os.fork()
if pid == 0:
    assert portal() is not before
    assert portal().run(asyncio.sleep(0, 2)) == 2
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert portal() is before and before.run(asyncio.sleep(0, 3)) == 3
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_portal_is_a_daemon() -> None:
    own = Portal()
    assert own.run(add(2, 2)) == 4
    assert next(thread for thread in threading.enumerate() if thread is own._thread).daemon
    own.loop.call_soon_threadsafe(own.loop.stop)
    own._thread.join(PATIENCE)
    own.loop.close()


def test_signals_stay_the_hosts() -> None:
    before = signal.getsignal(signal.SIGINT)
    portal().run(add(1, 1))
    assert signal.getsignal(signal.SIGINT) is before
    assert os.getpid()
