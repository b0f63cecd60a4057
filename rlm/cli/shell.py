"""`rlm sessions shell`: an interactive prompt in the live namespace of a stored session.

Each entry is a cell of the user's own: it stands in the log, and the model is told of it with the next question. As at
Python's prompt, a lone expression shows its value, and an empty line ends a block.
"""

from __future__ import annotations

import ast
import codeop
import warnings
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from rlm.cli.exits import ANSWERED, CANCELLED, FAILED, code_of, is_terminated, tell
from rlm.cli.reopened import stored
from rlm.cli.settings import Settings, nobody, with_options
from rlm.cli.terminal import Output
from rlm.cli.watch import Silence, Watch, view_of
from rlm.config import state_folder
from rlm.types import REPLResult

if TYPE_CHECKING:
    from rlm.cli.lines import Lines
    from rlm.session import Session

LEAVE = frozenset({"exit", "exit()", "quit", "quit()"})
PROMPTS = ">>> ", "... "
SHOW = "(lambda value: value is None or print(repr(value)))"


@with_options(Settings)
def shell(settings: Settings, name: Annotated[str, Argument(metavar="NAME")]) -> int:
    """Type Python into the variables of a session; what was run is in its log, and the next question tells the model.

    A lone expression shows its value. An empty line ends a block, Ctrl-D leaves. Without a terminal the lines of
    standard input are run. A model is needed only where llm_query is called.
    """
    from rlm.cli.lines import lines_for

    output = settings.output()
    watch = Watch(view_of(output) if output.is_live else Silence())
    with stored(settings, settings.open(watch.tell, stand_in=nobody()), name) as session:
        lines = lines_for(output, None, state_folder() / "shell-history", PROMPTS)
        return Shell(session, lines, output, watch, debug=settings.debug).hold()


class Shell:
    """A prompt over one session."""

    def __init__(self, session: Session, lines: Lines, output: Output, watch: Watch, debug: bool = False) -> None:
        self._session = session
        self._lines = lines
        self._output = output
        self._watch = watch
        self._debug = debug

    def hold(self) -> int:
        """Run entries until the end. Where nobody types, the exit code is that of the first one that failed."""
        if self._lines.typed:
            unfinished = self._session.unfinished
            cut_off = f"; turn {unfinished.turn} was cut off, and has not ended" if unfinished is not None else ""
            self._output.note(f"session {self._session.name}{cut_off} · Ctrl-D leaves")
        failed = ANSWERED
        while (code := self._entry()) is not None and code.strip() not in LEAVE:
            if code.strip():
                ended = self._run(code)
                failed = failed or ended
        return ANSWERED if self._lines.typed else failed

    def _entry(self) -> str | None:
        """The next lines that make a whole; None at the end."""
        line = self._lines.read()
        if line is None:
            return None
        lines = [line]
        while not is_complete("\n".join(lines)):
            line = self._lines.read(more=True)
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines)

    def _run(self, code: str) -> int:
        try:
            with self._watch.watching():
                result = self._session.run(shown(code))
            self._show(result)
            if self._lines.typed:
                self._lines.names = self._session.variables()
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) or is_terminated(error):
                raise
            if code_of(error) == CANCELLED and not self._lines.typed:
                raise  # nobody is there to go on with
            return tell(error, self._debug)
        return FAILED if result.error is not None else ANSWERED

    def _show(self, result: REPLResult) -> None:
        self._output.result({"stdout": result.stdout, "stderr": result.stderr, "error": result.error})
        if not self._output.as_json:
            if result.stdout:
                self._output.text(result.stdout.rstrip("\n"))
            if result.stderr:
                self._output.text(result.stderr.rstrip("\n"), "red")


def is_complete(code: str) -> bool:
    """Whether Python's prompt would run it now; also where it cannot be right, which running it then says."""
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compiler(code, "<shell>", "single") is not None
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return True


def shown(code: str) -> str:
    """The cell for an entry: a lone expression prints what it is, unless that is None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code.strip(), "<shell>", "eval", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        return code
    expression = code.strip()
    end = "\n" if "#" in expression else ""
    return f"{SHOW}(({expression}{end}))"
