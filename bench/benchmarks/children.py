"""Recursive children, each with a REPL of its own."""

from __future__ import annotations

from collections.abc import Sequence
from os import cpu_count

from bench.driver import Drivers
from bench.figures import LIMIT, OURS, PEER, PEER_FIXED, Benchmark, Figures, Table, Take, Target, Values, ask

COUNTS = (1, 8, 32, 128)
SHOWN = 32


def row_of(count: int) -> str:
    return "1 child" if count == 1 else f"{count} children"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for count in (1, 4) if quick else COUNTS:
        row, at_once = row_of(count), min(count, cpu_count() or 1)

        def ours(drivers: Drivers, count: int = count) -> Values:
            value: Values = drivers[OURS].do("children", count=count)
            return value if count == SHOWN else {"time": value["time"]}

        taken += [ask(LIMIT, row, "interpreters", count=count, at_once=at_once), Take(OURS, row, ours)]
        rounds = 3 if count > 32 else None
        taken += [ask(who, row, "children", count=count, rounds=rounds) for who in (PEER, PEER_FIXED)]
    return [*taken, ask(OURS, "", "lives", times=3 if quick else 11)]


def means(figures: Figures) -> str:
    row = row_of(SHOWN)
    return (
        f"{SHOWN} children, each in a process of its own, take {figures.says('time', row)}, "
        f"{figures.compared('time', row, OURS, LIMIT)} what as many interpreters take that do nothing; the peer as "
        f"shipped takes {figures.compared('time', row, PEER, OURS)} as long. Its children are dictionaries in one "
        "process, which costs less than a process once the wait is mended, for as long as they do not meet: they "
        "share its standard output and its working folder."
    )


def where(figures: Figures) -> str:
    start, close = figures.says("life", "start"), figures.says("life", "close")
    return (
        f"A REPL starts in {start}, less where one stood ready, and ends in {close}. No interpreter starts for it and "
        "nothing is imported: it is a fork of a process that has all of that, see [Isolation](#isolation)."
    )


BENCHMARK = Benchmark(
    name="children",
    title="Recursive children",
    how=(
        "One `rlm_query_batched` in one cell; each child gets a REPL of its own and answers in one iteration; models "
        "reply at once. The limit is the time of as many `python -I -S -c pass`, as many at once as there are cores. "
        "The peer runs 4 children at once unless told otherwise."
    ),
    tables=[
        Table("time", "One turn", ratios=[(OURS, LIMIT), (PEER, OURS), (PEER_FIXED, OURS)]),
        Table("cores", f"Time on the cores, of {SHOWN} children"),
        Table("life", "A REPL's life, alone"),
    ],
    takes=takes,
    means=means,
    targets=[Target(f"{SHOWN} recursive children: at most 200 ms", ("time", row_of(SHOWN), OURS), 0.2)],
    where=where,
)
