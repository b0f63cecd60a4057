"""What every driver shares: one JSON line in, one JSON line out, over standard input and output.

A driver runs in a process of its own, with the interpreter of what it measures, and takes the times itself, so that
what the harness costs is in none of them. Standard library only: it also runs in the peer's environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

Command = Callable[..., Any]
PROMPT = "hello " * 40


def serve(commands: Mapping[str, Command]) -> None:
    """Answer `{"do": name, …arguments}` until standard input ends. What commands print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": commands[request.pop("do")](**request)}
        except Exception:  # noqa: BLE001 - the harness raises it again, with this traceback
            answer = {"error": traceback.format_exc()}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def median_time(work: Callable[[], object], times: int, warm: int = 0) -> float:
    """The median of `times` runs of `work`, in seconds, after `warm` runs that do not count."""
    for _ in range(warm):
        work()
    return statistics.median(elapsed(work) for _ in range(times))


def elapsed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def rate(ask: Callable[[], Awaitable[object]], count: int, at_once: int) -> float:
    """How often a second `ask` succeeds on one core with `at_once` of them in flight, over `count` of them."""

    async def ask_often(times: int) -> None:
        for _ in range(times):
            await ask()

    each = count // at_once
    await asyncio.gather(*[ask_often(2) for _ in range(at_once)])
    started = time.perf_counter()
    await asyncio.gather(*[ask_often(each) for _ in range(at_once)])
    return each * at_once / (time.perf_counter() - started)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """This thread, and those that it starts, stay on the first core meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def text_of(size: int, sample: str) -> str:
    """`size` characters that look like a log; `sample` is one of its words."""
    line = f"2026-01-01T00:00:00Z service-{sample} handled request 0123456789 in 17 ms, status 200\n"
    return (line * (size // len(line) + 1))[:size]


class Script:
    """An instant root model's replies: `iterations` replies a turn, the last of which submits `answer`, an expression.

    prompts: characters of the requests of each turn's first iteration, which is what a longer conversation adds to.
    """

    def __init__(self, iterations: int = 1, cell: str = "x = 1", answer: str = "'done'") -> None:
        self.iterations = iterations
        self.prompts: list[int] = []
        self._cell = cell
        self._answer = answer
        self._given = 0

    def __call__(self, messages: Any) -> str:
        place = self._given % self.iterations
        self._given += 1
        if place == 0:
            self.prompts.append(
                len(messages) if isinstance(messages, str) else sum(len(m["content"]) for m in messages)
            )
        if place == self.iterations - 1:
            return f"```repl\n{self._cell}\nanswer['content'] = {self._answer}\nanswer['ready'] = True\n```"
        return f"```repl\n{self._cell}\n```"


def asking(function: str, calls: int, each: str) -> Script:
    """A turn whose cell makes so many calls at once; its answer is "done" if each got `each`, else what one got."""
    cell = f"wrong = [got for got in {function}(['q'] * {calls}) if got != {each!r}]"
    return Script(cell=cell, answer="'done' if not wrong else f'{len(wrong)} of them got {wrong[0]}'")


def persistent_turns(turns: int, ask: Callable[[], object], script: Script) -> dict[str, dict[str, float]]:
    """Many turns in one session: seconds a turn and characters of the prompt, early and late."""
    times = [elapsed(ask) for _ in range(turns)]
    few = max(1, min(5, turns // 4))
    return {
        "persistent": {
            f"turns 2–{1 + few}": statistics.median(times[1 : 1 + few]),
            f"turns {turns - few + 1}–{turns}": statistics.median(times[-few:]),
        },
        "prompt": {"turn 2": script.prompts[1], f"turn {turns}": script.prompts[turns - 1]},
    }
