"""Our sessions at each level of isolation: how they start and end, what they take, what their cells cost.

Starts are measured as somebody meets them who blocks: from making a `LocalREPL` to its first cell's result.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

from bench.drivers import processes
from bench.drivers.serve import Script, asking, elapsed, median_time, serve
from rlm import RLM, Limits, LocalREPL, ScriptedModel
from rlm.environments.sandbox import sandbox
from rlm.portal import portal

CELL = "x = 1"
SPARE = sandbox.SPARE
REFILLED = sandbox.REFILL_SECONDS + 0.1  # seconds until sessions stand ready again, on an idle machine
SETTLED = 1.0  # seconds after which a session is idle


def why_not(level: str) -> str | None:
    """Why this machine has no such level; None where it has."""
    return None if level == "none" else sandbox.why_not(sandbox.Settings(isolation=level))


def opened(level: str) -> LocalREPL:
    """A session that has run its first cell."""
    repl = LocalREPL(isolation=level)
    if error := repl.execute_code(CELL).error:
        raise RuntimeError(error.text)
    return repl


def first(level: str) -> float:
    """Seconds for the first session of this process, which starts the zygote and tries the level out."""
    started = time.perf_counter()
    repl = opened(level)
    seconds = time.perf_counter() - started
    repl.cleanup()
    return seconds


def lives(level: str, times: int, *, ready: bool) -> dict[str, float]:
    """Seconds for the start of a session, and for its end. ready: whether one stands ready each time, or never."""
    sandbox.SPARE = SPARE if ready else 0
    starts, ends = [], []
    for number in range(times + SPARE + 1):
        if ready:
            time.sleep(REFILLED)
        started = time.perf_counter()
        repl = opened(level)
        taken = time.perf_counter() - started
        ended = elapsed(repl.cleanup)
        if number > SPARE:  # those before have used up what stood ready earlier
            starts.append(taken)
            ends.append(ended)
    return {"start": statistics.median(starts), "end": statistics.median(ends)}


def at_once(level: str, count: int) -> dict[str, Any]:
    """Seconds until so many new sessions, none of which stood ready, have answered; and until all have ended.

    cores: seconds that one of them takes on a core until then, by who works.
    """
    warm(level)
    me = os.getpid()
    repls = [LocalREPL(isolation=level) for _ in range(count)]
    zygotes = list(processes.descendants(me))

    def spent(pids: Iterable[int]) -> float:
        return sum((processes.of_process(pid) for pid in pids), processes.Spent()).running

    host, forking = spent([me]), spent(zygotes)
    started = elapsed(lambda: portal().run(_all(repls, lambda repl: repl.namespace.run(CELL))))
    host, forking = spent([me]) - host, spent(zygotes) - forking
    workers, guards = zip(*sessions(me, beside=zygotes), strict=True)
    cores = {"host": host, "zygote": forking, "guard": spent(guards), "worker": spent(workers)}
    ended = elapsed(lambda: portal().run(_all(repls, lambda repl: repl.namespace.close())))
    return {"start": started, "end": ended, "cores": {who: used / count for who, used in cores.items()}}


async def _all(repls: Sequence[LocalREPL], work: Callable[[LocalREPL], Awaitable[Any]]) -> None:
    for result in await asyncio.gather(*[work(repl) for repl in repls]):
        if result is not None and result.error:
            raise RuntimeError(result.error.text)


def warm(level: str) -> None:
    """Have the zygote of this level run, and nothing stand ready."""
    sandbox.SPARE = 0
    for _ in range(SPARE + 1):
        opened(level).cleanup()


def memory(level: str, count: int) -> dict[str, float]:
    """Bytes that one of so many idle sessions takes in its own processes and in this one; and those of the zygote."""
    warm(level)
    me = os.getpid()
    zygote, host = sum(map(processes.memory, processes.descendants(me))), processes.private_memory(me)
    repls = [LocalREPL(isolation=level) for _ in range(count)]
    try:
        portal().run(_all(repls, lambda repl: repl.namespace.run(CELL)))
        time.sleep(SETTLED)
        found = sessions(me)
        if len(found) != count:
            raise RuntimeError(f"{len(found)} sessions are there, of {count}")
        workers, guards = (sum(map(processes.memory, pids)) / count for pids in zip(*found, strict=True))
        mine = (processes.private_memory(me) - host) / count
        return {"processes": workers + guards, "guard": guards, "host": mine, "once": zygote}
    finally:
        portal().run(_all(repls, lambda repl: repl.namespace.close()))


def sessions(pid: int, beside: Collection[int] = ()) -> list[tuple[int, int]]:
    """The two processes of each session below this one: the worker, which has no children, and its parent.

    beside: processes that belong to none.
    """
    parents = {child: processes.parent(child) for child in processes.descendants(pid)}
    return [
        (child, parent) for child, parent in parents.items() if child not in parents.values() and child not in beside
    ]


def cells(level: str, variables: int, times: int, *, blocking: bool) -> float:
    """Seconds for an empty cell beside so many variables, for a blocking caller or on the engine's own loop."""
    with LocalREPL(isolation=level) as repl:
        made = repl.execute_code(f"globals().update({{f'v{{i}}': i for i in range({variables})}})")
        assert made.error is None, made.error
        if blocking:
            return median_time(lambda: repl.execute_code(CELL), times, warm=5)
        return portal().run(_awaited(repl, times))


async def _awaited(repl: LocalREPL, times: int) -> float:
    taken = []
    for _ in range(times + 5):
        started = time.perf_counter()
        await repl.namespace.run(CELL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[5:])


def children(level: str, count: int) -> float:
    """Seconds for a turn whose cell asks `count` children, none of which stood ready; each answers in one iteration."""
    warm(level)
    root = ScriptedModel(asking("rlm_query_batched", count, "done"), record=False)
    child = ScriptedModel(Script(), name="sub", record=False)
    kwargs = {"isolation": level}
    with RLM(root, sub_model=child, persistent=True, limits=Limits(depth=2), environment_kwargs=kwargs) as rlm:
        rlm.session().run(CELL)
        started = time.perf_counter()
        answer = rlm.completion("input", "What happened?").response
        seconds = time.perf_counter() - started
    if answer != "done":
        raise RuntimeError(f"not what was asked for: {answer}")
    return seconds


def main() -> None:
    commands: dict[str, Any] = {
        "why_not": why_not,
        "first": first,
        "lives": lives,
        "at_once": at_once,
        "memory": memory,
        "cells": cells,
        "children": children,
    }
    serve(commands)
