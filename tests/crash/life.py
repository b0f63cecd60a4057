"""One life of a host: opens the session, does the steps that are left, and says over a pipe what came of each.

Lives are forked from a process that has imported everything, one after the other. A step that an earlier life began is
found again by what the log says of it, as a program of a user's would: nothing else is known from before.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rlm import RLM, Limits
from rlm.errors import ModelError, ReplError
from rlm.portal import portal
from rlm.session import Session
from rlm.sessions import Sessions
from rlm.stores.sqlite import SQLiteStore
from rlm.tools import tool
from rlm.types import Answered, Asked, ContextAdded, Event, Failed, Ran, Rewound, Stopped
from tests.crash.doom import Doom, DoomedStore
from tests.crash.provider import Loopback
from tests.crash.script import Script, Step, draw

CONCURRENCY = 4
SESSION = "session"
FOREVER = 3600.0
KILLED = re.compile("killed by SIGKILL|killed with its sandbox")  # of a worker: alone, or with its guard


class Report:
    """Where a life says what came of it, a line of JSON each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, **what: Any) -> None:
        data = json.dumps(what).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]


class Loud(logging.Handler):
    """What is logged as an error is reported: nothing that a harness checks must fail quietly."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report(logged=self.format(record))


class Driver:
    """The user's program over one session. folder: for its files."""

    def __init__(self, rlm: RLM, store: DoomedStore, name: str, idle: float | None, folder: Path) -> None:
        self.rlm, self.store, self.name, self.idle, self.folder = rlm, store, name, idle, folder
        self.session: Session = rlm.session(name)

    def do(self, step: Step, before: Sequence[Step]) -> Any:
        """What came of the step, as plain data. before: the steps before it. A worker that is killed while nothing runs
        in it is told of by an exception, and the next call has a new one."""
        while True:
            try:
                return self._do(step, before)
            except ReplError as gone:
                if not KILLED.search(str(gone)):
                    raise

    def _do(self, step: Step, before: Sequence[Step]) -> Any:
        match step.what:
            case "ask" | "completion":
                return self._turn(step)
            case "run":
                return self._run(step)
            case "add":
                return self._add(step)
            case "rewind":
                return self._rewind(step, sum(one.what == "rewind" for one in before))
            case "fork":
                return self._fork(step)
            case "carry":
                return self._carry(step)
            case "variables":
                names = self.session.variables()
                return {name: kind for name, kind in sorted(names.items()) if not name.startswith(("lost_", "history"))}
            case "given":
                return {"contexts": self._numbered("context"), "histories": self._numbered("history")}
            case "reopen":
                self.session.close()
                self.session = self.rlm.session(self.name)
            case "pause":
                time.sleep(3 * (self.idle or 0.0))
            case "collect":
                portal().run(self.store.collect())
        return None

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _turn(self, step: Step) -> Any:
        try:
            return {"answer": self._answer(step)}
        except ModelError as error:
            return {"error": type(error).__name__, "status": error.status}

    def _answer(self, step: Step) -> str:
        session = self.session
        if not step.keyed:
            at, end = self._asked(step)
            if isinstance(end, Answered):
                return end.completion.response
            if isinstance(end, Failed) and not KILLED.search(end.message):
                raise ModelError(end.message, status=400)
            if at is not None and end is None:
                unfinished = session.unfinished
                assert unfinished is not None, "an unfinished turn that the session does not know"
                assert f"t{unfinished.turn}" == at, f"{at} is not the unfinished turn"
                if not unfinished.lacks_input:
                    return session.resume().response
        if session.unfinished is not None and session.unfinished.lacks_input:
            session.discard()
        key = step.name if step.keyed else None
        if step.what == "ask":
            return session.ask(step.question or "", key=key).response
        return session.completion(step.value, step.question, key=key).response

    def _asked(self, step: Step) -> tuple[str | None, Event | None]:
        """Where the log has the turn of this step, and its end."""
        at, end = None, None
        for event in self.session.log:
            if isinstance(event, Asked) and (event.question == step.question or event.key == step.name):
                at, end = event.at, None
            elif isinstance(event, (Answered, Stopped, Failed)) and event.at == at:
                end = event
        return at, end

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _run(self, step: Step) -> Any:
        while True:
            done = [event for event in self.session.log if isinstance(event, Ran) and event.code == step.value]
            result = done[-1].result if done else None
            if result is None or (result.error is not None and result.error.type == "WorkerDied" and not step.dies):
                result = self.session.run(step.value)
            if result.error is None or result.error.type != "WorkerDied" or step.dies:
                return {"printed": result.stdout, "error": result.error and result.error.type}

    def _add(self, step: Step) -> Any:
        name = f"named_{step.name.replace('-', '_')}"
        known = [event for event in self.session.log if isinstance(event, ContextAdded) and event.name == name]
        return known[-1].index if known else self.session.add_context(step.value, name=name)

    def _rewind(self, step: Step, rewound: int) -> None:
        if sum(isinstance(event, Rewound) for event in self.session.log) == rewound:
            self.session.rewind(self._number(step.value))

    def _number(self, name: str | None) -> int | None:
        """The number of the turn that a step asked."""
        asked = [
            event
            for event in self.session.log
            if isinstance(event, Asked)
            and name is not None
            and (event.key == name or f"[plan {name}]" in (event.question or ""))
        ]
        return int(asked[-1].at[1:]) if asked else None

    def _fork(self, step: Step) -> Any:
        name = f"fork {step.name}"
        if not self._exists(name):
            self.session.fork(name, after=self._number(step.value)).close()
        return self._within(name, step)

    def _carry(self, step: Step) -> Any:
        """Export the session as a file, and import that under another name, as another machine would."""
        name = f"carried {step.name}"
        if not self._exists(name):
            with Sessions(self.store) as sessions:
                path = self.folder / step.name
                sessions.export(self.name, path)
                sessions.import_session(path, name)
        return self._within(name, step)

    def _exists(self, name: str) -> bool:
        return any(known.name == name and known.events for known in portal().run(self.store.list()))

    def _within(self, name: str, step: Step) -> Any:
        other = Driver(self.rlm, self.store, name, self.idle, self.folder)
        results = [other.do(one, step.within[:i]) for i, one in enumerate(step.within)]
        other.session.close()
        return results

    def _numbered(self, kind: str) -> list[Any]:
        """The values of `kind`_0, `kind`_1 and so on."""
        found: list[Any] = []
        with contextlib.suppress(KeyError):
            while True:
                value = self.session.get(f"{kind}_{len(found)}")
                found.append(value if kind == "history" else repr(value))
        return found


