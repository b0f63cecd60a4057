"""The first process of a session: it starts the worker, reaps what is left behind, passes interrupts on, ends overruns.

In a process namespace it is PID 1, with whose end the kernel ends all others. It runs no code of a user's, and tells
the host over a socket of its own how the worker ended: one JSON object a message.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `zygote.py`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any, NoReturn

RESTING, RUNNING, CLOSE = 1.0, 0.2, 0.03  # seconds between two looks at the memory: idle, at work, near the limit
INTERRUPT = b"i"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Guard:
    """Watches over `worker`, a child of this process and the leader of a process group, until one of them ends.

    memory: bytes that all processes may have together, None where nothing is watched.
    """

    def __init__(self, control: socket.socket, worker: int, memory: int | None) -> None:
        self.control, self.worker, self.memory = control, worker, memory
        self.used, self.over = 0, ""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.woken = reading

    def run(self) -> NoReturn:
        watched = select.poll()
        watched.register(self.control, select.POLLIN)
        watched.register(self.woken, select.POLLIN)
        status = self.reap()
        while status is None:
            ready = [fd for fd, _ in watched.poll(None if self.memory is None else self.pause() * 1000)]
            if self.control.fileno() in ready and not self.obey():
                leave()
            if self.woken in ready:
                os.read(self.woken, 4096)
            if self.memory is not None:
                self.look()
            status = self.reap()
        self.tell(status=status, over=self.over)
        leave()

    def obey(self) -> bool:
        try:
            order = self.control.recv(16)
        except OSError:
            return False
        if order == INTERRUPT:
            kill(-self.worker, signal.SIGINT)
        return bool(order)

    def reap(self) -> int | None:
        """How the worker ended, if it has; everything else that has ended is let go of."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == self.worker:
                return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if pid == 0:
                return None

    def pause(self) -> float:
        limit = self.memory or 0
        return CLOSE if self.used > limit // 2 else RUNNING if self.used > limit // 8 else RESTING

    def look(self) -> None:
        """End what takes most, where all together take more than they may; a forked copy of the worker first."""
        sizes = sorted(((spare(pid), held(pid), pid) for pid in processes()), reverse=True)
        self.used = sum(size for _, size, _ in sizes)
        if self.memory is not None and self.used > self.memory and sizes:
            spared, _, pid = sizes[0]
            if not spared:
                pid = max(sizes, key=lambda entry: entry[1])[2]
            if pid == self.worker:
                self.over = "memory"
            kill(pid, signal.SIGKILL)
            self.used = 0

    def tell(self, **what: Any) -> None:
        tell(self.control, **what)


def tell(control: socket.socket, **what: Any) -> None:
    try:
        control.send(json.dumps(what).encode("ascii"))
    except OSError:
        pass  # nobody listens any more


def processes() -> list[int]:
    """All processes but this one, where it is the first of its namespace; else its own process group."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    own, first = os.getpid(), os.getpid() == 1
    return [pid for pid in found if pid != own and (first or group(pid) == os.getpgrp())]


def group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def held(pid: int) -> int:
    """Bytes of memory that a process has for itself, about: what is not backed by files, and what is shared memory."""
    try:
        with open("/proc/" + str(pid) + "/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
        with open("/proc/" + str(pid) + "/status", "rb") as file:
            memory = next((int(line.split()[1]) for line in file if line.startswith(b"RssShmem:")), 0)
    except (OSError, ValueError):
        return 0
    return (resident - shared) * PAGE + memory * 1024


def spare(pid: int) -> bool:
    """Whether a process has offered itself to be ended first."""
    try:
        with open("/proc/" + str(pid) + "/oom_score_adj", "rb") as file:
            return int(file.read()) >= 1000
    except (OSError, ValueError):
        return False


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has ended


def leave() -> NoReturn:
    """End, and everything of the session with it."""
    if os.getpid() != 1:
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def fail(control: socket.socket) -> NoReturn:
    """Tell the host that the session could not be set up, and why."""
    kind, error, _ = sys.exc_info()
    tell(control, failed=f"{kind.__name__ if kind else ''}: {error}"[:2000])
    time.sleep(0)
    leave()
