"""The live tree on a terminal: redrawn a few times a second from what is known, however many events come in between."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live

from rlm.cli import tree
from rlm.cli.progress import Progress
from rlm.types import Event

REFRESHES = 8  # a second


class LiveView:
    """Shows one turn after the other on standard error; between turns it shows nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._progress = Progress()
        self._live: Live | None = None
        self._over = False
        self._open = contextlib.ExitStack()

    def tell(self, event: Event) -> None:
        with self._lock:
            if self._live is not None:
                self._progress.tell(event)

    def __enter__(self) -> Self:
        with self._lock:
            self._progress, self._over = Progress(), False
            # Neither stream is redirected: what others print meanwhile is theirs to place.
            self._live = Live(
                get_renderable=lambda: self,
                console=self._console,
                refresh_per_second=REFRESHES,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
        self._open.enter_context(silent_keys())
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._over = self._live, True
        if live is not None:
            live.transient = not tree.finished(self._progress, self._console.width)
            live.stop()  # draws once more
        with self._lock:
            self._live = None
        self._open.close()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            # One column and one line stay free: some terminals wrap at the last column, and the cursor needs a line.
            if self._over:
                yield from tree.finished(self._progress, options.max_width - 1)
            else:
                yield from tree.running(self._progress, options.max_width - 1, options.size.height - 1)


@contextlib.contextmanager
def silent_keys() -> Iterator[None]:
    """Keep typed keys from being echoed into what is drawn. They stay typed: the next prompt gets them."""
    if not _has_keyboard():
        yield
        return
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = [*before]
    silent[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)


def _has_keyboard() -> bool:
    """Whether this process may set the terminal it reads from: in the background, asking would stop it."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # the terminal is not the one that controls this process
        return False
