"""How a store's database is opened: for writing, which makes or updates it, and for reading, which changes nothing.

Reading works where nothing can be written, and a store that is not there yet reads as an empty one. Nothing but SQLite
may open the file: whoever closes it drops every lock that this process has on it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

from rlm.errors import StoreError
from rlm.stores.failures import explained
from rlm.stores.folders import make_folder, sync_folder
from rlm.stores.migrations import MIGRATIONS, migrate, version

PAUSE = 0.01  # seconds between two tries where SQLite does not wait by itself
WAL_KEPT = 16 << 20  # bytes that the write-ahead log's file may keep after a large transaction

_making = threading.Lock()


def open_for_writing(path: Path, patience: float) -> sqlite3.Connection:
    """The database at `path`, made where there is none, its tables up to date; each commit survives a power cut.

    patience: seconds to wait for other processes. Raises `StoreError`.
    """
    with explained(path):
        with _making:  # a file is made and closed here, which must not drop the locks of a connection to it
            _make(path)
            connection = _connect(path, "rw", patience)
        try:
            known = version(connection, path)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: through the disk's own cache
            connection.execute("PRAGMA foreign_keys = ON")
            if known == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _write_ahead(connection, patience)
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")
            migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path, patience: float) -> tuple[sqlite3.Connection, bool]:
    """A connection that reads, and whether it may be kept: one that cannot see later changes may not.

    Raises `StoreError`.
    """
    with explained(path):
        if not path.exists():
            return empty(), False
        connection, kept = _connect(path, "rw", patience), True
        try:
            try:
                known = version(connection, path)
            except sqlite3.OperationalError as error:
                # Where neither the database nor its folder can be written, SQLite cannot make the files that processes
                # share. Then nobody changes it, and it can be read by itself, unless a log of changes lies beside it.
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
                connection.close()
                connection, kept = _alone(path, patience), False
                known = version(connection, path)
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        if known == len(MIGRATIONS):
            return connection, kept
        connection.close()
        if known == 0:
            return empty(), False
        open_for_writing(path, patience).close()
        return open_for_reading(path, patience)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file this is; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make(path: Path) -> None:
    for folder in make_folder(path.parent):
        sync_folder(folder.parent)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    sync_folder(path.parent)


def _connect(path: Path, mode: str, patience: float) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=patience, isolation_level=None, check_same_thread=False)


def _alone(path: Path, patience: float) -> sqlite3.Connection:
    changes = path.with_name(path.name + "-wal")
    if changes.exists() and changes.stat().st_size:
        raise StoreError(f"{changes} holds changes that cannot be read where nothing can be written: copy the folder")
    return _connect(path, "ro&immutable=1", patience)


def empty() -> sqlite3.Connection:
    """A store without sessions, in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    migrate(connection, Path(":memory:"))
    return connection


def _write_ahead(connection: sqlite3.Connection, patience: float) -> None:
    """Where two processes make a store at the same time, SQLite refuses the second without waiting.

    A file system on which there can be no shared memory stays with a rollback journal, as durable and slower.
    """
    end = time.monotonic() + patience
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(PAUSE)


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
