"""An event loop without waiting: when nothing is ready, its clock jumps to the next timer; without one, that is a hang.

Everything that takes part lives in the loop, so that whatever does not happen now never will.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

ENOUGH = 10_000.0  # seconds of its own time that no script needs


class Hang(BaseException):
    """Nobody will ever go on. No `Exception`: who catches those must not hide it."""


class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """now: seconds that have been skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready: list[Any] = super().select(0)
        if ready:
            return ready
        if timeout is None or self.now > ENOUGH:
            raise Hang("nothing is ready, and nothing ever will be" if timeout is None else "it goes on for ever")
        self.now += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now

    @property
    def watched(self) -> int:
        """File descriptors that something waits for, the loop's own included."""
        return len(self.selector.get_map())
