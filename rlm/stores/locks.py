"""One writer a session: a lock on a file of its own, which the system takes back however its process ends.

The locks are those of `fcntl.lockf`, which belong to the process: a child that a dead owner forked does not keep them.
They do not exclude this process from itself, and closing the file anywhere in it drops them; so a table of the process
says what it holds, and no file of it is opened twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from rlm.errors import SessionBusyError
from rlm.stores.folders import make_folder

_guard = threading.Lock()
_held: dict[tuple[int, int, str], Lock] = {}


class Lock:
    """The lock of one session, from `take` to `drop`."""

    def __init__(self, path: Path, key: tuple[int, int, str], descriptor: int) -> None:
        self._path = path
        self._key = key
        self._descriptor = descriptor
        self.since = time.time()
        said = {"host": socket.gethostname(), "pid": os.getpid(), "since": self.since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(said).encode(), 0)

    @classmethod
    def take(cls, folder: Path, session: str, name: str) -> Lock:
        """The lock of the session with this id, at once. Raises `SessionBusyError` that tells its `name`; `OSError`."""
        with _guard:
            make_folder(folder)
            status = folder.stat()
            key = (status.st_dev, status.st_ino, session)
            if (own := _held.get(key)) is not None:
                raise busy(name, {"host": socket.gethostname(), "pid": os.getpid(), "since": own.since})
            path = folder / session
            while (descriptor := _lock(path, name)) is None:
                continue  # it was removed, with its session, before it was locked
            try:
                lock = _held[key] = cls(path, key, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            return lock

    @property
    def holds(self) -> bool:
        """False where somebody removed the file, so that another process can lock a new one."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False

    def drop(self, *, remove: bool = False) -> None:
        """Let others have it; remove: with its file, where the session is no more. Twice is fine."""
        with _guard:
            if _held.get(self._key) is self:
                del _held[self._key]
                if remove and self.holds:
                    with contextlib.suppress(FileNotFoundError):
                        self._path.unlink()
                os.close(self._descriptor)


def _lock(path: Path, name: str) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, PermissionError):
        said = _said(os.pread(descriptor, 1000, 0))
        os.close(descriptor)
        raise busy(name, said) from None
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _said(data: bytes) -> dict[str, object]:
    """What the owner wrote into the file; nothing where it has not done so yet."""
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def busy(name: str, said: dict[str, object]) -> SessionBusyError:
    """The error that tells who has a session. said: host, pid, since; or nothing."""
    host, pid, since = said.get("host"), said.get("pid"), said.get("since")
    mend = "wait for it (wait=), or end it"
    if not (isinstance(host, str) and isinstance(pid, int) and isinstance(since, float) and 0 <= since < 1e11):
        return SessionBusyError(f"session {name!r} is in use by another process: {mend}")
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    message = f"session {name!r} is in use by process {pid} on {host} since {began}: {mend}"
    return SessionBusyError(message, host=host, pid=pid, since=since)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
