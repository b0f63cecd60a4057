"""The architecture on one page: the four things the engine asks of the world, as Protocols.

A turn is an async function over a `Host`. A `Host` is made of a `Model` and a namespace whose worker is reached by a
`Transport`. What a `Host` answered is kept in a `Store`. Nothing here has behaviour.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlm.types import Messages, Price, Recorded, REPLResult, Reply, StoredSession, UsageSummary

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
        """Make the local file readable for the worker; returns the path the worker opens.

        Raises `ConnectionError` where the worker is gone.
        """
        ...


@runtime_checkable
class SupportsSpool(Protocol):
    """A transport whose worker can write to a file of the host's."""

    async def lend_file(self, path: Path) -> str:
        """Let the worker write to this local file; returns the path the worker opens. Raises `ConnectionError`."""
        ...


@dataclass(frozen=True, slots=True)
class Owned:
    """A file of ours that is complete: a store may take it over where it would copy a stranger's."""

    path: Path


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes from `start` on of a file that a worker wrote: to be copied, and not trusted."""

    path: Path
    start: int
    size: int


Content = bytes | Part | Path | Owned
"""What a blob is made of: bytes, a part of a file or a file that a stranger wrote, or a file of our own."""


class Store(Protocol):
    """Where sessions live: an append-only log of events for each, and blobs under their SHA-256 digests.

    Any number of processes may use one store. Everything that fails raises `StoreError`, or what is said below.
    """

    async def lease(self, name: str, *, wait: float | None = 0.0) -> Lease:
        """The right to write to the session of this name, which is made if there is none.

        wait: seconds to wait for a process that has it (None: for ever). Raises `SessionBusyError`.
        """
        ...

    async def read(self, name: str) -> Sequence[Recorded]:
        """The log of a session, oldest first, also while somebody writes. Raises `UnknownSessionError`."""
        ...

    async def list(self) -> Sequence[StoredSession]:
        """All sessions, the one changed last first."""
        ...

    async def blob(self, digest: str) -> bytes | Path:
        """A blob: small ones as bytes, which were verified; others as a file, which whoever loads it must verify.

        Raises `BlobError` where it is missing or damaged.
        """
        ...

    async def rename(self, name: str, new: str) -> None:
        """Raises `UnknownSessionError`, `SessionExistsError`, and `SessionBusyError` while somebody writes to it."""
        ...

    async def delete(self, name: str) -> None:
        """Remove a session; its blobs go with the next `collect`. Raises as `rename` does."""
        ...

    async def collect(self) -> int:
        """Remove blobs that no session refers to; returns the bytes that became free."""
        ...

    async def check(self) -> Sequence[str]:
        """Look at everything that is stored; one sentence for each thing that is wrong."""
        ...

    async def close(self) -> None:
        """Give files and locks back. Twice is fine."""
        ...


class Lease(Protocol):
    """The right to write to one session, from `Store.lease` to `release` or the end of the process."""

    @property
    def id(self) -> str:
        """The session's, which a new name does not change."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path | None:
        """Where the session's files may lie so that `Owned` ones need no copy; None where there is no such place."""
        ...

    async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
        """Record all of the events and blobs, or none; returns once they survive the end of the process (and of the
        machine, as far as this store promises that). blobs: what the session needs from now on, by digest; None for
        one that the store has already. Blobs without events keep no events waiting that are appended after them.

        The numbers go on from the last one. Raises `StaleLeaseError` where another writer has taken over, `BlobError`
        where a content has not the digest it is given under, and `StoreError`.
        """
        ...

    async def hold(self, digests: Sequence[str]) -> None:
        """Say which blobs the session needs, in place of all that was said before; others may be collected."""
        ...

    async def release(self, *, unused: bool = False) -> None:
        """Let others write. Twice is fine. unused: forget the session, if nothing was ever recorded in it."""
        ...


@runtime_checkable
class SupportsPlacing(Protocol):
    """A lease that can begin to keep a file of ours while it is not certain yet that an event will refer to it."""

    async def place(self, content: Owned) -> tuple[str, Content]:
        """Its SHA-256, and what the append that refers to it is to be given; the file is on its way to disk meanwhile.

        Without such an append the blob is nobody's, and will be collected. Raises `BlobError` where the file is not
        there, and `StoreError`.
        """
        ...
