"""The commands, put together, and what is wrong with a command line said in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import rlm
from rlm.cli import reopened, sessions
from rlm.cli.ask import ask
from rlm.cli.chat import chat
from rlm.cli.demo import demo
from rlm.cli.doctor import doctor
from rlm.cli.exits import ANSWERED, FAILED, USAGE
from rlm.cli.help import Command, Group
from rlm.cli.shell import shell
from rlm.cli.terminal import error as say
from rlm.cli.trace import trace

app = typer.Typer(cls=Group, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rlm {rlm.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Recursive Language Models: questions about inputs of any size.

    The input becomes a variable in a Python REPL; a model writes code that inspects it, cuts it up, and asks language
    models about the pieces.

    Exit codes: 0 answered, 1 failed, 2 wrong usage or configuration, 3 a limit was reached, 130 cancelled.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


for command in (ask, chat):
    app.command(cls=Command)(command)
app.add_typer(sessions.app, name="sessions")
for command in (trace, doctor, demo):
    app.command(cls=Command)(command)

LOOKED_AT = (sessions.list_, sessions.show, sessions.usage)
GONE_ON_WITH = (reopened.resume, reopened.discard, reopened.fork, reopened.rewind)
STEPPED_INTO = (reopened.variables, reopened.get, shell)
CARRIED = (sessions.export, sessions.import_, sessions.notebook)
KEPT = (sessions.rename, sessions.delete, sessions.prune, sessions.check, reopened.replay)
for command in (*LOOKED_AT, *GONE_ON_WITH, *STEPPED_INTO, *CARRIED, *KEPT):
    sessions.app.command(command.__name__.rstrip("_"), cls=Command)(command)


def run(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit code."""
    _prepare_streams()
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name="rlm", standalone_mode=False)
    except Exception as error:
        message = getattr(error, "format_message", None)  # Typer's errors of usage, whose classes it keeps to itself
        if message is None:
            raise
        return _wrong_usage(error, message())
    return code if isinstance(code, int) else ANSWERED


def _wrong_usage(error: Exception, message: str) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rlm"
    if message:
        say(f"{message} See {command} --help" if message[-1] in ".?)" else f"{message}. See {command} --help")
    return getattr(error, "exit_code", USAGE) or FAILED


def _prepare_streams() -> None:
    """Streams that a caller closed are empty ones, and no character is a reason to fail."""
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115 - open for as long as the process lives
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
