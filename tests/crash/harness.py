"""Runs sessions through their lives and deaths, one after the other, and has the truth checked after each.

One harness is a process with a provider, and with another process from which the lives are forked. How a session is
killed is drawn from its seed too: storms, where every life may end anywhere; sweeps, which kill at one event after the
other; and single kills of a life that has come from the beginning.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rlm.portal import portal
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Messages, Recorded
from tests.crash.doom import Doom, strike
from tests.crash.life import SESSION
from tests.crash.provider import Billed, Provider
from tests.crash.script import Script, draw
from tests.crash.truth import Life, Truth, Violation
from tests.processes import family, gone

ROOT = Path(__file__).parents[2]
LONGEST = 90.0  # seconds that a life may take: one that hangs is a violation
STYLES = {"storm": 6, "sweep": 2, "single": 1}
MOST_LIVES = 60
WORKERS_END = 10.0  # seconds that a worker may outlive its host


@dataclass
class Tally:
    """What was done. kills: of hosts, of workers, and of both at once. workers: whose host went on; guards, zygotes:
    what was hit in place of the worker. repeated: requests that were in flight at a kill, whose reply is on no record,
    and which were made again."""

    sessions: int = 0
    lives: int = 0
    kills: int = 0
    hosts: int = 0
    workers: int = 0
    guards: int = 0
    zygotes: int = 0
    events: int = 0
    requests: int = 0
    repeated: int = 0
    styles: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        for name in (
            "sessions",
            "lives",
            "kills",
            "hosts",
            "workers",
            "guards",
            "zygotes",
            "events",
            "requests",
            "repeated",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for style, times in other.styles.items():
            self.styles[style] = self.styles.get(style, 0) + times


class Nursery:
    """The process that lives are forked from."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.crash.life", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment)
        theirs.close()

    def order(self, order: dict[str, Any]) -> tuple[int, int]:
        """Begin a life; returns its process id, and the descriptor of what it says."""
        reading, writing = os.pipe()
        socket.send_fds(self._orders, [json.dumps(order).encode()], [writing])
        os.close(writing)
        return int(json.loads(self._orders.recv(1000))["pid"]), reading

    def status(self) -> int:
        """How the life ended, once it has."""
        return int(json.loads(self._orders.recv(1000))["status"])

    def close(self) -> None:
        self._orders.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


