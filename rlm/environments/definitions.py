"""The functions and classes that a session has made, and which objects an import brings back.

A definition is bound to a name of the namespace; what refers to it refers to that name.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import functools
import sys
import types

from limits import is_tellable

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the type was made at run time


class Definitions:
    """The functions and classes of the session, and the names that they are bound to."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.objects: dict[str, Any] = {}
        self.names: dict[int, set[str]] = {}

    def update(self, names: Iterable[str]) -> set[str]:
        """Look at these names again; returns those that stand for another definition than before, or for none."""
        changed = set()
        for name in names:
            old, new = self.objects.get(name), self.namespace.get(name)
            if new is not None and not (is_definition(new, self.namespace) and is_tellable(name)):
                new = None
            if old is new:
                continue
            changed.add(name)
            if old is not None:
                self.names[id(old)].discard(name)
                if not self.names[id(old)]:
                    del self.names[id(old)]
                del self.objects[name]
            if new is not None:
                self.objects[name] = new
                self.names.setdefault(id(new), set()).add(name)
        return changed

    def name(self, obj: Any) -> str | None:
        """The name that stands for this very definition: its own, if it is bound to that."""
        names = self.names.get(id(obj))
        if not names:
            return None
        own = getattr(obj, "__name__", None)
        return own if isinstance(own, str) and own in names else min(names)

    def locate(self, obj: Any) -> tuple[str, tuple[str, ...]] | None:
        """Where a function or class stands: the name of a definition, and the attributes that lead on from there."""
        name = self.name(obj)
        if name is not None:
            return name, ()
        first, *path = str(getattr(obj, "__qualname__", "")).split(".")
        if not path or first not in self.objects:
            return None
        found = follow(self.objects[first], path)
        name = self.name(self.objects[first]) if found is obj else None
        return None if name is None else (name, tuple(path))


def follow(found: Any, path: Iterable[str]) -> Any:
    """What a class holds under the names, one after another; the bare function of a method. None if there is none."""
    for part in path:
        if not isinstance(found, type):
            return None
        found = type.__dict__["__dict__"].__get__(found).get(part)
        found = getattr(found, "__func__", found) if isinstance(found, (classmethod, staticmethod)) else found
    return found


def definable(kind: type) -> bool:
    """Whether a value of this type can be a definition."""
    return kind is types.FunctionType or kind is functools._lru_cache_wrapper or issubclass(kind, type)


def is_definition(value: Any, namespace: dict[str, Any]) -> bool:
    kind = type(value)
    if kind is types.FunctionType:
        return value.__globals__ is namespace or not importable(value)
    if issubclass(kind, type):
        return bool(value.__flags__ & HEAP) and not importable(value)
    return kind is functools._lru_cache_wrapper and not importable(value)


def importable(obj: Any) -> bool:
    """Whether the function or class is what its module holds under its name, so that an import brings it back."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    for part in str(getattr(obj, "__qualname__", "")).split("."):
        found = getattr(found, part, None) if found is not None else None
    return found is obj


def singletons(kind: type) -> dict[int, str]:
    """Objects of this type that its own module holds under a name, such as `dataclasses.MISSING`: id -> name."""
    module = sys.modules.get(kind.__module__ if isinstance(kind.__module__, str) else "")
    if module is None or kind.__module__ in ("__main__", "builtins") or not installed(module):
        return {}
    return {id(value): name for name, value in list(vars(module).items()) if type(value) is kind}


def installed(module: Any) -> bool:
    """Whether the module is Python's own or of a package, and not a file that a cell has written."""
    file = getattr(module, "__file__", None)
    return file is None or "site-packages" in file or "dist-packages" in file or file.startswith(sys.base_prefix)


def module_of(function: Any) -> str | None:
    """The imported module whose globals a function has that is no attribute of it; None where there is none."""
    name = function.__globals__.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) and name != "__main__" else None
    return name if module is not None and vars(module) is function.__globals__ else None


def of_singleton(bound: Any) -> bool:
    """Whether a bound method is one that a module offers as a function: `random.randint`."""
    module = sys.modules.get(getattr(type(bound.__self__), "__module__", None) or "")
    return module is not None and installed(module) and getattr(module, bound.__name__, None) == bound
