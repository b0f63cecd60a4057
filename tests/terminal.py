"""A terminal of our own for tests: a process runs on it, keys are typed, and what it shows is read as it comes."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rlm.narrate import printable

CTRL_C, CTRL_D, ENTER, TAB = "\x03", "\x04", "\r", "\t"

# Opening a terminal makes it the one that controls a new session: so Ctrl-C on it becomes a signal.
TAKE = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """Runs a command on a terminal of the given size. `raw` is all that it has written so far."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.raw = ""
        self._keyboard, screen = pty.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", TAKE, *command],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            cwd=cwd,
            env={**env, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        os.close(screen)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                piece = os.read(self._keyboard, 1 << 16)
            except OSError:  # EIO: the last process on it has ended
                return
            if not piece:
                return
            data += piece
            self.raw = data.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """All that was shown, without control sequences; what was drawn over comes first."""
        return printable(self.raw)

    def press(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait_for(self, shown: str, times: int = 1, within: float = 20.0) -> None:
        """Until the text was shown so many times; fails with what was shown instead."""
        self._wait(lambda: self.text.count(shown) >= times, f"{shown!r} × {times}", within)

    def wait_for_end(self, within: float = 20.0) -> int:
        """Until the process has ended; returns its exit code."""
        self._wait(lambda: self.process.poll() is not None, "the end", within)
        self._reader.join(within)
        return self.process.wait()

    def _wait(self, done: Callable[[], bool], what: str, within: float) -> None:
        end = time.monotonic() + within
        while not done():
            assert time.monotonic() < end, f"waited {within} s for {what}; shown was:\n{self.text}"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join()
        os.close(self._keyboard)
