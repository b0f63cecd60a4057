"""Events and sessions as rows of a store, and back: what is read is what was written, or an error.

SQLite does not notice a flipped bit, so a row of a log carries a checksum over all that it says and whose it is.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlm.errors import LogError, StoreError
from rlm.log import dump, load
from rlm.stores.summary import Summary
from rlm.types import Event, Recorded, StoredSession

LISTED = "id, name, created, updated, events, turns, unfinished, question, model"


@dataclass(frozen=True, slots=True)
class Entries:
    """Records of one session, ready to be inserted. rows: number, time, kind, at, data, sum."""

    first: int
    time: float
    rows: Sequence[tuple[int, float, str, str, str, int]]
    events: Sequence[Event]


def entries(session: str, records: Sequence[Recorded]) -> Entries | None:
    """The rows of a session's records, None for none. Raises `StoreError` where their numbers do not go on by one."""
    if not records:
        return None
    first = records[0].number
    rows = []
    for number, record in enumerate(records, first):
        if record.number != number:
            raise StoreError(f"event {record.number} was to be recorded after event {number - 1}: numbers have no gaps")
        at, data, when = _text(record.event.at), dump(record.event), float(record.time)
        rows.append((number, when, record.event.kind, at, data, _sum(session, number, when, data)))
    return Entries(first, rows[-1][1], rows, [record.event for record in records])


def recorded(session: str, row: Sequence[Any]) -> Recorded:
    """The record that (number, time, data, sum) of a session stand for. Raises `LogError`."""
    number, when, data, total = row
    if total != _sum(session, number, when, data):
        raise LogError(f"event {number} is damaged: it is not what was recorded")
    try:
        return Recorded(number, when, load(data))
    except LogError as error:
        raise LogError(f"event {number}: {error}") from error


def summary(row: Sequence[Any]) -> Summary:
    """Of (turns, unfinished, question, model). Raises `StoreError`."""
    turns, unfinished, question, model = row
    try:
        return Summary(turns, bool(unfinished), json.loads(question), json.loads(model))
    except (ValueError, TypeError) as error:
        raise StoreError(f"a row of a session is damaged ({error})") from error


def stored(row: Sequence[Any]) -> StoredSession:
    """Of the columns of `LISTED`. Raises `StoreError`."""
    session, name, created, updated, events, *listed = row
    known = summary(listed)
    return StoredSession(
        session, name, created, updated, events, known.turns, known.unfinished, known.question, known.model
    )


def now() -> float:
    """What a new session's row says of when it was made; nothing depends on it."""
    return time.time()


def _sum(session: str, number: Any, when: Any, data: Any) -> int:
    return zlib.crc32(f"{session} {number!r} {when!r} {data}".encode())


def _text(at: str) -> str:
    """Only to look for; the event itself says it exactly."""
    return at if at.isascii() else at.encode("utf-8", "backslashreplace").decode()
