"""A week of a session that is closed, killed and opened again, by commands that the harness gives to one process after
the other. Its models reply at once; its logs are a megabyte a turn, and its cells keep what they parse.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.drivers.durable import NAME, engine, on_disk, ran
from bench.drivers.serve import elapsed, serve
from rlm import RLM
from rlm.folds import Past
from rlm.portal import portal
from rlm.ports import Store
from rlm.session import Session
from rlm.stores import get_store

SERVICES = ("gateway", "orders", "billing", "search", "mail", "login", "stock")
QUESTION = "Which services failed in log {number}, how often, and is that more than in the logs before?"
PARSE = """\
parsed_{number} = [line.split() for line in context_{number}.splitlines() if line.endswith('status 500')]
counts_{number} = {{}}
for _ in parsed_{number}:
    counts_{number}[_[1]] = counts_{number}.get(_[1], 0) + 1
failures = (failures if {number} else []) + [(_[0], _[1]) for _ in parsed_{number}]
print(len(context_{number}), len(parsed_{number}), counts_{number})
"""
TELL = """\
worst = max(counts_{number}, key=counts_{number}.get)
answer['content'] = (f"In log {number} {{len(parsed_{number})}} requests failed, most of them in {{worst}} "
                     f"({{counts_{number}[worst]}}); over all logs so far it is {{len(failures)}}.")
answer['ready'] = True
"""


def log_of(number: int, size: int) -> str:
    """The log text of one turn, of about `size` characters; one line in 40 tells of a failure."""
    lines, length, count = [], 0, 0
    while length < size:
        service, failed = SERVICES[(count * count + number) % len(SERVICES)], count % 40 == number % 40
        clock = f"{count // 3600 % 24:02}:{count // 60 % 60:02}:{count % 60:02}"
        line = f"2026-01-{1 + number % 28:02}T{clock}Z {service} request {number * 100_000 + count:08} took "
        line += f"{count % 997} ms, status {500 if failed else 200}\n"
        lines.append(line)
        length, count = length + len(line), count + 1
    return "".join(lines)


class Script:
    """Two iterations a turn: one parses its log, one answers. number: of the turn, from 0. dies: at the second one the
    process does. prompt: characters of the last turn's first request."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.dies = False
        self.prompt = 0

    def __call__(self, messages: Any) -> str:
        if any(message["role"] == "assistant" for message in messages):
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return f"```repl\n{TELL.format(number=self.number)}```"
        self.prompt = sum(len(message["content"]) for message in messages)
        return f"```repl\n{PARSE.format(number=self.number)}```"


class Life:
    """The session in this process, from its opening on. number: of the turn that may have been cut off."""

    def __init__(self, store: str, number: int) -> None:
        self.script = Script(number)
        self.rlm: RLM = engine(store, self.script)
        self.session: Session = self.rlm.session(NAME)


_lives: list[Life] = []


def begin(store: str, number: int) -> dict[str, float]:
    """Seconds until the session is open and has run a cell, what was cut off being brought to its end."""
    started = time.perf_counter()
    life = Life(store, number)
    _lives.append(life)
    unfinished = life.session.unfinished
    if unfinished is not None:
        life.session.resume()
    ran(life.session, "1")
    return {"seconds": time.perf_counter() - started, "resumed": float(unfinished is not None)}


def turn(number: int, size: int, *, dies: bool = False) -> dict[str, float]:
    """One turn: seconds, and the tokens of its first prompt, at four characters each. Raises for a wrong answer."""
    [life] = _lives
    life.script.number, life.script.dies = number, dies
    text, question = log_of(number, size), QUESTION.format(number=number)
    answers: list[str] = []
    seconds = elapsed(lambda: answers.append(life.session.completion(text, question).response))
    if f"In log {number} " not in answers[0]:
        raise RuntimeError(f"turn {number} was answered with {answers[0]!r}")
    return {"seconds": seconds, "tokens": life.script.prompt / 4}


def end() -> float:
    """Seconds to close the session."""
    [life] = _lives
    return elapsed(life.rlm.close)


def sizes(store: str) -> dict[str, float]:
    """Bytes of the contexts, of the heap as its last checkpoint has it, and of the store on the disk."""
    return portal().run(_sizes(get_store(store), Path(store)))


async def _sizes(store: Store, folder: Path) -> dict[str, float]:
    past = Past(await store.read(NAME))
    contexts = await _bytes(store, [event.digest for event in past.contexts.values() if event.digest])
    await store.close()
    return {"contexts": contexts, "heap": sum(past.heap.blobs().values()), "store": on_disk(folder)}


async def _bytes(store: Store, digests: Sequence[str]) -> int:
    blobs = [await store.blob(digest) for digest in digests]
    return sum(blob.stat().st_size if isinstance(blob, Path) else len(blob) for blob in blobs)


def main() -> None:
    serve({"ready": lambda: None, "begin": begin, "turn": turn, "end": end, "sizes": sizes})
