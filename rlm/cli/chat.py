"""`rlm chat`: many turns over one session, with commands that look and step into it.

A turn that fails or is cancelled costs the chat nothing: the session goes on, and the model is told. With a name the
session is stored, and the next chat goes on where this one ended, however it did.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

import rlm as package
from rlm.cli import paths
from rlm.cli.ask import asked_of, turn
from rlm.cli.exits import ANSWERED, CANCELLED, UsageError, code_of, is_terminated, tell
from rlm.cli.settings import SESSIONS, Settings, with_options
from rlm.cli.terminal import Output
from rlm.cli.tree import counted, dollars, one_line
from rlm.cli.watch import Watch, view_of
from rlm.config import state_folder
from rlm.environments.payload import pack
from rlm.errors import RLMError, UnfinishedTurnError
from rlm.folds import Past, note_of_restore
from rlm.types import Called, Lost, Ran, Recorded, REPLResult, Restored, UnfinishedTurn, Usage

if TYPE_CHECKING:
    from rlm.cli.lines import Lines
    from rlm.session import Session

END = "/end"
LAST = 60  # characters of a question that is told again

COMMANDS = {
    "/add PATH [as NAME]": "bring in a file or a folder as the next context_N, and as NAME",
    "/vars": "the variables of the session and their types",
    "/run CODE": f"run your own cell; without CODE the lines up to {END}",
    "/cells": "the cells of the last turn, with what they printed",
    "/usage": "what the session has consumed, model by model",
    "/fork NAME": "begin a stored session NAME where this one stands; the chat stays here",
    "/rewind TURN": "go back to the end of a turn, or to the start; without TURN a list of them",
    "/resume": "go on with the turn that was cut off",
    "/discard": "give that turn up",
    "/help": "this list",
    "/quit": "leave (so does Ctrl-D)",
}


@with_options(Settings)
def chat(
    settings: Settings,
    path: Annotated[list[str] | None, Argument(metavar="[PATH]...")] = None,
    session: Annotated[
        str | None,
        Option(
            "--session",
            metavar="NAME",
            rich_help_panel=SESSIONS,
            help="Keep the session under this name, and go on with it where there is one.",
        ),
    ] = None,
) -> int:
    """Ask one question after the other, in one session that keeps its variables.

    A PATH becomes the first context, as with rlm ask; /add brings in more.

    With --session NAME the session is stored, with all its variables: the next chat of that name goes on with it, also
    after a crash.

    What begins with / is a command; /help lists them. Ctrl-C cancels the running turn and keeps the chat. Without a
    terminal every line of standard input is a question or a command.
    """
    if paths.STANDARD_INPUT in (path or []):
        raise UsageError("- cannot be read in a chat, which takes its lines from there; use rlm ask, or name a file")
    from rlm.cli.lines import lines_for

    output = settings.output()
    watch = Watch(view_of(output), sys.stdout if output.events else None)
    lines = lines_for(output, {name.split()[0]: told for name, told in COMMANDS.items()}, state_folder() / "history")
    with settings.open(watch.tell) as rlm:
        opened = rlm.session() if session is None else rlm.session(session, wait=settings.wait)
        return Chat(opened, lines, output, watch, stored=session is not None, debug=settings.debug).hold(path or [])


class Chat:
    """A chat over one session. stored: which outlives it. failed: the exit code of the first entry that failed, 0 if
    none did."""

    def __init__(
        self, session: Session, lines: Lines, output: Output, watch: Watch, *, stored: bool = False, debug: bool = False
    ) -> None:
        self.failed = ANSWERED
        self._session = session
        self._stored = stored
        self._lost: set[str] = set()
        self._restored: Restored | None = session.restored
        self._looked_in = not session.log
        self._lines = lines
        self._output = output
        self._watch = watch
        self._debug = debug
        self._commands: dict[str, Callable[[str], None]] = {
            "/add": self._add,
            "/vars": self._vars,
            "/run": self._run,
            "/cells": self._cells,
            "/usage": self._usage,
            "/fork": self._fork,
            "/rewind": self._rewind,
            "/resume": self._resume,
            "/discard": self._discard,
            "/help": self._help,
        }

    def hold(self, given: Sequence[str]) -> int:
        """Read entries until the end. Where nobody watches, the exit code is that of the first entry that failed."""
        if self._lines.typed:
            self._output.note(
                f"rlm {package.__version__} · isolation: {self._session.isolation} · /help lists commands"
            )
        if self._session.log and not self._go_on():
            return ANSWERED
        if given:
            self._bring_in_once(given)
        while True:
            try:
                self._remember_names()
                entry = self._lines.read()
                if entry is None or entry.split()[:1] == ["/quit"]:
                    return ANSWERED if self._lines.typed else self.failed
                if entry.strip():
                    self._take(entry)
            except KeyboardInterrupt as interrupt:  # once more than needed, while a turn was being cancelled
                if not self._lines.typed or is_terminated(interrupt):
                    raise

    def _take(self, entry: str) -> None:
        """One entry. What goes wrong in it is said, and the chat goes on."""
        try:
            if entry.startswith("/"):
                self._command(entry)
            else:
                self._ask(entry.strip())
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) or is_terminated(error):
                raise
            if code_of(error) == CANCELLED and not self._lines.typed:
                raise  # nobody is there to go on with
            code = tell(error, self._debug)
            self.failed = self.failed or code
        self._looked_in = True
        self._say_what_is_lost()
        if self._lines.typed:
            self._output.note("")

    def _ask(self, question: str) -> None:
        try:
            turn(self._output, self._watch, lambda: self._session.ask(question))
        except UnfinishedTurnError as error:
            raise UsageError(
                f"{str(error).partition(':')[0]}: /resume goes on with it, /discard gives it up"
            ) from error

    # -- going on ----------------------------------------------------------------------------------------------------

    def _go_on(self) -> bool:
        """Say what the chat goes on with, and settle what was left half done; False where the user leaves instead."""
        past = self._past()
        last = past.ended[-1].asked.question if past.ended else None
        told = f"; the last one: {one_line(last)[:LAST]}" if last else ""
        self._output.note(f"going on with {self._session.name!r}: {counted(len(past.ended), 'turn')}{told}")
        self._lines.names = past.heap.types
        self._say_lost({**past.heap.lost, **past.heap.files_lost})
        unfinished = self._session.unfinished
        return unfinished is None or self._settle(unfinished)

    def _settle(self, unfinished: UnfinishedTurn) -> bool:
        question = f": {one_line(unfinished.question)[:LAST]}" if unfinished.question else ""
        self._output.note(f"turn {unfinished.turn} was cut off{question}")
        if unfinished.lacks_input:
            self._output.note("its input had not arrived, so that it is given up; ask again")
            self._session.discard()
            return True
        if unfinished.typed and not self._lines.typed:
            raise UsageError(
                f"turn {unfinished.turn} was asked for an answer of a type: go on with it by resume(output_type=…) in "
                f"Python, or give it up by rlm sessions discard {self._session.name}"
            )
        choice = "r"
        if self._lines.typed:
            letters = "d" if unfinished.typed else "rd"
            choices = "[d]iscard it, or Ctrl-D to leave? " if unfinished.typed else "[r]esume or [d]iscard it? "
            choice = self._lines.choose(choices, letters) or ""
        if choice:
            self._take("/resume" if choice == "r" else "/discard")
        return bool(choice)

    def _past(self) -> Past:
        return Past(Recorded(number, 0.0, event) for number, event in enumerate(self._session.log))

    def _say_what_is_lost(self) -> None:
        """What the last restore could not bring back, once."""
        restored = self._session.restored
        if restored is None or restored is self._restored:
            return
        self._restored = restored
        self._say_lost(restored.lost)
        if restored.diverged or restored.skipped:
            self._output.note(note_of_restore(replace(restored, lost={})))

    def _say_lost(self, lost: Mapping[str, Lost]) -> None:
        for name, why in lost.items():
            if name not in self._lost:
                self._output.note(f"cannot be brought back: {name} ({why.type}: {one_line(why.reason)})")
        self._lost |= set(lost)

    def _command(self, entry: str) -> None:
        name, rest = [*re.split(r"\s+", entry, maxsplit=1), ""][:2]
        command = self._commands.get(name)
        if command is None:
            near = difflib.get_close_matches(name, [*self._commands, "/quit"], 1)
            meant = f"did you mean {near[0]}?" if near else "/help lists them."
            raise UsageError(f"{name} is no command; {meant} A question that begins with / needs a space before it.")
        command(rest.strip("\n") if name == "/run" else rest.strip())

    # -- commands --------------------------------------------------------------------------------------------------

    def _add(self, rest: str) -> None:
        path, name = _path_and_name(rest)
        if not path:
            raise UsageError("/add needs a path: /add PATH [as NAME]")
        if path == paths.STANDARD_INPUT:
            raise UsageError("- cannot be read in a chat, which takes its lines from there; name a file")
        value = paths.read([path])
        try:
            self._bring_in(value, name)
        except ValueError as error:
            if isinstance(error, RLMError):
                raise
            raise UsageError(str(error)) from None

    def _bring_in_once(self, given: Sequence[str]) -> None:
        """The inputs that the command line names, unless the session has them from a chat before."""
        value = paths.read(given)
        contexts = self._past().contexts
        if contexts:
            with tempfile.TemporaryDirectory() as folder:
                digest = pack(value, Path(folder)).hashed()
            known = next((index for index, context in contexts.items() if context.digest == digest), None)
            if known is not None:
                self._output.note(f"context_{known} is {' '.join(given)} already")
                return
        self._bring_in(value)

    def _bring_in(self, value: Any, name: str | None = None) -> None:
        index = self._session.add_context(value, name)
        also = f" ({name})" if name else ""
        self._output.note(f"context_{index}{also}: {paths.described(value)}")

    def _vars(self, rest: str) -> None:
        for name, kind in sorted(self._session.variables().items()):
            self._output.text(f"{name}: {kind}")

    def _run(self, rest: str) -> None:
        code = rest if rest.strip() else self._block()
        if not code.strip():
            raise UsageError(f"/run needs code: /run CODE, or /run and then lines up to {END}")
        with self._watch.watching():
            result = self._session.run(code)
        self._show(result)

    def _block(self) -> str:
        lines: list[str] = []
        while (line := self._lines.read(more=True)) is not None and line.strip() != END:
            lines.append(line)
        return "\n".join(lines)

    def _cells(self, rest: str) -> None:
        turn = f"t{self._session.turns - 1}"
        cells = [event for event in self._session.log if isinstance(event, Ran) and event.at.startswith(f"{turn}/c")]
        cells = [cell for cell in cells if cell.at.count("/") == 1]
        if not cells:
            self._output.text("the last turn ran no cell" if self._session.turns else "no turn yet: ask something")
        for number, cell in enumerate(cells, start=1):
            asked = sum(isinstance(event, Called) and _parent(event.at) == cell.at for event in self._session.log)
            calls = f", {counted(asked, 'call')}" if asked else ""
            self._output.text(f"[{number}] {cell.result.execution_time:.2f} s{calls}", "cyan")
            self._output.text(cell.code.rstrip())
            self._show(cell.result)

    def _show(self, result: REPLResult) -> None:
        if result.stdout:
            self._output.text(result.stdout.rstrip("\n"), "green")
        if result.stderr:
            self._output.text(result.stderr.rstrip("\n"), "red")

    def _usage(self, rest: str) -> None:
        summary = self._session.usage()
        rows = [_row(model, usage) for model, usage in summary.model_usage_summaries.items()]
        if len(rows) != 1:
            rows.append(_row("total", summary.total))
        self._output.table(("model", "calls", "input", "cached", "output", "cost"), rows)

    def _fork(self, rest: str) -> None:
        if not rest:
            raise UsageError("/fork needs a name: /fork NAME")
        if not self._stored:
            raise UsageError("this chat lives in memory, and has no forks: begin it with rlm chat --session NAME")
        self._session.fork(rest).close()
        self._output.note(f"{rest} begins here: rlm chat --session {rest}")

    def _rewind(self, rest: str) -> None:
        if not self._stored:
            raise UsageError("this chat lives in memory, and cannot go back: begin it with rlm chat --session NAME")
        if not rest:
            self._turns()
            return
        if rest != "start" and not rest.isdecimal():
            raise UsageError(f"/rewind {rest}: give the number of a turn, or start; /rewind alone lists them")
        try:
            self._session.rewind(None if rest == "start" else int(rest))
        except KeyError as error:
            raise UsageError(str(error.args[0])) from error
        self._output.note(
            f"at {'the start' if rest == 'start' else f'the end of turn {rest}'}; what came later is kept"
        )

    def _turns(self) -> None:
        from rlm.sessions import turns_of

        records = [Recorded(number, 0.0, event) for number, event in enumerate(self._session.log)]
        for one in turns_of(records, Past(records)):
            dropped = " (dropped)" if one.dropped else ""
            self._output.text(f"{one.number}{dropped}: {one_line(one.question or '(the task is in the input)')}")

    def _resume(self, rest: str) -> None:
        asked = asked_of(self._session)
        if asked is None:
            raise UsageError("no turn was cut off")
        turn(self._output, self._watch, self._session.resume, asked)

    def _discard(self, rest: str) -> None:
        unfinished = self._session.unfinished
        self._session.discard()
        self._output.note("no turn was cut off" if unfinished is None else f"turn {unfinished.turn} is given up")

    def _help(self, rest: str) -> None:
        width = max(map(len, COMMANDS))
        for name, meaning in COMMANDS.items():
            self._output.text(f"{name:{width}}  {meaning}")

    def _remember_names(self) -> None:
        if self._lines.typed and self._session.log and self._looked_in:
            self._lines.names = self._session.variables()


def _path_and_name(rest: str) -> tuple[str, str | None]:
    """What stands after /add: a path, which may be quoted, and the name after `as`, if any."""
    if Path(rest).expanduser().exists():
        return rest, None
    found = re.fullmatch(r"(?P<path>.+?)(?:\s+as\s+(?P<name>\S+))?", rest, re.DOTALL)
    if found is None:
        return "", None
    path, name = found.group("path"), found.group("name")
    if path[0] in "'\"":
        try:
            path = "".join(shlex.split(path))
        except ValueError as error:
            raise UsageError(f"/add {rest}: {error}") from None
    return path, name


def _parent(at: str) -> str:
    return at.rpartition("/")[0]


def _row(name: str, usage: Usage) -> tuple[str, ...]:
    counts = (usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return (name, *(f"{count:,}" for count in counts), dollars(usage.cost))
