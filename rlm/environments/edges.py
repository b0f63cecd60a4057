"""From an object to those that it refers to, by its type: as the garbage collector knows, and where that is too little.

None as a rule stands for what the collector says. Views lead to the owners of their memory, generators to the locals of
their frames; definitions, modules and what an import brings back are where a way ends.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
import weakref

from definitions import HEAP, importable, installed, is_definition, module_of, of_singleton, singletons
from names import code_names

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from graph import Walk

    Rule = Callable[[Walk, int, Any], Iterable[Any]]

GIVEN = "\0given"  # no name of anything
WEIGHT = 250  # bytes that take as long to save as an object takes to look at
LARGE = 1024  # characters or bytes from which on a text is worth keeping one and the same
FEW = 8  # items of a tuple that are looked at one by one
ATOMS = frozenset((int, float, complex, bool, type(None), type(...), type(NotImplemented), range))
TEXTS = frozenset((str, bytes))
ATOMS_AND_TEXTS = ATOMS | TEXTS
SIMPLE = frozenset((str, bytes, tuple, frozenset))
CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
FROZEN = frozenset(("datetime", "re", "decimal", "zoneinfo", "_struct"))  # modules whose objects never change
LEAVES = frozenset(("array", "mmap", "_abc", "_thread", "_random"))  # and those whose objects refer to nothing
HAS_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC: objects of the type may refer to others
OURS = "_rlm_"  # the worker's own modules
HOOKS = frozenset(("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"))
HOOKS |= {"__getattr__", "__getattribute__", "__class__", "__iter__", "items"}  # the last two are asked of containers


def is_simple(obj: Any, depth: int = 3) -> bool:
    """Whether it makes no difference if a text, tuple or frozenset is one object or several equal ones."""
    if type(obj) in TEXTS:
        return len(obj) <= LARGE
    if len(obj) > FEW or not depth:
        return False
    return all(type(item) in ATOMS or (type(item) in SIMPLE and is_simple(item, depth - 1)) for item in obj)


def rule_for(kind: type) -> Rule | None:
    if kind is types.FunctionType or issubclass(kind, type) or kind is functools._lru_cache_wrapper:
        return definition
    if kind in SPECIAL:
        return SPECIAL[kind]
    module = kind.__module__ if isinstance(kind.__module__, str) else ""
    numpy, enum = sys.modules.get("numpy"), sys.modules.get("enum")
    if module.startswith(OURS) and kind.__name__ != "Failure":
        return leaf
    if enum is not None and issubclass(kind, enum.Enum):
        return member
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return array_edges
    if module in FROZEN or (
        numpy is not None and issubclass(kind, (numpy.generic, numpy.dtype)) and kind is not numpy.void
    ):
        return frozen
    if kind.__flags__ & HAS_GC == 0:
        return leaf if module in LEAVES or kind.__flags__ & HEAP else restless
    if runs_code(kind):
        return hooked
    found = singletons(kind)
    if found:
        return lambda walk, number, obj: () if id(obj) in found else gc.get_referents(obj)
    return None


def runs_code(kind: type) -> bool:
    """Whether to pickle an object of this type runs code that the session's cells have written."""
    reducer = sys.modules["copyreg"].dispatch_table.get(kind)
    if type(reducer) is types.FunctionType and not importable(reducer):
        return True
    for base in kind.__mro__:
        hooked = base.__flags__ & HEAP and any(hook in vars(base) for hook in HOOKS)
        if hooked and not (importable(base) and installed(sys.modules.get(base.__module__))):
            return True
    return False


def contained(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    """What a container holds; nothing where a look at the types says that it is all simple."""
    size = len(obj)
    if type(obj) is dict:
        if size <= FEW:
            return (*obj, *obj.values())
        return (*contained(walk, number, list(obj)), *contained(walk, number, list(obj.values())))
    if size <= FEW:
        return obj  # type: ignore[no-any-return]
    walk.spend(size >> 3)
    kinds = set(map(type, obj))
    if kinds <= ATOMS:
        return ()
    if kinds <= ATOMS_AND_TEXTS:
        return [item for item in obj if type(item) in TEXTS and len(item) > LARGE]
    return obj  # type: ignore[no-any-return]


def text(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    if id(obj) not in walk.pinned:
        walk.spend(len(obj) // WEIGHT)
    return ()


def definition(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    """A function or class that the walk came to: cut where a name stands for it."""
    key = id(obj)
    if not is_definition(obj, walk.namespace):
        walk.seen[key] = ""
        return ()
    found = walk.definitions.locate(obj)
    if found is not None:
        walk.seen[key] = found[0]
        return ()
    return expand_definition(walk, number, obj)


def expand_definition(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    if isinstance(obj, type) and type(obj) is not type and runs_code(type(obj)):
        walk.flags[number].add("hooks")
    if type(obj) is types.FunctionType and module_of(obj) is not None:
        walk.seen[id(obj.__globals__)] = -1
    return gc.get_referents(obj)


def code(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    walk.uses[number] |= code_names(obj)
    return ()


def frozen(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    """What may be one object or several equal ones."""
    walk.seen[id(obj)] = ""
    return ()


def leaf(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    return ()


def restless(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    walk.flags[number].add("restless")
    return ()


def hooked(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    walk.flags[number].add("hooks")
    return gc.get_referents(obj)


def member(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    """A member of an Enum stands with its class."""
    found = walk.definitions.locate(type(obj)) if is_definition(type(obj), walk.namespace) else ("", ())
    if found is None:
        return gc.get_referents(obj)
    walk.seen[id(obj)] = found[0]
    return ()


def method(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    return frozen(walk, number, obj) if of_singleton(obj) else (obj.__func__, obj.__self__)


def builtin(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    if isinstance(obj.__self__, (types.ModuleType, type, type(None))) or of_singleton(obj):
        return frozen(walk, number, obj)
    return (obj.__self__,)


def frame_edges(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    """A generator or coroutine: the locals of its frame and what it waits for, but no module's globals."""
    prefix = {types.GeneratorType: "gi_", types.CoroutineType: "cr_", types.AsyncGeneratorType: "ag_"}[type(obj)]
    frame = getattr(obj, prefix + "frame", None)
    waits = getattr(obj, {"gi_": "gi_yieldfrom", "cr_": "cr_await", "ag_": "ag_await"}[prefix], None)
    walk.uses[number] |= code_names(getattr(obj, prefix + "code"))
    found = dict(frame.f_locals) if frame is not None else {}
    walk.alive.append(found)
    return (*found.values(), waits)


def reference(walk: Walk, number: int, obj: Any) -> Iterable[Any]:
    return (obj(), *gc.get_referents(obj))


def array_edges(walk: Walk, number: int, obj: Any) -> Iterator[Any]:
    """An array: what it is a view of, and what it holds, where it holds objects."""
    if obj.base is not None:
        yield obj.base
    else:
        walk.spend(obj.nbytes // WEIGHT)
    if obj.dtype.hasobject:
        listed = obj.tolist()
        walk.alive.append(listed)
        yield listed
    yield from gc.get_referents(obj)


SPECIAL: dict[type, Rule | None] = {
    types.CodeType: code,
    types.ModuleType: frozen,
    types.MethodType: method,
    types.BuiltinFunctionType: builtin,
    types.GeneratorType: frame_edges,
    types.CoroutineType: frame_edges,
    types.AsyncGeneratorType: frame_edges,
    types.GetSetDescriptorType: frozen,
    types.MemberDescriptorType: frozen,
    weakref.ref: reference,
    bytearray: text,
    str: text,
    bytes: text,
}