def live(order: Mapping[str, Any], report: Report) -> None:
    """Do what is left of a script. order: see `harness`."""
    logging.getLogger().addHandler(Loud(report))
    script: Script = draw(order["seed"], length=order["length"])
    rng = Random(f"strikes {order['run']} {order['life']}")
    real = SQLiteStore(Path(order["folder"]))
    store = DoomedStore(real, [Doom(**doom) for doom in order["dooms"]], rng, lambda struck: report(struck=struck))
    model = Loopback(order["port"], order["run"], order["life"])

    def lookup(word: str) -> str:
        """A word's number, the same each time."""
        return f"number of {word}"

    @tool(retry="never")
    def effect(word: str) -> str:
        """Must not be called twice."""
        report(effect=word)
        return "done"

    tools = {"lookup": lookup, "effect": effect, "constant": {"a": [1, 2], "n": 3}}
    limits = Limits(depth=2, concurrency=CONCURRENCY)
    where = {"isolation": order["isolation"]}
    rlm = RLM(model, limits=limits, tools=tools, store=store, idle=script.idle or FOREVER, environment_kwargs=where)
    driver = Driver(rlm, store, SESSION, script.idle, real.folder.parent)
    report(opened=len(driver.session.log))
    for number, step in enumerate(script.steps):
        if number >= order["first"]:
            report(done=number, result=driver.do(step, script.steps[:number]))
    total = driver.session.usage().total
    usage = [total.calls, total.input_tokens, total.output_tokens, total.cached_tokens]
    rlm.close()
    portal().run(real.close())
    report(ended=True, usage=usage, appended=store.appended)


def serve(orders: socket.socket) -> None:
    """Fork a life for each order that comes with the descriptor of its pipe; say its process id, and how it ended.

    What a life leaves behind becomes a child of this process.
    """
    gc.freeze()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 1)
        except ConnectionError:
            return
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            orders.close()
            _live_and_die(json.loads(data), Report(descriptors[0]))
        os.close(descriptors[0])
        orders.send(json.dumps({"pid": pid}).encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # what earlier ones left behind has ended
                pass
        with contextlib.suppress(ConnectionError):  # the harness was ended meanwhile
            orders.send(json.dumps({"status": status}).encode())


def _live_and_die(order: Mapping[str, Any], report: Report) -> None:
    try:
        errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 2)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        live(order, report)
    except BaseException:  # noqa: BLE001 - the harness is told
        report(failed=traceback.format_exc())
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
