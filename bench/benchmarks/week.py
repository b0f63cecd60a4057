"""The week of one session: fifty turns over growing logs, in eight processes, two of which are killed."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.driver import DriverError, Drivers
from bench.figures import OURS, WEEK, Benchmark, Figures, Table, Take, Target, Values

TURNS, LIVES, MB = 50, 8, 1_000_000
KILLED_BETWEEN, KILLED_WITHIN = 2, 5  # which of the processes, from 0
EARLY, LATE = "turn 2", f"turn {TURNS}"
CONTEXTS, HEAP, STORE = "contexts", "heap", "store, on the disk"
INPUTS = "contexts and heap"
TURN, BACK, ALL = "a turn", "a restart, to its first cell", "all together"


def lives(turns: int) -> Sequence[range]:
    """The turns of each process."""
    ends = [turns * number // LIVES for number in range(LIVES + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def lived(drivers: Drivers, turns: int, size: int) -> Values:
    took: dict[int, float] = {}
    tokens: dict[int, float] = {}
    restarts: list[float] = []
    rest = 0.0
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        store = str(Path(folder, "store"))
        for life, numbers in enumerate(lives(turns)):
            with drivers.new(WEEK) as driver:
                begun = driver.do("begin", store=store, number=numbers.start - 1)
                if begun["resumed"] != (life == KILLED_WITHIN + 1):
                    raise DriverError(f"process {life} found {'no ' * (not begun['resumed'])}turn that was cut off")
                if life:
                    restarts.append(begun["seconds"])
                for number in numbers:
                    if life == KILLED_WITHIN and number == numbers[-1]:
                        rest += driver.dies("turn", number=number, size=size, dies=True)
                        break
                    got = driver.do("turn", number=number, size=size)
                    took[number], tokens[number] = got["seconds"], got["tokens"]
                if life == KILLED_BETWEEN:
                    driver.kill()
                elif life != KILLED_WITHIN:
                    rest += driver.do("end")
        with drivers.new(WEEK) as driver:
            sizes: Mapping[str, float] = driver.do("sizes", store=store)
    inputs = sizes["contexts"] + sizes["heap"]
    few = sorted(took)[1:6], sorted(took)[-5:]
    return {
        "prompt": {EARLY: tokens[1], LATE: tokens[turns - 1]},
        "size": {CONTEXTS: sizes["contexts"], HEAP: sizes["heap"], INPUTS: inputs, STORE: sizes["store"]},
        "time": {
            f"{TURN}, of turns 2–6": statistics.median(took[number] for number in few[0]),
            f"{TURN}, of the last five": statistics.median(took[number] for number in few[1]),
            BACK: statistics.median(restarts),
            ALL: sum(took.values()) + sum(restarts) + rest,
        },
    }


def takes(quick: bool) -> Sequence[Take]:
    turns, size = (16, 10_000) if quick else (TURNS, MB)
    return [Take(OURS, "a week", lambda drivers: lived(drivers, turns, size), WEEK)]


def means(figures: Figures) -> str:
    longer = figures.ratio(("prompt", LATE, OURS), ("prompt", EARLY, OURS))
    return (
        f"The first prompt of turn {TURNS} is {longer:.2f} times as long as that of turn 2. The store takes up "
        f"{figures.says('size', STORE, unit='B')} for {figures.says('size', INPUTS, unit='B')} of contexts and heap, "
        f"and what its past holds. All of the week's overhead, restarts included, is {figures.says('time', ALL)}; a "
        f"process is back in its session after {figures.says('time', BACK)}."
    )


BENCHMARK = Benchmark(
    name="week",
    title="A week of one session",
    how=(
        f"{TURNS} turns of two iterations, each with a new log of 1 MB; their cells parse it, keep the lines of its "
        f"failures in a variable and add them to a list over all logs. {LIVES} processes share the turns: one is "
        "killed by SIGKILL between two turns and one within a turn, which the next one brings to its end; the others "
        "close the session. Every answer is checked. Models reply at once, so that all time is overhead; that of "
        "starting processes and importing is left out. Tokens are characters ÷ 4."
    ),
    tables=[
        Table("prompt", "First prompt of a turn", "tokens"),
        Table("size", "Sizes at the end", "B"),
        Table("time", "Overhead"),
    ],
    takes=takes,
    means=means,
    targets=[
        Target(
            f"A week: the prompt of turn {TURNS}, in tokens, at most 1.2 × that of turn 2",
            ("prompt", LATE, OURS),
            1.2,
            ("prompt", EARLY, OURS),
        ),
        Target("A week: the store at most 2 × contexts and heap", ("size", STORE, OURS), 2.0, ("size", INPUTS, OURS)),
    ],
    rounds=3,
)
