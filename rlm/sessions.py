"""What can be done to stored sessions without a model: look, rename, delete, carry elsewhere, write down.

Nothing here starts a worker, and only `rename`, `delete`, `prune` and `import_session` change anything. All of it comes
in a blocking and an awaitable form. To ask a session something, open it: `RLM.session`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlm import transfer
from rlm.errors import SessionBusyError, UnknownSessionError
from rlm.folds import Past, is_own, root_of, turn_number
from rlm.notebook import write as write_notebook
from rlm.portal import Closing, blocking, hopping, in_thread
from rlm.ports import Store
from rlm.stores.names import unknown
from rlm.stores.use import Use
from rlm.trace import write as write_trace
from rlm.types import (
    Answered,
    Asked,
    Called,
    ContextAdded,
    Failed,
    Lost,
    Ran,
    Recorded,
    Resumed,
    Stopped,
    StoredSession,
    UsageSummary,
)

NOTHING = UsageSummary()

WORDS: Mapping[type, str] = {Answered: "answered", Stopped: "stopped", Failed: "failed"}


@dataclass(frozen=True, slots=True)
class TurnShown:
    """A turn as its log has it. question: None where the task was in the input. state: "answered", "stopped", "failed"
    or "unfinished". answer: the answer; of a turn without one, what there was of it. reason: why it has none. cells:
    its own. calls: made by its cells, those of children included. seconds: that it ran, the time between the end of its
    process and its resumption not counted. dropped: by a rewind.
    """

    number: int
    question: str | None
    state: str = "unfinished"
    answer: str | None = None
    reason: str | None = None
    cells: int = 0
    calls: int = 0
    usage: UsageSummary = NOTHING
    seconds: float = 0.0
    dropped: bool = False
    key: str | None = None


@dataclass(frozen=True, slots=True)
class SessionShown:
    """A stored session as its log tells it. turns: all that were begun, those dropped by a rewind included. contexts:
    its inputs. variables: names and types, as of the last checkpoint; behind: cells that ran after that. lost: names
    that cannot be brought back, and why. usage: everything that was ever paid. events: in its log. created, updated:
    seconds since 1970.
    """

    name: str
    id: str
    created: float
    updated: float
    events: int
    model: str = ""
    environment: str = ""
    turns: Sequence[TurnShown] = ()
    contexts: Sequence[ContextAdded] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    behind: int = 0
    lost: Mapping[str, Lost] = field(default_factory=dict)
    unfinished: int | None = None
    usage: UsageSummary = NOTHING


class Sessions(Closing):
    """The sessions of a store: a folder, a Store, or by default what `RLM` uses. Every method that takes the name of a
    session raises `UnknownSessionError`, which tells names that are near."""

    def __init__(self, store: str | os.PathLike[str] | Store | None = None) -> None:
        self._use = Use(store)

    @property
    def _store(self) -> Store:
        return self._use.open()

    async def _list(
        self, contains: str | None = None, unfinished: bool | None = None, limit: int | None = None
    ) -> Sequence[StoredSession]:
        """The sessions, the one changed last first.

        contains: in the name or the last question, in any case. unfinished: whether the last turn has no end. limit:
        give so many at most.
        """
        found = [
            one
            for one in await self._store.list()
            if (unfinished is None or one.unfinished == unfinished) and (contains is None or _contains(one, contains))
        ]
        return found if limit is None else found[:limit]

    async def _find(self, name: str) -> StoredSession:
        """What a listing says of one session, without a look at its log."""
        sessions = await self._store.list()
        found = next((one for one in sessions if one.name == name), None)
        if found is None:
            raise unknown(name, [one.name for one in sessions])
        return found

    async def _show(self, name: str) -> SessionShown:
        """What the log says of a session, also while somebody writes to it."""
        records = await self._store.read(name)
        listed = await self._find(name)
        return await in_thread(lambda: shown(listed, records))

    async def _records(self, name: str) -> Sequence[Recorded]:
        """The log of a session, oldest first."""
        return await self._store.read(name)

    async def _rename(self, name: str, new: str) -> None:
        """Raises `SessionExistsError`, and `SessionBusyError` while somebody has the session open."""
        await self._store.rename(name, new)

    async def _delete(self, name: str) -> None:
        """Remove a session for good; `collect` frees its blobs. Raises `SessionBusyError`."""
        await self._store.delete(name)

    async def _prune(
        self, older_than_seconds: float, keep_unfinished: bool = True, dry_run: bool = False
    ) -> Sequence[str]:
        """Delete what was not changed for so long, and free its blobs; returns the names.

        Sessions that are open somewhere are passed over. dry_run: only tell which it would be.
        """
        before = time.time() - older_than_seconds
        names = []
        for one in await self._store.list():
            if one.updated >= before or (keep_unfinished and one.unfinished):
                continue
            try:
                if not dry_run:
                    await self._store.delete(one.name)
            except (SessionBusyError, UnknownSessionError):
                continue
            names.append(one.name)
        if names and not dry_run:
            await self._store.collect()
        return names

    async def _collect(self) -> int:
        """Free the blobs that no session needs; returns their bytes."""
        return await self._store.collect()

    async def _check(self) -> Sequence[str]:
        """Read everything that is stored; one sentence for each thing that is wrong."""
        return await self._store.check()

    async def _export(self, name: str, path: str | os.PathLike[str]) -> int:
        """Write a session to one file, which `import_session` takes elsewhere; returns its bytes.

        Raises `BlobError` where something that the session needs is missing or damaged, `OSError`.
        """
        return await transfer.export_session(self._store, name, Path(path))

    async def _import_session(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Bring an exported session in, under `name` (None: the one it had); returns the name.

        Raises `SessionExistsError`, and `StoreError` for a file that is damaged or no session; then nothing is changed.
        """
        return await transfer.import_session(self._store, Path(path), name)

    async def _notebook(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a session as a Jupyter notebook (`rlm.notebook`). Raises `OSError`."""
        records = await self._store.read(name)
        await in_thread(lambda: write_notebook(records, Path(path), name))

    async def _trace(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a session as one HTML file (`rlm.trace`). Raises `OSError`."""
        records = await self._store.read(name)
        await in_thread(lambda: write_trace(records, Path(path), name))

    async def _close(self) -> None:
        await self._use.close()

    list, alist = blocking(_list), hopping(_list)
    find, afind = blocking(_find), hopping(_find)
    show, ashow = blocking(_show), hopping(_show)
    records, arecords = blocking(_records), hopping(_records)
    rename, arename = blocking(_rename), hopping(_rename)
    delete, adelete = blocking(_delete), hopping(_delete)
    prune, aprune = blocking(_prune), hopping(_prune)
    collect, acollect = blocking(_collect), hopping(_collect)
    check, acheck = blocking(_check), hopping(_check)
    export, aexport = blocking(_export), hopping(_export)
    import_session, aimport_session = blocking(_import_session), hopping(_import_session)
    notebook, anotebook = blocking(_notebook), hopping(_notebook)
    trace, atrace = blocking(_trace), hopping(_trace)


def _contains(one: StoredSession, text: str) -> bool:
    return any(text.casefold() in said.casefold() for said in (one.name, one.question or ""))


def shown(listed: StoredSession, records: Sequence[Recorded]) -> SessionShown:
    """What a log says of its session, as a fold over it."""
    past = Past(records)
    return SessionShown(
        listed.name,
        listed.id,
        listed.created,
        listed.updated,
        len(records),
        past.opened.model,
        past.opened.environment,
        turns_of(records, past),
        [past.contexts[index] for index in sorted(past.contexts)],
        past.heap.types,
        len(past.cells) - past.heap.cells,
        {**past.heap.lost, **past.heap.files_lost},
        past.unfinished.number if past.unfinished is not None else None,
        past.usage,
    )


def turns_of(records: Iterable[Recorded], past: Past) -> Sequence[TurnShown]:
    """All turns of a log, oldest first. past: what the same log adds up to."""
    begun: dict[str, _Counting] = {}
    for record in records:
        event = record.event
        if isinstance(event, Asked):
            begun[event.at] = _Counting(event, record.time)
        elif (turn := begun.get(root_of(event.at))) is not None:
            turn.take(record)
    standing = {turn.number for turn in past.turns}
    return [
        turn.shown(past.usage_of_turns.get(number, NOTHING), number not in standing)
        for number, turn in ((turn_number(at), turn) for at, turn in begun.items())
        if number is not None
    ]


class _Counting:
    """What is counted of one turn, event by event."""

    def __init__(self, asked: Asked, time: float) -> None:
        self._asked = asked
        self._end: Answered | Stopped | Failed | None = None
        self._cells = self._calls = 0
        self._seconds, self._last = 0.0, time

    def take(self, record: Recorded) -> None:
        event = record.event
        if not isinstance(event, Resumed):  # in between its process was dead
            self._seconds += max(record.time - self._last, 0.0)
        self._last = record.time
        match event:
            case Ran() if is_own(event):
                self._cells += 1
            case Called():
                self._calls += 1
            case Answered() | Stopped() | Failed() if "/" not in event.at:
                self._end = event

    def shown(self, usage: UsageSummary, dropped: bool) -> TurnShown:
        asked, end, seconds = self._asked, self._end, self._seconds
        answer = reason = None
        if isinstance(end, Answered):
            # A fork's events have the time of the fork.
            answer, seconds = end.completion.response, max(seconds, end.completion.execution_time)
        elif end is not None:
            answer, seconds = end.partial_answer, max(seconds, end.seconds)
            reason = f"{end.reason if isinstance(end, Stopped) else end.error}: {end.message}"
        state = WORDS[type(end)] if end is not None else "unfinished"
        counts = self._cells, self._calls, usage, seconds, dropped, asked.key
        return TurnShown(turn_number(asked.at) or 0, asked.question, state, answer, reason, *counts)
