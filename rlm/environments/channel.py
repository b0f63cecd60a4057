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

CHUNK = 256 * 1024  # characters of a frame's JSON in one line, as in wire.py
PIECE = 1 << 16  # bytes read at once; a buffer of over 128 KiB costs malloc a system call to get, and two to give back
dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Masked:
    """While entered by the main thread, an interrupt waits: no frame is ever half read or half written."""

    def __init__(self):
        self.main, self.depth, self.pending = threading.get_ident(), 0, False

    def __enter__(self):
        if threading.get_ident() == self.main:
            self.depth += 1

    def __exit__(self, *_):
        if threading.get_ident() == self.main:
            self.depth -= 1
            self.raise_pending()

    def raise_pending(self):
        if self.pending and not self.depth:
            self.pending = False
            raise KeyboardInterrupt


class Channel:
    """Sends frames, and sorts what arrives: replies to `replies`, everything else to `inbox`."""

    def __init__(self, source, sink, listen=False):
        self.source, self.sink, self.listen = source, sink, listen
        self.masked, self.sending = Masked(), threading.RLock()
        self.arrival, self.reading, self.waiting = threading.Lock(), listen, []
        self.readable = select.poll()
        self.readable.register(source, select.POLLIN)
        self.rest, self.inbox, self.parts, self.replies = bytearray(), [], [], {}
        self.frames, self.closed = 0, False

    def send(self, **frame):
        text = dumps(frame)
        with self.masked, self.sending:
            if len(text) <= CHUNK:
                self.write(text.encode("ascii") + b"\n")
                return
            self.frames += 1
            for start in range(0, len(text), CHUNK):
                part = {"type": "part", "id": self.frames, "last": start + CHUNK >= len(text)}
                self.write(dumps({**part, "data": text[start : start + CHUNK]}).encode("ascii") + b"\n")

    def write(self, data):
        while data:
            data = data[os.write(self.sink, data) :]

    def wait(self, arrived):
        """Until `arrived()`, or the host is gone. Of all waiting threads one reads, and wakes the others."""
        main = threading.get_ident() == self.masked.main
        while not arrived() and not self.closed:
            try:
                if main:
                    self.masked.depth = 1
                self.wait_once(arrived, main)
            finally:
                if main:
                    self.masked.depth = 0
            if main:
                self.masked.raise_pending()

    def wait_once(self, arrived, main):
        mine = threading.Lock()
        mine.acquire()
        with self.arrival:
            if arrived():  # what a reader got before it handed over must not be waited for
                return
            lead = not self.reading
            self.reading = True
            if not lead:
                self.waiting.append(mine)
        try:
            if main:
                self.masked.depth = 0  # only here, where nothing is held, may an interrupt strike
                self.masked.raise_pending()
            if lead:
                self.readable.poll()
            else:
                mine.acquire()
            if main:
                self.masked.depth = 1
            if lead:
                self.read()
        finally:
            if lead:
                self.hand_over(reading=False)

    def hand_over(self, reading):
        with self.arrival:
            self.reading = reading
            woken, self.waiting = self.waiting, []
            for other in woken:
                other.release()

    def read(self):
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

    def receive(self, frame):
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

    def close(self):
        os.close(self.source)
        os.close(self.sink)
