"""The one thread that writes to a store's database: what waits goes into one transaction, and is told after its commit.

Each job has a savepoint, so that one that fails takes nothing of the others with it. Many sessions that record at the
same time share the commit's wait for the disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlm.errors import StoreError
from rlm.stores.connections import identity, open_for_writing
from rlm.stores.failures import explain
from rlm.stores.lanes import Job, Lane, Outcome


class _Undone(Exception):
    """SQLite gave up the whole transaction, as it does where a disk is full."""


class Writer(Lane):
    """Jobs get a connection that is inside a transaction; the database is opened, and made, with the first."""

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("rlm-store-writer")
        self._path = path
        self._patience = patience
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def _do(self, jobs: Sequence[Job[Any, Any]]) -> Sequence[Outcome]:
        working = [job for job in jobs if job.work is not None]
        waiting: list[Outcome] = [(job, None, None) for job in jobs if job.work is None]
        return [*(self._commit(working) if working else ()), *waiting]

    def _commit(self, jobs: Sequence[Job[sqlite3.Connection, Any]]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        try:
            connection = self._ready()
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                outcomes.append(self._try(connection, job))
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - goes to all whose work it undid
            begun = bool(outcomes) or isinstance(error, _Undone)
            self._give_up()
            if begun and len(jobs) > 1:
                return [outcome for job in jobs for outcome in self._commit([job])]
            cause = error.__cause__ if isinstance(error, _Undone) and error.__cause__ else error
            return [(job, None, explain(self._path, cause)) for job in jobs]
        return outcomes

    def _try(self, connection: sqlite3.Connection, job: Job[sqlite3.Connection, Any]) -> Outcome:
        assert job.work is not None
        connection.execute("SAVEPOINT job")
        try:
            value = job.work(connection)
        except BaseException as error:
            if not connection.in_transaction:
                raise _Undone from error
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            return job, None, explain(self._path, error)
        connection.execute("RELEASE job")
        return job, value, None

    def _ready(self) -> sqlite3.Connection:
        if self._connection is not None and identity(self._path) != self._identity:
            self._end()
            raise StoreError(f"{self._path} was removed or replaced while it was in use: nothing was recorded")
        if self._connection is None:
            self._connection = open_for_writing(self._path, self._patience)
            self._identity = identity(self._path)
        return self._connection

    def _give_up(self) -> None:
        """Undo what stands open. A connection that failed is not used again: the next job opens the database anew."""
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # closing undoes it, too
                self._connection.execute("ROLLBACK")
        self._end()

    def _end(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # where the disk is full, its log of changes stays for the next
                self._connection.close()
            self._connection = None
