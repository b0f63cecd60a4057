"""docs/benchmarks.md, made from the result files and nothing else: the same files always give the same page."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import results
from bench.benchmarks import BENCHMARKS
from bench.driver import ROOT
from bench.figures import (
    BUBBLEWRAP,
    CLOUDPICKLE,
    DILL,
    KERNEL,
    LIMIT,
    OURS,
    PEER,
    PEER_FIXED,
    Benchmark,
    Figures,
    Table,
    Target,
)
from bench.results import Result
from bench.show import amount, times

PAGE = ROOT / "docs" / "benchmarks.md"
SHOWN_ABOUT = ("processor", "memory", "system", "python", "peer", "picklers", "sandboxes", "packages")

INTRODUCTION = f"""\
# Benchmarks

<!-- Made by `python -m bench report` from bench/results/*.json. A test compares the two: change those, not this. -->

Every figure here is from one run in which all columns were taken in turns, round after round, on the same machine:

- **{OURS}** is this project.
- **{PEER}** is the reference engine from PyPI as shipped; **{PEER_FIXED}** is the same with one number changed: the
  poll of its server's shutdown, half a second as shipped, for which every completion waits.
- **{DILL}** and **{CLOUDPICKLE}** save a whole namespace to a file, in the ways that these packages have for it.
- **{BUBBLEWRAP}** is a Python process in that sandbox; **{KERNEL}** is the process behind a notebook.
- **{LIMIT}** is what the machine does without an engine: each section says how.

A cell holds the median of the rounds and, in brackets, the lowest and highest; a ratio is the median of the rounds'
ratios. `scripts/bench` takes all of them again (`scripts/bench NAME` one, `scripts/bench report` only this page).
"""


def page(taken: Mapping[str, Result]) -> str:
    """The page for these results, by name; benchmarks without a result are left out."""
    known = [(benchmark, taken[name]) for name, benchmark in BENCHMARKS.items() if name in taken]
    parts = [INTRODUCTION, _circumstances([result for _, result in known]), _promises(known)]
    parts += [_section(benchmark, result) for benchmark, result in known]
    return "\n".join(parts)


def read_all(folder: Path = results.FOLDER) -> Mapping[str, Result]:
    found = [results.read(path) for path in sorted(folder.glob("*.json")) if path.stem in BENCHMARKS]
    return {result.benchmark: result for result in found}


def _circumstances(taken: Sequence[Result]) -> str:
    lines = ["| | |", "|---|---|"]
    for name in SHOWN_ABOUT:
        values = dict.fromkeys(result.about[name] for result in taken if name in result.about)
        if values:
            lines.append(f"| {name} | {' / '.join(values)} |")
    return "\n".join([*lines, ""])


def _promises(known: Sequence[tuple[Benchmark, Result]]) -> str:
    lines = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
    for benchmark, result in known:
        for target in benchmark.targets:
            found = measured(target, result.figures)
            if found is not None:
                met = "met" if found <= target.most else "**missed**"
                value = times(found) if target.by else amount(found, _unit(benchmark, target))
                lines.append(f"| {target.says} | {value} | {met} |")
    return "\n".join([*lines, ""])


def measured(target: Target, figures: Figures) -> float | None:
    """The figure a target is about, None where it was not taken."""
    if target.at not in figures.values or (target.by and target.by not in figures.values):
        return None
    return figures.ratio(target.at, target.by) if target.by else figures.median(*target.at)


def _unit(benchmark: Benchmark, target: Target) -> str:
    return next(table.unit for table in benchmark.tables if table.key == target.at[0])


def _section(benchmark: Benchmark, result: Result) -> str:
    about = result.about
    lines = [f"## {benchmark.title}", "", _wrapped(benchmark.how), "", _wrapped(benchmark.means(result.figures)), ""]
    for table in benchmark.tables:
        if result.figures.rows(table.key):
            lines += [f"**{table.title}**", "", *_table(table, result.figures), ""]
    if benchmark.where:
        lines += [_wrapped(benchmark.where(result.figures)), ""]
    for (row, who), why in result.figures.failures.items():
        lines += [f"{who} failed at “{row}” {_counted(len(why))}, at last with `{why[-1]}`", ""]
    taken = f"{result.rounds} rounds, {about['date']}, commit {about['commit']}, load before {about['load before']}"
    return "\n".join([*lines, f"<sub>`scripts/bench {benchmark.name}`: {taken}</sub>", ""])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(table: Table, figures: Figures) -> list[str]:
    columns = figures.columns(table.key)
    ratios = [(one, by) for one, by in table.ratios if one in columns and by in columns]
    titles = ["", *columns, *(f"{one} ÷ {by}" for one, by in ratios)]
    lines = [f"| {' | '.join(titles)} |", f"|---{'|--:' * (len(titles) - 1)}|"]
    for row in figures.rows(table.key):
        cells = [_cell(table, figures, row, who) for who in columns]
        cells += [_ratio(table, figures, row, one, by) for one, by in ratios]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _cell(table: Table, figures: Figures, row: str, who: str) -> str:
    failed = len(figures.failures.get((row, who), ()))
    if not figures.has(table.key, row, who):
        return "failed" if failed else "–"
    values = figures.values[table.key, row, who]
    middle = amount(statistics.median(values), table.unit)
    low, high = amount(min(values), table.unit), amount(max(values), table.unit)
    spread = "" if low == high else f" ({low.removesuffix(' ' + middle.partition(' ')[2])}–{high})"
    return f"{middle}{spread}" + (f", failed {_counted(failed)}" if failed else "")


def _counted(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _ratio(table: Table, figures: Figures, row: str, one: str, by: str) -> str:
    if not (figures.has(table.key, row, one) and figures.has(table.key, row, by)):
        return "–"
    return times(figures.ratio((table.key, row, one), (table.key, row, by)))
