"""What blobs call while they are loaded: functions that make a session's functions, classes and the like again.

Blobs name these functions, so their names and arguments are a format: they may grow, not change.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import functools
import sys
import types

from definitions import follow, is_definition

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any


class Target:
    """Where blobs are loaded into; one at a time. find: brings a definition of this name back first."""

    namespace: dict[str, Any]
    given: dict[str, Any]

    @staticmethod
    def find(name: str) -> Any:
        return Target.namespace[name]

    @staticmethod
    def used(code: types.CodeType) -> None:
        """Told of the code of each function that is loaded."""


def attribute(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)


def host_value(name: str) -> Any:
    return Target.given[name]


def by_name(name: str, path: tuple[str, ...] = ()) -> Any:
    """A definition of the session, and what it holds under further names."""
    found = Target.find(name)
    if path:
        found = follow(found, path)
        if found is None:
            raise AttributeError(f"{name} has no {'.'.join(path)}")
    return found


def make_function(code: types.CodeType, closure: tuple[Any, ...] | None, module: str | None = None) -> Any:
    Target.used(code)
    if module is not None:
        __import__(module)
    return types.FunctionType(code, vars(sys.modules[module]) if module else Target.namespace, None, None, closure)


def set_function(function: Any, state: dict[str, Any]) -> None:
    function.__dict__.update(state.pop("__dict__"))
    for cell, held in state.pop("cells", ()):
        if held:
            cell.cell_contents = held[0]
    for name, value in state.items():
        setattr(function, name, value)


def make_cell() -> Any:
    return types.CellType()


def set_cell(cell: Any, held: tuple[Any, ...]) -> None:
    if held:
        cell.cell_contents = held[0]


def make_class(meta: type, name: str, bases: tuple[type, ...], begin: dict[str, Any]) -> Any:
    """A class without its attributes, and without what the making of one sets off in its bases and its metaclass."""
    import abc

    maker: Any = abc.ABCMeta if issubclass(meta, abc.ABCMeta) else type
    if maker is type:
        maker = next(base for base in meta.__mro__ if isinstance(vars(base).get("__new__"), types.BuiltinFunctionType))
    hooked = {base for parent in bases for base in parent.__mro__ if "__init_subclass__" in vars(base)}
    kept = {base: vars(base)["__init_subclass__"] for base in hooked if is_definition(base, Target.namespace)}
    try:
        for base in kept:
            type.__setattr__(base, "__init_subclass__", classmethod(lambda cls, **_: None))
        return maker.__new__(meta, name, bases, dict(begin))
    finally:
        for base, hook in kept.items():
            type.__setattr__(base, "__init_subclass__", hook)


def set_class(made: Any, state: tuple[dict[str, Any], tuple[type, ...]]) -> None:
    for name, value in state[0].items():
        type.__setattr__(made, name, value)
    if "__firstlineno__" in state[0]:  # each attribute that is set takes it away
        type.__setattr__(made, "__firstlineno__", state[0]["__firstlineno__"])
    for kind in state[1]:
        made.register(kind)


def make_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def make_cached_property(function: Any, name: str | None, doc: str | None) -> Any:
    made: Any = functools.cached_property(function)
    made.attrname, made.__doc__ = name, doc
    return made


def make_type_variable(kind: str, name: str, bounds: Any, options: dict[str, Any], module: str) -> Any:
    import typing

    made = getattr(typing, kind)(name, *bounds, **options)
    made.__module__ = module
    return made
