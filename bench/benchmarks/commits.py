"""What it costs to have an event on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import DURABLE, LIMIT, OURS, Benchmark, Figures, Table, Take, ask
from rlm.log import dump
from rlm.types import Called

SYNCED = "limit, a synced write of 4 kB"
ONE = "one after the other, one session"
AT_ONCE, SESSIONS = 1_000, 8
MANY = f"{AT_ONCE:,} at once, one session"
SPREAD = f"{AT_ONCE:,} at once, {SESSIONS} sessions"
EVENT = Called("t0/c0/llm_query:0#0", "llm_query", "Which service failed first? " * 4, "The gateway did. " * 40)


def takes(quick: bool) -> Sequence[Take]:
    data, few, several = dump(EVENT), 5 if quick else 300, 2 if quick else 20
    return [
        ask(SYNCED, ONE, "synced", driver=LIMIT, size=4096, times=few),
        ask(LIMIT, ONE, "commits", data=data, times=few),
        ask(OURS, ONE, "commits", driver=DURABLE, data=data, times=few),
        ask(LIMIT, MANY, "commits", data=data, times=several, rows=AT_ONCE),
        ask(OURS, MANY, "commits", driver=DURABLE, data=data, times=several, at_once=AT_ONCE),
        ask(LIMIT, SPREAD, "commits", data=data, times=several, rows=AT_ONCE),
        ask(OURS, SPREAD, "commits", driver=DURABLE, data=data, times=several, at_once=AT_ONCE, sessions=SESSIONS),
    ]


def means(figures: Figures) -> str:
    return (
        f"An event is on the disk {figures.says('time', ONE)} after it happened, "
        f"{figures.compared('time', ONE, OURS, LIMIT)} a bare commit. Events that come at the same time share one "
        f"commit: of a thousand each costs {figures.says('time', MANY)}, and {figures.says('time', SPREAD)} where they "
        f"are spread over {SESSIONS} sessions of the store. What is left is the Python that turns each into a row, "
        f"proves that its session is still ours to write, and tells who waits for it: of a bare row of such a commit, "
        f"{figures.says('time', MANY, LIMIT)}, it is {figures.compared('time', MANY, OURS, LIMIT)}."
    )


BENCHMARK = Benchmark(
    name="commits",
    title="Events on the disk",
    how=(
        f"`Lease.append` of one event ({len(dump(EVENT))} bytes as JSON) to a session in an SQLite store, awaited on "
        "the engine's event loop; then a thousand appends at once, the time divided by their number. The limit is one "
        "SQLite commit of the same bytes with the same pragmas (WAL, `synchronous=FULL`), a commit of a thousand rows "
        "beside a thousand appends; and, as what the disk itself takes, 4 kB appended to a file and synced."
    ),
    tables=[Table("time", "An event", ratios=[(OURS, LIMIT)])],
    takes=takes,
    means=means,
    rounds=7,
)
