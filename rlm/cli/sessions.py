"""`rlm sessions`: what can be done to stored sessions without opening them (`rlm.sessions`), as commands."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from rlm.cli import ages
from rlm.cli.exits import ANSWERED, FAILED, USAGE, UsageError
from rlm.cli.help import Group
from rlm.cli.settings import Storing, with_options
from rlm.cli.terminal import Output
from rlm.cli.tree import counted, dollars, one_line
from rlm.types import Usage, UsageSummary

if TYPE_CHECKING:
    from rlm.sessions import Sessions, SessionShown, TurnShown

WIDTH = 80
HEAD = 600  # characters of a question or an answer that are shown
NAMES = 60  # variables that are shown
HEADS = ("calls", "input", "cached", "output", "cost")

app = typer.Typer(cls=Group, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def sessions(context: typer.Context) -> None:
    """Look at stored sessions, go on with them, fork, rewind, carry and delete them.

    A session is stored where it has a name: rlm chat --session NAME, rlm ask --session NAME, or RLM.session(name).
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


def opened(options: Storing) -> Sessions:
    """The sessions of the store that the options name."""
    from rlm.sessions import Sessions

    return Sessions(options.place())


@with_options(Storing)
def list_(
    options: Storing,
    text: Annotated[str | None, Argument(metavar="[TEXT]")] = None,
    unfinished: Annotated[bool, Option("--unfinished", help="Only those whose last turn was cut off.")] = False,
    limit: Annotated[int | None, Option("--limit", metavar="N", min=1, help="So many at most.")] = None,
) -> int:
    """List the stored sessions, the one changed last first; with TEXT those that have it in name or last question."""
    output = options.output()
    with opened(options) as sessions:
        found = sessions.list(text, True if unfinished else None, limit)
    for one in found:
        output.result(one)
    if output.as_json:
        return ANSWERED
    if not found:
        output.note("no session is stored" if text is None and not unfinished else "no session is like that")
        return ANSWERED
    rows = []
    for one in found:
        question = one_line(one.question or "") if one.turns else "(nothing was asked)"
        state = "unfinished: " if one.unfinished else ""
        rows.append((one.name, f"{one.turns:,}", ages.when(one.updated), state + question))
    output.table(("name", "turns", "changed", "last question"), rows, last_is_text=True)
    return ANSWERED


@with_options(Storing)
def show(options: Storing, name: Annotated[str, Argument(metavar="NAME")]) -> int:
    """Show a session: its turns, inputs and variables, what cannot be brought back, and what it cost."""
    output = options.output()
    with opened(options) as sessions:
        shown = sessions.show(name)
    output.result(shown)
    if not output.as_json:
        _tell(output, shown)
    return ANSWERED


def _tell(output: Output, shown: SessionShown) -> None:
    about = [shown.name, shown.model, shown.environment, f"changed {ages.when(shown.updated)}"]
    output.text(_wrapped(" · ".join(filter(None, map(one_line, about)))), "bold")
    output.text(_wrapped(_consumed(shown.usage)))
    for context in shown.contexts:
        also = f" ({context.name})" if context.name else ""
        size = "" if context.size is None else f", {context.size:,} long"
        output.text(_wrapped(f"context_{context.index}{also}: {context.type}{size}"))
    for turn in shown.turns:
        output.text("")
        _tell_turn(output, turn)
    output.text("")
    if shown.variables:
        names = [f"{name} ({kind})" for name, kind in sorted(shown.variables.items())]
        more = [f"and {len(names) - NAMES:,} more"] if len(names) > NAMES else []
        output.text(_wrapped(f"variables: {', '.join([*names[:NAMES], *more])}"))
    for name, lost in shown.lost.items():
        output.text(_wrapped(f"cannot be brought back: {name} ({lost.type}: {one_line(lost.reason)})"), "yellow")
    if shown.behind:
        output.text(_wrapped(f"{counted(shown.behind, 'cell')} ran after the last checkpoint, and will run again"))
    if shown.unfinished is not None:
        mend = f"rlm sessions resume {shown.name} goes on with it, rlm sessions discard {shown.name} gives it up"
        output.text(_wrapped(f"turn {shown.unfinished} was cut off: {mend}"), "yellow")