class Harness:
    """Runs sessions in `folder`. trace: told what happens, a line each. isolation: of the cells."""

    def __init__(self, folder: Path, trace: Any = None, isolation: str = "auto") -> None:
        self.folder = folder
        self._isolation = isolation
        self._trace = trace or (lambda line: None)
        self._scripts: dict[str, Script] = {}
        self._provider = Provider(self._reply, self._watch)
        self._nursery = Nursery()
        self._watching: _Watching | None = None

    def close(self) -> None:
        self._nursery.close()
        self._provider.close()

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, run: str, messages: Messages) -> tuple[str, str | None]:
        script = self._scripts[run]
        return script.signature(messages), script.reply(messages)

    def _watch(self, billed: Billed, when: str) -> None:
        if self._watching is not None:
            self._watching.request(when)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def session(
        self, seed: int, *, style: str | None = None, length: int | None = None, lives: int = MOST_LIVES
    ) -> Tally:
        """One session from beginning to end, killed on the way. lives: after so many it is left alone. Raises
        `Violation`."""
        script, rng = draw(seed, length=length), Random(f"kills {seed}")
        style = style or rng.choices(list(STYLES), list(STYLES.values()))[0]
        tally = Tally(sessions=1, styles={style: 1})
        twin, appended = None, 100
        if not script.wild:
            twin = self._twin(script, length)
            appended = twin[1].appended
        truth = Truth(script, f"{seed} killed", twin[0] if twin else None)
        folder = self._fresh(truth.run, script)
        dooms = Style(style, rng, script, appended)
        while not truth.results or len(truth.results) < len(script.steps):
            life = self._live(
                truth, folder, tally.lives + 1, dooms.next(truth, tally) if tally.lives < lives else [], length
            )
            tally.lives += 1
            tally.kills += life.strikes
            tally.hosts += life.killed
            tally.workers += life.strikes - life.killed
            tally.guards += life.struck.count("guard")
            tally.zygotes += life.struck.count("zygote")
            truth.lived(life, self._logs(folder), self._provider.bill)
            if life.ended:
                break
        truth.ended()
        self._all_well(folder)
        tally.events = sum(map(len, truth.logs.values()))
        tally.requests, tally.repeated = len(truth.recorded) + truth.unrecorded, truth.unrecorded
        for run in (truth.run, f"{seed} twin"):
            shutil.rmtree(self.folder / run.replace(" ", "-"), ignore_errors=True)
        return tally

    def alone(self, seed: int) -> tuple[Truth, Life, Sequence[Recorded], list[Billed]]:
        """A session that nobody kills: what is known of it, its one life, its log, and what it was billed."""
        truth, life = self._twin(draw(seed), None)
        return truth, life, truth.logs[SESSION], [one for one in self._provider.bill if one.run == truth.run]

    def _twin(self, script: Script, length: int | None) -> tuple[Truth, Life]:
        truth = Truth(script, f"{script.seed} twin")
        folder = self._fresh(truth.run, script)
        life = self._live(truth, folder, 0, [], length)
        truth.lived(life, self._logs(folder), self._provider.bill)
        truth.ended()
        truth.close_the_twin(self._provider.bill)
        return truth, life

    def _fresh(self, run: str, script: Script) -> Path:
        self._scripts[run] = script
        folder = self.folder / run.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _logs(self, folder: Path) -> dict[str, Sequence[Recorded]]:
        async def read() -> dict[str, Sequence[Recorded]]:
            store = SQLiteStore(folder / "store")
            try:
                return {one.name: await store.read(one.name) for one in await store.list()}
            finally:
                await store.close()

        return portal().run(read())

    def _all_well(self, folder: Path) -> None:
        """The store is whole, nothing is left over in it, and no process of a session's is left."""

        async def check() -> Sequence[str]:
            store = SQLiteStore(folder / "store")
            try:
                await store.collect()
                return await store.check()
            finally:
                await store.close()

        if wrong := portal().run(check()):
            raise Violation(f"the store is damaged: {wrong}")
        until = time.monotonic() + WORKERS_END
        while left := [pid for pid in family(self._nursery.pid) if not gone(pid)]:
            if time.monotonic() > until:
                raise Violation(f"processes outlive their host: {left}")
            time.sleep(0.01)

    # -- lives ---------------------------------------------------------------------------------------------------------

    def _live(self, truth: Truth, folder: Path, number: int, dooms: Sequence[Doom], length: int | None) -> Life:
        """One life, to its end."""
        life = Life(number, dooms)
        errors = folder / "errors"
        order = {
            "seed": truth.script.seed,
            "length": length,
            "run": truth.run,
            "life": number,
            "first": len(truth.results),
            "folder": str(folder / "store"),
            "port": self._provider.port,
            "isolation": self._isolation,
            "errors": str(errors),
            "dooms": [asdict(doom) for doom in dooms],
        }
        self._trace(f"{truth.run}: life {number} from step {order['first']}, {list(dooms)}")
        pid, said = self._nursery.order(order)
        watching = self._watching = _Watching(pid, dooms, Random(f"{truth.script.seed} {number}"))
        try:
            hung = not self._listen(said, life, pid)
        finally:
            self._watching = None
            watching.stop()
            os.close(said)
        status = self._nursery.status()
        life.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not hung
        life.struck += watching.struck
        life.strikes = len(life.struck) + life.killed
        life.errors = errors.read_text(errors="replace")[-20_000:] if errors.exists() else ""
        if hung:
            raise Violation(f"a life hangs at step {len(truth.results) + len(life.done)}:\n{life.errors}")
        return life

    def _listen(self, said: int, life: Life, pid: int) -> bool:
        """Hear a life to its end; False where it does not end, and is killed."""
        until, rest = time.monotonic() + LONGEST, b""
        while time.monotonic() < until:
            if not select.select([said], [], [], 1.0)[0]:
                continue
            data = os.read(said, 1 << 16)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line), life)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        return False

    def _heard(self, what: dict[str, Any], life: Life) -> None:
        match what:
            case {"done": number, "result": result}:
                life.done[number] = result
            case {"effect": word}:
                life.effects.append(word)
            case {"logged": text}:
                life.logged.append(text)
            case {"failed": text}:
                life.failed = text
            case {"struck": what}:
                life.struck.append(what)
            case {"ended": _}:
                life.ended, life.usage, life.appended = True, what["usage"], what["appended"]


