"""The use of a store by somebody who names it: opened when it is first needed, closed with its last user."""

from __future__ import annotations

import os
import threading
from collections import Counter

from rlm.ports import Store
from rlm.stores import get_store, let_go

_guard = threading.Lock()
_users: Counter[int] = Counter()


class Use:
    """One user's use of the store that `store` names, as `get_store` takes it. A Store is its owner's to close."""

    def __init__(self, store: str | os.PathLike[str] | Store | None) -> None:
        self._named = store
        self._ours = store is None or isinstance(store, (str, os.PathLike))
        self._store: Store | None = None

    def open(self) -> Store:
        """The store; nothing is read or written for it. Raises `ConfigurationError` for what names none."""
        with _guard:
            if self._store is None:
                self._store = get_store(self._named)
                _users[id(self._store)] += self._ours
            return self._store

    async def close(self) -> None:
        """Close the store, unless others still use it. Twice is fine."""
        with _guard:
            store, self._store = self._store, None
            if store is None or not self._ours:
                return
            _users[id(store)] -= 1
            last = not _users[id(store)]
            if last:
                del _users[id(store)]
                let_go(store)  # else somebody would get it in the moment before it is closed
        if last:
            await store.close()
