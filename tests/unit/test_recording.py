"""A log on its way to the store: in order, durable before one goes on, and silent after the first refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlm.errors import StoreError
from rlm.ports import Content
from rlm.recording import Log
from rlm.types import Event, Opened, Recorded, Rewound


class Slow:
    """A lease that takes its time, and refuses from a number on."""

    id, name = "1", "s"
    folder: Path | None = None

    def __init__(self, refuses: int = 99) -> None:
        self.kept: list[int] = []
        self.refuses = refuses
        self.released = 0

    async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
        await asyncio.sleep(0.001)
        if records[0].number >= self.refuses:
            raise OSError("the disk is full")
        self.kept += [record.number for record in records]

    async def hold(self, digests: Sequence[str]) -> None: ...

    async def release(self, *, unused: bool = False) -> None:
        self.released += 1


def test_events_take_effect_at_once_and_are_durable_once_settled() -> None:
    async def go() -> None:
        lease, told = Slow(), list[Event]()
        log = Log(lease, opening=Opened("", "s"), tell=told.append, clock=lambda: 5.0)
        assert log.events == []
        log.add(Rewound(""))
        assert [event.kind for event in log.events] == [event.kind for event in told] == ["opened", "rewound"]
        assert (log.past.number, log.times, lease.kept) == (2, [5.0, 5.0], [])
        await log.settled()
        assert lease.kept == [0, 1]
        await log.append(Rewound(""))
        assert lease.kept == [0, 1, 2]
        log.add(Rewound(""))
        await log.close()
        await log.close()
        assert (lease.kept, lease.released) == ([0, 1, 2, 3], 2)

    asyncio.run(go())


def test_of_events_that_go_together_one_that_has_a_blobs_content_gives_it() -> None:
    class Keeps(Slow):
        given: Mapping[str, Content | None] = {}

        async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
            self.given = {**self.given, **(blobs or {})}

    async def go() -> None:
        lease = Keeps()
        log = Log(lease)
        log.add(Rewound(""), {"a": b"content", "b": None}, hold=True)
        log.add(Rewound(""), {"a": None, "b": b"later", "c": None}, hold=True)
        await log.settled()
        assert lease.given == {"a": b"content", "b": b"later", "c": None}

    asyncio.run(go())


def test_once_the_store_has_refused_nothing_more_is_recorded() -> None:
    async def go() -> None:
        lease = Slow(refuses=1)
        log = Log(lease)
        log.add(Rewound(""))
        log.add(Rewound(""))
        with pytest.raises(
            StoreError, match=r"cannot be recorded any more: OSError: the disk is full Close it and open"
        ):
            await log.settled()
        assert log.failed
        lease.refuses = 99
        with pytest.raises(StoreError):
            log.add(Rewound(""))
        with pytest.raises(StoreError):
            await log.append(Rewound(""))
        assert lease.kept == [0]

    asyncio.run(go())


def test_a_log_without_a_lease_lives_in_memory() -> None:
    async def go() -> None:
        log = Log()
        assert log.add(Rewound("")) is None
        await log.append(Rewound(""))
        await log.close()
        assert len(log.events) == 2

    asyncio.run(go())
