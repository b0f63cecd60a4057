"""This project, behind the same commands as its peer. Scripted models that reply at once, or after a latency."""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.drivers import processes
from bench.drivers.serve import (
    PROMPT,
    Script,
    asking,
    elapsed,
    median_time,
    on_one_core,
    persistent_turns,
    rate,
    serve,
    text_of,
)
from rlm import RLM, Limits, LocalREPL, ScriptedModel
from rlm.environments.payload import pack
from rlm.portal import portal

QUESTION = "What happened?"
PACKAGES = 8  # that are named; of the others the sum


def engine(script: Any, sub: Any = lambda _: "ok", latency: float = 0.0, **limits: Any) -> RLM:
    """A persistent RLM whose root model is `script`, and whose cells ask `sub`, which takes `latency` seconds."""
    root, sub_model = ScriptedModel(script, record=False), ScriptedModel(sub, latency, name="sub", record=False)
    return RLM(root, sub_model=sub_model, persistent=True, limits=Limits(**limits))


def turns(iterations: int, times: int, size: int = 10_000) -> float:
    """Seconds a turn takes in a warm session, with a new context of `size` characters each."""
    context = text_of(size, "a")
    with engine(Script(iterations), iterations=iterations + 1) as rlm:
        return median_time(lambda: rlm.completion(context, QUESTION), times, warm=1)


def asked_turns(times: int) -> float:
    """Seconds a turn takes in a warm session, without new input."""
    with engine(Script()) as rlm:
        session = rlm.session()
        return median_time(lambda: session.ask(QUESTION), times, warm=2)


def turn_account(times: int, size: int) -> dict[str, Any]:
    """Where the time of a turn goes, with a new context of `size` characters, or with none."""
    text = text_of(size, "a")
    with engine(Script()) as rlm:
        session = rlm.session()
        session.ask(QUESTION)

        def turn() -> object:
            return session.completion(text, QUESTION) if size else session.ask(QUESTION)

        return account(lambda: [turn() for _ in range(times)], times)


def fresh_turns(times: int) -> float:
    """Seconds that a completion takes which begins and ends with nothing."""
    context = text_of(10_000, "a")
    with RLM(ScriptedModel(Script(), record=False)) as rlm:
        return median_time(lambda: rlm.completion(context, QUESTION), times, warm=1)


def many_turns(turns: int) -> dict[str, dict[str, float]]:
    context, script = text_of(10_000, "a"), Script()
    with engine(script) as rlm:
        return persistent_turns(turns, lambda: rlm.completion(context, QUESTION), script)


# -- cells -------------------------------------------------------------------------------------------------------------


def cells(variables: int, times: int, *, blocking: bool) -> float:
    """Seconds for an empty cell beside so many variables, for a blocking caller or on the engine's own loop."""
    with LocalREPL() as repl:
        made = repl.execute_code(f"globals().update({{f'v{{i}}': i for i in range({variables})}})")
        assert made.error is None, made.error
        if blocking:
            return median_time(lambda: repl.execute_code("x = 1"), times, warm=5)
        return portal().run(_cells_on_loop(repl, times))


