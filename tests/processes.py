"""Processes of this machine, as tests see them from outside; among them the workers of sessions, wherever these are.

In a sandbox a cell knows its process by another number than the machine does. So it is told to call itself something
that nobody else is called, which shows from outside.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 30.0


class Runs(Protocol):
    def execute_code(self, code: str) -> Any: ...


def token() -> str:
    """A name for a process: at most 15 characters."""
    return uuid.uuid4().hex[:15]


def naming(name: str) -> str:
    """An expression for a cell, which gives its process this name, and whose value is the name."""
    return f"(__import__('ctypes').CDLL(None).prctl(15, {name.encode()!r}), {name!r})[1]"  # PR_SET_NAME


def named(name: str) -> int:
    """The number of the process of this name. Forks inherit the name: it is the parent of those."""
    found = [pid for pid in pids() if name_of(pid) == name]
    (pid,) = (pid for pid in found if parent(pid) not in found)
    return pid


def worker(repl: Runs) -> int:
    """The process in which the cells of a REPL run."""
    name = token()
    repl.execute_code(naming(name))
    return named(name)


def pids() -> list[int]:
    return [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def parent(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


def gone(pid: int) -> bool:
    """Whether no process of this number runs (one that nobody has waited for yet does not)."""
    return (_stat(pid) or "Z")[0] == "Z"


def children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _read(task / "children")]
    except OSError:
        return []


def family(pid: int) -> list[int]:
    """All that this process has started, and what those have started."""
    return [one for child in children(pid) for one in (child, *family(child))]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def _stat(pid: int) -> list[str] | None:
    """State, parent and what follows, of proc(5); None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _read(place: Path) -> list[str]:
    try:
        return place.read_text().split()
    except OSError:
        return []
