"""The worker's end of its channel: frames as JSON lines over two file descriptors, shared by all threads of a cell.

One thread reads at a time: whichever waits, the main thread between cells, a calling thread within one. So a cell costs
no switch of threads. Where the host cannot send a signal, a thread that always reads takes interrupts from frames.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHUNK = 256 * 1024  # characters of a frame's JSON in one line, as in wire.py
MAX_FRAME = 256 * 1024 * 1024  # characters of a frame, as in wire.py
IDLE = 0.02  # seconds in which nothing came, after which there is time for a chore
PIECE = 1 << 16  # bytes read at once; a buffer of over 128 KiB costs malloc a system call to get, and two to give back
dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Masked:
    """Signals, which Python hands to the main thread, strike only where `depth` is 0: in a cell's own code, and where
    nothing is held. Elsewhere they wait, so that no frame is ever half read or half written.

    handlers: whether user code has set any.
    """

    def __init__(self) -> None:
        self.main, self.depth, self.handlers = threading.get_ident(), 1, False
        self.pending: list[Callable[[], object]] = []

    def guard(self, action: Callable[[int, Any], object]) -> Callable[[int, Any], None]:
        """`action` as a signal handler that waits where signals may not strike."""

        def guarded(number: int, frame: Any) -> None:
            self.pending.append(lambda: action(number, frame))
            self.strike()

        return guarded

    def guard_all(self) -> None:
        """From now on the handlers that user code sets wait too: one that raises would end the worker between cells."""
        original = signal.signal

        def guarded(signalnum: int, handler: Any) -> Any:
            self.handlers = self.handlers or callable(handler)
            return original(signalnum, self.guard(handler) if callable(handler) else handler)

        guarded.__name__, guarded.__doc__ = "signal", original.__doc__
        signal.signal = guarded

    def strike(self) -> None:
        while self.pending and not self.depth:
            self.pending.pop(0)()

    def __enter__(self) -> None:
        if threading.get_ident() == self.main:
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self.main:
            self.depth -= 1
            if self.pending:
                self.strike()


class Channel:
    """Sends frames, and sorts what arrives: replies to `replies`, everything else to `inbox`."""

    def __init__(self, source: int, sink: int, listen: bool = False) -> None:
        self.source, self.sink, self.listen = source, sink, listen
        self.masked, self.sending = Masked(), threading.RLock()
        self.arrival, self.reading = threading.Lock(), listen
        self.waiting: list[Any] = []
        self.readable = select.poll()
        self.readable.register(source, select.POLLIN)
        self.woken, self.waker = os.pipe()
        self.readable.register(self.woken, select.POLLIN)
        self.rest = bytearray()
        self.parts: list[str] = []
        self.inbox: list[dict[str, Any]] = []
        self.replies: dict[int, dict[str, Any] | None] = {}
        self.frames, self.closed, self.limit = 0, False, MAX_FRAME

    def send(self, **frame: Any) -> None:
        self.send_text(dumps(frame))

    def send_text(self, text: str) -> None:
        """Send a frame that is JSON already. Raises `ValueError` where it is too large, before any of it is sent."""
        if len(text) > self.limit:
            raise ValueError(f"{len(text):,} characters are more than one message can carry ({self.limit:,})")
        with self.masked, self.sending:
            if len(text) <= CHUNK:
                self.write(text.encode("ascii") + b"\n")
                return
            self.frames += 1
            for start in range(0, len(text), CHUNK):
                part = {"type": "part", "id": self.frames, "last": start + CHUNK >= len(text)}
                self.write(dumps({**part, "data": text[start : start + CHUNK]}).encode("ascii") + b"\n")

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.sink, data) :]

    def wait(self, arrived: Callable[[], object], chore: Callable[[], object] | None = None) -> None:
        """Until `arrived()`, or the host is gone. Of all waiting threads one reads, and wakes the others.

        chore: what to do once nothing has come for a moment."""
        main, masked = threading.get_ident() == self.masked.main, self.masked
        depth = masked.depth
        while not arrived() and not self.closed:
            try:
                if main:
                    masked.depth = 1
                idle = self.wait_once(arrived, main, IDLE if chore is not None else None)
            finally:
                if main:
                    masked.depth = depth
            if main and masked.pending:
                masked.strike()
            if idle and chore is not None:
                chore()
                chore = None

    def wait_once(self, arrived: Callable[[], object], main: bool, seconds: float | None) -> bool:
        """Whether that many seconds have passed and nothing came."""
        mine = threading.Lock()
        mine.acquire()
        with self.arrival:
            if arrived():  # what a reader got before it handed over must not be waited for
                return False
            lead = not self.reading
            self.reading = True
            if not lead:
                self.waiting.append(mine)
        try:
            if main:
                self.masked.depth = 0  # only here, where nothing is held, may a signal strike
                self.masked.strike()
            if lead:
                ready = [fd for fd, _ in self.readable.poll(None if seconds is None else seconds * 1000)]
                idle = not ready
            else:
                idle = not mine.acquire(timeout=-1 if seconds is None else seconds)
            if main:
                self.masked.depth = 1
            if lead:
                if self.woken in ready:
                    os.read(self.woken, PIECE)
                if self.source in ready:
                    self.read()
        finally:
            if main:
                self.masked.depth = 1
            if lead:
                self.hand_over(reading=False)
        return idle

    def hand_over(self, reading: bool) -> None:
        with self.arrival:
            self.reading = reading
            woken, self.waiting = self.waiting, []
            for other in woken:
                other.release()

    def post(self, frame: dict[str, Any]) -> None:
        """Hand the main thread a frame that is not the host's, from another thread."""
        self.inbox.append(frame)
        with self.arrival:
            woken, self.waiting = self.waiting, []
            for other in woken:
                other.release()
        os.write(self.waker, b"!")

    def read(self) -> None:
        data = os.read(self.source, PIECE)
        self.closed = not data
        start = len(self.rest)
        self.rest += data
        if self.rest.find(b"\n", start) < 0:
            return
        *lines, rest = bytes(self.rest).split(b"\n")
        self.rest = bytearray(rest)
        for line in lines:
            self.receive(json.loads(line))

    def receive(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "part":
            self.parts.append(frame["data"])
            if frame["last"]:
                text, self.parts = "".join(self.parts), []
                self.receive(json.loads(text))
        elif kind == "reply":
            if frame["id"] in self.replies:
                self.replies[frame["id"]] = frame
        elif kind == "interrupt":
            signal.pthread_kill(self.masked.main, signal.SIGINT)
        else:
            self.inbox.append(frame)

    def close(self) -> None:
        for fd in (self.source, self.sink, self.woken, self.waker):
            os.close(fd)