def _tell_turn(output: Output, turn: TurnShown) -> None:
    did = [counted(turn.cells, "cell"), *([counted(turn.calls, "call")] if turn.calls else [])]
    parts = [f"turn {turn.number}", turn.state, *did, f"{turn.seconds:.1f} s", dollars(turn.usage.total_cost)]
    parts += [f"key {one_line(turn.key)}"] if turn.key is not None else []
    parts += ["dropped by a rewind"] if turn.dropped else []
    output.text(_wrapped(" · ".join(parts)), "dim" if turn.dropped else "cyan")
    output.text(_beside("  ? ", turn.question if turn.question is not None else "(the task is in the input)"))
    if turn.reason is not None:
        output.text(_beside("  ✗ ", turn.reason), "red")
    if turn.answer:
        output.text(_beside("  → ", turn.answer), "" if turn.dropped else "green")


def _consumed(usage: UsageSummary) -> str:
    total = usage.total
    return f"{counted(total.calls, 'model request')} · {total.tokens:,} tokens · {dollars(total.cost)}"


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _beside(mark: str, text: str) -> str:
    """The beginning of a text, line by line, beside a mark."""
    head = text if len(text) <= HEAD else text[: HEAD - 1] + "…"
    lines = [line for line in head.splitlines() if line.strip()] or [""]
    blank = " " * len(mark)
    wrapped = [textwrap.fill(line, WIDTH, initial_indent=blank, subsequent_indent=blank) for line in lines]
    return mark + "\n".join(wrapped)[len(mark) :]


@with_options(Storing)
def usage(
    options: Storing,
    name: Annotated[str, Argument(metavar="NAME")],
    turn: Annotated[int | None, Option("--turn", metavar="TURN", help="Of this turn alone.")] = None,
) -> int:
    """Show what a session consumed, turn by turn and model by model; dropped turns count, as they were paid."""
    output = options.output()
    with opened(options) as sessions:
        shown = sessions.show(name)
    turns = {one.number: one for one in shown.turns}
    if turn is not None and turn not in turns:
        raise UsageError(f"session {name!r} has no turn {turn}; there are: {', '.join(map(str, turns)) or 'none yet'}")
    summary = shown.usage if turn is None else turns[turn].usage
    wanted = [one for one in shown.turns if turn is None or one.number == turn]
    by_turn = {one.number: {"seconds": one.seconds, "dropped": one.dropped, **one.usage.to_dict()} for one in wanted}
    output.result({"turns": by_turn, **summary.to_dict()})
    if output.as_json:
        return ANSWERED
    if turn is None:
        rows = [
            (f"{one.number}{' (dropped)' * one.dropped}", f"{one.seconds:.1f}", *_row(one.usage.total))
            for one in wanted
        ]
        output.table(("turn", "seconds", *HEADS), rows)
        output.text("")
    models = [(model, *_row(used)) for model, used in summary.model_usage_summaries.items()]
    if len(models) != 1:
        models.append(("total", *_row(summary.total)))
    output.table(("model", *HEADS), models)
    return ANSWERED


def _row(usage: Usage) -> tuple[str, ...]:
    counts = (usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return (*(f"{count:,}" for count in counts), dollars(usage.cost))


@with_options(Storing)
def rename(
    options: Storing,
    name: Annotated[str, Argument(metavar="NAME")],
    new: Annotated[str, Argument(metavar="NEW")],
) -> int:
    """Give a session another name."""
    output = options.output()
    with opened(options) as sessions:
        sessions.rename(name, new)
    output.result({"name": new, "was": name})
    output.note(f"{name} is {new} now")
    return ANSWERED


@with_options(Storing)
def export(
    options: Storing,
    name: Annotated[str, Argument(metavar="NAME")],
    file: Annotated[
        str | None, Option("--output", "-o", metavar="FILE", help="Where to. Default: NAME.rlm in the current folder.")
    ] = None,
) -> int:
    """Write a session to one file, which rlm sessions import takes on another machine, or into another store."""
    output = options.output()
    with opened(options) as sessions:
        path = _target(sessions, name, file, ".rlm")
        size = sessions.export(name, path)
    output.result({"path": str(path), "bytes": size})
    output.note(f"{path}: {size:,} bytes")
    return ANSWERED


@with_options(Storing)
def import_(
    options: Storing,
    file: Annotated[str, Argument(metavar="FILE")],
    name: Annotated[str | None, Option("--as", metavar="NAME", help="The name it gets. Default: its own.")] = None,
) -> int:
    """Bring an exported session into the store. All of it is verified first; a damaged file changes nothing."""
    from rlm.errors import SessionExistsError

    output = options.output()
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"{file} {'is no file' if path.exists() else 'does not exist'}")
    with opened(options) as sessions:
        try:
            name = sessions.import_session(path, name)
        except SessionExistsError as error:
            raise UsageError(f"{str(error).partition(':')[0]}: give --as NAME, or delete it first") from error
    output.result({"name": name})
    output.note(f"{name} is here: rlm chat --session {name} goes on with it")
    return ANSWERED


