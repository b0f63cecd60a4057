"""Back, and aside: a session at the end of an earlier turn, and another one that begins there.

Heap, inputs and conversation move together, because all of them are what the log says up to that point.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rlm.checkpoints import Keepable
from rlm.errors import BlobError, SessionError, SessionExistsError
from rlm.folds import Past
from rlm.ports import Store
from rlm.session.contexts import Contexts
from rlm.session.living import Living
from rlm.session.terms import Stored
from rlm.types import Forked, Recorded, Rewound


async def rewind(living: Living, contexts: Contexts, after: int | None) -> None:
    """Go back to the end of turn `after` (None: to the beginning). Raises KeyError for a turn that has no end."""
    if after is not None:
        _require_turn(living, after)
    if not isinstance(living.namespace, Keepable):
        raise SessionError(f"session {living.name!r}: this environment cannot go back, only be opened anew")
    _require_stored(living, "goes back")
    if living.keeper is not None:
        await living.keeper.settled()
        await living.keeper.stop()
    await living.namespace.release()
    living.log.add(Rewound("", after))  # from here on nothing may come between
    living.namespace.forget_given()
    living.asleep = True
    contexts.look_back()
    await living.log.settled()


async def fork(living: Living, name: str, after: int | None) -> Any:
    """The session `name`, which begins where this one stood at the end of turn `after` (None: as it is now).

    Raises `SessionExistsError`, and KeyError for a turn that has no end.
    """
    stored, log = _require_stored(living, "has forks"), living.log
    if after is not None:
        _require_turn(living, after)
    if living.keeper is not None:
        await living.keeper.settled()
    await log.settled()
    events = log.past.path() if after is None else log.past.path_to(after)
    times = dict(zip(map(id, log.events), log.times, strict=True))
    records = [Recorded(number, times[id(event)], event) for number, event in enumerate(events)]
    records.append(Recorded(len(records), time.time(), Forked("", living.name, after)))
    taken = SessionExistsError(f"session {name!r} exists: fork into another name, or delete it first")
    if any(one.name == name and one.events for one in await stored.store.list()):
        raise taken
    lease = await stored.store.lease(name)
    try:
        if await stored.store.read(name):
            raise taken
        await lease.append(records, dict.fromkeys(await _in_store(stored.store, Past(records))))
        return stored.sibling(name, lease, records)
    except BaseException:
        await lease.release(unused=True)
        raise


async def _in_store(store: Store, past: Past) -> list[str]:
    """The blobs that a session needs, without those of checkpoints that the store has let go: cells make them."""
    there = [event.digest for event in past.contexts.values() if event.digest is not None]
    for digest in past.heap.blobs():
        with contextlib.suppress(BlobError):
            await store.blob(digest)
            there.append(digest)
    return there


def _require_stored(living: Living, what: str) -> Stored:
    if living.stored is None:
        raise SessionError(f"session {living.name!r} lives in memory: only one with a name in a store {what}")
    return living.stored


def _require_turn(living: Living, turn: int) -> None:
    if turn not in living.past.ends:
        known = ", ".join(map(str, living.past.ends)) or "none yet"
        raise KeyError(f"session {living.name!r} has no ended turn {turn}; there are: {known}")
