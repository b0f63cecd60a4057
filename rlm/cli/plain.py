"""A turn as plain lines, where no terminal is: one for each event worth telling, few for many calls.

Nothing here moves a cursor or takes a colour, so that logs and pipes stay readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rlm import narrate
from rlm.types import Called, Calling, Event, Failed, Ran, Running, Stopped

WIDTH = 80
ALONE = 3  # calls of a cell that get a line each
CUT_SHORT = frozenset({"Cancelled", "TimeLimit"})  # errors of cells that ended with their turn
PAUSE = 2.0  # seconds between lines about further calls of a cell


class PlainView:
    """Writes lines to a stream. Of a cell's many calls it tells how far they are, every few seconds and in the end."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._cells: dict[str, _Calls] = {}

    def tell(self, event: Event) -> None:
        cell = self._cells.get(event.at.rpartition("/")[0])
        if isinstance(event, Calling) and cell is not None:
            cell.asked += 1
        if isinstance(event, Called) and cell is not None and self._count(event, cell):
            return
        if isinstance(event, Ran):
            self._close(event)
        if not self._is_one_of_many(event) and not _is_said_in_the_end(event):
            self._say(event)
        if isinstance(event, Running):
            self._cells[event.at] = _Calls(self._clock())

    def _count(self, event: Called, cell: _Calls) -> bool:
        """Count an answer; True where it is told together with others."""
        cell.done += 1
        cell.failed += event.error is not None
        if cell.asked <= ALONE:
            return False
        if (now := self._clock()) - cell.told >= PAUSE:
            cell.told = now
            self._write(event.at, cell.summary)
        return True

    def _close(self, event: Ran) -> None:
        calls = self._cells.pop(event.at, None)
        if calls is not None and calls.asked > ALONE:
            self._write(event.at + "/", calls.summary)

    def _is_one_of_many(self, event: Event) -> bool:
        """Whether it belongs to one of many calls of a cell, at whatever level: then only their number is told."""
        parts = event.at.split("/")
        above = (self._cells.get("/".join(parts[:length])) for length in range(2, len(parts)))
        return any(cell is not None and cell.asked > ALONE for cell in above)

    def _say(self, event: Event) -> None:
        said = narrate.line(event)
        if said is None:
            return
        for line in said.splitlines():
            print(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…", file=self._stream, flush=True)

    def _write(self, at: str, text: str) -> None:
        print("  " * at.count("/") + text, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        self._cells.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()


def _is_said_in_the_end(event: Event) -> bool:
    """Whether the command says it, in the one line that tells why there is no answer."""
    error = event.result.error if isinstance(event, Ran) else None
    return isinstance(event, (Stopped, Failed)) or (error is not None and error.type in CUT_SHORT)


class _Calls:
    """The calls of a running cell. told: when the last line about them was written."""

    def __init__(self, told: float) -> None:
        self.asked = self.done = self.failed = 0
        self.told = told

    @property
    def summary(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {self.asked:,} calls done{failed}"
