"""The one event loop on which all state lives, in a thread of its own; blocking and async callers hop to it.

`Portal.run` waits for a coroutine from blocking code, `Portal.hop` from any event loop; both hand cancellation on and
return only once the coroutine has really ended, so that nothing of a cancelled call is still at work. `blocking` and
`hopping` make the two public forms of a method out of its one async implementation, `iterate` and `aiterate` those of
an async generator.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from rlm.errors import RLMError

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S")


class Portal:
    """An event loop in a daemon thread. Use `portal()`, which gives every process its one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="rlm-portal", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                return self._loop.run_forever()
            except (KeyboardInterrupt, SystemExit):  # a task's own, which its caller gets; the loop is everybody's
                continue

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the portal's loop and wait for it.

        An exception that strikes the waiting thread (Ctrl-C) cancels the coroutine and waits for its end. It then goes
        on, unless the coroutine has something to say of its own: an exception, or one that it raised the cancellation
        from. Raises `RLMError` on the portal's own thread, where waiting would wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RLMError(
                "a blocking call on rlm's own event loop would wait for itself: await the async form (aask, …)"
            )
        call = _Call(coroutine, self._loop)
        try:
            value: T = call.ended.result()
            return value
        except BaseException:
            if not call.ended.done():
                call.cancel()
                concurrent.futures.wait([call.ended])
                told = call.cancelled.__cause__ if call.cancelled is not None else call.ended.exception()
                if told is not None:
                    raise told from None
            raise

    async def hop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the portal's loop and await it from whatever loop the caller runs on.

        A cancellation is handed on, and raised once the coroutine has ended, from the exception that it tells with it.
        """
        if asyncio.get_running_loop() is self._loop:
            return await coroutine
        call = _Call(coroutine, self._loop)
        ended = asyncio.wrap_future(call.ended)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            call.cancel()
            while not ended.done():
                try:
                    await asyncio.wait([ended])
                except asyncio.CancelledError:
                    continue  # asked twice; the first time counts, and its end is near
            ended.exception()
            told = call.cancelled.__cause__ if call.cancelled is not None else None
            raise asyncio.CancelledError from told


class _Call:
    """A coroutine as a task of the portal's loop; `ended` is done only when the task is."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self.ended: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.cancelled: asyncio.CancelledError | None = None
        self._coroutine = coroutine
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._end)

    async def _run(self) -> Any:
        try:
            return await self._coroutine
        except asyncio.CancelledError as cancelled:
            self.cancelled = cancelled
            raise

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._coroutine.close()  # where it was cancelled before it began
        if task.cancelled():
            self.ended.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None  # the loop has called _start before this
        self._task.cancel()


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking code in a daemon thread of its own and await it, with the caller's context variables.

    Any number may wait at once, and none that hangs keeps the interpreter from ending. Cancelling leaves the thread to
    itself: Python cannot stop it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)  # type: ignore[arg-type]  # a value of T where there was no error
        else:
            done.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(work)
        except BaseException as raised:  # noqa: BLE001 - goes to whoever awaits, whatever it is
            error = raised
        if isinstance(error, StopIteration):  # which no future takes
            error = RuntimeError(f"StopIteration: {error}")
        with contextlib.suppress(RuntimeError):  # the loop may have ended before the thread
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True, name="rlm-thread").start()
    return await done


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What must not be left half done: whoever is cancelled while waiting for it waits on, and is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(asyncio.shield(task), return_exceptions=True)
        raise


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """This process's portal, started on first use. A forked child gets a new one: threads do not survive a fork."""
    global _portal
    if _portal is None:
        with _lock:
            if _portal is None:
                _portal = Portal()
    return _portal


def _after_fork() -> None:
    global _portal, _lock
    _parents.append(_portal)
    _portal, _lock = None, threading.Lock()


_parents: list[Portal | None] = []
"""Portals of this process's forebears: freed, their loops would complain that they were never closed."""


os.register_at_fork(after_in_child=_after_fork)


def blocking(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], T]:
    """The blocking form of an async method: runs it on the portal's loop and waits."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return portal().run(method(self, *args, **kwargs))

    return call


def hopping(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The form of an async method that may be awaited on any event loop: runs it on the portal's."""

    @functools.wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await portal().hop(method(self, *args, **kwargs))

    return call


class Closing(ABC):
    """What is closed, blocking or awaited, by itself or by a with-statement. Subclasses say how in `_close`."""

    @abstractmethod
    async def _close(self) -> None:
        """Runs on the portal's loop; twice is fine."""

    def close(self) -> None:
        """Free everything, and wait for it. Twice is fine."""
        portal().run(self._close())

    async def aclose(self) -> None:
        """The async form of `close`."""
        await portal().hop(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def iterate(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The blocking form of an async generator, which runs on the portal's loop and is closed with this one."""
    try:
        while not isinstance(item := portal().run(_next(items)), _End):
            yield item
    finally:
        portal().run(_close(items))


async def aiterate(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The form of an async generator that may be read on any event loop."""
    try:
        while not isinstance(item := await portal().hop(_next(items)), _End):
            yield item
    finally:
        await portal().hop(_close(items))


class _End:
    """Stands behind the last item."""


async def _next(items: AsyncGenerator[T, None]) -> T | _End:
    return await anext(items, _End())


async def _close(items: AsyncGenerator[T, None]) -> None:
    await items.aclose()
