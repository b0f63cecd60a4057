"""The seconds of a session: what turns and the user's own cells have used, and what limits leave to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.errors import TimeoutExceededError
from rlm.types import CellError


class Seconds:
    """name: the session's. each, life: what one turn or cell may take, and all of them. used: so far."""

    def __init__(self, name: str, each: float | None, life: float | None, used: float) -> None:
        self.used = used
        self._name, self._each, self._life = name, each, life

    def allowed(self) -> float | None:
        """What the next turn or cell may take. Raises `TimeoutExceededError` where nothing is left."""
        each, life = self._each, self._life
        if life is None:
            return each
        if self.used >= life:
            used = f"Limits(seconds={life:g}) of session {self._name!r} is used up"
            raise TimeoutExceededError(used, elapsed=self.used, timeout=life)
        left = life - self.used
        return left if each is None else min(each, left)


def timed_out(what: str, elapsed: float, allowed: float | None) -> TimeoutExceededError:
    """What is raised for a turn or a cell that took too long."""
    late = f"Limits(seconds=) left this {what} {allowed or 0:g} s, and it took over {elapsed:.3g}"
    return TimeoutExceededError(late, elapsed=elapsed, timeout=allowed or 0.0)


def because_of(deadline: asyncio.Timeout) -> Callable[[], CellError]:
    """Says why a cell is being cancelled."""

    def why() -> CellError:
        if deadline.expired():
            return CellError("TimeLimit", "the cell was stopped by the limit on seconds")
        return CellError("Cancelled", "the cell was cancelled")

    return why
