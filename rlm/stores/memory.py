"""A store that ends with its process: the same contract as on disk, over dictionaries.

What is recorded is kept as a log holds it, so that nobody who still has an event can change it. All blobs are bytes.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rlm.errors import BlobError, LogError, SessionExistsError, StaleLeaseError, StoreError, UnknownSessionError
from rlm.ports import Content
from rlm.stores.blobs import digest_of, few, read_content, refuse_strange
from rlm.stores.failures import explained
from rlm.stores.lanes import Job, Once, settle
from rlm.stores.line import Line
from rlm.stores.locks import busy
from rlm.stores.names import check_name, unknown
from rlm.stores.rows import Entries, entries, recorded
from rlm.stores.summary import Summary
from rlm.stores.waiting import when_free
from rlm.types import Recorded, StoredSession

MEMORY = Path(":memory:")
THREADS = 4


@dataclass(slots=True)
class _Session:
    id: str
    name: str
    created: float
    updated: float
    changed: int
    rows: list[tuple[int, float, str, int]] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)
    refs: set[str] = field(default_factory=set)
    lease: MemoryLease | None = None


class MemoryStore:
    """Sessions of this process. What it holds stays when it is closed, for whoever still has it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._blobs: dict[str, bytes] = {}
        self._changes = itertools.count()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rlm-store-blobs")

    async def lease(self, name: str, *, wait: float | None = 0.0) -> MemoryLease:
        check_name(name)

        async def take() -> MemoryLease:
            with self._guard:
                session = self._sessions.get(name) or self._made(name)
                _refuse_busy(session)
                lines = Line(self.do, self._pool), Line(self.do, self._pool)
                session.lease = MemoryLease(self, session, *lines)
                return session.lease

        return await when_free(take, wait)

    async def read(self, name: str) -> Sequence[Recorded]:
        with self._guard:
            session = self._known(name)
            rows = [*session.rows]
        return [recorded(session.id, row) for row in rows]

    async def list(self) -> Sequence[StoredSession]:
        with self._guard:
            return [
                StoredSession(
                    session.id,
                    session.name,
                    session.created,
                    session.updated,
                    len(session.rows),
                    session.summary.turns,
                    session.summary.unfinished,
                    session.summary.question,
                    session.summary.model,
                )
                for session in sorted(self._sessions.values(), key=lambda session: -session.changed)
            ]

    async def blob(self, digest: str) -> bytes | Path:
        refuse_strange(digest)
        with self._guard:
            if (data := self._blobs.get(digest)) is None:
                raise BlobError(f"there is no blob {digest} in the store")
            return data

    async def rename(self, name: str, new: str) -> None:
        check_name(new)
        with self._guard:
            session = self._known(name)
            _refuse_busy(session)
            if self._sessions.get(new) not in (None, session):
                raise SessionExistsError(f"there is a session {new!r} already: choose another name, or delete it first")
            del self._sessions[name]
            session.name = new
            self._sessions[new] = session

    async def delete(self, name: str) -> None:
        with self._guard:
            _refuse_busy(self._known(name))
            del self._sessions[name]

    async def collect(self) -> int:
        with self._guard:
            needed = {digest for session in self._sessions.values() for digest in session.refs}
            return sum(len(self._blobs.pop(digest)) for digest in self._blobs.keys() - needed)

    async def check(self) -> Sequence[str]:
        with self._guard:
            sessions, blobs = [*self._sessions.values()], dict(self._blobs)
        found = [f"blob {digest} is damaged" for digest, data in blobs.items() if digest_of(data) != digest]
        for session in sessions:
            found += [f"session {session.name!r}: blob {one} is missing" for one in sorted(session.refs - blobs.keys())]
            try:
                await self.read(session.name)
            except (LogError, UnknownSessionError) as error:
                found.append(f"session {session.name!r}: {error}")
        return found

    async def close(self) -> None:
        for session in [*self._sessions.values()]:
            if session.lease is not None:
                await session.lease.release()

    def do(self, job: Job[MemoryStore, Any]) -> None:
        """Do one job, at once and alone."""
        value, failure = None, None
        with self._guard:
            try:
                value = None if job.work is None else job.work(self)
            except BaseException as error:  # noqa: BLE001 - goes to whoever awaits the job
                failure = error
        settle([(job, value, failure)])

    def add(self, session: _Session, new: Entries | None, blobs: Mapping[str, bytes | None]) -> None:
        """Record events and blobs; inside a job."""
        self._require(blob for blob, data in blobs.items() if data is None)
        if new is not None:
            if new.first != len(session.rows):
                raise StoreError(f"event {new.first} was to be recorded after event {len(session.rows) - 1}")
            session.rows += [(number, when, data, total) for number, when, _, _, data, total in new.rows]
            session.summary = session.summary.after(new.events)
            session.updated, session.changed = new.time, next(self._changes)
        self._blobs.update({digest: data for digest, data in blobs.items() if data is not None})
        session.refs.update(blobs)

    def hold(self, session: _Session, digests: Sequence[str]) -> None:
        """Let the session need these blobs and no others; inside a job."""
        self._require(digests)
        session.refs = set(digests)

    def release(self, session: _Session, unused: bool) -> None:
        with self._guard:
            session.lease = None
            if unused and not session.rows and not session.refs and self._sessions.get(session.name) is session:
                del self._sessions[session.name]

    def _require(self, digests: Iterable[str]) -> None:
        for digest in digests:
            refuse_strange(digest)
            if digest not in self._blobs:
                raise BlobError(f"the store has no blob {digest}: give its content")

    def _known(self, name: str) -> _Session:
        if (session := self._sessions.get(name)) is None:
            raise unknown(name, [*self._sessions])
        return session

    def _made(self, name: str) -> _Session:
        now = time.time()
        session = self._sessions[name] = _Session(uuid.uuid4().hex, name, now, now, next(self._changes))
        return session


