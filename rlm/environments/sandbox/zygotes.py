"""The host's end of zygotes: one for each way in which sessions are set up, started when the first of them is needed.

A zygote forks sessions in milliseconds. It belongs to this process and ends with it; a forked child has none of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlm.errors import SandboxError

PROGRAM = Path(__file__).with_name("zygote.py")
START_SECONDS = 30.0  # a zygote that is not ready by then has failed
UNUSED_SECONDS = 30.0  # after which a zygote without sessions is ended, when another one is started
WORDLESS = "it ended without a word"  # as what is killed does


class Killed(SandboxError):
    """A zygote ended before it was ready, and did not say why."""


class Session:
    """The host's ends of the sockets of one session, which may stand ready before anybody needs it."""

    def __init__(self, spawn: Callable[[Mapping[str, Any], list[int]], None], folder: Path | None) -> None:
        channel, files, control = (
            socket.socketpair(socket.AF_UNIX, kind)
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_SEQPACKET)
        )
        self.channel, self.files, self.control = channel[0], files[0], control[0]
        theirs = [channel[1], files[1], control[1]]
        try:
            spawn({"folder": folder and str(folder)}, [end.fileno() for end in theirs])
        except BaseException:
            self.close()
            raise
        finally:
            for end in theirs:
                end.close()
        for own in (self.channel, self.files, self.control):
            own.setblocking(False)

    @property
    def is_over(self) -> bool:
        """Whether its guard has gone."""
        watched = select.poll()
        watched.register(self.control, 0)
        return any(event & select.POLLHUP for _, event in watched.poll(0))

    def close(self) -> None:
        for end in (self.channel, self.files, self.control):
            end.close()


class Process(subprocess.Popen[bytes]):
    """One that nobody has to wait for when the interpreter ends: it ends with its socket."""

    def __del__(self, *args: Any) -> None:
        pass


class Zygote:
    """A running zygote. sessions: how many of its sessions are in use."""

    def __init__(self, python: str, config: Mapping[str, Any]) -> None:
        self.sessions, self.unused_since = 0, time.monotonic()
        self.has_gone = False  # known before its process has ended, of which the kernel takes its time to clear up
        self.lock = threading.Lock()
        self.spares: list[Session] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        folder = tempfile.mkdtemp(prefix="rlm-root-")
        try:
            with theirs:
                self.process = Process(
                    [python, "-s", "-S", "-u", str(PROGRAM)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={"PYTHONHASHSEED": "0"},
                    start_new_session=True,
                )
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.settimeout(START_SECONDS)
            ours.send(json.dumps({**config, "root": folder}).encode())
            said = ours.recv(1 << 16)
            failed = json.loads(said).get("failed") if said else WORDLESS
        except ConnectionError:
            failed = WORDLESS
        except (OSError, ValueError) as error:
            failed = str(error)
        finally:
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if failed:
            self.close()
            raise Killed(failed) if failed == WORDLESS else SandboxError(failed)
        ours.setblocking(False)

    def session(self, folder: Path | None = None) -> Session:
        """A new session. folder: its own, where it has no file system of its own. Raises `OSError` without a zygote."""
        while folder is None:
            with self.lock:
                if not self.spares:
                    break
                spare = self.spares.pop()
            if not spare.is_over:
                return spare
            spare.close()
        return Session(self._spawn, folder)

    def keep_spare(self, count: int) -> None:
        """Have sessions stand ready for those who ask next."""
        with contextlib.suppress(OSError):
            while len(self.spares) < count and self.is_alive:
                made = Session(self._spawn, None)
                with self.lock:
                    self.spares.append(made)

    def _spawn(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        """Have a session forked that holds these descriptors."""
        data = json.dumps(message).encode()
        with self.lock:
            self._control.setblocking(True)
            try:
                socket.send_fds(self._control, [data], descriptors)
            except ConnectionError:
                self.has_gone = True
                raise

    @property
    def is_alive(self) -> bool:
        return not self.has_gone and self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Until it has ended, should it be about to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def release(self) -> None:
        """One session fewer is in use."""
        self.sessions -= 1
        self.unused_since = time.monotonic()

    def close(self) -> None:
        """End it, and all of its sessions."""
        self._control.close()
        for spare in self.spares:
            spare.close()
        process: Process | None = getattr(self, "process", None)
        if process is not None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def disown(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._control.close()
        for spare in self.spares:
            spare.close()
        self.process.returncode = 0  # not this process's child, and not its to wait for


_lock = threading.Lock()
_starting: dict[str, threading.Lock] = {}
_zygotes: dict[str, Zygote] = {}


def zygote(python: str, config: Mapping[str, Any]) -> Zygote:
    """The running zygote for these settings; blocks for some 100 ms where there is none. Raises `SandboxError`."""
    key = json.dumps([python, config], sort_keys=True)
    with _lock:
        starting = _starting.setdefault(key, threading.Lock())
    with starting:
        with _lock:
            found = _zygotes.get(key)
            if found is not None and found.is_alive:
                return found
        if found is not None:
            found.close()  # of one that has ended the sockets are left
        try:
            made = Zygote(python, config)
        except Killed:  # by somebody, perhaps, who does not do so again
            made = Zygote(python, config)
        with _lock:
            _zygotes[key] = made
            unused = [
                other
                for other, running in _zygotes.items()
                if other != key and not running.sessions and time.monotonic() - running.unused_since > UNUSED_SECONDS
            ]
            ended = [_zygotes.pop(other) for other in unused]
        for other in ended:
            other.close()
        return made


def _after_fork() -> None:
    global _lock
    for running in _zygotes.values():
        running.disown()
    _zygotes.clear()
    _starting.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
