"""The worker's checkpoints: what of its namespace has changed since the last one, as blobs, and the way back.

After a cell the names that it can have touched (see `graph`) are looked at again, all others are not. That takes place
between two cells while it is short, and else in a forked copy, whose answer comes when it comes; one at a time. What
changed in a way that no analysis can see is found when all names are looked at.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from itertools import compress

from blobs import Spool
from capture import describe
from channel import dumps
from definitions import Definitions, definable
from edges import LARGE, TEXTS
from folder import signs
from forks import Copy
from graph import OverBudget
from known import Known, is_bundled, is_large_text
from limits import told
from names import code_names
from pickles import CLOUDPICKLE
from restore import Restore
from snapshot import Scope, Snapshot
from sources import Sources, statements
from suspects import MODULE_NAMES, Suspects, threads_live

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    import types
    from collections.abc import Callable
    from typing import Any

BUDGET = 20_000  # objects that are looked at while a cell waits: some milliseconds
DEATHS = 2  # of a capture, with the same names in work, until these count as lost
MANY = 5_000  # names that are gone through while a cell waits


class Heap:
    """Checkpoints of `namespace`. given: the host's values by name.

    send: sends a frame; post: has a frame handled by the main thread, once it is between two cells.
    """

    def __init__(self, worker: Any, cloudpickle: str | None = None) -> None:
        self.worker, self.cloudpickle = worker, cloudpickle
        self.namespace: dict[str, Any] = worker.names
        self.folder = os.getcwd()
        self.known, self.definitions, self.sources = Known(), Definitions(worker.names), Sources()
        self.pending: set[str] = set()
        self.begun, self.all_next = False, True
        self.wanted = False  # whether there will be captures
        self.imports: set[str] = set()
        self.owned: dict[str, Callable[[], Any]] = {}  # values of the host's that cells may change
        self.pristine: dict[str, str] = {}  # their digests as the host gave them, once they were asked for
        self.copy: Copy | None = None
        self.queue: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.deaths: dict[tuple[str, ...], int] = {}
        self.cursed: dict[str, int] = {}  # names whose capture died more than once, and the ids of their values

    # -- what the worker tells -----------------------------------------------------------------------------------------

    def ran(self, compiled: types.CodeType | None, filename: str) -> None:
        """A cell has run."""
        if compiled is None:
            return
        used = code_names(compiled)
        self.imports.update(name for name in used if "." in name)
        self.sources.ran(filename, used)
        with self.lock:
            self.pending |= used
            for name in used & self.known.texts.keys():
                if self.namespace.get(name) is not self.known.texts.get(name):
                    self.known.texts.pop(name, None)  # a large text must not live longer for our sake

    def touched(self, name: str) -> None:
        """The worker itself has bound a name anew."""
        with self.lock:
            self.pending.add(name)

    def gave(self, names: list[str], value: Any, again: Callable[[], Any]) -> None:
        """The host has given a value; `again` makes one more of it."""
        with self.lock:
            self.pending.update(names)
            for name in names:
                self.known.forget(name)
                self.owned.pop(name, None)
                self.pristine.pop(name, None)
                if not constant(value):
                    self.owned[name] = again

    # -- capturing -----------------------------------------------------------------------------------------------------

    def checkpoint(self, id: int, spool: str | None, whole: bool, limit: int) -> None:
        with self.lock:
            if self.copy is not None:
                self.queue.append({"type": "checkpoint", "id": id, "spool": spool, "whole": whole, "limit": limit})
                return
        job = Job(id, time.monotonic(), whole)
        try:
            place = None if spool is None else Spool(self.worker.handed.open(spool, os.O_RDWR))
            self.capture(self.prepare(job, place, limit), job)
        except Exception as error:  # noqa: BLE001 - the host is told; a worker must not end for want of a checkpoint
            self.failed(job, describe(error)["text"])

    def prepare(self, job: Job, spool: Spool | None, limit: int) -> Scope:
        """What to look at now. The next cell waits for this, also beside 100,000 names: no step of ours for each."""
        suspects = Suspects(self.worker, self.definitions, self.known).names(self.pending)
        everything = suspects is None or job.whole or self.all_next
        names = None if everything else set(suspects or ())
        job.suspects = suspects if self.begun else None
        with self.lock:
            job.pending, self.pending = self.pending, set()
        objects = self.definitions.objects
        values: dict[str, Any] = (
            self.namespace.copy() if names is None else {name: self.namespace.get(name) for name in names}
        )
        kinds = list(map(type, values.values()))
        may_define = set(filter(definable, set(kinds)))
        looked_at = set(compress(values, map(may_define.__contains__, kinds))) if may_define else set()
        looked_at |= objects.keys() if names is None else objects.keys() & names
        self.definitions.update([name for name in looked_at if type(name) is str and name not in MODULE_NAMES])
        for name in self.sources.update(objects.keys() & looked_at):
            self.known.blobs[name] = ("", ())  # so that it is told again, without its source
            if names is not None:
                names.update(self.known.members.get(name, (name,)))
        if not TEXTS.isdisjoint(kinds):
            texts = list(compress(values.items(), map(TEXTS.__contains__, kinds)))
            job.texts = {name: value for name, value in texts if len(value) > LARGE}
        return self.scope(names, spool, limit)

    def capture(self, scope: Scope, job: Job) -> None:
        count = len(self.namespace if scope.names is None else scope.names)
        if (threads_live() or count > MANY) and self.begin_copy(scope, job):
            return
        try:
            answer, learnt = Snapshot(scope, BUDGET).run()
        except OverBudget:
            if self.begin_copy(scope, job):
                return
            answer, learnt = Snapshot(scope).run()
        self.finish(job, learnt, dumps(self.completed(job, answer)))

    def begin_copy(self, scope: Scope, job: Job) -> bool:
        """Have a forked copy do it; False where there can be none."""

        def work(say: Callable[[Any], None]) -> Any:
            job.pause = time.monotonic() - job.started
            try:
                answer, learnt = Snapshot(scope, None, say).run()
                return "", dumps(self.completed(job, answer)), learnt
            except Exception as error:  # noqa: BLE001 - the host is told
                return describe(error)["text"], "", {}

        def done(said: list[Any], result: Any, died: str) -> None:
            if result is None:
                self.died(job, said[-1] if said else [])
            elif result[0]:
                self.failed(job, result[0])
            else:
                self.finish(job, result[2], result[1])

        if threads_live():
            Snapshot(scope)  # imports what the copy must not import, whose locks may be held
        try:
            self.copy = Copy(work, self.after_fork, done)
        except OSError:
            return False
        self.copy.start()
        return True

    def chore(self) -> Callable[[], object] | None:
        """What is best done while nothing comes from the host: to import what captures will need."""
        return self.import_all if self.wanted and CLOUDPICKLE not in sys.modules else None

    def import_all(self) -> None:
        import ast  # noqa: F401 - as does `sources`
        import hashlib  # noqa: F401 - as does `blobs`

        Snapshot(self.scope(set(), None, 0))

    def after_fork(self) -> None:
        if not self.worker.forked:
            self.worker.after_fork()

    def completed(self, job: Job, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer with what only this moment knows."""
        for group in answer["groups"]:
            group[6] = {name: self.sources.known[name] for name in group[6] if name in self.sources.known}
        changed = [name for group in answer["groups"] for name in group[0]]
        changed += [*answer["modules"], *answer["given"], *answer["lost"], *answer["gone"]]
        expected = {*(job.suspects or ()), *self.known.restored}
        caught = [] if job.suspects is None else [name for name in changed if name not in expected]
        seconds = time.monotonic() - job.started
        pause = seconds if job.pause is None else job.pause
        lost = {told(name): why for name, why in answer["lost"].items()}
        gone, caught = list(map(told, answer["gone"])), list(map(told, caught))
        more = {"lost": lost, "gone": gone, "caught": caught, "seconds": seconds, "pause": pause, "whole": job.whole}
        return {**answer, **more}

    def finish(self, job: Job, learnt: dict[str, Any], answer: str) -> None:
        self.learn(learnt, job.texts)  # by the thread that waited for it, while the cells go on
        self.begun, self.all_next = True, False
        try:
            self.worker.channel.send_text(f'{{"type":"value","id":{job.id},"value":{answer}}}')
        except ValueError as error:  # more than a frame may carry: none of it has arrived
            self.all_next = True
            self.known = Known()
            self.worker.send(type="value", id=job.id, error=str(error))
        self.next()

    def failed(self, job: Job, why: str) -> None:
        self.forget(job, [])
        self.worker.send(type="value", id=job.id, error=why)
        self.next()

    def died(self, job: Job, names: list[str]) -> None:
        """The copy ended without an answer: nothing counts as saved, the next capture looks at the same names again."""
        self.forget(job, names)
        self.worker.send(type="value", id=job.id, error="the copy of the process that looked at it has died")
        self.next()

    def forget(self, job: Job, names: list[str]) -> None:
        with self.lock:
            self.pending |= job.pending
            self.pending.update(names)
            self.all_next = self.all_next or job.suspects is None
            self.deaths[tuple(names)] = self.deaths.get(tuple(names), 0) + 1
            if names and self.deaths[tuple(names)] >= DEATHS:
                self.cursed.update((name, id(self.namespace.get(name))) for name in names)

    def next(self) -> None:
        with self.lock:
            self.copy = None
            queue, self.queue = self.queue, []
        for frame in queue:
            self.worker.channel.post(frame)

    def scope(self, names: set[str] | None, spool: Spool | None, limit: int) -> Scope:
        scope = Scope(self.namespace, self.definitions, self.known)
        given = self.worker.given
        scope.hidden = given.keys() - self.owned.keys()
        scope.names = None if names is None else list(names - scope.hidden)
        first: dict[int, str] = {}
        for name in sorted(given):
            if name not in self.owned:
                first.setdefault(id(given[name]), name)
        scope.given = {key: name for key, name in first.items() if not is_bundled(given[name])}
        scope.owned = {name: again for name, again in self.owned.items() if self.namespace.get(name) is given.get(name)}
        scope.pristine = self.pristine
        scope.folder, scope.spool, scope.limit = self.folder, spool, limit
        scope.imports, scope.cloudpickle, scope.cursed = self.imports, self.cloudpickle, self.cursed
        return scope

    def learn(self, learnt: dict[str, Any], texts: dict[str, Any]) -> None:
        for name in learnt["gone"]:
            self.cursed.pop(name, None)
        self.known.learn(learnt)
        self.known.texts.update((name, value) for name, value in texts.items() if name in self.known.blobs)
        self.pristine.update(learnt["pristine"])

    # -- the way back --------------------------------------------------------------------------------------------------

    def restore(self, id: int, image: dict[str, Any], contents: dict[str, Any], seconds: float) -> None:
        worker, namespace = self.worker, self.namespace
        restore = Restore(image, contents, namespace, worker.given, worker.handed)
        for name in set(namespace) - MODULE_NAMES - set(worker.given) - {"answer"}:
            del namespace[name]
        restore.run(self.folder, self.cloudpickle, seconds)
        namespace.update(worker.given)
        known = self.known = Known()
        for group in restore.groups:
            names = [name for name in group.names if name and name not in restore.rebuilt]
            if group.state != "done" or not names:
                continue
            values = [namespace[name] for name in names]
            bundle = all(is_bundled(value) for value in values)
            known.blobs.update(dict.fromkeys(names, (group.digest, () if bundle else tuple(names))))
            if not bundle and len(names) > 1:
                known.members.update(dict.fromkeys(names, tuple(names)))
            known.restored.update(names)
            for name, value in zip(names, values):
                known.relate(name, group.refs, group.uses)
                if bundle:
                    known.atoms[name] = value
                elif is_large_text(value):
                    known.texts[name] = value
        known.modules = {name: what for name, what in image["modules"].items() if name in namespace}
        known.given = {name: what for name, what in image["given"].items() if name in namespace}
        self.relate_given()
        known.files = signs(self.folder, image["files"])
        self.imports.update(name for what in known.modules.values() for name in what.split(", ") if "." in name)
        for name, source in [pair for group in restore.groups for pair in group.sources.items()]:
            self.sources.learn(name, source, statements(source).get(name, ("", frozenset()))[1])
        self.definitions.update(namespace)
        self.pending = set(restore.rebuilt)
        self.begun, self.all_next = True, False
        worker.take_over()
        worker.send(type="value", id=id, value=restore.lost)

    def relate_given(self) -> None:
        """Names that hold a value of the host's are one group with it: what changes by one of them changes for all."""
        sharing: dict[int, list[str]] = {}
        for name in [*self.known.given, *self.owned]:
            if name in self.namespace and name not in self.known.members:
                sharing.setdefault(id(self.namespace[name]), []).append(name)
        for names in sharing.values():
            self.known.members.update(dict.fromkeys(names, tuple(names)))


class Job:
    """A capture under way. suspects: names that cells can have changed, None for all; pending: what they follow from;
    texts: large ones as they are now; pause: seconds for which no cell could run, once that is known."""

    def __init__(self, id: int, started: float, whole: bool) -> None:
        self.id, self.started, self.whole = id, started, whole
        self.suspects: set[str] | None = None
        self.pending: set[str] = set()
        self.texts: dict[str, Any] = {}
        self.pause: float | None = None


def constant(value: Any) -> bool:
    """Whether nothing can change the value."""
    if type(value) in (tuple, frozenset):
        return all(map(constant, value))
    return is_bundled(value) or type(value) in TEXTS or callable(value)