async def _cells_on_loop(repl: LocalREPL, times: int) -> float:
    taken = []
    for _ in range(times + 5):
        started = time.perf_counter()
        await repl.namespace.run("x = 1")
        taken.append(time.perf_counter() - started)
    return sorted(taken[5:])[times // 2]


def cell_account(variables: int, times: int, *, blocking: bool) -> dict[str, Any]:
    """Where the time of an empty cell goes."""
    with LocalREPL() as repl:
        repl.execute_code(f"globals().update({{f'v{{i}}': i for i in range({variables})}})")
        if blocking:
            return account(lambda: [repl.execute_code("x = 1") for _ in range(times)], times)
        return account(lambda: portal().run(_cells_on_loop(repl, times - 5)), times)


def account(work: Callable[[], object], times: int) -> dict[str, Any]:
    """Seconds of each part of one of the `times` operations that `work` does with the one living worker."""
    me = os.getpid()
    worked = processes.of_processes(processes.descendants(me))
    work()
    now = processes.of_processes(worked)  # the worker is who works most: guards and the spare sessions do not
    worker = max(now, key=lambda pid: now[pid].running - worked[pid].running)
    loop = portal().run(_native_id())
    caller = threading.get_native_id()

    def spent() -> tuple[processes.Spent, processes.Spent, processes.Spent]:
        return processes.of_thread(me, loop), processes.of_thread(me, caller), processes.of_process(worker)

    before, started = spent(), time.perf_counter()
    work()
    wall = (time.perf_counter() - started) / times
    used = [now - then for now, then in zip(spent(), before, strict=True)]
    running = [one.running / times for one in used]
    parts = {
        "host: the event loop's thread, on a core": running[0],
        "host: the caller's thread, on a core": running[1],
        "worker, on a core": running[2],
        "nobody on a core: hand-overs between threads and processes": max(0.0, wall - sum(running)),
        "wall clock": wall,
    }
    return {"account": parts, "switches": {"all threads together": sum(one.switches for one in used) / times}}


async def _native_id() -> int:
    return threading.get_native_id()


# -- calls -------------------------------------------------------------------------------------------------------------


def sub_calls(times: int) -> float:
    """Seconds for one `llm_query` in a loop of one cell."""
    code = (
        f"import time\nstarted = time.perf_counter()\nfor _ in range({times}): assert llm_query('q') == 'ok'\n"
        f"seconds = (time.perf_counter() - started) / {times}"
    )
    with engine(Script(cell=code)) as rlm:
        rlm.completion("input", QUESTION)
        return float(rlm.session().get("seconds"))


def sub_call_account(times: int) -> dict[str, Any]:
    with engine(Script(cell=f"for _ in range({times}): llm_query('q')")) as rlm:
        rlm.completion("input", QUESTION)
        return account(lambda: rlm.completion("input", QUESTION), times)


def one_turn(rlm: RLM) -> float:
    """Seconds for one turn in a warm session; raises where its cell did not get what it asked for."""
    answers: list[str] = []
    rlm.session().run("warm = 1")
    seconds = elapsed(lambda: answers.append(rlm.completion("input", QUESTION).response))
    if answers != ["done"]:
        raise RuntimeError(f"not what was asked for: {answers[0]}")
    return seconds


def fan_out(calls: int, latency: float, at_once: int) -> float:
    with engine(asking("llm_query_batched", calls, "ok"), latency=latency, concurrency=at_once) as rlm:
        return one_turn(rlm)


def fan_out_account(calls: int) -> dict[str, Any]:
    """Where the time of one call of a batch goes, with models that reply at once."""
    with engine(Script(cell=f"llm_query_batched(['q'] * {calls})"), concurrency=1_000) as rlm:
        rlm.completion("input", QUESTION)
        return account(lambda: rlm.completion("input", QUESTION), calls)


def children(count: int) -> dict[str, Any]:
    """Seconds for a turn whose cell asks `count` children, each of which answers in one iteration."""
    with engine(asking("rlm_query_batched", count, "done"), Script(), depth=2) as rlm:
        rlm.session().run("warm = 1")
        host, all_ = time.process_time(), processes.on_all_cores()
        seconds = one_turn(rlm)
        used = time.process_time() - host
        parts = {"host": used, "children": max(0.0, processes.on_all_cores() - all_ - used)}
    return {"time": seconds, "cores": {f"{who}, on a core, a child": used / count for who, used in parts.items()}}


def lives(times: int) -> dict[str, dict[str, float]]:
    """The parts of a REPL's whole life, one after the other."""
    parts: dict[str, list[float]] = {"start": [], "first cell": [], "close": []}
    for _ in range(times):
        repl = LocalREPL()
        parts["start"].append(elapsed(repl.setup))
        parts["first cell"].append(elapsed(lambda repl=repl: repl.execute_code("x = 1")))  # type: ignore[misc]
        parts["close"].append(elapsed(repl.cleanup))
    return {"life": {name: sorted(taken)[times // 2] for name, taken in parts.items()}}


# -- contexts ----------------------------------------------------------------------------------------------------------


def context(size: int, sample: str = "a") -> dict[str, Any]:
    """Seconds until a context is in the namespace of a warm session, and for a cell that searches it."""
    text = text_of(size, sample)
    with engine(Script()) as rlm:
        session = rlm.session()
        session.run("x = 1")

        def add() -> None:
            session.add_context(text)
            session.run("n = len(context)")

        added = elapsed(add)
        touched = elapsed(lambda: session.run("context.count('zebra')"))
        assert session.get("n") == size
    with tempfile.TemporaryDirectory() as folder:
        written = elapsed(lambda: pack(text, Path(folder)))
    return {"time": added, "parts": {"write": written, "decode": max(0.0, added - written)}, "touch": touched}


# -- providers ---------------------------------------------------------------------------------------------------------


def requests(url: str, count: int, at_once: int) -> float:
    """Requests a second of `ProviderModel`."""
    with on_one_core():
        return asyncio.run(_requests(url, count, at_once))


def request_account(url: str, count: int, at_once: int) -> dict[str, dict[str, float]]:
    """On whose account the time of a request is, by package: the profiler's shares of the time without it."""
    with on_one_core():
        rate_alone = asyncio.run(_requests(url, count, at_once))
        profile = cProfile.Profile()
        profile.runcall(asyncio.run, _requests(url, count, at_once))
    used: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        used[_package(file)] += own
    shares = [(package, seconds / used.total() / rate_alone) for package, seconds in used.most_common()]
    return {"account": {**dict(shares[:PACKAGES]), "all others": sum(seconds for _, seconds in shares[PACKAGES:])}}


def _package(file: str) -> str:
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    if "rlm" in parts:
        return "rlm"
    return "asyncio" if "asyncio" in parts else "Python's built-ins and its library"


async def _requests(url: str, count: int, at_once: int) -> float:
    from rlm.models.providers import ProviderModel

    model = ProviderModel("openai-chat:gpt-4o-mini", base_url=url + "/v1", api_key="none")
    try:
        return await rate(lambda: model.reply([{"role": "user", "content": PROMPT}]), count, at_once)
    finally:
        await model.aclose()


def main() -> None:
    commands: dict[str, Any] = {
        "turns": turns,
        "asked_turns": asked_turns,
        "turn_account": turn_account,
        "fresh_turns": fresh_turns,
        "many_turns": many_turns,
        "cells": cells,
        "cell_account": cell_account,
        "sub_calls": sub_calls,
        "sub_call_account": sub_call_account,
        "fan_out": fan_out,
        "fan_out_account": fan_out_account,
        "children": children,
        "lives": lives,
        "context": context,
        "requests": requests,
        "request_account": request_account,
    }
    serve(commands)
