"""A session's heap as tests drive it: workers that follow each other, and what their checkpoints add up to."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlm.environments.kernel import Kernel
from rlm.environments.payload import pack
from rlm.environments.sandbox.sandbox import Sandbox, Settings
from rlm.folds import Heap
from rlm.ports import Part
from rlm.types import Checkpointed, HeapChange, Lost


class Session:
    """One worker after another. change: what the last capture found; blobs: all that were ever captured."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        self.heap = Heap()
        self.blobs: dict[str, bytes] = {}
        self.given: list[tuple[list[str], Any]] = []
        self.change = HeapChange()
        self._workers = self._captures = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kernel.close()
        self._folder.cleanup()

    async def start(self) -> None:
        self._workers += 1
        work = self.path / f"work-{self._workers}"  # where a sandbox has no folder of its own
        work.mkdir()
        self.kernel = Kernel(await Sandbox(Settings(python=self._python)).connect(work))
        await self.kernel.start()
        for names, value in self.given:
            await self.kernel.load(names, pack(value, self.path))

    async def give(self, value: Any, *names: str) -> None:
        self.given.append((list(names), value))
        await self.kernel.load(names, pack(value, self.path))

    def spool(self) -> Path:
        """A new file for the large blobs of one capture."""
        self._captures += 1
        file = self.path / f"spool-{self._captures}"
        file.touch()
        return file

    async def run(self, code: str) -> str:
        """What a cell, which must not fail, prints."""
        result = await self.kernel.run(code)
        assert result.error is None, result.error.text
        return result.stdout.rstrip("\n")

    async def capture(self, **options: Any) -> HeapChange:
        captured = await self.kernel.capture(self.spool(), **options)
        self.blobs.update((digest, content(blob)) for digest, blob in captured.blobs.items())
        self.change = captured.change
        self.heap.apply(Checkpointed("", 0, self.change))
        return self.change

    async def cells(self, *codes: str) -> None:
        """Run the cells, with a capture after each."""
        for code in codes:
            await self.run(code)
            await self.capture()

    async def restore(self, python: str | None = None, seconds: float | None = None) -> Mapping[str, Lost]:
        """End the worker, and bring the heap back into a new one."""
        await self.kernel.close()
        self._python = python or self._python
        await self.start()
        needed = {digest: self.blobs[digest] for digest in self.heap.blobs() if digest in self.blobs}
        return await self.kernel.restore(self.heap.image(), needed, seconds=seconds)

    def saved(self) -> set[str]:
        """The names in the groups of the last capture."""
        return {name for group in self.change.groups for name in group.names}

    def groups(self) -> set[tuple[str, ...]]:
        return {tuple(group.names) for group in self.change.groups}


def content(blob: bytes | Part) -> bytes:
    return blob if isinstance(blob, bytes) else blob.path.read_bytes()[blob.start : blob.start + blob.size]


def session(script: Callable[[Session], Awaitable[None]], **options: Any) -> None:
    """Run `script` with a session of its own."""

    async def run() -> None:
        async with Session(**options) as made:
            await script(made)

    asyncio.run(run())
