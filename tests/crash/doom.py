"""A store that ends its own process at the n-th event: before it hands it on, while it is on its way, or after.

It is a Store around another one, and changes nothing of what that one does. `family` finds the processes that a host
has started, for whoever kills those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rlm.ports import Content, Lease, Store
from rlm.types import Recorded, StoredSession
from tests.processes import children, gone


@dataclass(frozen=True)
class Doom:
    """What happens to a life. on: "append" or "request", at the n-th of which, "before", "during" or "after" it; or
    "time", after so many seconds. whom: "host", "worker", or "both". delay: seconds from there to the kill."""

    on: str
    whom: str = "host"
    n: int = 0
    when: str = "before"
    delay: float = 0.0


DEATHS = {"worker": 16, "guard": 3, "zygote": 1}  # what of a session's processes is killed, and how often


def family(host: int) -> dict[str, list[int]]:
    """The processes of a host by what they are: the zygotes that sessions are forked from, with those that started
    them; the guards of sessions, which are their children; and the workers, which are the children of those."""
    zygotes, guards = [], []
    for child in living(host):
        below = living(child)
        within = [pid for pid in below if depth(pid) > depth(child)]  # in a process namespace: it is its first one
        zygotes += [child, *within]
        guards += [pid for one in within for pid in living(one)] if within else below
    return {"zygote": zygotes, "guard": guards, "worker": [pid for guard in guards for pid in living(guard)]}


def living(pid: int) -> list[int]:
    return [child for child in children(pid) if not gone(child)]


def depth(pid: int) -> int:
    """How many process namespaces know this process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines() if not gone(pid) else []
    return next((len(line.split()) for line in lines if line.startswith("NSpid:")), 0)


def worked(pid: int) -> int:
    """Nanoseconds that a process has been at work."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def strike(host: int, whom: str, rng: Random) -> str:
    """Kill what is to be killed, and say what that was; "" where it is not there. The host may be this process: it does
    not return then. A worker that works is more likely to be hit than one that stands ready."""
    struck = ""
    if whom != "host":
        found = family(host)
        kind = rng.choices(list(DEATHS), list(DEATHS.values()))[0]
        kind = kind if found[kind] else "worker"
        victims = found[kind]
        if whom == "worker" and victims:
            victims = rng.choices(victims, [1 + worked(pid) for pid in victims])
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                struck = kind
    if whom != "worker":
        with contextlib.suppress(ProcessLookupError):
            os.kill(host, signal.SIGKILL)
            struck = "host"
    return struck


class DoomedStore:
    """`store`, with a count of what is appended through it, by all leases. told: is told of what was killed while the
    host goes on."""

    def __init__(self, store: Store, dooms: Sequence[Doom], rng: Random, told: Callable[[str], None]) -> None:
        self.store = store
        self.appended = 0
        self._told = told
        self._dooms = [doom for doom in dooms if doom.on == "append"]
        self._rng = rng

    def pass_by(self, number: int, when: str) -> None:
        """Kill whom it is the time for."""
        for doom in self._dooms:
            if (doom.n, doom.when) == (number, when):
                if when == "during":
                    threading.Thread(target=self._strike, args=(doom,), daemon=True).start()
                else:
                    self._strike(doom)

    def _strike(self, doom: Doom) -> None:
        time.sleep(doom.delay)
        if struck := strike(os.getpid(), doom.whom, self._rng):
            self._told(struck)

    async def lease(self, name: str, *, wait: float | None = 0.0) -> Lease:
        return DoomedLease(self, await self.store.lease(name, wait=wait))

    async def read(self, name: str) -> Sequence[Recorded]:
        return await self.store.read(name)

    async def list(self) -> Sequence[StoredSession]:
        return await self.store.list()

    async def blob(self, digest: str) -> bytes | Path:
        return await self.store.blob(digest)

    async def rename(self, name: str, new: str) -> None:
        await self.store.rename(name, new)

    async def delete(self, name: str) -> None:
        await self.store.delete(name)

    async def collect(self) -> int:
        return await self.store.collect()

    async def check(self) -> Sequence[str]:
        return await self.store.check()

    async def close(self) -> None:
        await self.store.close()


class DoomedLease:
    """A lease of a `DoomedStore`."""

    def __init__(self, store: DoomedStore, lease: Lease) -> None:
        self._store, self._lease = store, lease

    @property
    def id(self) -> str:
        return self._lease.id

    @property
    def name(self) -> str:
        return self._lease.name

    @property
    def folder(self) -> Path | None:
        return self._lease.folder

    async def append(self, records: Sequence[Recorded], blobs: Mapping[str, Content | None] | None = None) -> None:
        self._store.appended += 1
        number = self._store.appended
        self._store.pass_by(number, "before")
        self._store.pass_by(number, "during")
        await self._lease.append(records, blobs)
        self._store.pass_by(number, "after")

    async def hold(self, digests: Sequence[str]) -> None:
        await self._lease.hold(digests)

    async def release(self, *, unused: bool = False) -> None:
        await self._lease.release(unused=unused)
