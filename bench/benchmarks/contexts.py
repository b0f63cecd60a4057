"""Large inputs: from a str of the host to a variable of the namespace."""

from __future__ import annotations

from collections.abc import Sequence

from bench.driver import Drivers
from bench.figures import LIMIT, OURS, PEER, Benchmark, Figures, Table, Take, Target, Values

MB = 1_000_000
SIZES = {"1 MB": MB, "10 MB": 10 * MB, "100 MB": 100 * MB, "1 GB": 1_000 * MB}
BEYOND = "100 MB, beyond ASCII"
LARGEST = "1 GB"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    sizes = {"1 MB": MB} if quick else SIZES
    for row, size, sample in [*((row, size, "a") for row, size in sizes.items()), (BEYOND, 100 * MB, "é")]:
        if quick and row == BEYOND:
            continue
        for who in (LIMIT, OURS, PEER):

            def time(drivers: Drivers, who: str = who, size: int = size, sample: str = sample) -> Values:
                value: Values = drivers[who].do("context", size=size, sample=sample)
                return {key: value[key] for key in value if key != "parts" or size == SIZES[LARGEST]}

            taken.append(Take(who, row, time, rounds=2 if who == PEER and size > 100 * MB else None))
        for who in (OURS, PEER):

            def memory(drivers: Drivers, who: str = who, size: int = size, sample: str = sample) -> Values:
                with drivers.new(who) as driver:
                    peak = driver.peak_memory("context", size=size, sample=sample)
                return {"memory": peak, "memory_ratio": peak / size}

            taken.append(Take(who, row, memory, rounds=1 if size > 100 * MB else 2))
    return taken


def means(figures: Figures) -> str:
    return (
        f"A gigabyte is in the namespace after {figures.says('time', LARGEST)}, "
        f"{figures.compared('time', LARGEST, OURS, LIMIT)} one write and one decode; the peer takes "
        f"{figures.says('time', LARGEST, PEER)}. Both processes together hold "
        f"{figures.says('memory_ratio', LARGEST, unit='×')} the input at the most."
    )


BENCHMARK = Benchmark(
    name="contexts",
    title="Contexts",
    how=(
        "`session.add_context(text)` in a warm in-memory session, and a cell `len(context)` after it; then a cell "
        "that searches it. The limit is one write of the same bytes to a file in the same folder, and one `str(mmap, "
        "'utf-8')` of it in another, plain process. Memory is the most by which anonymous and shared memory of all "
        "processes grow, in a run of its own, looked at every 5 ms: the host's own text is in it, once."
    ),
    tables=[
        Table("time", "Into the namespace", ratios=[(OURS, LIMIT), (PEER, OURS)]),
        Table("parts", f"Where the time of {LARGEST} goes"),
        Table("touch", "A cell that searches it (`context.count`)", ratios=[(OURS, LIMIT)]),
        Table("memory", "Most memory, all processes", "B", ratios=[(PEER, OURS)]),
        Table("memory_ratio", "Most memory, as a multiple of the input's characters", "×"),
    ],
    takes=takes,
    means=means,
    targets=[
        Target(
            "1 GB of text: at most 1.3 × one disk write and one decode",
            ("time", LARGEST, OURS),
            1.3,
            ("time", LARGEST, LIMIT),
        ),
        Target("1 GB of text: at most 2.2 × the input in memory", ("memory_ratio", LARGEST, OURS), 2.2),
    ],
    rounds=3,
)
