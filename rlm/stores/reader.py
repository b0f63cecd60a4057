"""The one thread that reads a store's database, beside the one that writes: neither waits for the other.

Jobs see one state of the database each, of which a write that was acknowledged before is always a part.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlm.stores.connections import identity, open_for_reading
from rlm.stores.failures import explain
from rlm.stores.lanes import Job, Lane, Outcome


class Reader(Lane):
    """Jobs get a connection inside a transaction that reads; where there is no database, one to an empty store."""

    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("rlm-store-reader")
        self._path = path
        self._patience = patience
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def _do(self, jobs: Sequence[Job[Any, Any]]) -> Sequence[Outcome]:
        return [self._read(job) for job in jobs]

    def _read(self, job: Job[sqlite3.Connection, Any]) -> Outcome:
        if job.work is None:
            return job, None, None
        kept = False
        try:
            if self._connection is not None and identity(self._path) != self._identity:
                self._end()
            if self._connection is None:
                self._identity = identity(self._path)
                self._connection, kept = open_for_reading(self._path, self._patience)
            else:
                kept = True
            self._connection.execute("BEGIN")
            value = job.work(self._connection)
            self._connection.execute("ROLLBACK")
        except BaseException as error:  # noqa: BLE001 - goes to whoever awaits the job
            self._end()
            return job, None, explain(self._path, error, reading=True)
        if not kept:
            self._end()
        return job, value, None

    def _end(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # nothing was to be written
                self._connection.close()
            self._connection = None