class MemoryLease:
    """The right to write to one session of a `MemoryStore`."""

    folder = None

    def __init__(self, store: MemoryStore, session: _Session, line: Line, aside: Line) -> None:
        self.id = session.id
        self.name = session.name
        self.since = time.time()
        self._store = store
        self._session = session
        self._line, self._aside = line, aside
        self._end = Once()

    async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
        """As in `rlm.ports.Lease`. Once called it is carried out, also where its caller is cancelled meanwhile."""
        self._require_held()
        contents = dict(blobs or {})
        for digest in contents:
            refuse_strange(digest)
        new = entries(self.id, records)
        read: dict[str, bytes | None] = dict.fromkeys(contents)

        def prepare() -> None:
            for digest, content in contents.items():
                if content is not None:
                    with explained(MEMORY):
                        read[digest] = read_content(digest, content)

        def work(store: MemoryStore) -> None:
            store.add(self._session, new, read)

        job = Job(work)
        line = self._aside if new is None else self._line
        line.add(job, prepare, quick=few(contents))
        await job.done()

    async def hold(self, digests: Sequence[str]) -> None:
        self._require_held()
        wanted = list(digests)

        def work(store: MemoryStore) -> None:
            store.hold(self._session, wanted)

        job = Job(work)
        self._line.add(job)
        await job.done()

    async def release(self, *, unused: bool = False) -> None:
        await self._end.once(partial(self._release, unused))

    async def _release(self, unused: bool) -> None:
        try:
            for line in (self._line, self._aside):
                job = Job[MemoryStore, None](None)
                line.add(job)  # behind all that was appended before
                await job.done()
        finally:
            self._store.release(self._session, unused)

    def _require_held(self) -> None:
        if self._end.begun:
            raise StaleLeaseError(f"session {self.name!r} was released: lease it again to write to it")


def _refuse_busy(session: _Session) -> None:
    if session.lease is not None:
        said = {"host": socket.gethostname(), "pid": os.getpid(), "since": session.lease.since}
        raise busy(session.name, said)
