"""What a cell prints and how it fails, as text of bounded size: the worker's streams and tracebacks.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. It keeps the head and the tail
of a stream and counts what was between; of a traceback it keeps the user's own frames, with their source lines.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import threading
import time

KEEP = 100_000  # characters of a stream kept at its head, and again at its tail; of a traceback at either end
FLUSH = 0.05  # seconds of printing that may wait before the host hears of it
PIPE = 1 << 16  # bytes that a pipe holds: what children had written by the end of a cell is never more
STDLIB = os.path.dirname(os.__file__) + os.sep
NOT_SHOWN = (STDLIB, os.path.realpath(STDLIB) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep, "<")


class Output:
    """Both streams of the cells and of their child processes, in the order in which they were written.

    pipes: the reading ends of what children print, standard output and error. report: called with a function that hands
    out what is new, when it is time to tell the host; where no cell runs it leaves it alone, for the next cell's report.
    """

    def __init__(self, pipes, report):
        self.report, self.lock, self.forked = report, threading.RLock(), False
        self.pipes, self.ready = {}, select.poll()
        for fd, name in zip(pipes, ("stdout", "stderr")):
            self.pipes[fd] = (name, decoder())
            self.ready.register(fd, select.POLLIN)
        self.captured = {"stdout": Captured(), "stderr": Captured()}
        self.drained = self.reported = 0.0

    def streams(self):
        return Stream("stdout", 1, self), Stream("stderr", 2, self)

    def print(self, stream, text, fd):
        if self.forked:  # a child made by fork() prints as every other child does
            os.write(fd, text.encode("utf-8", "backslashreplace"))
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

    def drain(self):
        with self.lock:
            for fd, _ in self.ready.poll(0):
                stream, decode = self.pipes[fd]
                self.captured[stream].add(decode(os.read(fd, PIPE)))

    def flush(self):
        if not self.forked and not self.lock._is_owned():  # else a __del__ prints in the midst of our own work
            self.report(self.take)

    def take(self):
        with self.lock:
            return [(stream, text) for stream in self.captured if (text := self.captured[stream].take())]

    def collect(self):
        """What was printed since the last report, with all that the cell's children had written by now."""
        if "ctypes" in sys.modules:  # C code may hold text in stdio's own buffer
            sys.modules["ctypes"].CDLL(None).fflush(None)
        with self.lock:
            self.drain()
            self.drain()
            done, self.captured = self.captured, {"stdout": Captured(), "stderr": Captured()}
        return {name: captured.finish() for name, captured in done.items() if captured.waiting or captured.tail}

    def after_fork(self):
        self.forked, self.lock = True, threading.RLock()


class Captured:
    """One stream's text between two reports: the head goes out as it comes, the tail is kept, the middle is counted."""

    def __init__(self):
        self.waiting, self.room, self.tail, self.kept, self.cut = [], KEEP, [], 0, 0

    def add(self, text):
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

    def take(self):
        """The head's text since the last call."""
        text, self.waiting = "".join(self.waiting), []
        return printable(text)

    def finish(self):
        """The rest of the head, how many characters were cut after it, and the tail."""
        tail = "".join(self.tail)
        return {"text": self.take(), "cut": self.cut + max(0, len(tail) - KEEP), "tail": printable(tail[-KEEP:])}


class Stream(io.TextIOBase):
    """What a cell sees as sys.stdout or sys.stderr."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, name, number, output):
        self.name, self.number, self.output = name, number, output
        self.buffer = Bytes(self)

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not " + type(text).__name__)
        self.output.print(self.name, text, self.number)
        return len(text)

    def flush(self):
        self.output.flush()

    def fileno(self):
        return self.number

    def writable(self):
        return True


class Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes become text as UTF-8, also where a character comes in two pieces."""

    def __init__(self, stream):
        self.stream, self.decode = stream, decoder()

    def write(self, data):
        self.stream.write(self.decode(bytes(data)))
        return len(data)

    def writable(self):
        return True


def decoder():
    """A function from pieces of UTF-8 to text; what is not UTF-8 becomes U+FFFD."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode


def printable(text):
    """`text` without lone surrogates, which no channel carries."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error):
    """The exception's class name, and its traceback as Python prints it, without frames that are not the user's."""
    import traceback

    told = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _strip(told, set())
    text = printable("".join(told.format()).rstrip("\n"))
    if len(text) > 2 * KEEP:
        text = "%s\n… [%d characters cut] …\n%s" % (text[:KEEP], len(text) - 2 * KEEP, text[-KEEP:])
    return {"type": type(error).__name__, "text": text}


def _strip(told, seen):
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    frames = [frame for frame in told.stack if _of_user(frame.filename)]
    del told.stack[:]
    told.stack.extend(frames)
    for other in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
        _strip(other, seen)


def _of_user(filename):
    if filename.startswith("<cell "):
        return True
    return not (filename.startswith(NOT_SHOWN) or "site-packages" in filename or "dist-packages" in filename)
