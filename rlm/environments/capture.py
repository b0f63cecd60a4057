"""What a cell prints and how it fails, as text of bounded size: the worker's streams and tracebacks.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. It keeps the head and the
tail of a stream and counts what was between; of a traceback it keeps the user's own frames, with their source lines.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
import time

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Take = Callable[[], list[tuple[str, str]]]  # hands out what is new: pairs of a stream's name and text

KEEP = 100_000  # characters of a stream kept at its head, and again at its tail; of a traceback at either end
FLUSH = 0.05  # seconds of printing that may wait before the host hears of it
PIPE = 1 << 16  # bytes that a pipe holds: what children had written by the end of a cell is never more
STDLIB = os.path.dirname(os.__file__) + os.sep
NOT_SHOWN = (STDLIB, os.path.realpath(STDLIB) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep, "<")


class Output:
    """Both streams of the cells and of their child processes, in the order in which they were written.

    pipes: the reading ends of what children print, standard output and error. report: called with a function that hands
    out what is new, when it is time to tell the host; where no cell runs it leaves it for the next cell's report.
    """

    def __init__(self, pipes: Sequence[int], report: Callable[[Take], None]) -> None:
        self.report, self.lock, self.forked = report, threading.RLock(), False
        self.pipes: dict[int, tuple[str, Callable[[bytes], str]]] = {}
        self.ready = select.poll()
        for fd, name in zip(pipes, ("stdout", "stderr")):
            self.pipes[fd] = (name, decoder())
            self.ready.register(fd, select.POLLIN)
        self.captured = {"stdout": Captured(), "stderr": Captured()}
        self.drained = self.reported = 0.0
        self.unsaid: dict[int, str] = {}
        self.flush_c: Callable[[None], Any] | None = None

    def streams(self) -> tuple[Stream, Stream]:
        return Stream("stdout", 1, self), Stream("stderr", 2, self)

    def print(self, stream: str, text: str, fd: int) -> None:
        if self.forked:  # a child made by fork() prints as every other child does, a line at a time
            self.unsaid[fd] = self.unsaid.get(fd, "") + text
            if "\n" in text:
                self.flush()
            return
        now = time.monotonic()
        with self.lock:
            if now - self.drained > 0.001:  # a child process that printed before this text did so longer ago
                self.drain()
                self.drained = now
            self.captured[stream].add(text)
        if now - self.reported > FLUSH:
            self.reported = now
            self.flush()

    def drain(self) -> None:
        with self.lock:
            for fd, _ in self.ready.poll(0):
                stream, decode = self.pipes[fd]
                self.captured[stream].add(decode(os.read(fd, PIPE)))

    def flush(self) -> None:
        if self.forked:
            for fd in list(self.unsaid):
                os.write(fd, self.unsaid.pop(fd).encode("utf-8", "backslashreplace"))
        elif not self.lock._is_owned():  # type: ignore[attr-defined]  # else a __del__ prints within ours
            self.report(self.take)

    def take(self) -> list[tuple[str, str]]:
        with self.lock:
            return [(stream, text) for stream in self.captured if (text := self.captured[stream].take())]

    def collect(self) -> dict[str, dict[str, Any]]:
        """What was printed since the last report, with all that the cell's children had written by now."""
        if "_ctypes" in sys.modules:  # C code may hold text in stdio's own buffer
            if self.flush_c is None:
                import ctypes

                self.flush_c = ctypes.CDLL(None).fflush
            self.flush_c(None)
        with self.lock:
            self.drain()
            self.drain()
            done, self.captured = self.captured, {"stdout": Captured(), "stderr": Captured()}
        return {name: captured.finish() for name, captured in done.items() if captured.waiting or captured.tail}

    def after_fork(self) -> None:
        self.forked, self.lock, self.unsaid = True, threading.RLock(), {}


class Captured:
    """One stream's text between two reports: the head goes out as it comes, the tail is kept, the middle is counted."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.tail: list[str] = []
        self.room, self.kept, self.cut = KEEP, 0, 0

    def add(self, text: str) -> None:
        if self.room >= len(text):
            self.room -= len(text)
            self.waiting.append(text)
            return
        if self.room:
            self.waiting.append(text[: self.room])
            text, self.room = text[self.room :], 0
        self.tail.append(text)
        self.kept += len(text)
        if self.kept > 2 * KEEP:
            last = "".join(self.tail)[-KEEP:]
            self.cut += self.kept - len(last)
            self.tail, self.kept = [last], len(last)

    def take(self) -> str:
        """The head's text since the last call."""
        text, self.waiting = "".join(self.waiting), []
        return printable(text)

    def finish(self) -> dict[str, Any]:
        """The rest of the head, how many characters were cut after it, and the tail."""
        tail = "".join(self.tail)
        return {"text": self.take(), "cut": self.cut + max(0, len(tail) - KEEP), "tail": printable(tail[-KEEP:])}


class Stream(io.TextIOBase):
    """What a cell sees as sys.stdout or sys.stderr."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, name: str, number: int, output: Output) -> None:
        self.name, self.number, self.output = name, number, output
        self.buffer = Bytes(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not " + type(text).__name__)
        self.output.print(self.name, text, self.number)
        return len(text)

    def flush(self) -> None:
        self.output.flush()

    def fileno(self) -> int:
        return self.number

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_: Any) -> None:
        """Scripts set encodings and buffering with it, which mean nothing here."""


class Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes become text as UTF-8, also where a character comes in two pieces."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.decode = stream, decoder()

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.stream.write(self.decode(data))
        return len(data)

    def writable(self) -> bool:
        return True


def decoder() -> Callable[[bytes], str]:
    """A function from pieces of UTF-8 to text; what is not UTF-8 becomes U+FFFD."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode


def printable(text: str) -> str:
    """`text` without lone surrogates, which no channel carries."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: BaseException) -> dict[str, str]:
    """The exception's class name, and its traceback as Python prints it, without frames that are not the user's."""
    import traceback

    name = printable(type(error).__name__)
    compact: Any = {"compact": True} if sys.version_info >= (3, 10) else {}
    try:
        told = traceback.TracebackException(type(error), error, error.__traceback__, **compact)
        _strip(told, set())
        text = printable("".join(told.format()).rstrip("\n"))
    except Exception as broken:  # noqa: BLE001 - an exception of the user's may be any object, and must still be told
        text = f"{name} (its traceback cannot be shown: {type(broken).__name__})"
    if len(text) > 2 * KEEP:
        text = f"{text[:KEEP]}\n… [{len(text) - 2 * KEEP} characters cut] …\n{text[-KEEP:]}"
    return {"type": name, "text": text}


def _strip(told: Any, seen: set[int]) -> None:
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    frames = [frame for frame in told.stack if _of_user(frame.filename)]
    del told.stack[:]
    told.stack.extend(frames)
    for other in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
        _strip(other, seen)


def _of_user(filename: str) -> bool:
    if filename.startswith(("<cell ", "<string>")):
        return True
    return not (filename.startswith(NOT_SHOWN) or "site-packages" in filename or "dist-packages" in filename)
