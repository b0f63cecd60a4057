"""What a turn costs where the model costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bench.benchmarks.cells import ON_LOOP, WORKER
from bench.driver import Drivers
from bench.figures import LIMIT, OURS, PEER, PEER_FIXED, Benchmark, Figures, Table, Take, Target, Values, ask
from bench.show import amount, times

ONE, BIG = "1 iteration", "1 iteration, context of 900,000"
ASKED, FRESH = "1 iteration, no new input", "1 iteration, fresh namespace"
ALL = (OURS, PEER_FIXED, PEER)


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for who in ALL:
        few = 1 if quick else 3 if who == PEER else 20  # as shipped, the peer waits half a second each
        taken += [ask(who, ONE, "turns", iterations=1, times=few)]
        taken += [ask(who, BIG, "turns", iterations=1, times=min(few, 10), size=900_000)]
        taken += [ask(who, ASKED, "asked_turns", times=few)] if who == OURS else []
        taken += [ask(who, "10 iterations", "turns", iterations=10, times=min(few, 5))]
        taken += [ask(who, "100 iterations", "turns", iterations=100, times=1)]
        taken += [ask(who, FRESH, "fresh_turns", times=min(few, 5))]
        many = 8 if quick else 50
        taken += [ask(who, "", "many_turns", turns=many, rounds=2 if who == PEER else None)]
    taken.append(Take(LIMIT, BIG, alone))
    for who, size in ((ASKED, 0), (BIG, 900_000)):
        taken.append(ask(who, "", "turn_account", driver=OURS, times=5 if quick else 100, size=size))
    return sorted(taken, key=lambda take: [t.row for t in taken].index(take.row))


def alone(drivers: Drivers) -> Values:
    return {"time": drivers[LIMIT].do("context", size=900_000)["time"]}


def means(figures: Figures) -> str:
    early, late = figures.rows("persistent")
    first, last = figures.rows("prompt")
    slower = figures.ratio(("persistent", late, OURS), ("persistent", early, OURS))
    longer = figures.ratio(("prompt", last, OURS), ("prompt", first, OURS))
    return (
        f"A turn adds {figures.says('time', ONE)} to what the model takes; the peer adds "
        f"{figures.says('time', ONE, PEER)}, or {figures.says('time', ONE, PEER_FIXED)} without its wait of half a "
        f"second. {late.capitalize()} of a session take {times(slower)} as long as {early}, and their prompts are "
        f"{times(longer)} as long. Turns of many iterations, and turns that need a fresh namespace, cost us more than "
        "they cost a peer that runs cells in its own process: each cell is a round trip to another one, and each "
        "fresh namespace starts it."
    )


def where(figures: Figures) -> str:
    def more(part: str) -> str:
        return amount(figures.median("account", part, BIG) - figures.median("account", part, ASKED), "s")

    return (
        "A context of 900,000 characters goes through a file, of which one write and one decode alone take "
        f"{figures.says('time', BIG, LIMIT)}. Beside a turn without new input it costs {more(ON_LOOP)} more of the "
        f"event loop's thread, which writes it, and {more(WORKER)} more of the worker, which decodes it."
    )


BENCHMARK = Benchmark(
    name="turns",
    title="Turns",
    how=(
        "One turn with a model that replies at once; each reply holds one cell. Unless a row says otherwise the "
        "session is warm and every turn brings a new context of 10,000 characters. A fresh namespace begins and ends "
        "with the turn: for us that is a process, for the peer a dictionary in its own. The limit of a large context "
        "is one write and one decode of it."
    ),
    tables=[
        Table("time", "One turn", ratios=[(PEER, OURS), (PEER_FIXED, OURS)]),
        Table("persistent", "One of the turns of one session", ratios=[(PEER_FIXED, OURS)]),
        Table("prompt", "Prompt of a turn's first request", "characters"),
        Table("account", "Where the time of a turn goes"),
        Table("switches", "How often a thread goes to sleep, a turn", "times"),
    ],
    takes=takes,
    means=means,
    where=where,
    targets=[
        Target("A turn of one iteration in a warm session, in memory: at most 2 ms", ("time", ONE, OURS), 0.002),
        Target("… with a context of 900,000 characters: at most 2 ms", ("time", BIG, OURS), 0.002),
        Target(
            "The prompt of turn 50: at most 1.2 × that of turn 2",
            ("prompt", "turn 50", OURS),
            1.2,
            ("prompt", "turn 2", OURS),
        ),
    ],
)
