"""A namespace made again from its session's log: inputs, histories, heap, and what ran since the last checkpoint.

One of ours is given its inputs and gets its heap from the keeper (`rlm.checkpoints`) when its worker starts. A
stranger's environment has no checkpoints: it gets its inputs and then runs all cells again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlm import plain
from rlm.checkpoints import Connected, Keepable, Keeper, run_again
from rlm.engine.host import Namespace
from rlm.environments.payload import unpacked
from rlm.errors import BlobError, ContextError, LossError
from rlm.folds import Past
from rlm.portal import in_thread
from rlm.ports import Store
from rlm.recording import Log
from rlm.types import ContextAdded, Lost, Restored, Tool


async def from_checkpoint(namespace: Keepable, keeper: Keeper, past: Past, store: Store | None) -> None:
    """Give a namespace whose worker has not started what the host owns in it; the worker gets it when it starts."""
    lost = {}
    namespace.cells = len(past.cells)
    for index, event in sorted(past.contexts.items()):
        try:
            content = await _content(event, store)
        except BlobError as error:
            lost[f"context_{index}"] = Lost(event.type, str(error))
            continue
        payload = unpacked(event.type, event.format or "text", content, event.digest or "")
        namespace.give("context", payload, index, event.name)
    for index, turn in enumerate(past.ended):
        namespace.give("history", await namespace.pack(turn.history), index)
    keeper.inputs_lost = lost


async def by_running(
    namespace: Namespace, log: Log, connected: Connected, store: Store | None, *, rerun: bool, strict: bool
) -> None:
    """Make the namespace of a stranger's environment again. Raises `LossError` where `strict` and an input is lost."""
    past, lost = log.past, {}
    for index, event in sorted(past.contexts.items()):
        try:
            value = plain.read(await _content(event, store), event.format)
        except (BlobError, ContextError) as error:
            lost[f"context_{index}"] = Lost(event.type, str(error))
            value = None  # the numbers of the others must not change
        await namespace.put_context(value, index, event.name)
    for index, turn in enumerate(past.ended):
        await namespace.put_history(turn.history, index)
    again = await run_again(log, past.cells, connected, namespace, lambda *_: rerun, lambda _: None)
    names = await namespace.variables()
    log.add(Restored("", 0, again.cells, len(names), lost, again.diverged, again.skipped))
    if lost and strict:
        raise LossError(f"strict=True, and inputs could not be brought back: {', '.join(lost)}", lost)


async def _content(event: ContextAdded, store: Store | None) -> bytes | Path:
    """An input's content, verified. Raises `BlobError`."""
    if store is None or event.digest is None:
        raise BlobError("its content was never stored")
    content = await store.blob(event.digest)
    if isinstance(content, Path) and await in_thread(lambda: _hashed(content)) != event.digest:
        raise BlobError("its blob is damaged: it has another digest")
    return content


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(past: Past, tools: Sequence[Tool]) -> Mapping[str, str]:
    """Names and types of a namespace that has not been made again yet, where its last checkpoint holds all cells."""
    known = {one.name: type(one.value).__name__ for one in tools if not one.is_function}
    for index, event in past.contexts.items():
        known |= dict.fromkeys([f"context_{index}", *(["context"] if index == 0 else [])], event.type)
        known |= {event.name: event.type} if event.name else {}
    for index in range(len(past.ended)):
        known |= dict.fromkeys([f"history_{index}", *(["history"] if index == 0 else [])], "list")
    known |= {name: known.get(given, "function") for name, given in past.heap.given.items()}
    return {**known, **past.heap.types}
