"""`rlm ask`: one question about files, folders or standard input, by itself or within a stored session."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from rlm.cli import exits, paths
from rlm.cli.exits import ANSWERED, UsageError
from rlm.cli.settings import SESSIONS, Settings, with_options
from rlm.cli.terminal import Output
from rlm.cli.watch import Watch, view_of
from rlm.errors import ContextError, ModelError, ProtocolError, RLMError, SandboxError, TurnError
from rlm.types import Asked, RLMChatCompletion

if TYPE_CHECKING:
    from rlm.rlm import RLM
    from rlm.session import Session

ENDS = (TurnError, ModelError, SandboxError, ProtocolError)  # what ends a turn that had begun


@with_options(Settings)
def ask(
    settings: Settings,
    question: Annotated[str, Argument(metavar="QUESTION")],
    path: Annotated[list[str] | None, Argument(metavar="[PATH|-]...")] = None,
    session: Annotated[
        str | None,
        Option(
            "--session",
            metavar="NAME",
            rich_help_panel=SESSIONS,
            help="Ask within this stored session, which is made if there is none.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        Option(
            "--key",
            metavar="KEY",
            rich_help_panel=SESSIONS,
            help="With --session: asked again with the same key and inputs, the recorded answer is printed, free.",
        ),
    ] = None,
) -> int:
    """Ask one question about files, folders or standard input, of any size.

    A file is its text, a folder or several paths a mapping from path to text, - is standard input. What is not UTF-8
    comes as bytes; .gz files are opened.

    The answer goes to standard output. What happens meanwhile goes to standard error: on a terminal as a live tree,
    else as plain lines. Ctrl-C cancels, and prints what there is of an answer.
    """
    output = settings.output()
    if key is not None and session is None:
        raise UsageError("--key names a question within a stored session: give --session NAME with it")
    watch = Watch(view_of(output), sys.stdout if output.events else None)
    with settings.open(watch.tell) as rlm:
        if output.is_live:
            output.note(f"isolation: {rlm.isolation}")
        begin = _question(output, question, path or [])
        if session is None:
            return turn(output, watch, lambda: begin(rlm, None, None))
        asked_in = rlm.session(session, wait=settings.wait)
        unfinished = asked_in.unfinished
        asked = asked_of(asked_in) if unfinished is not None and key is not None and unfinished.key == key else None
        return turn(output, watch, lambda: begin(rlm, asked_in, key), asked, may_be_known=key is not None)


Begin = Callable[["RLM", "Session | None", "str | None"], RLMChatCompletion]
"""Asks the question, in a session or by itself, under a key or without."""


def _question(output: Output, question: str, given: list[str]) -> Begin:
    if not question.strip():
        raise UsageError('the question is empty; it comes first: rlm ask "question" PATH')
    if not given:
        if _is_piped_in():
            output.note("note: standard input is not read; name it as - to ask about it")
        return lambda rlm, session, key: (session or rlm.session()).ask(question, key=key)
    if given == [paths.STANDARD_INPUT] and sys.stdin.isatty():
        output.note("reading standard input up to Ctrl-D")
    try:
        value = paths.read(given)
    except ContextError as error:
        if _exists(question):
            raise UsageError(f'{error}; the question comes first: rlm ask "question" {question}') from error
        raise
    return lambda rlm, session, key: (session or rlm).completion(value, question, key=key)


def asked_of(session: Session) -> Asked | None:
    """How the unfinished turn of a session began."""
    if (unfinished := session.unfinished) is None:
        return None
    at = f"t{unfinished.turn}"
    return next((event for event in reversed(session.log) if isinstance(event, Asked) and event.at == at), None)


def turn(
    output: Output,
    watch: Watch,
    ask: Callable[[], RLMChatCompletion],
    asked: Asked | None = None,
    *,
    may_be_known: bool = False,
) -> int:
    """Run a turn, show how it goes, and print its answer. Raises what the turn raises, after printing what there is.

    asked, may_be_known: as `Watch.watching` takes them.
    """
    try:
        with watch.watching(asked, may_be_known=may_be_known):
            completion = ask()
    except ENDS as error:
        if error.partial_answer:
            output.answer(error.partial_answer)
        output.result(failure(error))
        raise
    output.answer(completion.response)
    output.result(completion.to_dict())
    return ANSWERED


def failure(error: RLMError) -> dict[str, Any]:
    """A turn without an answer as JSON has it."""
    return {
        "error": type(error).__name__,
        "message": exits.without_keys(str(error)),
        "partial_answer": error.partial_answer,
        "usage_summary": error.usage.to_dict(),
    }


def _is_piped_in() -> bool:
    """Whether somebody seems to have given us an input: a file or a pipe, not a terminal and not /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no real file behind it
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
