"""This project's sessions in a store, which later processes open again. Scripted models that reply at once.

Stores are folders that the harness names, so that the driver that opens one need not be the one that made it.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.drivers.heaps import FRACTIONS, HEAPS, MB
from bench.drivers.serve import Script, elapsed, median_time, serve, text_of
from rlm import RLM, Limits, ScriptedModel
from rlm.log import load
from rlm.portal import portal
from rlm.ports import Lease
from rlm.session import Session
from rlm.stores import get_store
from rlm.types import Recorded

QUESTION = "What happened?"
NAME = "bench"
LONG = 600.0  # seconds that a checkpoint may take
QUIET = 21  # cells in a quiet session
AFTER = 0.1  # seconds for which cells go on, beside half as long again as the checkpoint took
SECONDS = 3.0  # that a change of a heap may be repeated for


def engine(store: str | Path, script: Any = "", python: str | None = None) -> RLM:
    """An RLM whose sessions live in this folder; python: the interpreter of its cells, if not ours."""
    model = ScriptedModel(script or Script(), record=False)
    kwargs = {"python": python} if python else None
    return RLM(model, persistent=True, limits=Limits(), store=store, environment_kwargs=kwargs)


@contextmanager
def new_store() -> Iterator[Path]:
    """A folder on the disk that the system's temporary files are on."""
    with tempfile.TemporaryDirectory(prefix="store-", dir=".") as folder:
        yield Path(folder).absolute()


def ran(session: Session, code: str) -> str:
    """What a cell printed. Raises `RuntimeError` where it failed."""
    result = session.run(code)
    if result.error is not None:
        raise RuntimeError(f"{code[:200]}: {result.stderr}")
    return result.stdout.strip()


def settle(session: Session) -> None:
    """Wait until the heap is safe. There is no public way to wait for that alone, as nobody but a measurement does."""
    keeper = session._living.keeper
    assert keeper is not None
    portal().run(keeper.settled(LONG))
    if not keeper.is_safe:
        raise RuntimeError("the checkpoint was not taken")


# -- events ------------------------------------------------------------------------------------------------------------


def commits(data: str, times: int, at_once: int = 1, sessions: int = 1) -> float:
    """Seconds an event takes until its append returns: so many at once, spread over so many sessions of one store."""
    with new_store() as folder:
        return portal().run(_commits(folder, data, times, at_once, sessions))


async def _commits(folder: Path, data: str, times: int, at_once: int, sessions: int) -> float:
    event, store = load(data), get_store(folder)
    leases = [await store.lease(f"session-{number}") for number in range(sessions)]
    numbers = [itertools.count() for _ in leases]

    def append(number: int) -> Any:
        lease: Lease = leases[number % sessions]
        return lease.append([Recorded(next(numbers[number % sessions]), time.time(), event)])

    async def once() -> None:
        if at_once == 1:
            await append(0)
        else:
            await asyncio.gather(*[append(number) for number in range(at_once)])

    taken = []
    for _ in range(times + 2):
        started = time.perf_counter()
        await once()
        taken.append(time.perf_counter() - started)
    await store.close()
    return statistics.median(taken[2:]) / at_once


# -- turns -------------------------------------------------------------------------------------------------------------


def turns(size: int, times: int, *, durable: bool) -> dict[str, float]:
    """Seconds a turn of a warm session takes, with a new context of `size` characters or none; events that it has."""
    contexts = (f"{number}\n{text_of(size, 'a')}" for number in itertools.count())
    with new_store() as folder, engine(folder) as rlm:
        session = rlm.session(NAME if durable else None)

        def turn() -> object:
            return session.completion(next(contexts), QUESTION) if size else session.ask(QUESTION)

        seconds = median_time(turn, times, warm=3)
        before = len(session.log)
        turn()
        return {"time": seconds, "events": len(session.log) - before}


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoints(heap: str, times: int, python: str | None = None) -> dict[str, dict[str, float]]:
    """For each kind of change of a heap: seconds that the next cell waits, and any cell at the most; seconds until what
    changed is safe; bytes that the store has more, and those that changed."""
    made, numbers = HEAPS[heap], itertools.count(MB)
    found: dict[str, dict[str, float]] = {"wait": {}, "worst": {}, "safe": {}, "written": {}, "changed": {}}
    with new_store() as folder, engine(folder, python=python) as rlm:
        session = rlm.session(NAME)
        ran(session, "beside = tick = 0")
        settle(session)
        empty = stored(folder)
        ran(session, made.make.replace("#", "0"))
        settle(session)
        size = stored(folder) - empty

        def change(kind: str) -> None:
            settle(session)
            ran(session, made.cell(kind, next(numbers)))

        def tick() -> float:
            return elapsed(lambda: ran(session, "tick += 1"))

        def quiet() -> float:
            settle(session)
            return tick()

        alone = statistics.median(quiet() for _ in range(QUIET))
        for kind, fraction in FRACTIONS.items():
            waits: list[float] = []
            worst: list[float] = []
            safe: list[float] = []
            written: list[float] = []
            enough = time.perf_counter() + SECONDS
            while len(waits) < times and (not waits or time.perf_counter() < enough):
                settle(session)
                before = stored(folder)
                change(kind)
                safe.append(elapsed(lambda: settle(session)))
                written.append(stored(folder) - before)
                change(kind)
                end = time.perf_counter() + 1.5 * safe[-1] + AFTER
                ticks = [tick()]
                while time.perf_counter() < end:
                    ticks.append(tick())
                waits.append(max(0.0, ticks[0] - alone))
                worst.append(max(0.0, max(ticks) - alone))
            for table, values in (("wait", waits), ("worst", worst), ("safe", safe), ("written", written)):
                found[table][kind] = statistics.median(values)
            found["changed"][kind] = fraction * size
    return found


