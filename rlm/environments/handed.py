"""Files that the host hands over, as descriptors, on a socket beside the channel: nothing of them is copied.

Where there is no such socket, a name is a path. Standard library only, Python 3.9 and newer: this file runs in
sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any

MARK = "fd:"  # before the number of a file that is handed over


class Handed:
    """What arrives on the descriptor `source`; None where nothing does."""

    def __init__(self, source: int | None) -> None:
        self.source = source
        self.socket: Any = None
        self.arrived: dict[str, int] = {}
        self.lock = threading.Lock()

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the file that the host calls so, which is the caller's to close. Raises `OSError`."""
        if not name.startswith(MARK):
            return os.open(name, flags | os.O_CLOEXEC)
        with self.lock:
            while name not in self.arrived:
                self.receive()
            return self.arrived.pop(name)

    def receive(self) -> None:
        import socket

        if self.source is None:
            raise OSError("this worker has no socket for files")
        if self.socket is None:
            self.socket = socket.socket(fileno=self.source)
        name, descriptors, _, _ = socket.recv_fds(self.socket, 64, 1)
        if not descriptors:
            raise OSError("the host has closed the socket for files")
        self.arrived[name.decode("ascii")] = descriptors[0]
