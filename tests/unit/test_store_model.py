"""Any sequence of operations on a store, over two handles and reopened at will, does what a model in memory says."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.errors import BlobError, RLMError, SessionExistsError, StoreError, UnknownSessionError
from rlm.ports import Lease, Owned, Store
from rlm.stores.blobs import LARGE, digest_of
from rlm.stores.memory import MemoryStore
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Called, Recorded

BLOBS = [b"", b"a small blob", bytes(70_000), b"l" * LARGE, b"m" * (LARGE + 1)]
DIGESTS = [digest_of(data) for data in BLOBS]


def event(number: int, mark: int) -> Recorded:
    """Marked, so that no two events of a run are equal."""
    return Recorded(number, 1_000.0 - number, Called(f"t1/c0/f:{number}#0", "f", value=mark))


@dataclass
class Session:
    log: list[Recorded] = field(default_factory=list)
    refs: set[str] = field(default_factory=set)


@dataclass
class Model:
    """What must be true: sessions in the order of their last change, the last one last; and blobs that are there."""

    sessions: dict[str, Session] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def changed(self, name: str) -> None:
        self.sessions[name] = self.sessions.pop(name)

    def collect(self) -> int:
        needed = {digest for session in self.sessions.values() for digest in session.refs}
        gone = self.blobs.keys() - needed
        return sum(len(self.blobs.pop(digest)) for digest in gone)


class World:
    """A place with a store that is opened twice, the leases that are held, and the model of it."""

    def __init__(self, open: Callable[[], Store], folder: Path) -> None:
        self.open = open
        self.folder = folder
        self.stores = [open(), open()]
        self.leases: dict[str, Lease] = {}
        self.model = Model()
        self.marks = 0

    async def lease(self, name: str, handle: int) -> Lease:
        if name not in self.leases:
            self.leases[name] = await self.stores[handle].lease(name)
            self.model.sessions.setdefault(name, Session())
        return self.leases[name]

    async def append(self, name: str, handle: int, count: int, which: list[int], how: str, wrong: str) -> None:
        lease = await self.lease(name, handle)
        session = self.model.sessions[name]
        first = len(session.log) + (wrong == "numbers")
        self.marks += count
        records = [event(first + index, self.marks - index) for index in range(count)]
        blobs: dict[str, Any] = {DIGESTS[index]: self.content(BLOBS[index], how) for index in which}
        if wrong == "digest" and which:
            blobs[DIGESTS[which[0]]] = b"something else"
        missing = how == "none" and any(DIGESTS[index] not in self.model.blobs for index in which)
        fails: type[RLMError] | None = None
        if (wrong == "digest" and which) or missing:
            fails = StoreError if wrong == "numbers" else BlobError
        elif wrong == "numbers" and count:
            fails = StoreError
        await expect(lease.append(records, blobs), fails)
        if fails is None:
            session.log += records
            session.refs |= blobs.keys()
            self.model.blobs.update({DIGESTS[index]: BLOBS[index] for index in which})
            if count:
                self.model.changed(name)

    def content(self, data: bytes, how: str) -> Any:
        if how == "bytes":
            return data
        if how == "none":
            return None
        self.marks += 1
        path = self.folder / f"content-{self.marks}"
        path.write_bytes(data)
        return Owned(path) if how == "own" else path

    async def hold(self, name: str, handle: int, which: list[int]) -> None:
        lease = await self.lease(name, handle)
        missing = any(DIGESTS[index] not in self.model.blobs for index in which)
        await expect(lease.hold([DIGESTS[index] for index in which]), BlobError if missing else None)
        if not missing:
            self.model.sessions[name].refs = {DIGESTS[index] for index in which}

    async def release(self, name: str) -> None:
        if name in self.leases:
            await self.leases.pop(name).release()

    async def rename(self, name: str, new: str, handle: int) -> None:
        await self.release(name)
        fails: type[RLMError] | None = None
        if name not in self.model.sessions:
            fails = UnknownSessionError
        elif new != name and new in self.model.sessions:
            fails = SessionExistsError
        await expect(self.stores[handle].rename(name, new), fails)
        if fails is None:
            self.model.sessions = {new if key == name else key: one for key, one in self.model.sessions.items()}

    async def delete(self, name: str, handle: int) -> None:
        await self.release(name)
        known = name in self.model.sessions
        await expect(self.stores[handle].delete(name), None if known else UnknownSessionError)
        self.model.sessions.pop(name, None)

    async def collect(self, handle: int) -> None:
        assert await self.stores[handle].collect() == self.model.collect()

    async def reopen(self, handle: int) -> None:
        """Without giving its leases back first."""
        gone = self.stores[handle]
        self.leases = {name: lease for name, lease in self.leases.items() if lease._store is not gone}
        await gone.close()
        self.stores[handle] = self.open()

    async def compare(self) -> None:
        for store in self.stores:
            found = await store.list()
            assert [one.name for one in found] == list(reversed(self.model.sessions))
            for one in found:
                session = self.model.sessions[one.name]
                assert one.events == len(session.log)
                assert await store.read(one.name) == session.log
            for digest in DIGESTS:
                if digest in self.model.blobs:
                    blob = await store.blob(digest)
                    assert (blob if isinstance(blob, bytes) else blob.read_bytes()) == self.model.blobs[digest]
                else:
                    await expect(store.blob(digest), BlobError)
            assert list(await store.check()) == []


async def expect(doing: Any, error: type[Exception] | None) -> None:
    if error is None:
        await doing
    else:
        with pytest.raises(error):
            await doing


names = st.sampled_from(["a", "b", "c"])
handles = st.integers(0, 1)
some_blobs = st.lists(st.integers(0, len(BLOBS) - 1), max_size=3, unique=True)
operations = st.one_of(
    st.tuples(
        st.just("append"),
        names,
        handles,
        st.integers(0, 3),
        some_blobs,
        st.sampled_from(["bytes", "file", "own", "none"]),
        st.sampled_from(["", "", "", "numbers", "digest"]),
    ),
    st.tuples(st.just("hold"), names, handles, some_blobs),
    st.tuples(st.just("release"), names),
    st.tuples(st.just("rename"), names, names, handles),
    st.tuples(st.just("delete"), names, handles),
    st.tuples(st.just("collect"), handles),
    st.tuples(st.just("reopen"), handles),
)


@pytest.mark.parametrize("kind", ["disk", "memory"])
@settings(max_examples=40)
@given(steps=st.lists(operations, min_size=5, max_size=25))
def test_a_store_does_what_the_model_says(kind: str, steps: list[tuple[Any, ...]]) -> None:
    async def run(folder: Path) -> None:
        memory = MemoryStore()
        world = World(lambda: SQLiteStore(folder / "store") if kind == "disk" else memory, folder)
        for name, *arguments in steps:
            await getattr(world, name)(*arguments)
        await world.compare()
        for store in world.stores:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
