"""`rlm chat`: many turns over one session, with commands that look and step into it.

A turn that fails or is cancelled costs the chat nothing: the session goes on, and the model is told.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

import rlm as package
from rlm.cli import paths
from rlm.cli.ask import turn
from rlm.cli.exits import ANSWERED, CANCELLED, UsageError, code_of, is_terminated, tell
from rlm.cli.settings import Settings, with_settings
from rlm.cli.terminal import Output
from rlm.cli.tree import counted, dollars
from rlm.cli.watch import Watch, view_of
from rlm.config import state_folder
from rlm.errors import RLMError
from rlm.types import Called, Ran, REPLResult, Usage

if TYPE_CHECKING:
    from rlm.cli.lines import Lines
    from rlm.session import Session

END = "/end"

COMMANDS = {
    "/add PATH [as NAME]": "bring in a file or a folder as the next context_N, and as NAME",
    "/vars": "the variables of the session and their types",
    "/run CODE": f"run your own cell; without CODE the lines up to {END}",
    "/cells": "the cells of the last turn, with what they printed",
    "/usage": "what the session has consumed, model by model",
    "/help": "this list",
    "/quit": "leave (so does Ctrl-D)",
}


@with_settings
def chat(
    settings: Settings,
    path: Annotated[list[str] | None, Argument(metavar="[PATH]...")] = None,
) -> int:
    """Ask one question after the other, in one session that keeps its variables.

    A PATH becomes the first context, as with rlm ask; /add brings in more.

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
        return Chat(rlm.session("chat"), lines, output, watch, debug=settings.debug).hold(path or [])


class Chat:
    """A chat over one session. failed: the exit code of the first entry that failed, 0 if none did."""

    def __init__(self, session: Session, lines: Lines, output: Output, watch: Watch, debug: bool = False) -> None:
        self.failed = ANSWERED
        self._session = session
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
            "/help": self._help,
        }

    def hold(self, given: Sequence[str]) -> int:
        """Read entries until the end. Where nobody watches, the exit code is that of the first entry that failed."""
        if self._lines.typed:
            self._output.note(
                f"rlm {package.__version__} · isolation: {self._session.isolation} · /help lists commands"
            )
        if given:
            self._bring_in(paths.read(given))
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
                turn(self._output, self._watch, lambda: self._session.ask(entry.strip()))
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) or is_terminated(error):
                raise
            if code_of(error) == CANCELLED and not self._lines.typed:
                raise  # nobody is there to go on with
            code = tell(error, self._debug)
            self.failed = self.failed or code
        if self._lines.typed:
            self._output.note("")

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

    def _help(self, rest: str) -> None:
        width = max(map(len, COMMANDS))
        for name, meaning in COMMANDS.items():
            self._output.text(f"{name:{width}}  {meaning}")

    def _remember_names(self) -> None:
        if self._lines.typed and self._session.log:
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
