"""The tables of a store, and how each version of them becomes the next: named functions, each in one transaction.

`user_version` counts those that have run. A store that a newer version of this package made is refused, and so is a
database of another program.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from rlm.errors import StoreError

APPLICATION = 0x726C6D53  # "rlmS"; `file` and SQLite's own tools show it


def create_tables(connection: sqlite3.Connection) -> None:
    """The first version. Texts that users or models wrote are JSON, as UTF-8 has no lone surrogates.

    sessions: `changed` orders them by their last change, whatever their clocks say; `epoch` counts the leases. events:
    `sum` covers the row, as SQLite does not notice when a bit of it flips. blobs: `data` is NULL where it is a file.
    """
    for statement in (
        """CREATE TABLE sessions (
            key INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL UNIQUE,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            changed INTEGER NOT NULL,
            epoch INTEGER NOT NULL DEFAULT 0,
            events INTEGER NOT NULL DEFAULT 0,
            turns INTEGER NOT NULL DEFAULT 0,
            unfinished INTEGER NOT NULL DEFAULT 0,
            question TEXT NOT NULL DEFAULT 'null',
            model TEXT NOT NULL DEFAULT '""'
        )""",
        "CREATE INDEX sessions_by_change ON sessions (changed)",
        """CREATE TABLE events (
            session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            time REAL NOT NULL,
            kind TEXT NOT NULL,
            at TEXT NOT NULL,
            data TEXT NOT NULL,
            sum INTEGER NOT NULL,
            PRIMARY KEY (session, number)
        )""",
        "CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, data BLOB)",
        """CREATE TABLE refs (
            session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE,
            digest TEXT NOT NULL REFERENCES blobs (digest),
            PRIMARY KEY (session, digest)
        ) WITHOUT ROWID""",
        "CREATE INDEX refs_by_digest ON refs (digest)",
    ):
        connection.execute(statement)


MIGRATIONS: Sequence[Callable[[sqlite3.Connection], None]] = (create_tables,)


def version(connection: sqlite3.Connection, path: Path) -> int:
    """How many migrations the store at `path` has seen. Raises `StoreError` where it is newer, or none of ours."""
    known, application, tables = _one_state(connection)
    if known > len(MIGRATIONS):
        raise StoreError(
            f"{path} was made by a newer version of rlm (schema {known}; this one knows {len(MIGRATIONS)}): update rlm"
        )
    if application != APPLICATION and (application or known or tables):
        raise StoreError(f"{path} is a database of another program: name another folder")
    return known


def _one_state(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Version, program, and number of tables, before or after a migration of another process and not in between."""
    inside = connection.in_transaction
    if not inside:
        connection.execute("BEGIN")
    try:
        asked = ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
        known, application, tables = (connection.execute(one).fetchone()[0] for one in asked)
        return known, application, tables
    finally:
        if connection.in_transaction and not inside:
            connection.execute("ROLLBACK")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the store up to date. Another process may be doing the same: whoever comes second finds it done."""
    while (known := version(connection, path)) < len(MIGRATIONS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version(connection, path) == known:
                MIGRATIONS[known](connection)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {known + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
