"""Commands that open a stored session: to go on with it, or to look and step inside.

Only `resume` asks a model; the others need none to be named. None of them makes a session that is not there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rlm.cli.ask import asked_of, turn
from rlm.cli.exits import ANSWERED, FAILED, UsageError
from rlm.cli.settings import Reopening, Settings, nobody, with_options
from rlm.cli.tree import counted, one_line
from rlm.cli.watch import Watch, view_of
from rlm.types import RemoteValue

if TYPE_CHECKING:
    from rlm.rlm import RLM
    from rlm.session import Session

NAME = Argument(metavar="NAME")


@contextlib.contextmanager
def stored(options: Reopening | Settings, rlm: RLM, name: str) -> Iterator[Session]:
    """The session of this name, which must be there. Raises `UnknownSessionError`, `SessionBusyError`."""
    from rlm.sessions import Sessions

    with rlm, Sessions(options.place()) as sessions:
        sessions.find(name)
        yield rlm.session(name, wait=options.wait)


@contextlib.contextmanager
def said_as_usage() -> Iterator[None]:
    """A turn or a name that there is not is the user's to choose anew."""
    try:
        yield
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error


@with_options(Settings)
def resume(settings: Settings, name: Annotated[str, NAME]) -> int:
    """Go on with the turn that the end of its process cut off, and print its answer.

    What is on record is not asked again. rlm sessions discard gives the turn up instead.
    """
    output = settings.output()
    watch = Watch(view_of(output), sys.stdout if output.events else None)
    with stored(settings, settings.open(watch.tell), name) as session:
        return turn(output, watch, session.resume, asked_of(session))


@with_options(Reopening)
def discard(options: Reopening, name: Annotated[str, NAME]) -> int:
    """Give the unfinished turn up. Its input, and what its cells did, stay."""
    output = options.output()
    with stored(options, options.open(), name) as session:
        unfinished = session.unfinished
        session.discard()
    output.result({"discarded": None if unfinished is None else unfinished.turn})
    output.note("no turn is unfinished" if unfinished is None else f"turn {unfinished.turn} is given up")
    return ANSWERED


@with_options(Reopening)
def fork(
    options: Reopening,
    name: Annotated[str, NAME],
    new: Annotated[str, Argument(metavar="NEW")],
    after: Annotated[
        int | None, Option("--after", metavar="TURN", help="As it was at the end of this turn. Default: as it is now.")
    ] = None,
) -> int:
    """Begin a session NEW where NAME stands, with the same variables and conversation; both then go their ways."""
    output = options.output()
    with stored(options, options.open(), name) as session, said_as_usage():
        session.fork(new, after).close()
    output.result({"name": new, "source": name, "after": after})
    output.note(f"{new} begins there: rlm chat --session {new}")
    return ANSWERED


@with_options(Reopening)
def rewind(
    options: Reopening,
    name: Annotated[str, NAME],
    after: Annotated[int | None, Option("--after", metavar="TURN", help="Go back to the end of this turn.")] = None,
    to_start: Annotated[bool, Option("--to-start", help="Go back to the beginning.")] = False,
) -> int:
    """Go back to the end of a turn, with variables, inputs and conversation.

    The log keeps what came later: a rewind to a later turn brings it back. rlm sessions show lists all turns.
    """
    if (after is None) != to_start:
        raise UsageError("give --after TURN, or --to-start")
    output = options.output()
    with stored(options, options.open(), name) as session, said_as_usage():
        session.rewind(after)
    output.result({"after": after})
    where = "at its beginning" if after is None else f"at the end of turn {after}"
    output.note(f"{name} stands {where}; what came later is kept, and rlm sessions show {name} lists it")
    return ANSWERED


@with_options(Reopening)
def variables(options: Reopening, name: Annotated[str, NAME]) -> int:
    """Print the variables of a session and their types."""
    output = options.output()
    with stored(options, options.open(), name) as session:
        found = dict(sorted(session.variables().items()))
    output.result(found)
    if not output.as_json:
        for variable, kind in found.items():
            output.text(f"{variable}: {kind}")
    return ANSWERED


@with_options(Reopening)
def get(
    options: Reopening,
    name: Annotated[str, NAME],
    variable: Annotated[str, Argument(metavar="VARIABLE")],
) -> int:
    """Print the value of a variable: a text as it is, anything else as Python shows it."""
    output = options.output()
    with stored(options, options.open(), name) as session, said_as_usage():
        value = session.get(variable)
    output.result(value)
    if not output.as_json:
        shown = value.repr if isinstance(value, RemoteValue) else value if isinstance(value, str) else repr(value)
        output.text(shown)
    return ANSWERED


@with_options(Settings)
def replay(settings: Settings, name: Annotated[str, NAME]) -> int:
    """Run a session again without a model, and say whether this version would send what was sent then.

    Replies and results of cells come from the log; nothing is asked, run or written. The exit code is 1 where something
    differs. Options are to be as the session had them.
    """
    output = settings.output()
    with stored(settings, settings.open(stand_in=nobody()), name) as session:
        replayed = session.replay()
    difference = replayed.difference
    output.result(replayed)
    if not output.as_json:
        told = f"{counted(replayed.turns, 'turn')}, {counted(replayed.requests, 'request')} compared"
        told += f", {replayed.skipped:,} not" if replayed.skipped else ""
        output.text(f"{told}: {'no difference' if difference is None else f'differs at {one_line(str(difference))}'}")
    return ANSWERED if difference is None else FAILED
