"""How a command ends: its exit code, and one line on standard error where it did not answer.

`guarded` is the only place where exceptions become exit codes. A traceback is shown only with --debug, and nothing that
looks like a key is shown at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rlm.cli.terminal import error as say
from rlm.errors import (
    BudgetExceededError,
    CancellationError,
    ConfigurationError,
    ContextError,
    ErrorThresholdExceededError,
    RLMError,
    SessionBusyError,
    SessionExistsError,
    TimeoutExceededError,
    TokenLimitExceededError,
    UnfinishedTurnError,
    UnknownSessionError,
)

ANSWERED, FAILED, USAGE, LIMIT, CANCELLED, GONE, TERMINATED = 0, 1, 2, 3, 130, 141, 143

LIMITS = (BudgetExceededError, TimeoutExceededError, TokenLimitExceededError, ErrorThresholdExceededError)


class UsageError(ConfigurationError):
    """The command line asks for something that cannot be had."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the turn is cancelled as by Ctrl-C, so that nothing is left behind."""


def is_terminated(error: BaseException | None) -> bool:
    """Whether SIGTERM is behind it, also where a turn says in its own words that it was cancelled."""
    return error is not None and (isinstance(error, Terminated) or is_terminated(error.__context__))


def code_of(error: BaseException) -> int:
    """The exit code that stands for an exception."""
    if is_terminated(error):
        return TERMINATED
    match error:
        case KeyboardInterrupt() | CancellationError():
            return CANCELLED
        case BrokenPipeError():
            return GONE
        case ConfigurationError() | ContextError() | UnknownSessionError() | SessionExistsError():
            return USAGE
        case _ if isinstance(error, LIMITS):
            return LIMIT
    return FAILED


def tell(error: BaseException, debug: bool = False) -> int:
    """Say in one line what went wrong, and return the exit code."""
    code = code_of(error)
    if debug:
        print(without_keys("".join(traceback.format_exception(error))), file=sys.stderr)
    if code == CANCELLED:
        say("cancelled")
    elif code not in (GONE, TERMINATED):
        say(without_keys(described(error)))
    return code


def described(error: BaseException) -> str:
    """What happened and what can be done about it."""
    match error:
        case SessionBusyError():  # who has it; the mend that follows there is Python's
            return f"{str(error).rpartition(': ')[0] or error}: --wait SECONDS waits for it"
        case RLMError():
            mend = _mend(error)
            return f"{str(error).rstrip('.')}; {mend}" if mend else str(error)
        case OSError(strerror=str(reason)):
            return f"{error.filename}: {reason}" if error.filename else reason
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _mend(error: RLMError) -> str:
    match error:
        case BudgetExceededError(limit=limit):
            return f"--{limit} raises the limit"
        case TimeoutExceededError():
            return "--seconds raises the limit"
        case TokenLimitExceededError():
            return "--tokens raises the limit"
        case ErrorThresholdExceededError():
            return "--errors raises the limit"
        case UnfinishedTurnError():
            return "so do rlm sessions resume, and rlm sessions discard"
    return ""


def without_keys(text: str) -> str:
    """The text without anything that looks like a provider's key."""
    from rlm.models.failures import KEY_LIKE

    return KEY_LIKE.sub("[key]", text)


def guarded(body: Callable[..., int]) -> Callable[..., int]:
    """A command whose every end is an exit code. Its keyword `debug` asks for tracebacks."""

    @functools.wraps(body)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> int:
        try:
            with terminated_like_interrupted(), warned_in_one_line():
                code = body(*args, **kwargs)
                sys.stdout.flush()
                return code
        except SystemExit:  # Rich's way to end where nobody reads on; nothing of ours exits by itself
            return GONE
        except BrokenPipeError:
            # What is still buffered would fail again, and be complained about, when the interpreter ends.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return GONE
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - here each becomes a line and an exit code
            return tell(error, debug)

    return run


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def warned_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
