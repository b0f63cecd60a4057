"""Waits for a session that somebody else writes to, without holding the event loop up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlm.errors import SessionBusyError

T = TypeVar("T")

SOON, LATER = 0.005, 0.1  # seconds between two tries: at first, in the end


async def when_free(take: Callable[[], Awaitable[T]], wait: float | None) -> T:
    """What `take` returns, as soon as it does not raise `SessionBusyError`; after `wait` seconds it is raised."""
    loop = asyncio.get_running_loop()
    end = None if wait is None else loop.time() + wait
    pause = SOON
    while True:
        try:
            return await take()
        except SessionBusyError:
            left = pause if end is None else end - loop.time()
            if left <= 0:
                raise
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, LATER)
