"""Listeners of events, off the event loop: what they do may block, and what they raise is logged, never the turn's end.

All listeners of an RLM are called in one thread, in the order of the events; `caught_up` waits until they have seen
everything that was told so far.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence

from rlm.types import Event, Listener

log = logging.getLogger("rlm")


class Listening:
    """Hands events to listeners, in a thread that is started with the first event. False where nobody listens."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners
        self._told: queue.SimpleQueue[Event | Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def tell(self, event: Event) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rlm-listeners", daemon=True)
            self._thread.start()
        self._told.put(event)

    async def caught_up(self) -> None:
        """Until every listener has returned from every event told before."""
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()
        self._told.put(lambda: loop.call_soon_threadsafe(seen.set))
        await seen.wait()

    def close(self) -> None:
        """End the thread, after what was told so far."""
        if self._thread is not None:
            self._told.put(None)
            self._thread = None

    def _work(self) -> None:
        while (told := self._told.get()) is not None:
            if not isinstance(told, Event):
                told()
                continue
            for listener in self._listeners:
                try:
                    listener(told)
                except Exception:  # a spectator's failure is its own; it is written down, and the turn goes on
                    log.exception("a listener raised on %s", told.kind)
