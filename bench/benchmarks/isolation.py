"""The sandbox of a session: its start, its end, its memory, and its cells, at each level and beside other ways."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence

from bench.driver import Driver, Drivers
from bench.figures import BUBBLEWRAP, KERNEL, LIMIT, PEER, SANDBOXES, Benchmark, Figures, Table, Take, Target, Values

LEVELS = {"rlm, namespace": "namespace", "rlm, landlock": "landlock", "rlm, none": "none"}
NAMESPACE = "rlm, namespace"  # the level that "auto" chooses where it can
FIRST, EMPTY, READY = "the first of a process", "a new one, none stands ready", "a new one, one stands ready"
COUNTS = (100, 200)
MANY, CHILDREN, KERNELS = 100, 32, 8
END = "the end of one"
OWN, GUARD, HOST, ONCE = (
    "its processes",
    "of these its guard",
    "in the host's process, for it",
    "the zygote alone, once",
)
WORKERS = {
    "host": "the host",
    "zygote": "the zygote, which forks it",
    "guard": "its guard, which sets it up",
    "worker": "its worker",
}
VARIABLES = (0, 100_000)
LOOP, BLOCKING = "on the engine's loop", "for a blocking caller"


def at_once(count: int) -> str:
    return f"{count} at once, until all have answered"


def end_of(count: int) -> str:
    return f"the end of {count} at once"


def children_of(count: int) -> str:
    return f"{count} recursive children, each in one: the whole turn"


def cell(how: str, variables: int) -> str:
    return f"{how}, {variables:,} variables"


def takes(quick: bool) -> Sequence[Take]:
    counts, times = ((4, 8), 3) if quick else (COUNTS, 21)
    taken = [_ours(who, FIRST, _first, fresh=True) for who in LEVELS]
    taken += [_ours(who, EMPTY, _lives(EMPTY, times, ready=False)) for who in LEVELS]
    taken += [_theirs(BUBBLEWRAP, EMPTY, times), _theirs(KERNEL, EMPTY, min(times, 3)), _theirs(PEER, EMPTY, times)]
    taken.append(_ours(NAMESPACE, READY, _lives(READY, times, ready=True)))
    for count in counts:
        taken += [_ours(who, at_once(count), _many(count)) for who in LEVELS]
        taken.append(_other(BUBBLEWRAP, at_once(count), lambda other, count=count: _of_many(other, count)))  # type: ignore[misc]
    children = 4 if quick else CHILDREN
    taken += [_ours(who, children_of(children), _children(children)) for who in LEVELS]
    return [*taken, *_memory(4 if quick else MANY, 1 if quick else KERNELS), *_cells(20 if quick else 500)]


def _memory(count: int, kernels: int) -> Sequence[Take]:
    def ours(driver: Driver, level: str) -> Values:
        got = driver.do("memory", level=level, count=count)
        return {"memory": {OWN: got["processes"], GUARD: got["guard"], HOST: got["host"], ONCE: got["once"]}}

    def theirs(who: str, count: int) -> Take:
        return _other(who, OWN, lambda other: {"memory": other.do("memory", count=count)["processes"]})

    return [
        *(_ours(who, OWN, ours, fresh=True) for who in LEVELS),
        theirs(BUBBLEWRAP, count),
        theirs(KERNEL, kernels),
    ]


def _cells(trips: int) -> Sequence[Take]:
    taken = []
    for variables in VARIABLES:
        for how in (LOOP, BLOCKING):
            row = cell(how, variables)

            def ours(driver: Driver, level: str, variables: int = variables, how: str = how) -> Values:
                seconds = driver.do("cells", level=level, variables=variables, times=trips, blocking=how == BLOCKING)
                return {"cell": {cell(how, variables): seconds}}

            def theirs(other: Driver, variables: int = variables, times: int = trips) -> Values:
                return {"cell": other.do("cells", variables=variables, times=times)}

            def limit(drivers: Drivers) -> Values:
                return {"cell": drivers[LIMIT].do("round_trips", times=trips)}

            taken.append(Take(LIMIT, row, limit))
            taken += [_ours(who, row, ours) for who in LEVELS]
            if how == BLOCKING:
                few = min(trips, 5_000_000 // (variables + 10_000))
                taken += [_other(BUBBLEWRAP, row, theirs), _other(KERNEL, row, theirs)]
                taken.append(_other(PEER, row, lambda other, theirs=theirs, few=few: theirs(other, times=few)))  # type: ignore[misc]
    return taken


def _first(new: Driver, level: str) -> Values:
    return {"time": {FIRST: new.do("first", level=level)}}


def _lives(row: str, times: int, *, ready: bool) -> Callable[[Driver, str], Values]:
    def measure(driver: Driver, level: str) -> Values:
        got = driver.do("lives", level=level, times=times, ready=ready)
        return {"time": {row: got["start"]} if ready else {row: got["start"], END: got["end"]}}

    return measure


def _many(count: int) -> Callable[[Driver, str], Values]:
    return lambda driver, level: _of_many(driver, count, level=level)


def _of_many(driver: Driver, count: int, **level: str) -> Values:
    got = driver.do("at_once", count=count, **level)
    values = {"time": {at_once(count): got["start"], end_of(count): got["end"]}}
    if "cores" in got and count == MANY:
        values["cores"] = {WORKERS[who]: seconds for who, seconds in got["cores"].items()}
    return values


def _children(count: int) -> Callable[[Driver, str], Values]:
    return lambda driver, level: {"time": {children_of(count): driver.do("children", level=level, count=count)}}


def _theirs(who: str, row: str, times: int) -> Take:
    def measure(other: Driver) -> Values:
        got = other.do("lives", times=times)
        return {"time": {row: got["start"], END: got["end"]}}

    return _other(who, row, measure)


def _ours(who: str, row: str, measure: Callable[[Driver, str], Values], *, fresh: bool = False) -> Take:
    """By the driver that goes on, or by one that has done nothing yet. Nothing where the machine has no such level."""

    def of_level(drivers: Drivers) -> Values:
        if why := drivers[SANDBOXES].do("why_not", level=LEVELS[who]):
            return _skipped(who, why)
        if not fresh:
            return measure(drivers[SANDBOXES], LEVELS[who])
        with drivers.new(SANDBOXES) as new:
            return measure(new, LEVELS[who])

    return Take(who, row, of_level, SANDBOXES)


def _other(who: str, row: str, measure: Callable[[Driver], Values]) -> Take:
    def where_it_is(drivers: Drivers) -> Values:
        if who == BUBBLEWRAP and shutil.which("bwrap") is None:
            return _skipped(who, "there is no bwrap on this machine")
        return measure(drivers[who])

    return Take(who, row, where_it_is)


def _skipped(who: str, why: str) -> Values:
    print(f"skipped: {who}: {why}", file=sys.stderr)
    return {}


def means(figures: Figures) -> str:
    return (
        f"A session in a sandbox gives its first result after {figures.says('time', EMPTY, NAMESPACE)}, or after "
        f"{figures.says('time', READY, NAMESPACE)} where one stood ready; a hundred at once have answered after "
        f"{figures.says('time', at_once(MANY), NAMESPACE)}, and hold {figures.says('memory', OWN, NAMESPACE, 'B')} "
        f"each. Only the first of a process waits for the zygote, {figures.says('time', FIRST, NAMESPACE)}. Python in "
        f"bubblewrap starts in {figures.says('time', EMPTY, BUBBLEWRAP)}, with less in it: no modules loaded, no "
        "limits, no filter of system calls, and nothing that captures output or reports names. A kernel of IPython, "
        f"which isolates nothing, takes {figures.says('time', EMPTY, KERNEL)}; the peer has no process to start. Cells "
        f"cost the same at every level: {figures.says('cell', cell(LOOP, 0), NAMESPACE)} on the loop in namespaces, "
        f"{figures.says('cell', cell(LOOP, 0), 'rlm, none')} without isolation."
    )


def where(figures: Figures) -> str:
    parts = ", ".join(f"{who} {figures.says('cores', who, NAMESPACE)}" for who in WORKERS.values())
    return f"Until it has answered, one of {MANY} sessions in namespaces takes on a core: {parts}."


BENCHMARK = Benchmark(
    name="isolation",
    title="Isolation",
    how=(
        "A session is measured from making it to the result of its first cell, `x = 1`, for a blocking caller; many at "
        "once on the engine's loop. Where none stands ready, the sessions that the engine else keeps in reserve are "
        "switched off. The first of a process starts the zygote and tries the level out; importing the engine is no "
        "part of it. Models of children reply at once. Memory is the proportional set size (Pss) of all processes of "
        f"an idle session, of {MANY} at once; of ipykernel, of {KERNELS}. The limit of a cell is a bare round trip "
        "between two processes, as for [cells](#cells). bubblewrap is `bwrap --unshare-all` with the machine's files "
        "read-only and `python -I -S`, which runs each line of its input and answers with an empty one. ipykernel is "
        "driven by jupyter_client's blocking client. The peer's environment is a dictionary in its own process."
    ),
    tables=[
        Table("time", "Sessions"),
        Table("cores", f"Time on a core until one of {MANY} has answered"),
        Table("memory", "Memory of an idle session", "B"),
        Table("cell", "One cell", ratios=[(who, LIMIT) for who in LEVELS]),
    ],
    takes=takes,
    means=means,
    where=where,
    targets=[
        Target("The first result of a new isolated session: at most 6 ms", ("time", EMPTY, NAMESPACE), 0.006),
        Target(f"… of {MANY} at once: at most 350 ms", ("time", at_once(MANY), NAMESPACE), 0.35),
        Target(f"An idle one of {MANY} isolated sessions: at most 4 MB", ("memory", OWN, NAMESPACE), 4e6),
        *(
            Target(
                f"A cell {how}, {level}, {variables:,} variables: at most {most} × a bare round trip",
                ("cell", cell(how, variables), who),
                most,
                ("cell", cell(how, variables), LIMIT),
            )
            for who, level in LEVELS.items()
            for variables in VARIABLES
            for how, most in ((LOOP, 2), (BLOCKING, 3))
        ),
    ],
)
