"""What happens to the tables of a store, each function inside a transaction of its caller.

Nothing here waits, and no file is touched but through the `BlobFiles` that is given. Whoever appends proves with the
epoch of its lease, and the number of events, that it is still the session's only writer. All rows are fetched at once:
a cursor that is left in the frame of an error keeps its connection open, and SQLite its files, which it then takes for
those of the next database with the same inode.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm.errors import BlobError, LogError, SessionExistsError, StaleLeaseError, StoreError, UnknownSessionError
from rlm.stores.blobs import DIGEST, BlobFiles, Placed, digest_of, refuse_strange
from rlm.stores.names import unknown
from rlm.stores.rows import LISTED, Entries, now, recorded, stored, summary
from rlm.types import Answered, Asked, Event, Failed, Opened, Recorded, Stopped, StoredSession

LISTED_BY = (Opened, Asked, Answered, Stopped, Failed)


@dataclass(frozen=True, slots=True)
class Writing:
    """Who writes: the session's id, and its row and epoch as of the lease."""

    id: str
    key: int
    epoch: int


# -- sessions ----------------------------------------------------------------------------------------------------------


def find(connection: sqlite3.Connection, name: str) -> str | None:
    """The id of the session of this name."""
    row = connection.execute("SELECT id FROM sessions WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def known(connection: sqlite3.Connection, name: str) -> str:
    """The id of the session of this name. Raises `UnknownSessionError` with the names that are near."""
    if (found := find(connection, name)) is not None:
        return found
    raise _unknown(connection, name)


def _unknown(connection: sqlite3.Connection, name: str) -> UnknownSessionError:
    return unknown(name, [row[0] for row in connection.execute("SELECT name FROM sessions").fetchall()])


def make(connection: sqlite3.Connection, name: str) -> str:
    """The id of the session of this name, which is made if there is none."""
    if (found := find(connection, name)) is not None:
        return found
    session, time = uuid.uuid4().hex, now()
    connection.execute(
        "INSERT INTO sessions (id, name, created, updated, changed)"
        " VALUES (?, ?, ?, ?, coalesce((SELECT max(changed) FROM sessions), 0) + 1)",
        (session, name, time, time),
    )
    return session


def take(connection: sqlite3.Connection, session: str, name: str) -> Writing | None:
    """A new epoch of the session; None where it is gone, or has another name by now."""
    connection.execute("UPDATE sessions SET epoch = epoch + 1 WHERE id = ? AND name = ?", (session, name))
    row = connection.execute("SELECT key, epoch FROM sessions WHERE id = ? AND name = ?", (session, name)).fetchone()
    return Writing(session, *row) if row else None


def rename(connection: sqlite3.Connection, session: str, *, new: str) -> None:
    """Raises `SessionExistsError` where another one has the name."""
    if find(connection, new) not in (None, session):
        raise SessionExistsError(f"there is a session {new!r} already: choose another name, or delete it first")
    connection.execute("UPDATE sessions SET name = ? WHERE id = ?", (new, session))


def delete(connection: sqlite3.Connection, session: str) -> None:
    """Its log goes with it; its blobs stay until they are collected."""
    connection.execute("DELETE FROM sessions WHERE id = ?", (session,))


def sessions(connection: sqlite3.Connection) -> Sequence[StoredSession]:
    """All of them, the one changed last first."""
    return [
        stored(row) for row in connection.execute(f"SELECT {LISTED} FROM sessions ORDER BY changed DESC").fetchall()
    ]


# -- logs --------------------------------------------------------------------------------------------------------------


def log(connection: sqlite3.Connection, name: str) -> Sequence[Recorded]:
    """The records of a session, oldest first. Raises `UnknownSessionError`, and `LogError` where one is damaged."""
    row = connection.execute("SELECT key, id, events FROM sessions WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise _unknown(connection, name)
    key, session, events = row
    rows = connection.execute(
        "SELECT number, time, data, sum FROM events WHERE session = ? ORDER BY number", (key,)
    ).fetchall()
    if len(rows) != events or any(row[0] != number for number, row in enumerate(rows)):
        raise LogError(f"session {name!r}: events are missing, there were {events}: restore the store from a copy")
    try:
        return [recorded(session, row) for row in rows]
    except LogError as error:
        raise LogError(f"session {name!r}: {error}") from error


def drop_unused(connection: sqlite3.Connection, writing: Writing) -> None:
    """Forget a session in which nothing was ever recorded, if nobody else has leased it since."""
    unused = "SELECT 1 FROM sessions WHERE key = ? AND epoch = ? AND events = 0"
    unneeded = "SELECT 1 FROM refs WHERE session = ?"
    if connection.execute(unused, (writing.key, writing.epoch)).fetchone() is None:
        return
    if connection.execute(unneeded, (writing.key,)).fetchone() is None:
        connection.execute("DELETE FROM sessions WHERE key = ?", (writing.key,))


def append(
    connection: sqlite3.Connection,
    writing: Writing,
    new: Entries | None,
    placed: Placed,
    files: BlobFiles,
    place: Callable[[str], object],
) -> None:
    """Record events and blobs. place: writes a blob's file, should it be gone since it was placed.

    Raises `StaleLeaseError`, `StoreError`, `BlobError`.
    """
    _prove(connection, writing, new)
    if new is not None:
        _list(connection, writing, [event for event in new.events if isinstance(event, LISTED_BY)])
        connection.executemany(
            "INSERT INTO events (session, number, time, kind, at, data, sum) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(writing.key, *row) for row in new.rows],
        )
    for digest, blob in placed.items():
        _add_blob(connection, digest, blob, files, place)
        connection.execute("INSERT OR IGNORE INTO refs (session, digest) VALUES (?, ?)", (writing.key, digest))


def _list(connection: sqlite3.Connection, writing: Writing, told: Sequence[Event]) -> None:
    """Keep up what a listing says of the session."""
    if told:
        columns = "turns, unfinished, question, model"
        row = connection.execute(f"SELECT {columns} FROM sessions WHERE key = ?", (writing.key,)).fetchone()
        after = summary(row).after(told)
        connection.execute(
            "UPDATE sessions SET turns = ?, unfinished = ?, question = ?, model = ? WHERE key = ?",
            (after.turns, after.unfinished, json.dumps(after.question), json.dumps(after.model), writing.key),
        )


def _prove(connection: sqlite3.Connection, writing: Writing, new: Entries | None) -> None:
    """That the lease is still the last one, and that the events go on where the log ends; and count them."""
    if new is not None:
        counted = connection.execute(
            "UPDATE sessions SET events = events + ?, updated = ?, changed = (SELECT max(changed) FROM sessions) + 1"
            " WHERE key = ? AND id = ? AND epoch = ? AND events = ?",
            (len(new.rows), new.time, writing.key, writing.id, writing.epoch, new.first),
        ).rowcount
        if counted:
            return
    row = connection.execute(
        "SELECT epoch, events FROM sessions WHERE key = ? AND id = ?", (writing.key, writing.id)
    ).fetchone()
    if row is None:
        raise StaleLeaseError("the session was deleted: nothing more can be recorded")
    epoch, events = row
    if epoch != writing.epoch:
        raise StaleLeaseError("another process has taken the session over: nothing more can be recorded from here")
    if new is not None:
        raise StoreError(f"event {new.first} was to be recorded after event {events - 1}: numbers have no gaps")


# -- blobs -------------------------------------------------------------------------------------------------------------


def _add_blob(
    connection: sqlite3.Connection,
    digest: str,
    blob: bytes | int | None,
    files: BlobFiles,
    place: Callable[[str], object],
) -> None:
    if blob is None:
        row = connection.execute("SELECT size, data IS NULL FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None or (row[1] and files.size(digest) != row[0]):
            raise BlobError(f"the store has no blob {digest}: give its content")
        return
    if isinstance(blob, int) and files.size(digest) != blob:
        # It was placed before this transaction began, and `collect` (of any process) found it without a row: that
        # removes files only inside transactions of its own, which this one excludes. So what is placed now stays.
        place(digest)
    data, size = (blob, len(blob)) if isinstance(blob, bytes) else (None, blob)
    connection.execute(
        "INSERT INTO blobs (digest, size, data) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE"
        " SET size = excluded.size, data = excluded.data"  # what was damaged is mended; what was not, not written again
        " WHERE size IS NOT excluded.size OR data IS NOT excluded.data",
        (digest, size, data),
    )


def forget_files(connection: sqlite3.Connection, placed: Placed, files: BlobFiles) -> None:
    """Remove what was placed for an append that failed, unless somebody else refers to it."""
    for digest, blob in placed.items():
        if not (isinstance(blob, int) and connection.in_transaction):  # without one, others may refer to it
            continue
        if connection.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is None:
            with contextlib.suppress(OSError):  # it stays until `collect`
                files.path(digest).unlink()


def hold(connection: sqlite3.Connection, writing: Writing, digests: Sequence[str], files: BlobFiles) -> None:
    """These blobs, and no others, are the session's. Raises `StaleLeaseError`, and `BlobError` for one that is not."""
    _prove(connection, writing, None)
    wanted = set(digests)
    had = {row[0] for row in connection.execute("SELECT digest FROM refs WHERE session = ?", (writing.key,)).fetchall()}
    for digest in wanted - had:
        refuse_strange(digest)
        _add_blob(connection, digest, None, files, lambda digest: 0)
    for digest in had - wanted:
        connection.execute("DELETE FROM refs WHERE session = ? AND digest = ?", (writing.key, digest))
    for digest in wanted - had:
        connection.execute("INSERT INTO refs (session, digest) VALUES (?, ?)", (writing.key, digest))


def blob(connection: sqlite3.Connection, digest: str, files: BlobFiles) -> bytes | Path:
    """A row's bytes, verified, or the path of a file. Raises `BlobError`."""
    refuse_strange(digest)
    row = connection.execute("SELECT size, data FROM blobs WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        raise BlobError(f"there is no blob {digest} in the store")
    size, data = row
    if data is not None:
        if not (isinstance(data, bytes) and digest_of(data) == digest):
            raise BlobError(f"the blob {digest} is damaged: its content has another digest")
        return data
    path = files.path(digest)
    if (found := files.size(digest)) != size:
        raise BlobError(f"{path} is {'missing' if found is None else f'damaged: {found} bytes instead of {size}'}")
    return path


def collect_rows(connection: sqlite3.Connection, files: BlobFiles, most: int) -> tuple[int, int]:
    """Remove up to `most` blobs that no session refers to; returns how many that were, and their bytes."""
    rows = connection.execute(
        "SELECT digest, size, data IS NULL FROM blobs WHERE NOT EXISTS"
        " (SELECT 1 FROM refs WHERE refs.digest = blobs.digest) LIMIT ?",
        (most,),
    ).fetchall()
    freed = 0
    for digest, size, is_file in rows:
        connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        if is_file:
            size = files.size(digest) or 0
            files.path(digest).unlink(missing_ok=True)
        freed += size
    return len(rows), freed


def collect_files(connection: sqlite3.Connection, files: BlobFiles) -> int:
    """Remove files that no row tells of, and unfinished ones of dead processes; returns their bytes."""
    rows = {row[0] for row in connection.execute("SELECT digest FROM blobs WHERE data IS NULL").fetchall()}
    freed = 0
    for name, path, size in files.names():
        if name not in rows and DIGEST.fullmatch(name) and path == files.path(name):
            path.unlink(missing_ok=True)
            freed += size
    return freed + sum(size for _, size in files.left_over(remove=True))


def shrink(connection: sqlite3.Connection, most: int) -> int:
    """Give up to `most` free pages back; returns how many there still are. The file itself shrinks when the write-ahead
    log is next copied into it.
    """
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    for _ in range(min(free, most)):
        connection.execute("PRAGMA incremental_vacuum(1)")  # Python stops after the first page of more
    return max(free - most, 0)
