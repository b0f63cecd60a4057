"""Looks at everything that a store holds, and says in one sentence for each thing what is wrong with it.

It goes on past what it finds, on a damaged database too, and changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlm.errors import LogError, StoreError
from rlm.stores.blobs import DIGEST, BlobFiles, digest_of
from rlm.stores.connections import empty, open_for_reading
from rlm.stores.failures import explain
from rlm.stores.rows import recorded, summary
from rlm.stores.summary import Summary


def audit(path: Path, files: BlobFiles, patience: float) -> Sequence[str]:
    """The sentences; none where all is well. path: of the database."""
    found: list[str] = []
    # First the files and then the rows, so that what another process adds meanwhile has its row.
    try:
        names = list(files.names())
        found.extend(
            f"{left} was left unfinished by a process that ended: collect removes it" for left, _ in files.left_over()
        )
    except OSError as error:
        names = []
        found.append(str(explain(files.folder, error)))
    try:
        connection, _ = open_for_reading(path, patience)
    except StoreError as error:
        return [*found, str(error)]
    try:
        for part in (_database, _sessions, _references, _rows):
            _gather(found, path, part(connection, path))
        _gather(found, path, _files(connection, files))
        _gather(found, path, _strays(connection, files, names))
    finally:
        connection.close()
    return found


def _gather(found: list[str], path: Path, sentences: Iterator[str]) -> None:
    """All that a part finds, up to where it cannot go on, and why it cannot."""
    try:
        for sentence in sentences:
            found.append(sentence)
    except (sqlite3.Error, OSError, StoreError, UnicodeDecodeError) as error:
        sentence = str(explain(path, error))
        if sentence not in found:
            found.append(sentence)


def _database(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    new = empty()
    try:
        if _schema(connection) != _schema(new):
            yield f"{path}: the tables are not as they were made"
    finally:
        new.close()
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"{path}: {line}"


def _schema(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def _sessions(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    columns = "key, id, name, events, turns, unfinished, question, model"
    for key, session, name, events, *listed in connection.execute(f"SELECT {columns} FROM sessions").fetchall():
        try:
            yield from _session(connection, key, session, f"{path}: session {name!r}", events, listed)
        except (sqlite3.Error, StoreError, UnicodeDecodeError) as error:
            yield f"{path}: session {name!r}: {error}"


def _session(
    connection: sqlite3.Connection, key: int, session: str, where: str, events: int, listed: Sequence[object]
) -> Iterator[str]:
    expected = 0
    told = Summary()
    whole = True
    query = "SELECT number, time, data, sum, kind FROM events WHERE session = ? ORDER BY number"
    for *row, kind in connection.execute(query, (key,)):
        if row[0] != expected:
            yield f"{where}: event {expected} is missing"
            whole = False
        expected = row[0] + 1 if isinstance(row[0], int) else expected + 1
        try:
            event = recorded(session, row).event
        except LogError as error:
            yield f"{where}: {error}"
            whole = False
            continue
        told = told.after([event])
        if kind != event.kind:
            yield f"{where}: event {row[0]} is listed as {kind!r} and is {event.kind!r}"
    if expected != events:
        yield f"{where}: {expected} events are there, and {events} were recorded"
    elif whole and told != summary(listed):
        yield f"{where}: what is listed of it is not what its log says"


def _references(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    query = """SELECT refs.digest, coalesce(sessions.name, refs.session) FROM refs
        LEFT JOIN sessions ON sessions.key = refs.session WHERE refs.digest NOT IN (SELECT digest FROM blobs)"""
    for digest, name in connection.execute(query):
        yield f"{path}: session {name!r}: blob {digest} is missing"


def _rows(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    for digest, size, data in connection.execute("SELECT digest, size, data FROM blobs WHERE data IS NOT NULL"):
        if not isinstance(data, bytes) or len(data) != size or digest_of(data) != digest:
            yield f"{path}: blob {digest} is damaged: its content has another digest"


def _files(connection: sqlite3.Connection, files: BlobFiles) -> Iterator[str]:
    query = """SELECT digest, size FROM blobs WHERE data IS NULL
        AND EXISTS (SELECT 1 FROM refs WHERE refs.digest = blobs.digest)"""
    for digest, size in connection.execute(query).fetchall():
        if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
            yield f"{files.folder}: a blob is listed under {digest!r}, which is no digest"
            continue
        path = files.path(digest)
        found = files.digest(digest)
        if found is None:
            yield f"{path} is missing"
        elif found != digest or files.size(digest) != size:
            yield f"{path} is damaged: its content has another digest"


def _strays(connection: sqlite3.Connection, files: BlobFiles, names: Sequence[tuple[str, Path, int]]) -> Iterator[str]:
    rows = {row[0] for row in connection.execute("SELECT digest FROM blobs WHERE data IS NULL").fetchall()}
    for name, path, _ in names:
        if path != files.path(name) or not DIGEST.fullmatch(name):
            yield f"{path} is no file of a store"
        elif name not in rows:
            yield f"{path} belongs to no session: collect removes it"
