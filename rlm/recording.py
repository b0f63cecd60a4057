"""A session's log while it is open: what was recorded, what that adds up to, and what is on its way to the store.

Events take effect here at once and reach the store in their order; `settled` waits until the last of them is durable.
Whoever acts upon the world waits for that first. Once the store has failed, nothing more is recorded: what is known
here and what is on disk are no longer the same, and the session has to be opened again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from rlm.errors import RLMError, StoreError
from rlm.folds import Past
from rlm.ports import Content, Lease
from rlm.types import Event, Listener, Recorded

HOLD = 0.02  # seconds that an event may wait for others to go to the store with it


class Log:
    """The log of one session. lease: the right to write it; None for a session that lives in memory alone.

    records: what was there before. opening: the first event, recorded with the second one. tell: gets every event once
    it is part of the log. clock: seconds since 1970.
    """

    def __init__(
        self,
        lease: Lease | None = None,
        records: Sequence[Recorded] = (),
        *,
        opening: Event | None = None,
        tell: Listener | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease = lease
        self.past = Past(records)
        self.events: list[Event] = [record.event for record in records]
        self.times: list[float] = [record.time for record in records]
        self.tell = tell or _silence
        self._opening = opening
        self._clock = clock
        self._held: list[Recorded] = []
        self._held_blobs: dict[str, Content | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._failed: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether the store refused something, so that the log is behind what happened."""
        return self._failed is not None

    def add(
        self, event: Event, blobs: Mapping[str, Content | None] | None = None, *, hold: bool = False
    ) -> asyncio.Task[None] | None:
        """Record an event, with what it refers to. It is durable once `settled` has returned, or the task is done that
        this returns for a log in a store.

        hold: others follow within moments, and may go to the store with it; there is then no task to wait for.
        """
        self.check()
        if (opening := self._opening) is not None:
            self._opening = None
            if not self.past.number:
                self.add(opening, hold=True)
        record = Recorded(self.past.number, self._clock(), event)
        self.past.take(event)
        self.events.append(event)
        self.times.append(record.time)
        task = None
        if self.lease is not None:
            self._held.append(record)
            for digest, content in (blobs or {}).items():
                if content is not None or digest not in self._held_blobs:  # whoever has the content stays who gives it
                    self._held_blobs[digest] = content
            if not hold:
                task = self._send()
            elif self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HOLD, self._send)
        self.tell(event)
        return task

    def _send(self) -> asyncio.Task[None] | None:
        """Hand over what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.lease is None or not self._held:
            return None
        held, blobs, self._held, self._held_blobs = self._held, self._held_blobs, [], {}
        task = asyncio.get_running_loop().create_task(self.lease.append(held, blobs))
        self._pending.add(task)
        task.add_done_callback(self._ended)
        return task

    async def append(self, event: Event, blobs: Mapping[str, Content | None] | None = None) -> None:
        """Record an event and wait until it is durable. Raises `StoreError`."""
        self.add(event, blobs)
        await self.settled()

    async def settled(self) -> None:
        """Wait until everything that was recorded up to now is durable. Raises `StoreError`."""
        self._send()
        pending = set(self._pending)  # what comes later waits for itself
        if pending:
            await asyncio.wait(pending)
        self.check()

    def check(self) -> None:
        """Raise `StoreError` if the log is behind what happened."""
        if self._failed is not None:
            raise StoreError(
                f"the session cannot be recorded any more: {self._failed} Close it and open it again, which goes on "
                "from what was recorded."
            ) from self._failed

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        error = asyncio.CancelledError("its recording was cancelled") if task.cancelled() else task.exception()
        if error is not None and self._failed is None:
            self._failed = error if isinstance(error, RLMError) else StoreError(f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        """Wait for what is on its way, and let others write. Twice is fine."""
        self._send()
        while self._pending:
            await asyncio.wait(self._pending)
        if self.lease is not None:
            await self.lease.release(unused=not self.past.number)  # a session that was only opened leaves nothing


def _silence(event: Event) -> None:
    """Nobody is told."""