class _Watching:
    """Kills from outside, by the clock and at requests."""

    def __init__(self, pid: int, dooms: Sequence[Doom], rng: Random) -> None:
        self.struck: list[str] = []
        self._pid, self._rng = pid, rng
        self._requests = [doom for doom in dooms if doom.on == "request"]
        self._seen = {"before": 0, "after": 0}
        self._stopped = False
        self._guard = threading.Lock()
        self._timers: list[threading.Timer] = []
        for doom in dooms:
            if doom.on == "time":
                self._later(doom)

    def _later(self, doom: Doom) -> None:
        timer = threading.Timer(doom.delay, self._strike, [doom])
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def request(self, when: str) -> None:
        self._seen[when] += 1
        for doom in self._requests:
            if (doom.when, doom.n) == (when, self._seen[when]):
                self._later(doom)

    def _strike(self, doom: Doom) -> None:
        with self._guard:
            struck = "" if self._stopped else strike(self._pid, doom.whom, self._rng)
            if struck and doom.whom == "worker":
                self.struck.append(struck)

    def stop(self) -> None:
        with self._guard:
            self._stopped = True
        for timer in self._timers:
            timer.cancel()


class Style:
    """How the lives of one session end. appended: how many events its twin recorded."""

    def __init__(self, name: str, rng: Random, script: Script, appended: int) -> None:
        self._name, self._rng, self._script, self._appended = name, rng, script, appended
        self._at, self._known = 0, (-1, -1)
        self._order = rng.choice([("before",), ("after",), ("during",), ("before", "during", "after")])

    def next(self, truth: Truth, tally: Tally) -> list[Doom]:
        """The dooms of the next life; none for one that is left alone."""
        if self._name == "single":
            return [] if tally.lives else [self._at_an_event(self._rng.randint(1, self._appended), self._whom())]
        return self._sweep(truth) if self._name == "sweep" else self._storm()

    def _sweep(self, truth: Truth) -> list[Doom]:
        """At the first event of a life; where that brought nothing new on record, at the next one."""
        news = sum(
            record.event.kind not in ("restored", "resumed", "briefed", "checkpoint")
            for log in truth.logs.values()
            for record in log
        )
        known = (news, len(truth.results))
        self._at = 1 if known != self._known else self._at + 1
        self._known = known
        when = self._order[self._at % len(self._order)]
        return [Doom("append", self._whom(), self._at, when, self._rng.uniform(0, 0.002) if when == "during" else 0)]

    def _storm(self) -> list[Doom]:
        """A kill of the host anywhere; where accidents happen, of its workers first."""
        rng = self._rng
        if not self._script.accidents or rng.random() < 0.3:
            return [self._anywhere(self._whom())]
        last = self._at_an_event(4 + int(rng.expovariate(1 / 8)), self._whom())
        return [self._at_an_event(1 + int(rng.expovariate(1 / 2)), "worker"), self._anywhere("worker"), last]

    def _anywhere(self, whom: str) -> Doom:
        rng = self._rng
        match rng.choices(["append", "time", "request"], [6, 3, 2])[0]:
            case "append":
                return self._at_an_event(1 + int(rng.expovariate(1 / 5)), whom)
            case "time":
                return Doom("time", whom, delay=rng.uniform(0, 0.4))
            case _:
                n, when = 1 + int(rng.expovariate(1 / 3)), rng.choice(["before", "after"])
                return Doom("request", whom, n, when, rng.uniform(0, 0.004))

    def _at_an_event(self, n: int, whom: str) -> Doom:
        when = self._rng.choice(["before", "during", "after"])
        return Doom("append", whom, n, when, self._rng.uniform(0, 0.004) if when == "during" else 0.0)

    def _whom(self) -> str:
        return self._rng.choice(["host", "both"])
