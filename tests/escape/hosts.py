"""Who runs the payloads: root, an ordinary user, and either of them in a container that can make no namespaces."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.escape.canaries import VARIABLE

ROOT = Path(__file__).parents[2]
CONTAINED = Path(__file__).with_name("contained.py")
SYSTEM_PYTHONS = ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11")
STRANGER = 54_321  # the first of users whom nobody has
SECONDS = 240.0


@dataclass(frozen=True)
class Host:
    """user: who runs the host. isolation: what it asks for; level: what it must get. contained: no namespaces.

    system: with a Python that everybody may read, where the other one may lie below a folder of root's.
    """

    user: str
    isolation: str
    level: str
    contained: bool = False
    system: bool = False

    @property
    def name(self) -> str:
        place = " in a container" if self.contained else ""
        return f"{self.user}{place}, {self.level}{', system Python' if self.system else ''}"

    @property
    def cannot(self) -> str | None:
        """Why it cannot be had here."""
        if os.geteuid() != 0:
            return None if self.user == "user" and not self.system else "it takes root"
        if (self.system or self.user == "user") and python_for_all() is None:
            return f"none of {', '.join(SYSTEM_PYTHONS)} is there"
        return None

    def command(self, module: str, *arguments: str) -> tuple[Sequence[str], dict[str, Any]]:
        """A command and the keywords of `subprocess` that run a module of the tests' as this host."""
        other = os.geteuid() == 0 and (self.system or self.user == "user")
        python = python_for_all() if other else sys.executable
        path = copy_for_all() if other else ROOT
        wrapped = [python, str(path / "tests/escape/contained.py")] if self.contained else []
        keywords: dict[str, Any] = {
            "env": {"PYTHONPATH": str(path), "PATH": os.defpath, VARIABLE: f"canary{secrets.token_hex(12)}"},
            "cwd": "/",
        }
        if other and self.user == "user":
            own = STRANGER + SANDBOXED.index(self) if self in SANDBOXED else STRANGER - 1  # hosts may run side by side
            keywords |= {"user": own, "group": own, "extra_groups": []}
        return [*map(str, wrapped), str(python), "-m", module, *arguments], keywords

    def run(self, *names: str) -> dict[str, Any]:
        """The report of `tests.escape.run`, of all payloads or those named."""
        command, keywords = self.command("tests.escape.run", self.isolation, *names)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, **keywords)
        if done.returncode:
            raise AssertionError(f"{self.name}: the host ended with {done.returncode}: {done.stderr[-2000:]}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report


SANDBOXED = (
    Host("root", "namespace", "namespace"),
    Host("root", "landlock", "landlock"),
    Host("root", "landlock", "landlock", system=True),
    Host("root", "auto", "landlock", contained=True, system=True),
    Host("user", "namespace", "namespace"),
    Host("user", "landlock", "landlock"),
    Host("user", "auto", "landlock", contained=True),
)
OPEN = (Host("root", "none", "none"), Host("user", "none", "none"))


def python_for_all() -> str | None:
    return next((python for python in SYSTEM_PYTHONS if Path(python).exists()), None)


@functools.cache
def copy_for_all() -> Path:
    """What a host needs, where every user may read it."""
    folder = Path(tempfile.mkdtemp(prefix="rlm-escape-code-", dir="/var/tmp"))
    spec = importlib.util.find_spec("cloudpickle")
    assert spec is not None
    assert spec.origin is not None
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (
        (ROOT / "rlm", "rlm"), (ROOT / "tests/escape", "tests/escape"), (Path(spec.origin).parent, "cloudpickle"),
    ):  # fmt: skip
        shutil.copytree(source, folder / target, ignore=ignored)
    for entry in (folder, *folder.rglob("*")):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
    return folder


def prepare(chosen: Sequence[Host]) -> None:
    """Make the copy that one of them needs, before several want it at once."""
    if os.geteuid() == 0 and any(host.system or host.user == "user" for host in chosen):
        copy_for_all()


def forget() -> None:
    """Remove the copy."""
    if copy_for_all.cache_info().currsize:
        shutil.rmtree(copy_for_all())
        copy_for_all.cache_clear()
