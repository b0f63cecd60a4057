"""The architecture on one page: the four things the engine asks of the world, as Protocols.

A turn is an async function over a `Host`. A `Host` is made of a `Model` and a namespace whose worker is reached by a
`Transport`. What a `Host` answered is kept in a `Store`. Nothing here has behaviour.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlm.types import Event, Messages, Price, REPLResult, Reply, UsageSummary

Answer = Callable[[str, Sequence[Any], Mapping[str, Any]], Awaitable[Any]]
"""Answers a call of a running cell: (function's name, args, kwargs) -> the value, plain JSON data.

It may raise `CallFailed`, which is what the cell then sees."""


class CallFailed(Exception):
    """A call could not be answered; the cell sees the message. `reason` is one word for code to decide on.

    usage_summary: what was used up before it failed, where anything was.
    """

    usage_summary: UsageSummary | None = None

    def __init__(self, message: str, reason: str = "error") -> None:
        super().__init__(message)
        self.reason = reason


class Host(Protocol):
    """All that the loop, and the cells it runs, may ask of the world."""

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        """One reply of the turn's model. Raises `ModelError` or a limit's `TurnError`."""
        ...

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        """Run one cell; its calls go to `answer` (None: to this host's own `call`). A failing cell is a result.

        Raises `SandboxError` only where the namespace is gone and cannot be started again.
        """
        ...

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answer one call of a cell. `key` says where in the tree it stands: the path of parent calls, the cell, the
        function, the digest of the arguments and which occurrence among equals. Raises `CallFailed`.
        """
        ...


class Model(Protocol):
    """A language model that takes messages and gives text."""

    @property
    def name(self) -> str:
        """As users write it: `provider:model`."""
        ...

    @property
    def price(self) -> Price | None:
        """Dollars per million tokens, None where unknown. A model that costs nothing has Price(0, 0)."""
        ...

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        """One reply. Retries what is worth it; raises `ModelError` (or `ConfigurationError`) when it gives up."""
        ...


@runtime_checkable
class SupportsClose(Protocol):
    """A model that holds connections."""

    async def aclose(self) -> None:
        """Give them back. The model stays usable: it opens new ones when it is asked again."""
        ...


class Transport(Protocol):
    """Standard input and output of a worker, wherever it runs."""

    async def open(self) -> None:
        """Start the worker program. Raises `SandboxError` with the reason."""
        ...

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises `ConnectionError` once the worker is gone."""
        ...

    async def receive(self) -> bytes:
        """The next piece, of any size; b"" once the worker is gone."""
        ...

    async def close(self) -> None:
        """End the worker and everything it started. Always succeeds, twice too."""
        ...


@runtime_checkable
class SupportsInterrupt(Protocol):
    """A transport that can interrupt a running cell without the worker reading a frame."""

    def interrupt(self) -> None: ...


@runtime_checkable
class SupportsFiles(Protocol):
    """A transport that can hand files over without sending their bytes through frames."""

    async def put_file(self, path: Path) -> str:
        """Make the local file readable for the worker; returns the path the worker opens."""
        ...


class Store(Protocol):
    """Where sessions live: an append-only list of events for each."""

    async def append(self, session: str, events: Sequence[Event]) -> None:
        """Record all of them, or none. Returns once they are as durable as this store makes anything."""
        ...

    async def read(self, session: str) -> Sequence[Event]:
        """All events of a session, oldest first; empty where there are none."""
        ...

    async def list(self) -> Sequence[str]:
        """The names of all sessions."""
        ...