def stored(folder: Path) -> int:
    """Bytes of the events and blobs of a store."""
    connection = sqlite3.connect(f"{(folder / 'store.db').as_uri()}?mode=ro", uri=True)
    try:
        blobs = "SELECT coalesce(sum(size), 0) FROM blobs"
        events = "SELECT coalesce(sum(length(CAST(data AS BLOB))), 0) FROM events"
        return int(connection.execute(f"SELECT ({blobs}) + ({events})").fetchone()[0])
    finally:
        connection.close()


# -- coming back -------------------------------------------------------------------------------------------------------


def keep(store: str, heap: str) -> None:
    """Make a heap in a session of this store, and wait until it is safe; the session stays open."""
    rlm = engine(store)
    _left_open.append(rlm)
    session = rlm.session(NAME)
    ran(session, HEAPS[heap].make.replace("#", "0"))
    settle(session)


_left_open: list[RLM] = []  # until the process is killed


def first_cell(store: str, heap: str) -> dict[str, float]:
    """Seconds until the session is open, and from there to the result of a cell that needs the heap."""
    started = time.perf_counter()
    with engine(store) as rlm:
        session = rlm.session(NAME)
        opened = time.perf_counter()
        got = ran(session, f"print(repr(({HEAPS[heap].check})))")
        done = time.perf_counter()
        if got != HEAPS[heap].value:
            raise RuntimeError(f"not what was kept: {got}")
    return {"open": opened - started, "cell": done - opened}


def forked(size: int) -> dict[str, float]:
    """Of a session whose heap is a text of `size`: seconds for a fork, and from there to its first cell's result; bytes
    that the store then has more on the disk."""
    with new_store() as folder, engine(folder) as rlm:
        session = rlm.session(NAME)
        ran(session, f"heap = 'x' * {size}")
        settle(session)
        before, started = on_disk(folder), time.perf_counter()
        fork = session.fork("copy")
        made = time.perf_counter()
        got = ran(fork, "print(len(heap))")
        done = time.perf_counter()
        if got != str(size):
            raise RuntimeError(f"not what was forked: {got}")
        settle(fork)
        return {"fork": made - started, "cell": done - made, "grown": on_disk(folder) - before}


def on_disk(folder: Path) -> int:
    """Bytes that a store's files take up; those that its writers work on are not its own yet."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "work"]
    return sum(path.stat().st_blocks for path in files) * 512


# -- many sessions -----------------------------------------------------------------------------------------------------

_filled: dict[int, Path] = {}


def filled(count: int) -> Path:
    """A store of so many sessions, each with the log of a session of three turns; made once."""
    if count not in _filled:
        folder = Path(tempfile.mkdtemp(prefix="sessions-", dir=".")).absolute()
        with engine(folder) as rlm:
            session = rlm.session(NAME)
            for number in range(3):
                session.completion(f"{number} {text_of(10_000, 'a')}", QUESTION)
        portal().run(_fill(folder, count - 1))
        _filled[count] = folder
    return _filled[count]


async def _fill(folder: Path, count: int) -> None:
    store = get_store(folder)
    records = await store.read(NAME)
    for number in range(count):
        lease = await store.lease(f"session-{number}")
        await lease.append(records)
        await lease.release()
    await store.close()


def listed(count: int) -> float:
    """Seconds for `Store.list()`."""
    store = get_store(filled(count))
    found = portal().run(store.list())
    if len(found) != count:
        raise RuntimeError(f"{len(found)} sessions")
    return median_time(lambda: portal().run(store.list()), 5)


def listed_by_process(count: int) -> float:
    """Seconds for `rlm sessions list`, from the start of its process to its end."""
    command = [sys.executable, "-m", "rlm", "sessions", "list", "--store", str(filled(count))]
    started = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if len(said.stdout.splitlines()) < count:
        raise RuntimeError(said.stdout[-500:])
    return seconds


def opened(count: int) -> float:
    """Seconds to open a session of the store, which starts nothing."""
    with engine(filled(count)) as rlm:

        def once() -> float:
            seconds = elapsed(lambda: rlm.session(NAME))
            rlm.session(NAME).close()
            return seconds

        once()
        return statistics.median(once() for _ in range(5))


def main() -> None:
    commands: dict[str, Callable[..., Any]] = {
        "ready": lambda: None,
        "commits": commits,
        "turns": turns,
        "checkpoints": checkpoints,
        "keep": keep,
        "first_cell": first_cell,
        "forked": forked,
        "listed": listed,
        "listed_by_process": listed_by_process,
        "opened": opened,
    }
    serve(commands)
