"""A thread that does jobs in the order in which they were given, for whoever awaits them, on whichever event loop.

A store has two lanes, one that writes and one that reads, however many sessions use it. A job is awaited on the loop
that it was made on; a loop that has closed meanwhile is no error.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar, cast

from rlm.errors import StoreError

T = TypeVar("T")
R = TypeVar("R")

MOST = 4096  # jobs of one transaction


class Job(Generic[R, T]):
    """Work on a resource of type R (None: nothing but its turn), made on the loop of the task that awaits `done`."""

    __slots__ = ("_error", "_told", "_value", "_waiter", "loop", "work")

    def __init__(self, work: Callable[[R], T] | None) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self._told = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def done(self) -> T:
        """What the work returned, or raises what it raised. A cancelled caller waits for that too: once given, a job
        is carried out, and a failure of it is the cause of the cancellation that is then raised.
        """
        cancelled = False
        while not self._told:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                cancelled = True
        error, self._error = self._error, None  # an error refers to where it was raised: here, with this job
        try:
            if cancelled:
                raise asyncio.CancelledError from error
            if error is not None:
                raise error
            return cast(T, self._value)
        finally:
            del error

    def tell(self, value: T | None, error: BaseException | None) -> None:
        """Settle it; on its own loop."""
        self._value, self._error, self._told = value, error, True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Outcome = tuple[Job[Any, Any], Any, BaseException | None]
"""A job, with what its work returned or raised."""


def settle(outcomes: Sequence[Outcome]) -> None:
    """Tell those who await the jobs; from any thread. One call of a loop for all that stand on it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, some in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has closed, and with it whoever waited
            loop.call_soon_threadsafe(_tell, some)


def _tell(outcomes: Sequence[Outcome]) -> None:
    for job, value, error in outcomes:
        job.tell(value, error)


def in_thread(pool: Executor, work: Callable[[], T]) -> Job[None, T]:
    """A job that a thread of the pool does; `StoreError` where the pool was shut down."""
    job = Job[None, T](None)

    def do() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - goes to whoever awaits the job
            failure = error
        settle([(job, value, failure)])

    try:
        pool.submit(do)
    except RuntimeError as error:  # it was shut down, or the interpreter is
        raise StoreError(f"the store was closed ({error})") from error
    return job


class Once:
    """Ends something once: who asks first does it, and the others wait for that, on whichever loop."""

    def __init__(self) -> None:
        self.begun = False
        self._done = False
        self._guard = threading.Lock()
        self._waiting: list[Job[Any, None]] = []

    async def once(self, end: Callable[[], Awaitable[None]]) -> None:
        """Returns when `end` has returned or raised, which goes to the first who asked."""
        with self._guard:
            first, self.begun = not self.begun, True
            if not first:
                if self._done:
                    return None
                job = Job[Any, None](None)
                self._waiting.append(job)
        if not first:
            return await job.done()
        try:
            await end()
        finally:
            with self._guard:
                self._done = True
                settle([(job, None, None) for job in self._waiting])


class Lane(ABC):
    """One daemon thread, started with the first job. Subclasses say how jobs are done, and how it ends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Job[Any, Any] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._last: Job[Any, None] | None = None

    @abstractmethod
    def _do(self, jobs: Sequence[Job[Any, Any]]) -> Sequence[Outcome]:
        """Do all that wait, in their order. Raises nothing."""

    @abstractmethod
    def _end(self) -> None:
        """Free what the thread has. Raises nothing."""

    def put(self, job: Job[Any, Any]) -> None:
        """Have a job done; from any thread. Once the lane was stopped, the job fails."""
        with self._guard:
            if not self._stopped:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                    self._thread.start()
                self._queue.put(job)
                return
        settle([(job, None, StoreError("the store was closed"))])

    async def stop(self) -> None:
        """Do what was given so far and end the thread; returns when it has freed everything. To be called once."""
        with self._guard:
            self._stopped = True
            if self._thread is None:
                return
            self._last = Job[Any, None](None)
            self._queue.put(None)
        await self._last.done()
        self._thread.join()  # it has nothing left to do

    def _serve(self) -> None:
        jobs: list[Job[Any, Any] | None] = []
        while None not in jobs:
            jobs = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(jobs) < MOST:
                    jobs.append(self._queue.get_nowait())
            settle(self._do([job for job in jobs if job is not None]))
        self._end()
        if self._last is not None:
            settle([(self._last, None, None)])
