"""On what terms a session is opened: its name, the limits of its life, where it is kept. What cannot be, is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlm.engine.host import Setup
from rlm.errors import ConfigurationError, StoreError
from rlm.ports import Lease, Store
from rlm.stores.names import check_name
from rlm.types import Limits, Recorded

OF_TURNS = ("iterations", "depth", "errors", "concurrency")  # limits that a session's whole life does not have

Sibling = Callable[[str, Lease, Sequence[Recorded]], Any]
"""Opens another session of the same RLM, over a log that exists already."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a durable session lives, and how it is brought back.

    strict: losses are a `LossError`. rerun: cells that no checkpoint holds are run again, and so is one that the end of
    the process cut off. idle: seconds after which an unused worker is released (None: never).
    """

    store: Store
    lease: Lease
    sibling: Sibling
    records: Sequence[Recorded] = ()
    strict: bool = False
    rerun: bool = True
    idle: float | None = None


def check_session_name(name: str) -> None:
    """Raise `ConfigurationError` for a name that no session can have."""
    try:
        check_name(name)
    except StoreError as error:
        raise ConfigurationError(str(error)) from None


def require_namespace(setup: Setup, what: str) -> None:
    """Raise `ConfigurationError` where turns have no REPL, and so no namespace that `what` could keep."""
    if setup.depth >= setup.limits.depth:
        raise ConfigurationError(
            f"{what}: Limits(depth={setup.limits.depth}) leaves no REPL at depth {setup.depth}, so there is no "
            f"namespace to keep; give Limits(depth={setup.depth + 1}), or ask each question by completion() of an RLM "
            "that is not persistent"
        )


def check_life(limits: Limits) -> None:
    """Raise `ConfigurationError` for limits that cannot hold for a session's whole life."""
    for name in OF_TURNS:
        if getattr(limits, name) != getattr(Limits(), name):
            raise ConfigurationError(
                f"Limits({name}={getattr(limits, name)!r}) cannot hold for a session's whole life: give it to "
                "RLM(limits=), which holds for each turn"
            )
