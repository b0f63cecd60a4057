"""The peer, PyPI `rlms`, behind the same commands; runs in an environment of its own.

Its model is replaced by an instant scripted one (or one that sleeps), where it looks models up. With `--poll SECONDS`
the poll of its server's shutdown, half a second as shipped, is set to that: the rest of the engine is as shipped.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import socketserver
import statistics
import time
from typing import Any

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

core: Any = importlib.import_module("rlm.core.rlm")  # by name: for type checkers `rlm` is this checkout's
base: Any = importlib.import_module("rlm.clients.base_lm")
types: Any = importlib.import_module("rlm.core.types")
local: Any = importlib.import_module("rlm.environments.local_repl")


class Scripted(base.BaseLM):  # type: ignore[misc]  # found at run time
    """Answers with `reply(messages)`, `latency` seconds later."""

    def __init__(self, reply: Any, latency: float = 0.0) -> None:
        super().__init__("scripted")
        self._reply, self._latency = reply, latency

    def completion(self, prompt: Any) -> str:
        if self._latency:
            time.sleep(self._latency)
        return str(self._reply(prompt))

    async def acompletion(self, prompt: Any) -> str:
        if self._latency:
            await asyncio.sleep(self._latency)
        return str(self._reply(prompt))

    def get_usage_summary(self) -> Any:
        return types.UsageSummary({"scripted": self.get_last_usage()})

    def get_last_usage(self) -> Any:
        return types.ModelUsageSummary(1, 10, 5)


def engine(reply: Any, sub_reply: Any = lambda _: "ok", latency: float = 0.0, **settings: Any) -> Any:
    """An RLM whose root model is `reply`, and whose other backend is `sub_reply`, each after its latency."""
    clients = {"root": Scripted(reply), "sub": Scripted(sub_reply, latency)}
    core.get_client = lambda backend, kwargs: clients[kwargs["model_name"]]
    return core.RLM(
        backend_kwargs={"model_name": "root"},
        other_backends=["openai"],
        other_backend_kwargs=[{"model_name": "sub"}],
        **settings,
    )


def turns(iterations: int, times: int, size: int = 10_000) -> float:
    """Seconds a turn takes in a warm persistent session, with a new context of `size` characters each."""
    context = text_of(size, "a")
    with engine(Script(iterations), persistent=True, max_iterations=iterations + 1) as rlm:
        return median_time(lambda: rlm.completion(context, "What happened?"), times, warm=1)


def fresh_turns(times: int) -> float:
    """Seconds that a completion takes which begins and ends with nothing."""
    context, rlm = text_of(10_000, "a"), engine(Script())
    return median_time(lambda: rlm.completion(context, "What happened?"), times, warm=1)


def many_turns(turns: int) -> dict[str, dict[str, float]]:
    context, script = text_of(10_000, "a"), Script()
    with engine(script, persistent=True) as rlm:
        return persistent_turns(turns, lambda: rlm.completion(context, "What happened?"), script)


def lives(times: int) -> dict[str, float]:
    """Seconds from making an environment to its first result, and for its end."""
    starts, ends = [], []
    for _ in range(times):
        started = time.perf_counter()
        repl = local.LocalREPL()
        repl.execute_code("x = 1")
        starts.append(time.perf_counter() - started)
        ends.append(elapsed(repl.cleanup))
    return {"start": statistics.median(starts), "end": statistics.median(ends)}


def cells(variables: int, times: int) -> float:
    """Seconds for an empty cell beside so many variables."""
    with local.LocalREPL() as repl:
        made = repl.execute_code(f"for i in range({variables}): locals_ = None")  # warms the path
        assert not made.stderr, made.stderr
        repl.locals.update({f"v{i}": i for i in range(variables)})
        return median_time(lambda: repl.execute_code("x = 1"), times, warm=5)


def one_turn(rlm: Any) -> float:
    """Seconds for one turn; raises where its cell did not get what it asked for."""
    answers: list[str] = []
    seconds = elapsed(lambda: answers.append(rlm.completion("input", "What happened?").response))
    if answers != ["done"]:
        raise RuntimeError(f"not what was asked for: {answers[0]}")
    return seconds


def sub_calls(times: int) -> float:
    """Seconds for one `llm_query` in a loop of one cell, the cell's other time included."""
    code = (
        f"import time\nstarted = time.perf_counter()\nfor _ in range({times}): assert llm_query('q') == 'ok'\n"
        f"seconds = (time.perf_counter() - started) / {times}"
    )
    with engine(Script(cell=code), persistent=True) as rlm:
        rlm.completion("input", "What happened?")
        return float(rlm._persistent_env.locals["seconds"])


def fan_out(calls: int, latency: float) -> float:
    return one_turn(engine(asking("llm_query_batched", calls, "ok"), latency=latency))


def children(count: int) -> float:
    """Seconds for a turn whose cell asks `count` children, each of which answers in one iteration."""
    root, child = asking("rlm_query_batched", count, "done"), Script()
    asked = itertools.count()  # parent and children are one model here, and the parent asks first
    return one_turn(engine(lambda messages: (child if next(asked) else root)(messages), max_depth=2))


def context(size: int, sample: str = "a") -> dict[str, float]:
    """Seconds until a context is in a warm namespace, and for a cell that searches it."""
    text = text_of(size, sample)
    with local.LocalREPL(persistent=True) as repl:
        repl.execute_code("x = 1")

        def add() -> None:
            repl.add_context(text)
            repl.execute_code("n = len(context)")

        added = elapsed(add)
        touched = elapsed(lambda: repl.execute_code("context.count('zebra')"))
        assert repl.locals["n"] == size
        return {"time": added, "touch": touched}


def requests(url: str, count: int, at_once: int) -> float:
    """Requests a second of the peer's own client, on one core."""
    openai = importlib.import_module("rlm.clients.openai")
    client = openai.OpenAIClient(api_key="none", model_name="gpt-4o-mini", base_url=url + "/v1")

    async def measure() -> float:
        async with client.async_client:
            return await rate(lambda: client.acompletion(PROMPT), count, at_once)

    with on_one_core():
        return asyncio.run(measure())


def set_poll(seconds: float) -> None:
    server: Any = socketserver.BaseServer
    serve_forever = server.serve_forever
    server.serve_forever = lambda self, poll_interval=0.5: serve_forever(self, seconds)


def main(poll: str | None = None) -> None:
    if poll is not None:
        set_poll(float(poll))
    commands: dict[str, Any] = {
        "turns": turns,
        "fresh_turns": fresh_turns,
        "many_turns": many_turns,
        "lives": lives,
        "cells": cells,
        "sub_calls": sub_calls,
        "fan_out": fan_out,
        "children": children,
        "context": context,
        "requests": requests,
    }
    serve(commands)
