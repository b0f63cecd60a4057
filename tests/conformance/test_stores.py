"""Every store that comes with this package keeps what `rlm.ports` promises; and the checks find one that does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from rlm.ports import Content, Store
from rlm.stores.memory import MemoryLease, MemoryStore
from rlm.stores.sqlite import SQLiteStore
from rlm.testing.stores import STORE_CHECKS, Check, Open, check_store
from rlm.types import Recorded


def in_memory(place: Path) -> Open:
    store = MemoryStore()
    return lambda: store


def on_disk(place: Path) -> Open:
    return lambda: SQLiteStore(place / "store")


PLACES = [in_memory, on_disk]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
def test_store(check: Check, place: Callable[[Path], Open], tmp_path: Path) -> None:
    asyncio.run(check(place(tmp_path)))


def test_all_checks_run_in_one_call() -> None:
    asyncio.run(check_store(lambda: in_memory(Path())))


class Forgetful(MemoryStore):
    """Acknowledges what it does not record."""

    async def lease(self, name: str, *, wait: float | None = 0.0) -> MemoryLease:
        lease = await super().lease(name, wait=wait)

        async def append(records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
            """Nothing is kept."""

        lease.append = append
        return lease


def test_the_rule_that_a_store_breaks_is_named() -> None:
    def place() -> Open:
        store: Store = Forgetful()
        return lambda: store

    with pytest.raises(AssertionError, match=r"^events of every kind come back as they were: read: expected"):
        asyncio.run(check_store(place))


def test_the_checks_need_no_pytest() -> None:
    code = "import sys; import rlm.testing.stores; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
