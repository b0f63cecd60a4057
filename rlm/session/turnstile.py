"""Who may use a session: one after the other, in the order of arrival, until it is closed.

While nobody uses it, its worker may be given back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rlm.checkpoints import Keepable
from rlm.engine.host import SERVING
from rlm.errors import CancellationError, SessionClosedError, SessionError
from rlm.portal import to_its_end
from rlm.session.living import Living
from rlm.session.weakly import if_held


class Turnstile:
    """The way into one open session."""

    def __init__(self, living: Living) -> None:
        self._living = living
        self._queue = asyncio.Lock()
        self._running: asyncio.Task[object] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._gone = False

    @property
    def is_taken(self) -> bool:
        """Whether somebody is inside."""
        return self._running is not None

    @contextlib.asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        """The session to oneself, in the order of arrival. close() ends it, with a `CancellationError`.

        Raises `SessionError` where that would never come, `SessionClosedError`, and `StoreError` where nothing can be
        recorded any more.
        """
        living = self._living
        if living.is_parents:
            raise SessionError(
                f"session {living.name!r} belongs to the process that forked this one: an RLM made here can open it "
                "once that process has closed it"
            )
        if living in SERVING.get():
            raise SessionError(
                f"session {living.name!r} runs the cell that called this function: the two would wait for each other"
            )
        async with self._queue:
            self._check_open()
            living.log.check()
            living.watch()
            if self._idle is not None:
                self._idle.cancel()
            task = self._running = asyncio.current_task()
            try:
                yield
            except asyncio.CancelledError as cancelled:
                if not living.closed or task is None:
                    raise
                task.uncancel()
                told = cancelled.__cause__
                closed = CancellationError(f"the session was closed during this {what}")
                raise (told if isinstance(told, CancellationError) else closed) from None
            finally:
                self._running = None
                self._release_when_idle()

    def _check_open(self) -> None:
        if self._living.closed:
            raise SessionClosedError(f"session {self._living.name!r} was closed")

    async def close(self) -> None:
        """Cancel who is inside, let nobody else in, and let go of everything. Twice is fine."""
        living = self._living
        living.closed = True
        if living.is_parents:
            return
        if self._running is not None:
            self._running.cancel()
        async with self._queue:
            if not self._gone:
                self._gone = True
                if self._idle is not None:
                    self._idle.cancel()
                await to_its_end(living.let_go())
        living.unwatch()

    # -- while nobody is inside ------------------------------------------------------------------------------------

    def _release_when_idle(self) -> None:
        stored = self._living.stored
        if stored is not None and stored.idle is not None and not self._living.closed:
            self._idle = asyncio.get_running_loop().call_later(stored.idle, if_held(self._begin_release))

    def _begin_release(self) -> None:
        if not self._queue.locked() and not self._living.closed:
            self._releasing = asyncio.ensure_future(self._release())

    async def _release(self) -> None:
        """Give an idle worker back, if nothing in it would be lost."""
        async with self._queue:
            living = self._living
            keeper, namespace, heap = living.keeper, living.namespace, living.past.heap
            if living.closed or keeper is None or not isinstance(namespace, Keepable) or not namespace.is_live:
                return
            await keeper.settled()
            if keeper.is_safe and not heap.lost and not heap.files_lost:
                await namespace.release()
