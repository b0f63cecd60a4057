"""What shares what in a namespace, and what a cell can have touched: the analysis behind checkpoints.

Two names belong together if from both of them the same object can be reached that may change or be told apart: then
they are saved as one, so that they still share it afterwards. Functions and classes that the session has bound to a name
("definitions") are where a way ends: what refers to one refers to it by name. What a cell can have touched is the names
in its code, and in all code that can be reached from those; where that cannot be known, it is everything.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import builtins
import functools
import gc
import sys
import types
import weakref

from names import code_names

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    Rule = Callable[["Walk", int, Any], Iterable[Any]]

LARGE = 1024  # characters or bytes from which on a text is worth keeping one and the same
GIVEN = "\0given"  # no name of anything
WEIGHT = 250  # bytes that take as long to save as an object takes to look at
FEW = 8  # items of a tuple that are looked at one by one
ATOMS = frozenset((int, float, complex, bool, type(None), type(...), type(NotImplemented), range))
TEXTS = frozenset((str, bytes))
ATOMS_AND_TEXTS = ATOMS | TEXTS
SIMPLE = frozenset((str, bytes, tuple, frozenset))
CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
FROZEN = frozenset(("datetime", "re", "decimal", "zoneinfo", "_struct"))  # modules whose objects never change
LEAVES = frozenset(("array", "mmap", "_abc", "_thread", "_random"))  # and those whose objects refer to nothing
HAS_GC, HEAP = 1 << 14, 1 << 9  # Py_TPFLAGS: instances may refer to others; the type was made at run time
OURS = "_rlm_"  # the worker's own modules
HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__", "__getattribute__")
HOOKS += ("__getattr__", "__class__", "__iter__", "items")  # the last two are asked of containers

# Names in code that say that it may reach anything: frames, namespaces, memory. And the modules that allow it.
DYNAMIC = frozenset(
    "globals locals vars exec eval __dict__ setattr delattr __import__ __main__ __builtins__ __globals__ gc ctypes "
    "inspect _getframe _current_frames currentframe modules f_globals f_locals f_back tb_frame gi_frame cr_frame "
    "settrace setprofile pickle builtins".split()
)
DYNAMIC_MODULES = frozenset(("__main__", "gc", "ctypes", "_ctypes", "inspect", "builtins", "cffi", "code", "pdb"))
DYNAMIC_BUILTINS = (globals, locals, vars, exec, eval, setattr, delattr, __import__)


class OverBudget(BaseException):
    """There is more to look at than may be done while a cell waits. No error of any value's."""


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
            if new is not None and not is_definition(new, self.namespace):
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


def is_simple(obj: Any) -> bool:
    """Whether it makes no difference if a text, tuple or frozenset is one object or several equal ones."""
    if type(obj) in TEXTS:
        return len(obj) <= LARGE
    return len(obj) <= FEW and all(type(item) in ATOMS or (type(item) in TEXTS and len(item) <= LARGE) for item in obj)


def follow(found: Any, path: Iterable[str]) -> Any:
    """What a class holds under the names, one after another; the bare function of a method. None if there is none."""
    for part in path:
        if not isinstance(found, type):
            return None
        found = type.__dict__["__dict__"].__get__(found).get(part)
        found = getattr(found, "__func__", found) if isinstance(found, (classmethod, staticmethod)) else found
    return found


def is_definition(value: Any, namespace: dict[str, Any]) -> bool:
    if type(value) is types.FunctionType:
        return value.__globals__ is namespace or not importable(value)
    if isinstance(value, type):
        return bool(value.__flags__ & HEAP) and not importable(value)
    return type(value) is functools._lru_cache_wrapper and not importable(value)


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


def reaches_anything(value: Any) -> bool:
    """Whether who holds the value can reach every object, by a module or a function of it."""
    if isinstance(value, types.ModuleType):
        return value.__name__ in DYNAMIC_MODULES
    if type(value) is types.BuiltinFunctionType:
        return value in DYNAMIC_BUILTINS or value.__module__ in ("gc", "_ctypes")
    return getattr(type(value), "__module__", None) in ("_ctypes", "ctypes")


