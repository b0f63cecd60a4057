"""What a payload must not reach: files, a process, listeners and secrets of the host's, made anew for each run.

Everything here is open to every user of the machine, so that nothing but the sandbox stands between.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

WHEN = 1_000_000_000  # the canary's times
SETTLED = 0.003  # seconds in which a signal or a datagram has arrived
VARIABLE = "RLM_ESCAPE_SECRET"  # of the host's environment


class Canaries:
    """touched(): what has happened to them since the last call. secrets: text that must not come back."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rlm-escape-", dir="/var/tmp"))
        self.folder.chmod(0o777)
        self.in_file, self.in_name, self.in_victim = (f"canary{secrets.token_hex(12)}" for _ in range(3))
        self.secrets = {
            "the file": self.in_file,
            "the folder": self.in_name,
            "the other process": self.in_victim,
            "the host's environment": os.environ[VARIABLE],
        }
        self.secret, self.writable, self.meta = (self.folder / name for name in ("secret", "writable", "meta"))
        self.marker = self.folder / "marker"
        self.secret.write_text(self.in_file)
        (self.folder / self.in_name).touch()
        self.lay()
        self.inherited = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.temporary = Path(tempfile.gettempdir()) / self.in_name
        self.temporary.touch()
        self.victim = self.start_victim()
        self.sockets: dict[str, socket.socket] = {}
        self.where: dict[str, Any] = {}
        self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in self.sockets.values():
            listener.close()
        os.close(self.inherited)
        self.temporary.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def lay(self) -> None:
        """The files as they are to be, and nothing else beside them."""
        known = {self.secret, self.folder / self.in_name}
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry not in known and not entry.is_socket():
                entry.unlink()
        for file in (self.writable, self.meta):
            file.write_text("as it was")
            file.chmod(0o666 if file is self.writable else 0o640)
            os.utime(file, (WHEN, WHEN))
        self.secret.chmod(0o644)
        self.expected = self.state()

    def state(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for entry in self.folder.iterdir():
            told = entry.lstat()
            if entry.is_socket():
                continue
            text = entry.read_bytes() if entry.is_file() and not entry.is_symlink() else b""
            named = "secret" if entry.name == self.in_name else entry.name
            attributes = tuple(os.listxattr(entry, follow_symlinks=False))
            found[named] = (text, oct(told.st_mode), told.st_uid, told.st_gid, told.st_mtime, told.st_nlink, attributes)
        return found

    def start_victim(self) -> subprocess.Popen[bytes]:
        victim = subprocess.Popen(["/bin/sleep", "600"], env={"SECRET": self.in_victim}, start_new_session=True)
        while Path(f"/proc/{victim.pid}/comm").read_text() != "sleep\n":
            pass
        self.victim = victim
        self.well = self.health()
        return victim

    def health(self) -> dict[str, object]:
        pid = self.victim.pid
        if (status := self.victim.poll()) is not None:
            return {"ended": status}
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return {
            "stopped": fields[0] in "Tt",
            "nice": fields[16],
            "policy": fields[38],
            "processors": sorted(os.sched_getaffinity(pid)),
            "limits": Path(f"/proc/{pid}/limits").read_text(),
            "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
            "traced": "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text(),
            "group": fields[2],
        }

    def listen(self) -> None:
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        abstract = "\0" + self.folder.name
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, stream, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, datagram, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, stream, ("::1", 0)),
            ("udp6", socket.AF_INET6, datagram, ("::1", 0)),
            ("unix", socket.AF_UNIX, stream, str(self.folder / "stream")),
            ("unix_datagram", socket.AF_UNIX, datagram, str(self.folder / "datagram")),
            ("unix_packets", socket.AF_UNIX, socket.SOCK_SEQPACKET, str(self.folder / "packets")),
            ("abstract", socket.AF_UNIX, stream, abstract),
            ("abstract_datagram", socket.AF_UNIX, datagram, abstract + "-datagram"),
        ):
            listener = socket.socket(family, kind)
            listener.setblocking(False)
            try:
                listener.bind(address)
            except OSError:  # a machine without IPv6
                listener.close()
                continue
            if isinstance(address, str) and not address.startswith("\0"):
                Path(address).chmod(0o777)
            if kind != datagram:
                listener.listen()
            self.sockets[name] = listener
            self.where[name] = listener.getsockname()[:2] if family != socket.AF_UNIX else address

    def places(self) -> dict[str, Any]:
        """What payloads are told, as C."""
        files = {name: str(getattr(self, name)) for name in ("folder", "secret", "writable", "meta", "marker")}
        unreached = {"tcp6": ("::1", 1), "udp6": ("::1", 1)}
        return files | unreached | self.where | {"victim": self.victim.pid, "host": os.getpid(), "python": os.__file__}

    def touched(self) -> list[str]:
        found = []
        time.sleep(SETTLED)
        state = self.state()
        if state != self.expected:
            changed = {name for name in {*state, *self.expected} if state.get(name) != self.expected.get(name)}
            found.append(f"files changed: {', '.join(sorted(changed))}")
            self.lay()
        health = self.health()
        if health != self.well:
            wrong = {name for name in {*health, *self.well} if health.get(name) != self.well.get(name)}
            found.append(f"the other process: {', '.join(sorted(wrong))}")
            self.victim.kill()
            self.victim.wait()
            self.start_victim()
        for name, listener in self.sockets.items():
            for _ in arrivals(listener):
                found.append(f"reached by {name}")
        return found


def arrivals(listener: socket.socket) -> Iterator[None]:
    with contextlib.suppress(BlockingIOError):
        while True:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(1 << 16)
            else:
                listener.accept()[0].close()
            yield