@with_options(Storing)
def notebook(
    options: Storing,
    name: Annotated[str, Argument(metavar="NAME")],
    file: Annotated[
        str | None,
        Option("--output", "-o", metavar="FILE", help="Where to. Default: NAME.ipynb in the current folder."),
    ] = None,
) -> int:
    """Write a session as a Jupyter notebook: questions and answers, cells and what they printed."""
    return written(options, name, file, ".ipynb", lambda sessions, path: sessions.notebook(name, path))


def written(
    options: Storing, name: str, file: str | None, ending: str, write: Callable[[Sessions, Path], object]
) -> int:
    """Have `write` write a session to a file, and say to which."""
    output = options.output()
    with opened(options) as sessions:
        path = _target(sessions, name, file, ending)
        write(sessions, path)
    output.result({"path": str(path)})
    output.note(str(path))
    return ANSWERED


def _target(sessions: Sessions, name: str, file: str | None, ending: str) -> Path:
    """The file that is to be written. What stands there is written over only where it was named."""
    sessions.find(name)
    if file is not None:
        return Path(file).expanduser()
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "session"
    path = Path(plain + ending)
    if path.exists():
        raise UsageError(f"{path} exists: name it with -o to write over it, or name another file")
    return path


@with_options(Storing)
def delete(
    options: Storing,
    names: Annotated[list[str], Argument(metavar="NAME...")],
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete sessions for good, with all that no other one needs."""
    output = options.output()
    with opened(options) as sessions:
        found = [sessions.find(name) for name in dict.fromkeys(names)]
        turns = [f"{one.name} ({counted(one.turns, 'turn')})" for one in found]
        if not _agreed(f"delete {', '.join(turns)}?", yes):
            return FAILED
        for one in found:
            sessions.delete(one.name)
        freed = sessions.collect()
    output.result({"deleted": [one.name for one in found], "freed": freed})
    output.note(f"deleted {', '.join(one.name for one in found)}; {freed:,} bytes are free again")
    return ANSWERED


@with_options(Storing)
def prune(
    options: Storing,
    age: Annotated[str, Option("--older-than", metavar="AGE", help="Such as 12h, 30d or 8w.")],
    unfinished: Annotated[
        bool, Option("--unfinished", help="Also those whose last turn was cut off, which else are kept.")
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say which it would be.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete the sessions that were not changed for a time; those that are open somewhere are kept."""
    output = options.output()
    seconds = ages.seconds(age)
    with opened(options) as sessions:
        names = sessions.prune(seconds, keep_unfinished=not unfinished, dry_run=True)
        if names and not dry_run:
            if not _agreed(f"delete {counted(len(names), 'session')}: {_some(names)}?", yes):
                return FAILED
            names = sessions.prune(seconds, keep_unfinished=not unfinished)
    output.result({"dry_run" if dry_run else "deleted": names})
    told = "would delete" if dry_run else "deleted"
    output.note(f"{told} {counted(len(names), 'session')}{': ' if names else ''}{_some(names)}")
    return ANSWERED


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - 10:,} more"] if len(names) > 10 else []
    return ", ".join([*names[:10], *more])


def _agreed(question: str, yes: bool) -> bool:
    """Whether the user wants it; where nobody can be asked, it has to be said with --yes."""
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{question} Nobody is here to be asked: give --yes.")
    print(f"{one_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@with_options(Storing)
def check(options: Storing) -> int:
    """Read everything that is stored, and say what is wrong; the exit code is 1 where anything is."""
    output = options.output()
    with opened(options) as sessions:
        wrong = sessions.check()
        count = len(sessions.list())
    output.result({"sessions": count, "wrong": wrong})
    if not output.as_json:
        for sentence in wrong:
            output.text(sentence)
        if not wrong:
            output.text(f"{counted(count, 'session')}: all is well")
    return FAILED if wrong else ANSWERED