class Walk:
    """A walk over what can be reached from names, each of which is a root with a number.

    budget: how many objects may be looked at before `OverBudget`; None for any number. given: values of the host's
    that are referred to by name, by id. group_of: what else to walk from with a name that was not among the candidates.
    After `run` the roots that share something are in one of `groups`.
    """

    def __init__(
        self, definitions: Definitions, given: Mapping[int, str], budget: int | None, group_of: Callable[[str], Any]
    ) -> None:
        self.definitions, self.group_of = definitions, group_of
        self.pinned: set[int] = set()  # ids of texts that will not be saved again
        self.namespace = definitions.namespace
        self.left = float("inf") if budget is None else float(budget)
        self.names: list[str] = []
        self.number: dict[str, int] = {}
        self.parent: list[int] = []
        self.refs: list[set[str]] = []
        self.uses: list[set[str]] = []
        self.flags: list[set[str]] = []  # hooks: pickling runs the user's code; restless: not understood; given: met
        # Of what was seen: the root that came there first; of a definition the name that stands for it, "" for what an
        # import brings back; and what is no matter at all.
        self.seen: dict[int, int | str] = dict.fromkeys((id(self.namespace), id(builtins.__dict__), id(builtins)), -1)
        self.seen.update(dict.fromkeys(given, GIVEN))
        self.inside: set[int] = set()  # parts of a class that were gone through from the class itself
        self.rules: dict[type, Rule | None] = dict.fromkeys(CONTAINERS, contained)
        self.alive: list[Any] = []  # what was made on the way, so that no other object gets its id

    def add(self, name: str) -> int:
        number = self.number.get(name)
        if number is None:
            number = self.number[name] = len(self.names)
            self.names.append(name)
            self.parent.append(number)
            for column in (self.refs, self.uses, self.flags):
                column.append(set())
        return number

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self.parent[max(one, other)] = min(one, other)

    def pull(self, number: int, name: str) -> None:
        """A definition needs another one as it is, not by name: both belong together, and so do their groups."""
        if name not in self.number:
            for member in self.group_of(name):
                self.add(member)
        self.join(number, self.add(name))

    def run(self, names: Iterable[str]) -> list[list[str]]:
        """Walk from all of the names, and from those that turn out to belong to them; returns the groups."""
        for name in names:
            self.add(name)
        done = 0
        while True:
            while done < len(self.names):
                self.reach(done, self.namespace[self.names[done]])
                done += 1
            groups: dict[int, list[str]] = {}
            for number, name in enumerate(self.names):
                groups.setdefault(self.find(number), []).append(name)
            for number, members in groups.items():
                # A group that others refer to by name refers to none itself, so that one can be loaded after another.
                if len(members) > 1 and any(name in self.definitions.objects for name in members):
                    for ref in {ref for name in members for ref in self.refs[self.number[name]]}:
                        self.pull(number, ref)
            if done == len(self.names) and len(groups) == len({self.find(n) for n in range(len(self.names))}):
                return [sorted(members) for members in groups.values()]

    def reach(self, number: int, root: Any) -> None:
        seen, rules = self.seen, self.rules
        todo: list[Any] = [root]
        mine = ""
        if self.names[number] in self.definitions.objects:
            todo = list(expand_definition(self, number, root))
            mine = self.definitions.name(root) or ""
            seen[id(root)] = mine
            self.inside.add(id(root))
            self.pull(number, mine)
        while todo:
            self.spend(len(todo))
            found: list[Any] = []
            plain: list[Any] = []
            for obj in todo:
                kind = type(obj)
                if kind in ATOMS or (kind in SIMPLE and is_simple(obj)):
                    continue
                key = id(obj)
                other = seen.get(key)
                if other is None:
                    seen[key] = number
                    rule = rules[kind] if kind in rules else self.rule(kind)
                    if rule is None:
                        plain.append(obj)
                    elif kind in CONTAINERS:
                        found.extend(rule(self, number, obj))
                    else:
                        more = rule(self, number, obj)
                        if seen[key] is number:
                            found.extend(more)
                        else:
                            found.append(obj)  # once more, by the name that stands for it
                elif other is not number and other != -1:
                    found.extend(self.meet(number, mine, obj, other))
            if plain:
                found += gc.get_referents(*plain)
            todo = found

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise OverBudget

    def rule(self, kind: type) -> Rule | None:
        found = self.rules[kind] = rule_for(kind)
        return found

    def meet(self, number: int, mine: str, obj: Any, other: int | str) -> Iterable[Any]:
        """Another root, or a name, has what this root came to."""
        if type(obj) is types.CodeType:
            self.uses[number] |= code_names(obj)
        elif type(other) is int:
            self.join(number, other)
        elif other == GIVEN:
            self.flags[number].add("given")
        elif other == mine and other and id(obj) not in self.inside:
            self.inside.add(id(obj))
            return expand_definition(self, number, obj)
        elif other:
            self.refs[number].add(str(other))
            if mine:
                self.pull(number, str(other))
        return ()


# -- how to go on from an object of some type: None where the garbage collector knows, else a function -----------------


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
        if base.__flags__ & HEAP and any(hook in vars(base) for hook in HOOKS):
            if not importable(base) or not installed(sys.modules.get(base.__module__)):
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


def module_of(function: Any) -> str | None:
    """The imported module whose globals a function has that is no attribute of it; None where there is none."""
    name = function.__globals__.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) and name != "__main__" else None
    return name if module is not None and vars(module) is function.__globals__ else None


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


def of_singleton(bound: Any) -> bool:
    """Whether a bound method is one that a module offers as a function: `random.randint`."""
    module = sys.modules.get(getattr(type(bound.__self__), "__module__", None) or "")
    return module is not None and installed(module) and getattr(module, bound.__name__, None) == bound


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
