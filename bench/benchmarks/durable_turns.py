"""What a turn costs where everything of it is recorded."""

from __future__ import annotations

from collections.abc import Sequence

from bench.benchmarks.commits import EVENT
from bench.figures import DURABLE, LIMIT, Benchmark, Figures, Table, Take, Target, ask
from bench.show import amount
from rlm.log import dump

DISK, MEMORY = "rlm, durable", "rlm, in memory"
ROWS = {"no new input": 0, "context of 10,000": 10_000, "context of 900,000": 900_000}
ASKED, SMALL, LARGE = ROWS
COMMIT = "one commit of one event"


def takes(quick: bool) -> Sequence[Take]:
    few = 2 if quick else 40
    taken = [ask(LIMIT, COMMIT, "commits", data=dump(EVENT), times=few)]
    for row, size in ROWS.items():
        for who, durable in ((DISK, True), (MEMORY, False)):
            taken.append(ask(who, row, "turns", driver=DURABLE, size=size, times=few, durable=durable))
    return taken


def means(figures: Figures) -> str:
    return (
        f"A turn in a durable session takes {figures.says('time', SMALL, DISK)}, one in memory "
        f"{figures.says('time', SMALL, MEMORY)}; without new input {figures.says('time', ASKED, DISK)} and "
        f"{figures.says('time', ASKED, MEMORY)}."
    )


def where(figures: Figures) -> str:
    if not (figures.has("time", ASKED, DISK) and figures.has("time", COMMIT, LIMIT)):
        return ""
    more = figures.median("time", ASKED, DISK) - figures.median("time", ASKED, MEMORY)
    commit = figures.median("time", COMMIT, LIMIT)
    return (
        f"What durability adds to a turn without new input, {amount(more, 's')}, is {more / commit:.1f} times a bare "
        f"commit ({amount(commit, 's')}). Three commits are waited for: the question before the model is asked, the "
        "reply before its cell runs, and the answer with the cell's result and its checkpoint. The rest is the capture "
        "of the namespace and Python that writes events. A context is written, hashed and verified before it counts."
    )


BENCHMARK = Benchmark(
    name="durable_turns",
    title="Turns of a durable session",
    how=(
        "One turn of one iteration in a warm session with a model that replies at once, in a store on the disk and in "
        "memory, in the same run. Every context is a new one. The limit is one bare commit, as for events. An answer "
        "waits for the checkpoint of its last cell where that is there within 50 ms, and that is counted."
    ),
    tables=[
        Table("time", "One turn", ratios=[(DISK, MEMORY)]),
        Table("events", "Events that a turn records", "events"),
    ],
    takes=takes,
    means=means,
    where=where,
    targets=[
        Target(f"A turn {says}, {row}: at most {most} ms", ("time", row, who), most / 1000)
        for says, who, most in (("of a durable session", DISK, 5), ("beside it, in memory", MEMORY, 2))
        for row in ROWS
    ],
    rounds=7,
)
