"""Listeners of events, off the event loop: what they do may block, and what they raise is logged, never the turn's end.

All listeners of an RLM are called in one thread, in the order of the events; `caught_up` waits until they have seen
everything that was told so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from rlm.types import Event, Listener

log = logging.getLogger("rlm")

_telling: ContextVar[bool] = ContextVar("rlm_telling", default=False)


class Listening:
    """Hands events to listeners, in a thread that is started with the first event.

    makers: each makes one listener for one session, so that those which remember something do not mix sessions up.
    """

    def __init__(self, makers: Sequence[Callable[[], Listener]]) -> None:
        self._makers = makers
        self._told: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self) -> Listener:
        """Where a new session tells its events, from the event loop."""
        listeners = [make() for make in self._makers]
        if not listeners:
            return _nobody

        def tell(event: Event) -> None:
            if not self._at_work:
                self._told = queue.SimpleQueue()
                self._thread = threading.Thread(target=_work, args=(self._told,), name="rlm-listeners", daemon=True)
                self._thread.start()
            self._told.put(lambda: _hand_over(event, listeners))

        return tell

    @property
    def _at_work(self) -> bool:
        return self._thread is not None and self._thread.is_alive()  # no thread comes along into a forked child

    async def caught_up(self) -> None:
        """Until every listener has returned from every event told before. A listener itself does not wait for that."""
        if not self._at_work or _telling.get():
            return
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed, so that nobody waits any more
                loop.call_soon_threadsafe(seen.set)

        self._told.put(tell)
        await seen.wait()

    def close(self) -> None:
        """End the thread, after what was told so far."""
        if self._thread is not None:
            self._told.put(None)
            self._thread = None


def _nobody(event: Event) -> None:
    """Nobody listens."""


def _work(told: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    _telling.set(True)
    while (work := told.get()) is not None:
        work()


def _hand_over(event: Event, listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        try:
            listener(event)
        except BaseException:  # a spectator's failure, or exit, is its own: it is written down, and the turn goes on
            log.exception("a listener raised on %s", event.kind)
