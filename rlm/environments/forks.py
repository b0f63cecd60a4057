"""Work in a forked copy of the worker: the copy sees everything as it was at one moment, and what it does stays in it.

The copy answers through a pipe of its own, prints nowhere, hears no interrupts, and ends with the worker or when its
time is over. A thread waits for it. Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside
`worker.py`.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SECONDS = 60.0  # that a copy may take
NOTE = 8  # bytes before each piece of an answer: its length


class Copy:
    """A forked copy that does `work(say)`; what that says, and at last returns, is plain data that marshal knows.

    after_fork: called in the copy first. done: called with what it said and what it returned (None where it died), and
    how it died; in a thread, or right here where none can be started. Raises `OSError` where the process cannot fork.
    """

    def __init__(
        self,
        work: Callable[[Callable[[Any], None]], Any],
        after_fork: Callable[[], None],
        done: Callable[[list[Any], Any, str], None],
        seconds: float = SECONDS,
    ) -> None:
        self.done, self.deadline = done, time.monotonic() + seconds
        self.seconds = seconds
        self.reading, writing = os.pipe()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                self.pid = fork()
            except OSError:
                os.close(self.reading)
                os.close(writing)
                raise
            if self.pid == 0:
                os.close(self.reading)  # or the copy would wait for itself to read, once the worker is gone
                serve(work, writing, after_fork, seconds)
        finally:
            if self.pid_is_ours():
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(writing)
        self.died = f"it took over {seconds:g} s"

    def pid_is_ours(self) -> bool:
        return getattr(self, "pid", 1) != 0

    def start(self) -> None:
        try:
            threading.Thread(target=self.wait, daemon=True, name="rlm-capture").start()
        except RuntimeError:  # as many threads as there may be
            self.wait()

    def wait(self) -> None:
        data = bytearray()
        readable = select.poll()
        readable.register(self.reading, select.POLLIN)
        ended = False
        while not ended and (left := self.deadline - time.monotonic()) > 0:
            if readable.poll(left * 1000):
                piece = os.read(self.reading, 1 << 20)
                data += piece
                ended = not piece
        os.close(self.reading)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # a cell has waited for it
            status = 0
        said, complete = parse(data)
        if complete and ended:
            self.done(said[:-1], said[-1], "")
            return
        if ended:
            self.died = f"killed by {signal.Signals(status).name}" if 0 < status < 65 else "it ended early"
        self.done(said, None, self.died)


def parse(data: bytearray) -> tuple[list[Any], bool]:
    """What the copy said, and whether the last of it is what it returned."""
    said, position, last = [], 0, False
    while position + NOTE <= len(data):
        length = int.from_bytes(data[position : position + NOTE], "big")
        position += NOTE
        if position + length > len(data):
            break
        value = marshal.loads(memoryview(data)[position : position + length])
        position += length
        last = value[0]
        said.append(value[1])
    return said, last


def fork() -> int:
    """`os.fork()` without the warning that there are threads: the copy takes none of their locks."""
    warnings: Any = sys.modules.get("warnings")
    if warnings is None or sys.hexversion < 0x30C0000:
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def serve(
    work: Callable[[Callable[[Any], None]], Any], writing: int, after_fork: Callable[[], None], seconds: float
) -> NoReturn:
    """All that the copy does, from its first moment to its end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.alarm(int(seconds) + 1)  # also where nobody is left who would end it
        import gc

        gc.disable()
        after_fork()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)

        def say(value: Any, last: bool = False) -> None:
            data = marshal.dumps((last, value))
            rest = memoryview(len(data).to_bytes(NOTE, "big") + data)
            while rest:
                rest = rest[os.write(writing, rest) :]

        say(work(say), True)
    except BaseException:  # noqa: BLE001 - that the answer is missing says it; nothing here may go on as the worker
        os._exit(1)
    os._exit(0)
