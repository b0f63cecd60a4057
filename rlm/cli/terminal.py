"""Standard output and standard error as the commands use them: answers go to the one, everything else to the other.

On a terminal an answer is drawn as Markdown; elsewhere it is its text. Whatever models and cells wrote is stripped of
control sequences on the way, and JSON has none.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlm.narrate import printable
from rlm.types import Event, UsageSummary

if TYPE_CHECKING:
    from rich.markdown import Markdown


NAME = 32  # columns of a table's first text, where another one stands last


class Output:
    """Where a command prints.

    as_json: results are JSON. events: the stream of events has standard output for itself. quiet: nothing but results
    and errors. `notes` is the console for what people are told meanwhile.
    """

    def __init__(self, as_json: bool = False, events: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.events = events
        self.quiet = quiet
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._results = Console(highlight=False, markup=False, emoji=False)

    @property
    def is_live(self) -> bool:
        """Whether standard error can be drawn on."""
        return sys.stderr.isatty() and not self.notes.is_dumb_terminal

    def answer(self, text: str) -> None:
        """An answer, or what there is of one. Silent where results are JSON, or events."""
        if self.as_json or self.events:
            return
        text = printable(text)
        if sys.stdout.isatty() and not self._results.is_dumb_terminal:
            if self.is_live and not self.quiet:
                self.notes.print()  # between the tree and the answer
            self._results.print(markdown(text))
        else:
            print(text, flush=True)

    def result(self, value: Any) -> None:
        """A result as JSON, where that was asked for: on one line, or indented for a person."""
        if self.as_json:
            print(json.dumps(plain(value), indent=2 if sys.stdout.isatty() else None), flush=True)

    def text(self, text: str, style: str = "") -> None:
        """What a command of a chat was asked for; it makes way for JSON on standard output."""
        self._asked_for.print(Text(printable(text), style), soft_wrap=True)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]], last_is_text: bool = False) -> None:
        """Rows of texts. All columns but the first are numbers; or all but the last, which is cut where it is long."""
        table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.columns[0].overflow = "fold"
        for column in table.columns[1:]:
            column.justify = "right"
            column.no_wrap = True
        if last_is_text:
            table.expand = True
            table.columns[0].max_width = NAME
            table.columns[-1].justify, table.columns[-1].overflow, table.columns[-1].ratio = "left", "ellipsis", 1
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._asked_for.print(table)

    @property
    def _asked_for(self) -> Console:
        return self.notes if self.as_json or self.events else self._results

    def note(self, text: str) -> None:
        """A word to the user, unless all but results is unwanted."""
        if not self.quiet:
            self.notes.print(Text(printable(text), "dim"), soft_wrap=True)


def plain(value: Any) -> Any:
    """A result as JSON has it; what has no JSON form is shown as Python shows it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case UsageSummary():
            return value.to_dict()
        case Event():
            return value.to_dict()
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return repr(value)


def markdown(text: str) -> Markdown:
    """Markdown as chats show it: a line end is a line end, and a link shows where it leads."""
    from rich.markdown import Markdown  # with its parser and highlighter it costs more than the rest of Rich

    drawn = Markdown(text, hyperlinks=False)
    for token in _tokens(drawn.parsed):
        if token.type == "softbreak":
            token.type = "hardbreak"
    return drawn


def _tokens(tokens: Sequence[Any]) -> Iterator[Any]:
    for token in tokens:
        yield token
        yield from _tokens(token.children or ())


def error(text: str, stream: TextIO | None = None) -> None:
    """One line that says what is wrong, on standard error."""
    print(f"rlm: {' '.join(printable(text).split())}", file=stream or sys.stderr, flush=True)
