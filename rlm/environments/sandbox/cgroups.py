"""A control group for the memory of one session, where this process may make any: the kernel then counts every page.

Both versions are spoken. Nothing of this process is changed: it stays in the group it is in. Where no group can be made
(most users, most containers), limits for each process and the session's guard have to do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OVERHEAD = 64 << 20  # bytes of page tables, sockets and pipes, which a group counts, and no user thinks of


@dataclass(frozen=True, slots=True)
class Home:
    """Where groups can be made, and the names of their files."""

    folder: Path
    limit: str
    events: str


@functools.lru_cache(1)
def home() -> Home | None:
    """Where this process can make groups that limit memory; None where it cannot. Tried by making one."""
    try:
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    except (OSError, ValueError):
        return None
    places = []
    for controllers, path in own.items():
        if "memory" in controllers.split(","):
            places.append(Home(ROOT / "memory" / path.strip("/"), "memory.limit_in_bytes", "memory.oom_control"))
        elif controllers == "":
            for mount in (ROOT, ROOT / "unified"):
                folder = mount / path.strip("/")
                for above in (folder.parent, folder):  # a group that holds processes has no groups below it
                    if above.is_relative_to(mount) and "memory" in _read(above / "cgroup.subtree_control").split():
                        places.append(Home(above, "memory.max", "memory.events"))
    found = next((place for place in places if _works(place)), None)
    if found is not None:
        _tidy(found.folder)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _tidy(folder: Path) -> None:
    """Remove the groups of hosts that were killed: the kernel keeps each until then, and has only so many."""
    for left in folder.glob("rlm-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):  # there are processes in it
                left.rmdir()


def _works(place: Home) -> bool:
    try:
        made = MemoryGroup(place, 1 << 30)
    except OSError:
        return False
    made.remove()
    return True


class MemoryGroup:
    """A group whose processes may have `limit` bytes together. Raises `OSError` where it cannot be made."""

    def __init__(self, place: Home, limit: int) -> None:
        self._place, self._folder = place, place.folder / f"rlm-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._folder.mkdir()
        try:
            (self._folder / place.limit).write_text(str(limit))
        except OSError:
            self.remove()
            raise

    def add(self, guard: int) -> None:
        """Put the first process of a session and its children into it; those that they start are in it, too."""
        children = _read(Path(f"/proc/{guard}/task/{guard}/children")).split()
        for pid in (str(guard), *children):
            with contextlib.suppress(ProcessLookupError):
                (self._folder / "cgroup.procs").write_text(pid)

    @property
    def has_killed(self) -> bool:
        """Whether the kernel has ended a process for want of memory."""
        lines = [line.split() for line in _read(self._folder / self._place.events).splitlines()]
        return any(name == "oom_kill" and count != "0" for name, count in lines)

    def remove(self) -> None:
        """Once its processes are gone."""
        with contextlib.suppress(OSError):  # left over where a process does not end, until another host tidies up
            self._folder.rmdir()


def pid_of(descriptor: int) -> int | None:
    """The number, here, of the process that a process descriptor stands for."""
    for line in _read(Path(f"/proc/self/fdinfo/{descriptor}")).splitlines():
        if line.startswith("Pid:"):
            pid = int(line.split()[1])
            return pid if pid > 0 else None
    return None
