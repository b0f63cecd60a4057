"""The conversation for people: questions, cells, what they printed, answers and checks, in the width of the terminal.

Without a terminal it is plain text of 80 columns. Cells and outputs are shown by their beginning; nothing is kept.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from rlm.demo.conversation import SUB_CALLS, Report, TurnReport
from rlm.demo.corpora import Corpus
from rlm.demo.questions import CONVERSATION, Question
from rlm.demo.survival import Survival
from rlm.narrate import View, printable
from rlm.types import Called, Event, Listener, Ran, Replied, Running

CODE_LINES, OUTPUT_LINES = 25, 6
PARAGRAPH = 230  # characters of a model's thought, and of a text in an answer
CHARACTERS_PER_TOKEN = 4
PAUSE = 2.0  # seconds between lines about the calls of one cell


class Show:
    """Prints the conversation. view: shows the turns themselves in place of this, where given."""

    def __init__(self, console: Console, view: View | None = None) -> None:
        self._console = console
        self._view = view
        self._cells = 0
        self._calls = 0
        self._told = 0.0  # when the last line about calls was written

    def opening(self, model: str, scripted: bool) -> None:
        """Who answers."""
        self._say("A conversation in one REPL, about text that stands on this machine.", style="bold")
        told = f"The root model is {model}."
        if scripted:
            told = (
                "The model is a script that writes cells and adapts to what they print: no key is needed. "
                "With --model provider:name a real one does the same."
            )
        self._say(told)

    @contextmanager
    def turn(self, number: int, question: Question, corpus: Corpus | None) -> Iterator[Listener]:
        """Around a turn; gives what is to be told of its events."""
        self._cells = 0
        about = "nothing new to read"
        if corpus is not None:
            about = f"{corpus.title} ({len(corpus.files):,} files, {corpus.megabytes:.1f} MB)"
        self._say("")
        self._say(f"Turn {number + 1}: {about}", style="bold")
        self._say(question.text, first="  Q ")
        if self._view is None:
            yield self._tell
        else:
            self._say("")
            with self._view as view:
                yield view.tell

    def _tell(self, event: Event) -> None:
        match event:
            case Replied(reply=reply, at=at) if at.count("/") == 1:
                self._say("")
                self._say(_head(reply.text.partition("```")[0]), first="    ", style="italic")
            case Running(code=code, at=at) if at.count("/") == 1:
                self._cells += 1
                self._calls, self._told = 0, time.monotonic()
                self._clipped(code, CODE_LINES, f"{self._cells:3} │ ", "    │ ", style="cyan")
            case Called(name=name) if name in SUB_CALLS:
                self._calls += 1
                if time.monotonic() - self._told > PAUSE:
                    self._told = time.monotonic()
                    self._say(f"{_count(self._calls, 'sub-call')} so far", first="    ↳ ")
            case Ran(at=at) if at.count("/") == 1:
                self._ran(event)

    def _ran(self, event: Ran) -> None:
        result = event.result
        if self._calls:
            self._say(f"{_count(self._calls, 'sub-call')} in {result.execution_time:.2f} s", first="    ↳ ")
        if result.stdout.strip():
            self._clipped(result.stdout, OUTPUT_LINES, "    → ", "      ", style="dim")
        if result.error is not None:
            last = result.error.text.rstrip().rpartition("\n")[2]
            self._say(f"{last} (the model is shown the traceback)", first="    ⚠ ", style="yellow")

    def ended(self, turn: TurnReport) -> None:
        """The answer of a turn, and whether it is right."""
        self._say("")
        for index, line in enumerate(_lines(turn.answer)):
            self._say(line, first="  A " if index == 0 else "    ", rest="      ")
        if turn.matches:
            self._say(f"matches {turn.truth_from}", first="  ✓ ", style="bold green")
        else:
            self._say(f"differs from {turn.truth_from}:", first="  ✗ ", style="bold red")
            for difference in turn.differences:
                self._say(difference, first="    - ", style="red")
        cost = f", ${turn.cost:.4f}" if turn.cost else ""
        failed = f" ({turn.failed_cells} failed)" if turn.failed_cells else ""
        self._say(
            f"{_count(turn.cells, 'cell')}{failed}, {_count(turn.sub_calls, 'sub-call')}, "
            f"{turn.tokens:,} tokens{cost}, {turn.seconds:.1f} s",
            first="    ",
            style="dim",
        )

    def closing(self, report: Report) -> None:
        """What is left in the REPL, and the conversation in one line."""
        self._say("")
        if report.error is not None:
            self._say(report.error, first="✗ ", style="bold red")
        self._say(f"In the REPL at the end: {_variables(report.variables)}.")
        self._say(
            f"The root model never saw more than {report.largest_prompt:,} tokens at once, of text that has about "
            f"{report.characters // CHARACTERS_PER_TOKEN:,}."
        )
        right = sum(turn.matches for turn in report.turns)
        verdict = "all answers match" if report.matches else f"{right} of {len(CONVERSATION)} answers match"
        took = f"{report.megabytes:.1f} MB of text, {report.seconds:.1f} s"
        self._say(
            f"{_count(len(report.turns), 'turn')}, {_count(report.cells, 'cell')}, "
            f"{_count(report.sub_calls, 'sub-call')}, {took}: {verdict}",
            first="✓ " if report.matches else "✗ ",
            style="bold green" if report.matches else "bold red",
        )

    def killing(self) -> None:
        """What comes now."""
        self._say("")
        self._say("The same once more, in a session with a name, by a process that will not live.", style="bold")

    def survived(self, survival: Survival, report: Report, requests: int) -> None:
        """How the process ended, what the next one found, and what both asked in all."""
        before, after = survival.requests
        self._say(
            f"Process {survival.pid} was ended by SIGKILL in the middle of turn 2, after {before} model requests.",
            first="    ",
        )
        self._say(
            f"Another one opened the session: {_count(survival.from_record, 'answer')} from the record, turn 2 resumed,"
            f" turn 3 asked; {after} requests.",
            first="    ",
        )
        answers = [turn.answer for turn in report.turns] == survival.answers
        self._verdict(answers, "the same answers as above" if answers else "other answers than above")
        told = f"{before} + {after} = {before + after} model requests; without the kill there were {requests}"
        self._verdict(before + after == requests, told)
        self._say(f"{survival.seconds:.1f} s for both processes", first="    ", style="dim")

    def _verdict(self, right: bool, text: str) -> None:
        self._say(text, first="  ✓ " if right else "  ✗ ", style="bold green" if right else "bold red")

    # -- lines -----------------------------------------------------------------------------------------------------

    def _say(self, text: str, *, first: str = "", rest: str | None = None, style: str = "") -> None:
        """A paragraph, wrapped: its first line behind `first`, the others behind `rest` or as much space."""
        if not text:
            self._print("", "", style)
            return
        indent = " " * len(first) if rest is None else rest
        width = max(20, self._console.width - max(len(first), len(indent)))
        for index, line in enumerate(textwrap.wrap(text, width, break_on_hyphens=False)):
            self._print(indent if index else first, line, style)

    def _clipped(self, text: str, limit: int, first: str, rest: str, *, style: str) -> None:
        """The first lines of a text, each cut at the width."""
        lines = text.strip("\n").split("\n")
        if len(lines) > limit:
            lines[limit - 1 :] = [f"… {len(lines) - limit + 1} more lines"]
        width = max(20, self._console.width - len(first))
        for index, line in enumerate(lines):
            shown = printable(line).rstrip().expandtabs(4)
            self._print(rest if index else first, shown if len(shown) <= width else f"{shown[: width - 1]}…", style)

    def _print(self, prefix: str, text: str, style: str) -> None:
        line = Text(self._encodable(prefix)).append(self._encodable(printable(text)), style)
        self._console.print(line, overflow="ignore", no_wrap=True)

    def _encodable(self, text: str) -> str:
        """The text in what the stream can write: a stream of ASCII gets question marks, not an exception."""
        return text.encode(self._console.encoding, "replace").decode(self._console.encoding)


def _variables(types: Mapping[str, str]) -> str:
    """What was given, what the questions asked to keep, and how many other names there are."""
    asked = [name for question in CONVERSATION for name in question.keeps if name in types]
    given = sorted(name for name in types if re.fullmatch(r"(context|history)_\d+", name))
    others = len(types) - len(asked) - len(given)
    return ", ".join(f"{name} ({types[name]})" for name in [*given, *asked]) + f", and {others} other names"


def _lines(answer: Any) -> list[str]:
    """An answer, one line for each of its parts."""
    if not isinstance(answer, Mapping):
        return [_head(str(answer))]
    return [f"{key}{_part(value)}" for key, value in answer.items()]


def _part(value: Any) -> str:
    if isinstance(value, Mapping):
        return ": " + (", ".join(f"{key} {part}" for key, part in value.items()) or "none")
    if isinstance(value, list):
        return f" ({len(value)}): {', '.join(map(str, value)) or 'none'}"
    return f": {_head(str(value))}"


def _head(text: str) -> str:
    """The beginning of a text as one paragraph."""
    flat = " ".join(text.split())
    return flat if len(flat) <= PARAGRAPH else f"{flat[: PARAGRAPH - 1]}…"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
