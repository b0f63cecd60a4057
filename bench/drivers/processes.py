"""What Linux counts for processes: who is whose child, time on a core, switches, memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spent:
    """What a thread has used: seconds on a core, seconds of waiting for one, and how often it went to sleep."""

    running: float = 0.0
    queued: float = 0.0
    switches: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.running + other.running, self.queued + other.queued, self.switches + other.switches)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.running - other.running, self.queued - other.queued, self.switches - other.switches)


def of_thread(pid: int, thread: int) -> Spent:
    task = Path(f"/proc/{pid}/task/{thread}")
    running, queued, _ = map(int, (task / "schedstat").read_text().split())
    switches = _fields(task / "status")["voluntary_ctxt_switches"]
    return Spent(running / 1e9, queued / 1e9, int(switches.split()[0]))


def of_process(pid: int) -> Spent:
    """All threads that live."""
    return sum((of_thread(pid, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()), Spent())


def of_processes(pids: Iterable[int]) -> dict[int, Spent]:
    """Of each that lives."""
    found = {}
    for pid in pids:
        try:
            found[pid] = of_process(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def on_all_cores() -> float:
    """Seconds that the processors of this machine have worked since its start, for whomever."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> Iterator[int]:
    """Children and theirs, as they are now."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        parents.setdefault(parent, []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            yield child


def private_memory(pid: int) -> int:
    """Bytes of anonymous memory of a process; what several share counts in parts. 0 once it is gone, and where
    only root may look, at the guard of a sandbox."""
    try:
        return int(_fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss_Anon"].split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError, KeyError):
        return 0


def memory(pid: int) -> int:
    """Bytes of all memory of a process, files included; what several share counts in parts."""
    return int(_fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"].split()[0]) * 1024


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def shared_memory() -> int:
    """Bytes of shared memory of the whole system: pages of a memfd that nobody maps are in no process."""
    return int(_fields(Path("/proc/meminfo"))["Shmem"].split()[0]) * 1024


def _fields(path: Path) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in path.read_text().splitlines())}
