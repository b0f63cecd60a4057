"""A turn as lines for a terminal: iterations, their cells, what those ask for, and one line of totals.

Lines fit the width and height they are made for: the last cells are shown in full, older ones on one line, the oldest
not at all. All texts come from models, so they are shown as they are read, never as markup or control sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from rich.cells import cell_len
from rich.text import Text

from rlm.cli.progress import Calls, Cell, Iteration, Level, Progress
from rlm.narrate import printable
from rlm.types import Answered, Stopped

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BAR = 20
CODE_LINES, OUTPUT_LINES, ERROR_LINES = 5, 3, 2
CHILDREN = 4
CODE_BESIDE = 40, 28  # columns of code where its outcome, or its calls, stand on the same line

# How many of the last iterations are shown, and how many of the last cells in full: the first that fits the height.
DETAILS = ((8, 3), (8, 2), (8, 1), (5, 1), (3, 1), (1, 1), (1, 0))


@dataclass(slots=True)
class Branch:
    """A line of the tree with its right end, lines of detail below it, and what hangs on it."""

    line: Text
    right: str = ""
    details: list[Text] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)


def running(progress: Progress, width: int, height: int) -> list[Text]:
    """The turn as it is now, in at most `height` lines of at most `width` columns."""
    root = progress.root
    if root is None:
        return []
    lines: list[Text] = []
    for iterations, cells in DETAILS:
        lines = _flatten(_turn(progress, root, iterations, cells), width)
        if len(lines) < height:
            break
    else:
        lines = [lines[0], _styled("⋮", "dim"), *lines[-max(height - 3, 1) :]]
    spinner = SPINNER[int(progress.now() * 10) % len(SPINNER)]
    return [*lines, _fit("", _styled(f"{spinner} {_totals(progress, root)}", "cyan"), "", width)]


def finished(progress: Progress, width: int) -> list[Text]:
    """What stays on the screen of a turn: a line for each of the last iterations, and the totals.

    Nothing stays of a user's own cell, whose output is shown anyway.
    """
    root = progress.root
    if root is None or not root.model:
        return []
    lines = _flatten(_turn(progress, root, DETAILS[0][0], 0), width) if root.iterations else []
    return [*lines, _fit("", _ending(root).append(_totals(progress, root), "dim"), "", width)]


# -- from what is known to branches --------------------------------------------------------------------------------


def _turn(progress: Progress, root: Level, iterations: int, cells: int) -> Branch:
    now = progress.now()
    in_full = {id(cell) for cell in list(root.cells)[-cells:]} if cells else set()
    shown = root.iterations[-iterations:]
    skipped = len(root.iterations) - len(shown)
    branch = Branch(_styled(one_line(root.question) or "your own cell", "bold"), printable(root.model))
    if skipped:
        branch.children.append(Branch(_styled(f"⋮ {counted(skipped, 'earlier iteration')}", "dim")))
    for number, iteration in enumerate(shown, start=skipped + 1):
        last = number == len(root.iterations) and root.end is None
        branch.children.append(_iteration(iteration, number, in_full, last, now))
    return branch


def _iteration(iteration: Iteration, number: int, in_full: set[int], last: bool, now: float) -> Branch:
    name = "final request" if iteration.purpose == "final" else str(number)
    if iteration.usage is None:
        line = Text.assemble((f"{name} ", "cyan"), ("asking the model" if last else "no reply", "dim"))
        return Branch(line, _seconds(now - iteration.began) if last else "")
    if not last and not any(id(cell) in in_full for cell in iteration.cells):
        return _folded(iteration, name, now)
    usage = iteration.usage
    said = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out" if usage.calls else "your own"
    line = Text.assemble((f"{name} ", "cyan"), (said, "dim"))
    cells = [_cell(cell, now, full=id(cell) in in_full) for cell in iteration.cells]
    return Branch(line, _seconds(iteration.seconds) if usage.calls else "", children=cells)


def _folded(iteration: Iteration, name: str, now: float) -> Branch:
    line = _styled(f"{name} ", "cyan")
    if not iteration.cells:
        said = "answered in words" if iteration.purpose == "final" else "no code in the reply"
        return Branch(line.append(said, "dim"), _seconds(iteration.seconds))
    cell = iteration.cells[-1]
    for one in iteration.cells:
        line.append_text(_mark(one))
    seconds = iteration.seconds + sum((one.ended or now) - one.began for one in iteration.cells)
    return Branch(line.append(" ").append_text(_told(cell)), _seconds(seconds))


def _cell(cell: Cell, now: float, full: bool) -> Branch:
    seconds = _seconds((cell.ended or now) - cell.began)
    if not full:
        branch = Branch(_mark(cell).append(" ").append_text(_told(cell)), seconds)
    else:
        code = _head(cell.code, CODE_LINES)
        branch = Branch(_mark(cell).append(f" {code[0]}"), seconds, [Text(line) for line in code[1:]])
        branch.details += [_styled(f"→ {line}", "green") for line in _output(cell)]
        branch.details += [_styled(f"→ {line}", "red") for line in _reason(cell.error or "")]
    if full or cell.ended is None:
        branch.details += [_calls(name, calls, cell.ended is None) for name, calls in cell.calls.items()]
    if cell.ended is None:
        at_work = (child for child in cell.children.values() if child.iterations)
        branch.children = [_child(child, now) for child in islice(at_work, CHILDREN)]
    return branch


def _child(child: Level, now: float) -> Branch:
    """A child at work: where it is, and its last cell on one line."""
    line = Text.assemble(("rlm_query ", "magenta"), one_line(child.question))
    branch = Branch(line, f"{counted(len(child.iterations), 'iteration')} {_seconds(now - child.began)}")
    if last := next(reversed(list(child.cells)), None):
        branch.children = [_cell(last, now, full=False)]
    return branch


def _calls(name: str, calls: Calls, still: bool) -> Text:
    line = _styled(f"{printable(name)} ", "magenta")
    if calls.asked == 1:
        line.append(one_line(calls.first))
    elif still:
        done = BAR * calls.done // calls.asked
        line.append("━" * done, "magenta").append("─" * (BAR - done), "dim")
        line.append(f" {calls.done:,}/{calls.asked:,}")
    else:
        line.append(f"× {calls.asked:,}")
    if calls.failed:
        line.append(f" · {calls.failed:,} failed: {one_line(calls.failure)}", "red")
    return line


def _told(cell: Cell) -> Text:
    """A cell on one line: the first of its code that says something, what it asked for, and what came of it."""
    code = [line for line in _head(cell.code, CODE_LINES) if not line.startswith(("import ", "from "))]
    head = code[0] if code else _head(cell.code, 1)[0]
    outcome = cell.error.rpartition("\n")[2] if cell.error is not None else cell.output
    asked = [_many(name, calls) for name, calls in cell.calls.items()] if cell.ended is not None else []
    line = Text(head)
    if outcome.strip() or asked:
        line.truncate(CODE_BESIDE[bool(asked)], overflow="ellipsis")
    if asked:
        line.append(f" · {', '.join(asked)}", "magenta")
    if outcome.strip():
        line.append(f" → {one_line(outcome)}", "green" if cell.error is None else "red")
    return line


def _many(name: str, calls: Calls) -> str:
    failed = f" ({calls.failed:,} failed)" if calls.failed else ""
    return f"{printable(name)} × {calls.asked:,}{failed}"


def _mark(cell: Cell) -> Text:
    if cell.ended is None:
        return _styled("▸", "yellow")
    return _styled("✗", "red") if cell.error is not None else _styled("✓", "green")


def _ending(root: Level) -> Text:
    match root.end:
        case Answered():
            return _styled("✓ answered · ", "green")
        case None:
            return Text()
        case Stopped(reason=reason):
            how = "cancelled" if reason == "CancellationError" else "stopped by a limit"
            return _styled(f"✗ {how} · ", "yellow")
        case _:
            return _styled("✗ failed · ", "red")


def _totals(progress: Progress, root: Level) -> str:
    usage = progress.usage
    elapsed = (root.ended if root.ended is not None else progress.now()) - root.began
    parts = [
        _clock(elapsed),
        counted(len(root.iterations), "iteration"),
        counted(usage.calls, "call"),
        f"{_compact(usage.tokens)} tokens",
        dollars(usage.cost),
    ]
    return " · ".join(parts)


# -- texts ---------------------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """The beginning of a text without line ends and without anything that a terminal would obey."""
    return " ".join(printable(text[:500]).split())


def _head(text: str, lines: int) -> list[str]:
    """The first lines that say something; the last of them tells how many there are beyond."""
    said = [line.rstrip() for line in printable(text).expandtabs(4).splitlines() if line.strip()] or ["(empty)"]
    head = [said[0].lstrip(), *said[1:lines]]
    if lines > 1 and len(said) > lines:
        head[-1] = f"… {len(said) - lines + 1:,} more lines"
    return head


def _output(cell: Cell) -> list[str]:
    """The beginning of an output; of a running cell the end, which is what is new."""
    said = [line.rstrip() for line in printable(cell.output).expandtabs(4).splitlines() if line.strip()]
    if cell.ended is None:
        return said[-OUTPUT_LINES:]
    return said if len(said) <= OUTPUT_LINES else [*said[: OUTPUT_LINES - 1], "…"]


def _reason(error: str) -> list[str]:
    """The end of a traceback: the line it happened in, and the words that say what did."""
    said = [line.strip() for line in printable(error).expandtabs(4).splitlines() if line.strip(" ~^")]
    return said[-ERROR_LINES:]


def counted(number: int, thing: str) -> str:
    """`1 call`, `1,000 calls`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def dollars(cost: float | None) -> str:
    """What something cost, to the precision that is worth reading."""
    if cost is None:
        return "cost unknown"
    return "$0" if cost == 0 else f"${cost:.4f}" if cost < 10 else f"${cost:,.2f}"


