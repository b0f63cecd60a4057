"""From a cell's code to its result."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import LIMIT, OURS, PEER, Benchmark, Figures, Table, Take, Target, ask

BLOCKING, LOOP, ASYNCIO = "rlm, blocking", "rlm, on the loop", "limit, asyncio"
VARIABLES = {0: "0 variables", 10_000: "10,000 variables", 100_000: "100,000 variables"}
NONE, MANY = VARIABLES[0], VARIABLES[100_000]
ON_LOOP, FOR_BLOCKING = "host: the event loop's thread, on a core", "host: the caller's thread, on a core"
WORKER, NOBODY = "worker, on a core", "nobody on a core: hand-overs between threads and processes"


def takes(quick: bool) -> Sequence[Take]:
    trips = 20 if quick else 500
    taken = []
    for variables, row in VARIABLES.items():
        taken += [
            ask(LIMIT, row, "round_trips", times=trips),
            ask(ASYNCIO, row, "awaited_round_trips", driver=LIMIT, times=trips),
            ask(LOOP, row, "cells", driver=OURS, variables=variables, times=trips, blocking=False),
            ask(BLOCKING, row, "cells", driver=OURS, variables=variables, times=trips, blocking=True),
            ask(PEER, row, "cells", variables=variables, times=min(trips, 5_000_000 // (variables + 10_000))),
        ]
    for who, blocking in ((LOOP, False), (BLOCKING, True)):
        taken.append(ask(who, "", "cell_account", driver=OURS, variables=0, times=2 * trips, blocking=blocking))
    return taken


def means(figures: Figures) -> str:
    return (
        f"A cell in another process costs {figures.says('time', NONE, LOOP)} on the engine's loop, "
        f"{figures.compared('time', NONE, LOOP, LIMIT)} a bare round trip, and {figures.says('time', MANY, LOOP)} "
        "beside 100,000 variables. The peer runs cells in the host's own process, which is faster while it holds "
        f"little ({figures.says('time', NONE, PEER)}); with 100,000 variables it takes "
        f"{figures.says('time', MANY, PEER)}."
    )


def where(figures: Figures) -> str:
    return (
        f"A cell on the loop is Python at both ends, {figures.says('account', ON_LOOP, LOOP)} in the host and "
        f"{figures.says('account', WORKER, LOOP)} in the worker, where a bare round trip compares no names, captures "
        f"no output and reads no JSON; {figures.says('account', NOBODY, LOOP)} is waiting for the system. A blocking "
        "caller adds its own thread, which hands over to the loop's and is woken by it."
    )


BENCHMARK = Benchmark(
    name="cells",
    title="Cells",
    how=(
        "The cell `x = 1` in a namespace of so many variables, awaited on the engine's event loop, and from blocking "
        "code (`LocalREPL.execute_code`). The limit is a bare round trip between two blocking processes over a socket "
        "pair, with as many bytes; the second one has an asyncio event loop at one end. The peer's local REPL runs "
        "cells in its own process."
    ),
    tables=[
        Table("time", "One cell", ratios=[(LOOP, LIMIT), (BLOCKING, LIMIT), (PEER, LOOP)]),
        Table("account", "Where the time of an empty cell goes"),
        Table("switches", "How often a thread goes to sleep, a cell", "times"),
    ],
    takes=takes,
    means=means,
    where=where,
    targets=[
        Target(f"{says}, {row}: at most {most} × a bare round trip", ("time", row, who), most, ("time", row, LIMIT))
        for row in (NONE, MANY)
        for says, who, most in (("A cell on the engine's loop", LOOP, 2), ("A cell for a blocking caller", BLOCKING, 3))
    ],
    rounds=11,
)
