"""From a killed process to the first cell in another one, and from one session to its fork."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.driver import Drivers
from bench.drivers.heaps import MB
from bench.figures import CLOUDPICKLE, DILL, DURABLE, LIMIT, OURS, Benchmark, Figures, Table, Take, Target, Values

HEAPS = ("1 MB text", "250 MB text", "1,000,000 dicts")
TEXTS = {"1 MB text": MB, "250 MB text": 250 * MB}
PROMISED = "250 MB text"
START, OPEN, CELL = "interpreter and imports", "opening the session", "its first cell"
FORK = "fork of 1 GB"
SLOWEST = "1,000,000 dicts"  # of which dill makes its file in over ten seconds


def resumed(drivers: Drivers, heap: str) -> Values:
    """Make a heap, kill, open in a new process."""
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        store = str(Path(folder, "store"))
        with drivers.new(DURABLE) as first:
            first.do("keep", store=store, heap=heap)
            first.kill()
        started = time.perf_counter()
        with drivers.new(DURABLE) as second:
            second.do("ready")
            ready = time.perf_counter() - started
            got = second.do("first_cell", store=store, heap=heap)
    parts = {f"{heap}: {START}": ready, f"{heap}: {OPEN}": got["open"], f"{heap}: {CELL}": got["cell"]}
    return {"time": {heap: got["open"] + got["cell"]}, "parts": parts}


def forked(drivers: Drivers, size: int) -> Values:
    with drivers.new(DURABLE) as driver:
        got = driver.do("forked", size=size)
    parts = {f"{FORK}: the fork": got["fork"], f"{FORK}: {CELL}": got["cell"]}
    return {"time": {FORK: got["fork"] + got["cell"]}, "parts": parts, "grown": {FORK: got["grown"]}}


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for heap in HEAPS[:1] if quick else HEAPS:

        def limit(drivers: Drivers, heap: str = heap) -> Values:
            return {"time": drivers[LIMIT].do("loaded", size=TEXTS[heap])}

        if heap in TEXTS:
            taken.append(Take(LIMIT, heap, limit))
        taken.append(Take(OURS, heap, lambda drivers, heap=heap: resumed(drivers, heap), DURABLE))  # type: ignore[misc]
        for who in (DILL, CLOUDPICKLE):

            def theirs(drivers: Drivers, who: str = who, heap: str = heap) -> Values:
                return {"time": drivers[who].do("saved", heap=heap)["loaded"]}

            taken.append(Take(who, heap, theirs, rounds=1 if (who, heap) == (DILL, SLOWEST) else None))
    size = MB if quick else 1_000 * MB
    taken.append(Take(OURS, FORK, lambda drivers: forked(drivers, size), DURABLE, rounds=2))
    return taken


def means(figures: Figures) -> str:
    return (
        f"A session with {PROMISED} is back, with its first cell's result, {figures.says('time', PROMISED)} after it "
        f"was asked for in a new process; to start that process and import takes "
        f"{figures.says('parts', f'{PROMISED}: {START}')} before. Reading, verifying and decoding the text alone takes "
        f"{figures.says('time', PROMISED, LIMIT)}. A fork of a session with 1 GB runs its first cell after "
        f"{figures.says('time', FORK)}, and the store grows by {figures.says('grown', FORK, unit='B')}."
    )


BENCHMARK = Benchmark(
    name="resume",
    title="Coming back, and forks",
    how=(
        "The process of a session whose heap is safe gets SIGKILL. A new one opens the session and runs a cell that "
        "needs the heap: a worker starts, takes the checkpoint and verifies its digests. The limit is one read of the "
        "text's bytes, their SHA-256 and one decode; dill and cloudpickle load the file that they wrote, in a running "
        "process and unverified. The fork is one of a session that goes on, with one text of 1 GB."
    ),
    tables=[
        Table("time", "To the first cell's result", ratios=[(OURS, LIMIT), (OURS, DILL), (OURS, CLOUDPICKLE)]),
        Table("parts", "Its parts, and what comes before"),
        Table("grown", "Bytes that the store takes up more on the disk", "B"),
    ],
    takes=takes,
    means=means,
    targets=[Target(f"From kill -9 to the first cell, {PROMISED}: at most 1 s", ("time", PROMISED, OURS), 1.0)],
    rounds=3,
)
