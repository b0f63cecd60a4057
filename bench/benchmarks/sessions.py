"""A store with many sessions."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import DURABLE, Benchmark, Figures, Table, Take, ask

LIST, COMMAND, OPEN = "`Store.list()`", "`rlm sessions list`, the whole process", "opening one"
ONE, MANY = 1, 1_000


def who_of(count: int) -> str:
    return "1 session" if count == 1 else f"{count:,} sessions"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for row, command in ((LIST, "listed"), (COMMAND, "listed_by_process"), (OPEN, "opened")):
        taken += [
            ask(who_of(count), row, command, driver=DURABLE, count=count) for count in (ONE, 20 if quick else MANY)
        ]
    return taken


def means(figures: Figures) -> str:
    many = who_of(MANY)
    return (
        f"A thousand sessions are listed in {figures.says('time', LIST, many)}; `rlm sessions list` prints them in "
        f"{figures.says('time', COMMAND, many)}, of which {figures.says('time', COMMAND, who_of(ONE))} is what one "
        f"session takes, too. To open one takes {figures.says('time', OPEN, many)}."
    )


BENCHMARK = Benchmark(
    name="sessions",
    title="Many sessions",
    how=(
        "A store of so many sessions, each with a log of three turns. Opening one reads its log and takes its lock; it "
        "starts no worker."
    ),
    tables=[Table("time", "Time", ratios=[(who_of(MANY), who_of(ONE))])],
    takes=takes,
    means=means,
    rounds=5,
)
