"""Which names a namespace has and of what types, and what of that changed from one cell to the next.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. After a short cell in a
large namespace it looks only at the names that the cell can have touched itself; `all` is always exact.
"""

from __future__ import annotations

import types

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any

SCAN = 64  # names that are looked at after every cell; of more, only where the cell took long beside the look
LOOK = 2e-6  # seconds that looking at a name takes
DYNAMIC = frozenset(("globals", "locals", "vars", "exec", "eval", "__dict__", "setattr", "delattr", "__import__"))

Change = tuple[dict[str, str], list[str]]
"""name -> type of what is new or of another type; names that are gone."""


class Names:
    """The names of `namespace` that are the user's, and their types. `hidden`: names that are not."""

    def __init__(self, namespace: dict[str, Any], hidden: set[str]) -> None:
        self.namespace, self.hidden = namespace, hidden
        self.known: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        return {
            name: type(value).__name__
            for name, value in list(self.namespace.items())
            if type(name) is str
            if name not in self.hidden and not name.startswith("__")
        }

    def all(self) -> dict[str, str]:
        """What a look at every name gives; from here on changes are told from there."""
        self.known = self.look()
        return self.known

    def changes(self, compiled: types.CodeType | None, seconds: float) -> Change:
        """What changed since the last look. compiled: the cell that ran since; seconds: how long it took."""
        if len(self.namespace) > SCAN and seconds < len(self.namespace) * LOOK and compiled:
            used = code_names(compiled)
            if not used & DYNAMIC:
                try:
                    return self.changes_among(used)
                except (KeyError, RuntimeError):  # a thread binds names meanwhile
                    pass
        known, current = self.known, self.all()
        new = {name: kind for name, kind in current.items() if known.get(name) != kind}
        return new, [name for name in known if name not in current]

    def changes_among(self, used: set[str]) -> Change:
        seen = {name for name in used if name in self.namespace}
        for name in reversed(self.namespace):  # new names stand at the end
            if name in self.known:
                break
            seen.add(name)
        kinds = {
            name: type(self.namespace[name]).__name__
            for name in seen
            if type(name) is str
            if name not in self.hidden and not name.startswith("__")
        }
        new = {name: kind for name, kind in kinds.items() if self.known.get(name) != kind}
        gone = [name for name in used if name in self.known and name not in self.namespace]
        self.known.update(new)
        for name in gone:
            del self.known[name]
        return new, gone


def code_names(code: types.CodeType) -> set[str]:
    """Every name that the code, and the functions in it, may read or bind."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= code_names(constant)
    return names
