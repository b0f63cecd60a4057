"""Bound methods for those who must not keep their object alive: a session that nobody holds is closed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rlm.errors import SessionClosedError

T = TypeVar("T")
P = ParamSpec("P")


def held_weakly(method: Callable[P, T]) -> Callable[P, T]:
    """The method. Raises `SessionClosedError` once nobody holds its object."""
    held = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = held()
        if bound is None:
            raise SessionClosedError("nobody holds this session any more")
        return bound(*args, **kwargs)

    return call


def if_held(method: Callable[[], None]) -> Callable[[], None]:
    """The method; nothing once nobody holds its object."""
    held = weakref.WeakMethod(method)

    def call() -> None:
        bound = held()
        if bound is not None:
            bound()

    return call
