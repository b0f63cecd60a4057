"""Stores by path: the folder that a durable session lives in, `:memory:`, or a store of the caller's own.

A store is an append-only log of events for each session, and blobs under their digests (`rlm.ports.Store`). One folder
is one store in a process, whoever asks for it, so that all its sessions commit together.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rlm.config import store_folder
from rlm.errors import ConfigurationError
from rlm.ports import Store

if TYPE_CHECKING:
    from rlm.stores.sqlite import SQLiteStore

__all__ = ["get_store"]

_guard = threading.Lock()
_opened: dict[str, SQLiteStore] = {}


def get_store(store: str | os.PathLike[str] | Store | None = None) -> Store:
    """The store that `store` names.

    None: the user's own (RLM_STORE, else where the platform keeps such data). A path: the store in this folder, which
    is made when something is first recorded; the same object for the same folder, until it is closed. ":memory:": a new
    one that ends with the process. A store: itself. Raises `ConfigurationError` for anything else.
    """
    if store is None:
        store = store_folder()
    if isinstance(store, (str, os.PathLike)):
        return _by_path(os.fspath(store))
    if callable(getattr(store, "lease", None)):
        return store
    raise ConfigurationError(f"store={store!r}: give a folder, ':memory:' or a Store")


def let_go(store: Store) -> None:
    """It is about to be closed: from here on its folder is another store."""
    with _guard:
        for key in [key for key, opened in _opened.items() if opened is store]:
            del _opened[key]


def _by_path(path: str) -> Store:
    if path == ":memory:":
        from rlm.stores.memory import MemoryStore

        return MemoryStore()
    if not path:
        raise ConfigurationError("store='': give a folder, ':memory:' or a Store")
    from rlm.stores.sqlite import SQLiteStore

    folder = Path(path).expanduser()
    key = os.path.realpath(folder)
    with _guard:
        store = _opened.get(key)
        if store is None or store.closed:
            store = _opened[key] = SQLiteStore(folder)
        return store


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _inherited.extend(_opened.values())
    _opened.clear()


_inherited: list[SQLiteStore] = []
"""Stores of this process's forebears: freed, they would close databases that are not this process's to close."""


os.register_at_fork(after_in_child=_after_fork)
