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

RESTING, RUNNING, CLOSE = 0.5, 0.1, 0.02  # seconds between two looks: idle, at work, near a limit
FOLDER_SECONDS = 1.0  # between two looks at the files of a session, where no file system of its own limits them
INTERRUPT = b"i"
LARGE_MAP = 1 << 20  # bytes of shared memory that are worth counting, all of them: what was written may be in no map
SPARE = 1000  # the oom_score_adj of a process that has offered itself to be ended first
BUFFER = 16 * 1024  # bytes of an order, and of what is read of a file in /proc


class Guard:
    """Watches over `worker`, a child of this process, until one of them ends.

    memory: bytes that all processes may have together, of which each socket counts `of_a_socket`. processes: how many
    there may be, threads included, where the kernel does not count them. disk: bytes that `folder` may hold, where no
    file system of its own limits it.
    """

    def __init__(
        self,
        control: socket.socket,
        worker: int,
        memory: int,
        of_a_socket: int,
        processes: int | None = None,
        disk: int | None = None,
        folder: str = "",
    ) -> None:
        self.control, self.worker, self.memory = control, worker, memory
        self.of_a_socket = of_a_socket
        self.processes, self.disk, self.folder = processes, disk, folder
        self.used, self.unseen, self.ticks, self.count, self.at_work, self.over = 0, 0, 0, 0, True, ""
        self.walked, self.written = 0.0, True  # when the folder was last looked at, and whether it can have grown since
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.woken = reading

    def run(self) -> NoReturn:
        watched = select.poll()
        watched.register(self.control, select.POLLIN)
        watched.register(self.woken, select.POLLIN)
        status, due = self.reap(), time.monotonic() + RUNNING  # until then it has hardly begun
        while status is None:
            ready = [fd for fd, _ in watched.poll(max(0.0, due - time.monotonic()) * 1000)]
            if self.control.fileno() in ready and not self.obey():
                leave()
            if self.woken in ready:
                os.read(self.woken, BUFFER)
            if time.monotonic() >= due:
                began = time.monotonic()
                self.look()
                now = time.monotonic()
                due = now + max(self.pause(), now - began)
            status = self.reap()
        tell(self.control, status=status, over=self.over)
        leave()

    def obey(self) -> bool:
        try:
            order = self.control.recv(BUFFER)
        except OSError:
            return False
        if order == INTERRUPT:
            kill(-self.worker if os.getpid() == 1 else -os.getpgrp(), signal.SIGINT)  # which this process ignores
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
        return CLOSE if self.used > self.memory // 2 else RUNNING if self.at_work else RESTING

    def look(self) -> None:
        """End what takes most, until all together take no more than they may."""
        members = [Measured(pid) for pid in self.members()]
        ticks = sum(member.ticks for member in members)
        self.at_work, self.ticks = ticks != self.ticks or len(members) != self.count, ticks
        self.count = len(members)
        if self.at_work:
            self.unseen = unseen(members, self.of_a_socket)
        self.used = sum(member.held for member in members) + self.unseen
        if self.used > self.memory:  # or so it seems: what forks still share counts for each of them there
            for member in members:
                member.held = share(member.pid, member.held)
            self.used = sum(member.held for member in members) + self.unseen
        excess = self.used - self.memory
        # A copy of the worker that saves its state goes first; but what is in nobody's memory ends with the session.
        for member in sorted(members, key=lambda one: (one.is_spare, one.held), reverse=True):
            if excess <= 0 or self.unseen > self.memory:
                break
            self.end(member.pid, "memory")
            excess -= member.held
        if excess > 0:
            self.end(self.worker, "memory")
        if self.processes is not None and sum(member.threads for member in members) > self.processes:
            self.end(self.worker, "processes")
        self.written = self.written or self.at_work
        if self.disk is not None and self.written and time.monotonic() - self.walked > FOLDER_SECONDS:
            if bytes_below(self.folder) > self.disk:
                self.end(self.worker, "disk")
            self.walked, self.written = time.monotonic(), False

    def members(self) -> list[int]:
        """All processes but this one: of its namespace, where it is the first; else of its process group."""
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        own, first, group = os.getpid(), os.getpid() == 1, os.getpgrp()
        return [pid for pid in found if pid != own and (first or group_of(pid) == group)]

    def end(self, pid: int, over: str) -> None:
        if pid == self.worker:
            self.over = self.over or over
        kill(pid, signal.SIGKILL)


def tell(control: socket.socket, **what: Any) -> None:
    try:
        control.send(json.dumps(what).encode("ascii"))
    except OSError:
        pass  # nobody listens any more


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


class Measured:
    """A process: bytes that it holds, files aside; its threads, and the clock ticks that it has worked."""

    def __init__(self, pid: int) -> None:
        self.pid, self.held, self.threads, self.ticks, self.is_spare = pid, 0, 0, 0, False
        place = "/proc/" + str(pid)
        try:
            for line in read(place + "/status").splitlines():
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    self.held += int(line.split()[1]) * 1024
                elif line.startswith(b"Threads:"):
                    self.threads = int(line.split()[1])
            fields = read(place + "/stat").rpartition(b")")[2].split()
            self.ticks = int(fields[11]) + int(fields[12])
            self.is_spare = int(read(place + "/oom_score_adj")) >= SPARE
        except (OSError, ValueError, IndexError):
            pass  # it has just ended


def share(pid: int, otherwise: int) -> int:
    """Bytes that a process holds, files aside, of those that several hold its share. Takes milliseconds a gigabyte."""
    try:
        lines = read("/proc/" + str(pid) + "/smaps_rollup").splitlines()
        parts = [int(line.split()[1]) for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:"))]
    except (OSError, ValueError):
        parts = []
    return sum(parts) * 1024 if parts else otherwise  # before Linux 5.4, and of one that has just ended


def unseen(members: list[Measured], of_a_socket: int) -> int:
    """Bytes that processes may hold and that are in no process's memory: of shared maps, and what sockets buffer.

    of_a_socket: bytes that one of them may.
    """
    maps: dict[bytes, int] = {}
    sockets: set[str] = set()
    for member in members:
        place = "/proc/" + str(member.pid)
        try:
            for line in read_all(place + "/maps").splitlines():
                if line.endswith(b"/dev/zero (deleted)"):
                    ends, _, _, _, inode, *_ = line.split()
                    start, end = ends.split(b"-")
                    maps[inode] = max(maps.get(inode, 0), int(end, 16) - int(start, 16))
            links = [os.readlink(place + "/fd/" + name) for name in os.listdir(place + "/fd")]
            sockets.update(link for link in links if link.startswith("socket:"))
        except OSError:
            pass  # it has just ended
    return sum(size for size in maps.values() if size > LARGE_MAP) + len(sockets) * of_a_socket


def read_all(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, BUFFER)
    finally:
        os.close(descriptor)


def bytes_below(folder: str) -> int:
    """Bytes on disk of all files below a folder."""
    total = 0
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_below(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        pass  # gone meanwhile
    return total


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has ended


def leave() -> NoReturn:
    """End, and everything of the session with it."""
    if os.getpid() != 1:
        while left := read("/proc/self/task/" + str(os.getpid()) + "/children").split():
            for pid in left:  # what has left the group has come to this process, once its parent had ended
                kill(int(pid), signal.SIGKILL)
                os.waitpid(int(pid), 0)
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def fail(control: socket.socket) -> NoReturn:
    """Tell the host that the session could not be set up, and why."""
    kind, error, _ = sys.exc_info()
    tell(control, failed=f"{kind.__name__ if kind else ''}: {error}"[:2000])
    leave()
