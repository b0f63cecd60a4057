"""The store of durable sessions: a folder with an SQLite database and, beside it, a file for each large blob.

What was acknowledged survives the end of the process at any instant, and a power cut as far as the disk keeps what it
was told to sync. Any number of processes may use the folder; a forked child opens the store anew.

    store.db        sessions, events, small blobs      locks/ID    who writes to a session
    blobs/ab/ab…    large blobs, by digest             work/ID     files of the one who writes
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from rlm.errors import StaleLeaseError, StoreError
from rlm.ports import Content, Owned
from rlm.stores import tables
from rlm.stores.audit import audit
from rlm.stores.blobs import LARGE, BlobFiles, Taken, digest_of, few, refuse_strange
from rlm.stores.connections import identity
from rlm.stores.failures import explain, explained
from rlm.stores.folders import make_folder, remove_folder
from rlm.stores.lanes import Job, Once, in_thread, settle
from rlm.stores.line import Line
from rlm.stores.locks import Lock
from rlm.stores.names import check_name, unknown
from rlm.stores.reader import Reader
from rlm.stores.rows import entries
from rlm.stores.tables import Writing
from rlm.stores.waiting import when_free
from rlm.stores.writer import Writer
from rlm.types import Recorded, StoredSession

T = TypeVar("T")

PATIENCE = 5.0  # seconds to wait for a commit of another process
THREADS = 4  # that hash and copy blobs, for all sessions
AT_A_TIME = 500  # blobs, or pages of the database, that a collection frees before it lets others write


class SQLiteStore:
    """The store in `folder`, which is made, for its owner alone, when something is first recorded."""

    def __init__(self, folder: str | os.PathLike[str], *, patience: float = PATIENCE) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.path = self.folder / "store.db"
        self.files = BlobFiles(self.folder / "blobs")
        self._patience = patience
        self.process = os.getpid()
        self._writer = Writer(self.path, patience)
        self._reader = Reader(self.path, patience)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rlm-store-blobs")
        self._leases: set[SQLiteLease] = set()
        self._end = Once()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.folder)!r})"

    @property
    def closed(self) -> bool:
        """From the beginning of `close` on."""
        return self._end.begun

    async def lease(self, name: str, *, wait: float | None = 0.0) -> SQLiteLease:
        self._require_own()
        check_name(name)

        async def take() -> SQLiteLease:
            lease = None
            while lease is None:
                session = await self.read_by(partial(tables.find, name=name))
                if session is None:
                    session = await self.write_by(partial(tables.make, name=name))
                lease = await self._take(session, name)
            return lease

        return await when_free(take, wait)

    async def _take(self, session: str, name: str) -> SQLiteLease | None:
        """The lease, where its lock is to be had; None where the session was deleted or renamed just before."""
        lock = self._lock(session, name)
        try:
            writing = await self.write_by(partial(tables.take, session=session, name=name))
            if writing is None:
                lock.drop()
                return None
            lease = SQLiteLease(self, writing, name, lock)
            await lease.clear()
        except BaseException:
            lock.drop()
            raise
        self._leases.add(lease)
        return lease

    def _lock(self, session: str, name: str) -> Lock:
        with explained(self.folder / "locks"):
            return Lock.take(self.folder / "locks", session, name)

    async def read(self, name: str) -> Sequence[Recorded]:
        self._require_own()
        return await self.read_by(partial(tables.log, name=name))

    async def list(self) -> Sequence[StoredSession]:
        self._require_own()
        return await self.read_by(tables.sessions)

    async def blob(self, digest: str) -> bytes | Path:
        self._require_own()
        return await self.read_by(partial(tables.blob, digest=digest, files=self.files))

    async def rename(self, name: str, new: str) -> None:
        self._require_own()
        check_name(new)
        session = await self.read_by(partial(tables.known, name=name))
        lock = self._lock(session, name)
        try:
            await self.write_by(partial(_still, name=name, session=session, then=partial(tables.rename, new=new)))
        finally:
            lock.drop()

    async def delete(self, name: str) -> None:
        self._require_own()
        session = await self.read_by(partial(tables.known, name=name))
        lock = self._lock(session, name)
        gone = False
        try:
            await self.write_by(partial(_still, name=name, session=session, then=tables.delete))
            gone = True
            await self.in_pool(partial(remove_folder, self.folder / "work" / session))
        finally:
            lock.drop(remove=gone)

    async def collect(self) -> int:
        self._require_own()
        if identity(self.path) is None:
            return 0
        freed = 0
        removed = AT_A_TIME
        while removed == AT_A_TIME:
            removed, bytes_ = await self.write_by(partial(tables.collect_rows, files=self.files, most=AT_A_TIME))
            freed += bytes_
        freed += await self.write_by(partial(tables.collect_files, files=self.files))
        while await self.write_by(partial(tables.shrink, most=AT_A_TIME)):
            pass
        return freed

    async def check(self) -> Sequence[str]:
        self._require_own()
        return await self.in_pool(partial(audit, self.path, self.files, self._patience))

    async def close(self) -> None:
        if os.getpid() == self.process:
            await self._end.once(self._close)

    async def _close(self) -> None:
        for lease in [*self._leases]:
            await lease.release()
        self._pool.shutdown(wait=False)
        await self._reader.stop()
        await self._writer.stop()

    def _require_own(self) -> None:
        self.require_process()
        if self.closed:
            raise StoreError(f"{self.folder} was closed")

    # -- what leases use -----------------------------------------------------------------------------------------------

    async def read_by(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, from the thread that reads."""
        job = Job(work)
        self._reader.put(job)
        return await job.done()

    async def write_by(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, once its transaction is on disk."""
        job = Job(work)
        self._writer.put(job)
        return await job.done()

    async def in_pool(self, work: Callable[[], T]) -> T:
        """What `work` returns, from a thread that may take its time."""
        with explained(self.folder):
            return await in_thread(self._pool, work).done()

    async def take_over(self, content: Owned) -> tuple[str, Content]:
        """The digest of a large file of ours, and how an append refers to it, which a thread is placing meanwhile."""
        job = Job[None, str](None)

        def tell(digest: str | None, error: BaseException | None) -> None:
            settle([(job, digest, error and explain(content.path, error))])

        try:
            placing = self.files.take_over(content, self._pool, tell)
        except RuntimeError as error:
            raise StoreError(f"{self.folder} was closed ({error})") from error
        digest = await job.done()
        return digest, Taken(content.path, digest, placing)

    def line(self) -> Line:
        """A new line of jobs for the thread that writes."""
        return Line(self._writer.put, self._pool)

    def require_process(self) -> None:
        """Raises `StoreError` in a child that this process forked: what is open is not the child's to use."""
        if os.getpid() != self.process:
            raise StoreError(f"{self.folder} was opened by process {self.process}, not by this one: open it anew")

    def forget(self, lease: SQLiteLease) -> None:
        """It was released."""
        self._leases.discard(lease)


class SQLiteLease:
    """The right to write to one session of an `SQLiteStore`."""

    def __init__(self, store: SQLiteStore, writing: Writing, name: str, lock: Lock) -> None:
        self._store = store
        self._writing = writing
        self._name = name
        self._lock = lock
        self._line, self._aside = store.line(), store.line()
        self._end = Once()

    @property
    def id(self) -> str:
        return self._writing.id

    @property
    def name(self) -> str:
        return self._name

    @property
    def folder(self) -> Path:
        """On the same file system as the store. It is made when it is first asked for, and removed by `release`."""
        self._require_held()
        folder = self._place
        with explained(folder):
            make_folder(folder)
        return folder

    @property
    def _place(self) -> Path:
        return self._store.folder / "work" / self.id

    async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
        """As in `rlm.ports.Lease`. Once called it is carried out, also where its caller is cancelled meanwhile."""
        self._require_held()
        contents = dict(blobs or {})
        for digest in contents:
            refuse_strange(digest)
        files = self._store.files
        new = entries(self.id, records)
        placed: dict[str, bytes | int | None] = {}
        failures: list[BaseException] = []

        def place(digest: str) -> bytes | int | None:
            content = contents[digest]
            return None if content is None else files.place(digest, content)

        def prepare() -> None:
            try:
                for digest in contents:
                    placed[digest] = place(digest)
            except BaseException as error:  # noqa: BLE001 - raised when its turn comes, with the files removed
                failures.append(explain(files.folder, error))

        def work(connection: sqlite3.Connection) -> None:
            try:
                for failure in failures:
                    raise failure
                tables.append(connection, self._writing, new, placed, files, place)
            except BaseException:
                tables.forget_files(connection, placed, files)
                raise

        job = Job(work)
        line = self._aside if new is None else self._line
        line.add(job, prepare, quick=few(contents))
        await job.done()

    async def place(self, content: Owned) -> tuple[str, Content]:
        """As in `rlm.ports.SupportsPlacing`."""
        self._require_held()
        with explained(content.path):
            if content.path.stat().st_size < LARGE:
                data = content.path.read_bytes()
                return digest_of(data), data
        return await self._store.take_over(content)

    async def hold(self, digests: Sequence[str]) -> None:
        self._require_held()
        job = Job(partial(tables.hold, writing=self._writing, digests=list(digests), files=self._store.files))
        self._line.add(job)
        await job.done()

    async def release(self, *, unused: bool = False) -> None:
        if os.getpid() == self._store.process:
            await self._end.once(partial(self._release, unused))

    async def _release(self, unused: bool) -> None:
        try:
            for line in (self._aside, self._line):
                last = unused and line is self._line
                job = Job(partial(tables.drop_unused, writing=self._writing) if last else None)
                line.add(job)  # behind all that was appended before
                await job.done()
            if self._lock.holds and self._place.exists():  # else it may be another writer's by now
                await self._store.in_pool(partial(shutil.rmtree, self._place, ignore_errors=True))  # or the next one
        finally:
            self._lock.drop()
            self._store.forget(self)

    async def clear(self) -> None:
        """Remove what a dead process left in the folder. Raises `StoreError`."""
        if self._place.exists():
            await self._store.in_pool(partial(remove_folder, self._place))

    def _require_held(self) -> None:
        self._store.require_process()
        if self._end.begun:
            raise StaleLeaseError(f"session {self._name!r} was released: lease it again to write to it")


def _still(
    connection: sqlite3.Connection, *, name: str, session: str, then: Callable[[sqlite3.Connection, str], None]
) -> None:
    """Do what was asked for a session, which still has the name that it was asked under."""
    if tables.known(connection, name) != session:
        raise unknown(name, ())
    then(connection, session)