def _compact(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.2f} million"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


# -- from branches to lines ----------------------------------------------------------------------------------------


def _flatten(branch: Branch, width: int) -> list[Text]:
    lines = [_fit("", branch.line, branch.right, width)]
    _hang(branch, "", width, lines)
    return lines


def _hang(branch: Branch, indent: str, width: int, lines: list[Text]) -> None:
    beside = "│ " if branch.children else "  "  # under the first word, after the mark
    lines += [_fit(indent + beside, detail, "", width) for detail in branch.details]
    for number, child in enumerate(branch.children, start=1):
        last = number == len(branch.children)
        lines.append(_fit(indent + ("└─ " if last else "├─ "), child.line, child.right, width))
        _hang(child, indent + ("   " if last else "│  "), width, lines)


def _styled(text: str, style: str) -> Text:
    """A text to which more can be appended that has not its style."""
    return Text().append(text, style)


def _fit(guide: str, text: Text, right: str, width: int) -> Text:
    """One line of at most `width` columns; `right` stands at its end where there is room for both."""
    if right and cell_len(right) > width // 2:
        right = ""
    room = width - cell_len(guide) - (cell_len(right) + 2 if right else 0)
    text.truncate(max(room, 1), overflow="ellipsis", pad=bool(right))
    line = Text(no_wrap=True).append(guide, "dim").append_text(text)
    return line.append(f"  {right}", "dim") if right else line
