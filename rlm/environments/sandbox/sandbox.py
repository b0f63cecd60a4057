"""How the sessions of one environment are set up, and at which level of isolation: by trying, never by guessing."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import platform
import resource
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlm.environments.process import CLOUDPICKLE, WORKER_FOLDER, ProcessTransport, worker_environment
from rlm.environments.sandbox import plan, syscalls
from rlm.environments.sandbox.filter import program
from rlm.environments.sandbox.transport import SandboxTransport
from rlm.environments.sandbox.zygotes import WORDLESS, Zygote, zygote
from rlm.errors import ConfigurationError, SandboxError
from rlm.portal import in_thread
from rlm.ports import Transport

LEVELS = ("namespace", "landlock", "none")
WORK = Path("/tmp/work")  # as in root.py
OLDEST_LANDLOCK = 3  # the version from which on it mediates the truncation of files (Linux 6.2)
SCOPED_LANDLOCK = 6  # the version from which on it mediates signals and abstract Unix sockets (Linux 6.12)
SPARE = 2  # sessions that stand ready before anybody asks for them
REFILL_SECONDS = 0.05  # after which they are made: not while whoever took the last one waits for its first result
MEBIBYTE = 1 << 20
FIRST_USER, USERS = 1 << 30, 1 << 30  # as whom nothing else runs on any machine that we know of
FEWEST_USERS = 1 << 15  # that a range must have for us to take its upper half
IN_ONE_MESSAGE = 253  # SCM_MAX_FD: by so many descriptors a limit can be overrun
LEAST_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Resources:
    """What one session may use. memory: bytes of all its processes together (None: half of the machine's); disk: bytes
    of its files; files: how many; file_size: bytes of one; processes, threads included; open_files of one process.
    """

    memory: int | None = None
    disk: int = 1024 * MEBIBYTE
    files: int = 100_000
    file_size: int = 8 * 1024 * MEBIBYTE
    processes: int = 256
    open_files: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("memory", 64 * MEBIBYTE), ("disk", MEBIBYTE), ("files", 16), ("file_size", MEBIBYTE)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name}={value!r}: give at least {least:,}")
        for name, least in (("processes", 8), ("open_files", 32)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: give at least {least}")

    @property
    def bytes_of_memory(self) -> int:
        return self.memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


DEFAULTS = Resources()


@dataclass(frozen=True, slots=True)
class Settings:
    """As `LocalREPL` takes them. extra_paths: path -> "ro" or "rw"."""

    isolation: str = "auto"
    python: str = sys.executable
    packages: bool | Sequence[str] = True
    extra_paths: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.isolation not in ("auto", *LEVELS):
            raise ConfigurationError(f"isolation={self.isolation!r}: choose auto, {', '.join(LEVELS)}")
        for path, how in self.extra_paths.items():
            if how not in ("ro", "rw") or not Path(path).is_absolute():
                raise ConfigurationError(f"extra_paths: {path!r}: {how!r}: give absolute paths, and 'ro' or 'rw'")


_tried: dict[str, tuple[str, Zygote]] = {}  # by what sessions are set up as: the level that worked, and its zygote


class Sandbox:
    """Makes workers for `settings`. Nothing is tried before the first one, or before somebody asks for the level."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._key = repr((settings, worker_environment(WORK)))
        self._level: str | None = None
        self._zygote: Zygote | None = None
        self._lock = threading.Lock()

    @property
    def level(self) -> str:
        """The level in force. Blocks while it is tried out. Raises `SandboxError` where there is none."""
        with self._lock:
            if self._level is None:
                self._level = self._choose()
            return self._level

    async def connect(self, folder: Path) -> Transport:
        """The transport to a new worker. Raises `SandboxError`."""
        level = self._level or self._known() or await in_thread(lambda: self.level)
        settings = self.settings
        if level == "none" and not has_zygotes():
            return ProcessTransport(folder, python=settings.python, env=settings.env)
        for attempt in (0, 1):
            running = self._zygote
            if running is None or not running.is_alive:
                running = await in_thread(self._start)
            try:
                session = running.session(None if level == "namespace" else folder)
            except OSError as error:
                if attempt:
                    raise SandboxError(f"no session can be started: {error}") from error
                continue
            running.sessions += 1
            if level == "namespace":
                asyncio.get_running_loop().call_later(REFILL_SECONDS, running.keep_spare, SPARE)
            memory = settings.resources.bytes_of_memory + (settings.resources.disk if level == "namespace" else 0)
            return SandboxTransport(session, running.release, self._limits, memory)
        raise AssertionError("the last attempt returns or raises")

    @property
    def _limits(self) -> Mapping[str, str]:
        resources = self.settings.resources
        return {
            "memory": f"its processes held more than {resources.bytes_of_memory // MEBIBYTE:,} MiB of memory",
            "processes": f"it had more than {resources.processes} processes",
            "disk": f"its files took more than {resources.disk // MEBIBYTE:,} MiB",
        }

    def _start(self) -> Zygote:
        with self._lock:
            assert self._level is not None
            self._zygote = zygote(self.settings.python, config(self.settings, self._level))
            return self._zygote

    def _known(self) -> str | None:
        """The level that was tried out for other sessions that are set up alike, as long as their zygote lives."""
        level, running = _tried.get(self._key, ("", None))
        if running is None or not running.is_alive:
            return None
        self._level, self._zygote = level, running
        return level

    def _choose(self) -> str:
        wanted = self.settings.isolation
        if wanted == "none":
            return "none"
        if known := self._known():
            return known
        reasons = []
        for level in ("namespace", "landlock") if wanted == "auto" else (wanted,):
            tried = unsupported(level) or tried_out(self.settings, level)
            if isinstance(tried, Zygote):
                self._zygote = tried
                _tried[self._key] = level, tried
                return level
            reasons.append(f"{level}: {tried}")
        raise SandboxError(
            "this machine cannot keep code away from itself "
            f"({'; '.join(reasons)}). Run it in a container, or say isolation='none' to let cells do what you can do"
        )


def tried_out(settings: Settings, level: str) -> Zygote | str:
    """The zygote for this level, once a session was set up at it; or why it cannot be had here."""
    try:
        running = zygote(settings.python, config(settings, level))
        refused = probe(running, level)
        if refused == WORDLESS or (refused and not running.is_alive):  # what is killed says nothing about the level
            running.wait(0.1)
            running = zygote(settings.python, config(settings, level))
            refused = probe(running, level)
    except SandboxError as error:
        return str(error)
    return refused or running


def why_not(settings: Settings) -> str | None:
    """Why the level that is named there cannot be had on this machine; None where it can."""
    tried = unsupported(settings.isolation) or tried_out(settings, settings.isolation)
    return tried if isinstance(tried, str) else None


def has_zygotes() -> bool:
    """Whether sessions are forked here at all; elsewhere, at the level `none`, each is a process of its own."""
    return sys.platform == "linux"


def unsupported(level: str) -> str | None:
    """Why a level cannot be had on this kind of machine, whatever is tried."""
    if sys.platform != "linux":
        return "it needs Linux"
    if platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        return f"there is a list of system calls for x86_64 only, and this is {platform.machine()}"
    if level == "landlock" and (abi := landlock_abi()) < OLDEST_LANDLOCK:
        return (
            f"Landlock has version {abi} here, and needs {OLDEST_LANDLOCK} (Linux 6.2)" if abi else "no Landlock here"
        )
    return None


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none, or where it is switched off."""
    try:
        return max(0, int(ctypes.CDLL(None).syscall(444, None, 0, 1)))
    except (OSError, AttributeError):
        return 0


def probe(running: Zygote, level: str) -> str | None:
    """Set a session up and end it; None if that worked, else what did not."""
    with tempfile.TemporaryDirectory(prefix="rlm-probe-") as folder:
        (work := Path(folder, "work")).mkdir()
        try:
            session = running.session(work if level == "landlock" else None)
        except ConnectionError:
            return WORDLESS
        except OSError as error:
            return f"no session can be started: {error}"
        try:
            session.channel.settimeout(30)
            said = session.channel.recv(1 << 16)
            if said:
                return None
            session.control.settimeout(5)
            while message := session.control.recv(1 << 14):
                if failed := json.loads(message).get("failed"):
                    return str(failed)
            return WORDLESS
        except ConnectionError:
            return WORDLESS
        except (OSError, ValueError) as error:
            return f"its worker did not start: {error}"
        finally:
            session.close()


def config(settings: Settings, level: str) -> Mapping[str, Any]:
    """What a zygote is told: see `zygote.py`."""
    resources = settings.resources
    python = plan.interpreter(settings.python)
    planned = plan.plan(python, settings.packages, settings.extra_paths, settings.network)
    users = None if level == "none" or os.geteuid() != 0 else free_users()
    abi = landlock_abi()
    kill = level == "namespace" or users is not None or abi >= SCOPED_LANDLOCK
    return {
        "level": level,
        "mounts": planned.mounts,
        "links": planned.links,
        "files": planned.files,
        "path": planned.path,
        "packages": settings.packages is not False,
        "readable": [*planned.readable, "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"],
        "writable": [*planned.writable, "/dev/null"],
        "network": settings.network,
        "users": users,
        "abi": abi,
        "scoped": abi >= SCOPED_LANDLOCK,
        "filter": ""
        if level == "none"
        else base64.b64encode(
            program(syscalls.allowed(level, kill=kill), syscalls.rules(level, network=settings.network))
        ).decode(),
        "worker": str(WORKER_FOLDER),
        "cloudpickle": str(CLOUDPICKLE),
        "environment": environment(settings, python.executable),
        "limits": {
            "data": resources.bytes_of_memory,
            "memory": resources.bytes_of_memory,
            "socket": bytes_of_a_socket(),
            # Without a user of its own all processes of the user would count; its guard counts them instead.
            "nproc": resources.processes if level == "namespace" or users is not None else None,
            "processes": resources.processes,
            "nofile": min(resources.open_files, most_open_files()),
            "fsize": resources.file_size,
            "disk": resources.disk,
            "files": resources.files,
        },
    }


def environment(settings: Settings, python: str) -> dict[str, str]:
    own = worker_environment(WORK, settings.env)
    own["TMPDIR"] = settings.env.get("TMPDIR", "/tmp")
    own["PATH"] = settings.env.get("PATH", f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin")
    return own


def free_users() -> tuple[int, int] | None:
    """The users from which those of sessions are drawn: the first, and how many. None where we may not choose.

    They are far from those of people and programs. In a user namespace there may be few, or none.
    """
    try:
        lines = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    for first, _, count in sorted(lines, key=lambda line: -line[2]):
        if first + count >= FIRST_USER + USERS:
            return FIRST_USER, USERS
        if count >= FEWEST_USERS:
            return first + count // 2, count // 2
    return None


def bytes_of_a_socket() -> int:
    """What the kernel lets a socket buffer, as long as nobody asks for more."""
    try:
        return int(Path("/proc/sys/net/core/wmem_default").read_text())
    except (OSError, ValueError):
        return 212_992  # what it is nearly everywhere


def most_open_files() -> int:
    """Descriptors on their way through sockets count for a user as a whole. What a session can have on its way must
    leave this process, which runs as the same user, room to hand over its own."""
    if os.geteuid() == 0:
        return 1 << 20
    return max(LEAST_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - IN_ONE_MESSAGE - LEAST_OPEN_FILES)
