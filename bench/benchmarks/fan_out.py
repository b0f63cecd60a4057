"""Many sub-calls at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.figures import LIMIT, OURS, PEER, PEER_FIXED, Benchmark, Figures, Table, Take, Target, ask

LATENCY = 0.1
GRID = {
    16: (16,),
    100: (16, 64, 250),
    1_000: (16, 64, 250, 1_000),
    10_000: (16, 64, 250, 1_000),
}
PEERS_OWN = 16  # the peer's concurrency, which cannot be set


def row_of(calls: int, at_once: int) -> str:
    return f"{calls:,} calls, {at_once:,} at once"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for calls, several in ({16: (16,), 100: (250,)} if quick else GRID).items():
        for at_once in several:
            row = row_of(calls, at_once)
            least = math.ceil(calls / at_once) * LATENCY
            rounds = 1 if least > 20 else 3 if least > 5 else None
            taken.append(Take(LIMIT, row, lambda _, least=least: {"time": least}, rounds=rounds))  # type: ignore[misc]
            taken.append(ask(OURS, row, "fan_out", calls=calls, latency=LATENCY, at_once=at_once, rounds=rounds))
            if at_once == PEERS_OWN and calls <= 1_000:
                for who in (PEER, PEER_FIXED):
                    taken.append(ask(who, row, "fan_out", calls=calls, latency=LATENCY, rounds=rounds))
    return [*taken, ask(OURS, "", "fan_out_account", calls=16 if quick else 1_000)]


def means(figures: Figures) -> str:
    fast, slow = row_of(1_000, 1_000), row_of(1_000, PEERS_OWN)
    return (
        f"A thousand calls at once take {figures.says('time', fast)}, of which {LATENCY * 1000:.0f} ms is the model; "
        f"the peer, whose concurrency is fixed at {PEERS_OWN}, takes {figures.says('time', slow, PEER)}."
    )


BENCHMARK = Benchmark(
    name="fan_out",
    title="Fan-out",
    how=(
        "One `llm_query_batched` in one cell, to a model that takes 100 ms a call; the time is that of the whole "
        "turn. The limit is ⌈calls ÷ concurrency⌉ × 100 ms. The peer's concurrency is 16 and cannot be set."
    ),
    tables=[
        Table("time", "One batch", ratios=[(OURS, LIMIT), (PEER, OURS)]),
        Table(
            "account", "Where the engine's own time goes, a call of a batch of 1,000 with a model that replies at once"
        ),
    ],
    takes=takes,
    means=means,
    targets=[
        *(
            Target(
                f"1,000 calls, {at_once} at once: at most 1.15 × the limit",
                ("time", row_of(1_000, at_once), OURS),
                1.15,
                ("time", row_of(1_000, at_once), LIMIT),
            )
            for at_once in (16, 64, 250)
        ),
        Target("1,000 calls, 1,000 at once: at most 300 ms", ("time", row_of(1_000, 1_000), OURS), 0.3),
    ],
)
