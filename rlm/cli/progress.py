"""What is known of a running turn: a fold over its events that stays small however many calls its cells make.

Calls are counted per cell and function; only children that are still at work are kept one by one, and of every text the
beginning. It holds no terminal, and no lock: whoever tells and whoever draws take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rlm.types import (
    Answered,
    Asked,
    Asking,
    Called,
    Calling,
    Event,
    Failed,
    Printed,
    Ran,
    Replied,
    Running,
    Stopped,
    Usage,
)

KEPT = 2_000  # characters of a code, an output, a prompt

End = Answered | Stopped | Failed


@dataclass(slots=True)
class Calls:
    """What one cell asked of one function. first: the beginning of the first prompt. failure: the last one's words."""

    first: str
    asked: int = 0
    done: int = 0
    failed: int = 0
    failure: str = ""


@dataclass(slots=True)
class Cell:
    """A cell. `output`: the end of what it has printed so far, and the beginning of it all once it `ended`.

    children: those that have not answered yet; what has no iteration among them waits, or is a plain call.
    """

    code: str
    began: float
    output: str = ""
    error: str | None = None
    ended: float | None = None
    calls: dict[str, Calls] = field(default_factory=dict)
    children: dict[str, Level] = field(default_factory=dict)


@dataclass(slots=True)
class Iteration:
    """One request to the root model, and the cells of its reply. `usage` is None until it came."""

    began: float
    purpose: str = "iteration"
    usage: Usage | None = None
    seconds: float = 0.0
    cells: list[Cell] = field(default_factory=list)


@dataclass(slots=True)
class Level:
    """A turn, or a child's: the question it was given, and its iterations so far."""

    question: str
    model: str
    began: float
    iterations: list[Iteration] = field(default_factory=list)
    end: End | None = None
    ended: float | None = None

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for iteration in self.iterations for cell in iteration.cells)


class Progress:
    """Told of the events of one turn, in their order. root: None until it began. usage: that of the whole tree."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.root: Level | None = None
        self.usage = Usage()
        self.now = clock
        self._levels: dict[str, Level] = {}
        self._cells: dict[str, Cell] = {}

    def tell(self, event: Event) -> None:
        match event:
            case Asked(question=question, model=model):
                # What was told before is not the turn's: cells that were run again to bring the namespace back.
                self.root = self._begin(event.at, question or "(the task is in the input)", model)
            case Asking(purpose=purpose):
                self._end_cells(event.at)
                self._level(event.at).iterations.append(Iteration(self.now(), purpose))
            case Replied(reply=reply, seconds=seconds):
                iteration = self._iteration(event.at)
                iteration.usage, iteration.seconds = reply.usage, seconds
                self.usage += reply.usage
            case Running(code=code):
                self._end_cells(event.at)
                self._cells[event.at] = Cell(code[:KEPT], self.now())
                self._iteration(event.at).cells.append(self._cells[event.at])
            case Printed(text=text):
                if cell := self._cells.get(event.at):
                    cell.output = (cell.output + text[-KEPT:])[-KEPT:]
            case Ran(result=result):
                if cell := self._cells.get(event.at):
                    cell.output, cell.ended = result.stdout[:KEPT], self.now()
                    cell.error = result.error.text.strip()[-KEPT:] if result.error else None
            case Calling(name=name, prompt=prompt):
                self._calling(event.at, name, prompt)
            case Called():
                self._called(event)
            case Answered() | Stopped() | Failed():
                self._end(event)

    def _begin(self, path: str, question: str, model: str = "") -> Level:
        level = self._levels[path] = Level(question[:KEPT], model, self.now())
        if self.root is None:
            self.root = level
        return level

    def _level(self, at: str) -> Level:
        """The level that an ask or a cell belongs to. A child's begins with its first; so does a user's own cell."""
        path = at.rpartition("/")[0]
        return self._levels.get(path) or self._begin(path, "")

    def _iteration(self, at: str) -> Iteration:
        iterations = self._level(at).iterations
        if not iterations:
            iterations.append(Iteration(self.now(), usage=Usage()))
        return iterations[-1]

    def _end_cells(self, at: str) -> None:
        """What comes next in a level ends its cells: of one that is run again after a crash, nobody tells the end."""
        for cell in self._level(at).cells:
            if cell.ended is None:
                cell.ended = self.now()

    def _calling(self, at: str, name: str, prompt: str) -> None:
        cell = self._cells.get(at.rpartition("/")[0])
        if cell is None:
            return
        cell.calls.setdefault(name, Calls(prompt[:KEPT])).asked += 1
        if name == "rlm_query":
            cell.children[at] = self._begin(at, prompt)

    def _called(self, event: Called) -> None:
        cell = self._cells.get(event.at.rpartition("/")[0])
        child = self._levels.pop(event.at, None)
        if event.name == "llm_query" or child is None or not child.iterations:
            self.usage += event.usage_summary.total  # else its own replies were counted
        for number in range(sum(1 for _ in child.cells) if child else 0):
            self._cells.pop(f"{event.at}/c{number}", None)
        if cell is None:
            return
        cell.children.pop(event.at, None)
        calls = cell.calls.setdefault(event.name, Calls(event.prompt, asked=1))
        calls.done += 1
        if event.error is not None:
            calls.failed += 1
            calls.failure = event.error[:KEPT]

    def _end(self, event: End) -> None:
        level = self._levels.get(event.at)
        if level is None:
            return
        level.end, level.ended = event, self.now()
        if isinstance(event, Answered) and level is self.root:
            self.usage = event.completion.usage_summary.total
