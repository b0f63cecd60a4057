"""From a cell to a model and back."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import LIMIT, OURS, PEER, Benchmark, Figures, Table, Take, ask

ROW = "llm_query in a loop"


def takes(quick: bool) -> Sequence[Take]:
    trips = 20 if quick else 500
    return [
        ask(LIMIT, ROW, "round_trips", times=trips),
        ask(OURS, ROW, "sub_calls", times=trips),
        ask(PEER, ROW, "sub_calls", times=trips),
        ask(OURS, "", "sub_call_account", times=trips),
    ]


def means(figures: Figures) -> str:
    return (
        f"The engine adds {figures.says('time', ROW)} to a sub-call, the ledger and the journal included. The peer, "
        f"which opens a connection and starts a thread for each, takes {figures.compared('time', ROW, PEER, OURS)} as "
        "long."
    )


BENCHMARK = Benchmark(
    name="sub_calls",
    title="Sub-calls",
    how="`llm_query` in a loop in one cell; the model replies at once. The limit is a bare round trip, as for cells.",
    tables=[
        Table("time", "One sub-call", ratios=[(OURS, LIMIT), (PEER, OURS)]),
        Table("account", "Where the time of a sub-call goes"),
        Table("switches", "How often a thread goes to sleep, a sub-call", "times"),
    ],
    takes=takes,
    means=means,
    rounds=7,
)
