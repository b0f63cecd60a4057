"""What checkpoints of a heap cost the cells, the disk and the one who waits for safety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.driver import Drivers, picklers_python
from bench.drivers.heaps import ALL, BESIDE, FRACTIONS, HEAPS, PART
from bench.figures import CLOUDPICKLE, DILL, DURABLE, OURS, Benchmark, Figures, Table, Take, Target, Values

CHANGED = "changed"
QUICK = ("1 MB text", "50 functions, 10 classes")
SLOW = ("250 MB text", "1,000,000 dicts")
WORST = "250 MB text"


def row_of(heap: str, change: str) -> str:
    return f"{heap}: {change}"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    changed: dict[str, Mapping[str, float]] = {}  # what was changed is known once a heap was measured
    for heap in QUICK if quick else HEAPS:
        times = 1 if quick else 5

        def ours(drivers: Drivers, heap: str = heap, times: int = times) -> Values:
            python = str(picklers_python()) if HEAPS[heap].needs else None
            got = drivers[DURABLE].do("checkpoints", heap=heap, times=times, python=python)
            changed[heap] = {row_of(heap, change): got["changed"][change] for change in FRACTIONS}
            return {table: {row_of(heap, change): got[table][change] for change in FRACTIONS} for table in TABLES}

        taken.append(Take(OURS, heap, ours, DURABLE))
        taken.append(Take(CHANGED, heap, lambda _, heap=heap: {"written": changed[heap]}, DURABLE, rounds=1))  # type: ignore[misc]
        for who in (DILL, CLOUDPICKLE):

            def theirs(drivers: Drivers, who: str = who, heap: str = heap) -> Values:
                got = drivers[who].do("saved", heap=heap)
                values = {"wait": got["safe"], "worst": got["safe"], "safe": got["safe"], "written": got["written"]}
                return {table: dict.fromkeys(rows_of(heap), value) for table, value in values.items()}

            taken.append(Take(who, heap, theirs, rounds=1 if heap in SLOW else None))
    return taken


TABLES = ("wait", "worst", "safe", "written")


def rows_of(heap: str) -> list[str]:
    return [row_of(heap, change) for change in FRACTIONS]


def means(figures: Figures) -> str:
    beside = [row_of(heap, BESIDE) for heap in HEAPS if figures.has("wait", row_of(heap, BESIDE))]
    slowest = max(beside, key=lambda row: figures.median("worst", row))
    part, everything = row_of(WORST, PART), row_of(WORST, ALL)
    return (
        f"After a cell that changes all of {WORST} the next one waits {figures.says('wait', everything)}: what is "
        "large is saved by a forked copy of the worker, and the cells go on beside it. That makes safety later, not "
        f"sooner: the checkpoint is on the disk after {figures.says('safe', everything)}, where dill, during which "
        f"nothing else runs, takes {figures.says('safe', everything, DILL)} and cloudpickle "
        f"{figures.says('safe', everything, CLOUDPICKLE)}; every object is looked at for what it shares, and the "
        "bytes are written by the worker and again, verified, by the store. Where little changes it is the other way "
        "round, since names that no cell touched are not looked at. Now and then all are, whatever the cells did, to "
        "find what no analysis of code can see: that is in the longest waits, which beside a heap that nothing changes "
        f"are {figures.says('worst', slowest)} ({slowest.partition(':')[0]}). Saved again is a whole group of names "
        "that share objects: of one long text, one list or one array of which a hundredth changed, all of it "
        f"({figures.says('written', part, unit='B')} for {figures.says('written', part, CHANGED, 'B')})."
    )


BENCHMARK = Benchmark(
    name="checkpoints",
    title="Checkpoints",
    how=(
        "A cell in a durable session beside a heap that is safe already: it changes another name, reads the heap, "
        "changes a hundredth of it, or all of it. Of functions a hundredth is one of them. The cell runs twice. Once "
        "trivial cells follow it, the first sent as soon as its result is there, until the checkpoint is long safe: "
        "what a cell waits is its round trip less one in a quiet session, or nothing. And once nothing follows, and "
        "the time is taken from the result until the checkpoint is on the disk, with the bytes by which events and "
        "blobs of the store have grown. dill (`dump_module`) and cloudpickle (`dump` of a dict of all names) write the "
        "whole namespace to a file and sync it, whatever changed: measured once a heap, in a process of their own "
        "without an engine, in which nothing else runs until it is done."
    ),
    tables=[
        Table("wait", "What the next cell waits"),
        Table("worst", "The longest that any of the cells waits until the checkpoint is safe"),
        Table("safe", "Until it is on the disk", ratios=[(OURS, CLOUDPICKLE), (OURS, DILL)]),
        Table("written", "Bytes written, beside bytes changed", "B"),
    ],
    takes=takes,
    means=means,
    targets=[
        Target(
            f"What the next cell waits, {row_of(heap, change)}: at most {most} ms",
            ("wait", row_of(heap, change), OURS),
            most / 1000,
        )
        for heap in HEAPS
        for change, most in ((BESIDE, 5), (PART, 30), (ALL, 30))
    ],
    rounds=3,
)
