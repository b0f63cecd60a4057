"""What this machine offers, level by level: each is tried by setting a session up, as the first use of it would."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rlm.environments.sandbox import cgroups
from rlm.environments.sandbox.sandbox import LEVELS, Settings, landlock_abi, why_not


@dataclass(frozen=True, slots=True)
class Level:
    """A level of isolation. why_not: what stands in its way here; "" where it works."""

    name: str
    works: bool
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """isolation: what "auto" takes here, None where it refuses. landlock: its version, 0 where there is none.

    counts_memory: whether the kernel counts the memory of a session. others: further installed distributions that
    bring a package named `rlm`, one of which hides the other.
    """

    python: str
    system: str
    user: str
    levels: Sequence[Level]
    landlock: int
    counts_memory: bool
    others: Sequence[str]

    @property
    def isolation(self) -> str | None:
        return next((level.name for level in self.levels if level.works and level.name != "none"), None)


def survey(python: str = sys.executable) -> Machine:
    """Try everything. Blocks for some 100 ms a level, and leaves nothing behind."""
    return Machine(
        python=f"{platform.python_version()} ({python})",
        system=f"{platform.system()} {platform.release()} ({platform.machine()})",
        user="root" if os.geteuid() == 0 else f"an ordinary user ({os.geteuid()})",
        levels=[_tried(level, python) for level in LEVELS],
        landlock=landlock_abi() if sys.platform == "linux" else 0,
        counts_memory=sys.platform == "linux" and cgroups.home() is not None,
        others=namesakes(),
    )


def _tried(level: str, python: str) -> Level:
    if level == "none":
        return Level(level, True)
    reason = why_not(Settings(isolation=level, python=python))
    return Level(level, reason is None, reason or "")


def namesakes(name: str = "rlm") -> Sequence[str]:
    """Distributions, beside ours, that bring a package of our name: which of them `import rlm` finds is chance."""
    found = importlib.metadata.packages_distributions().get(name, [])
    ours = {"rlm-sessions"}
    return sorted(set(found) - ours)
