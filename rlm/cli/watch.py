"""Who is told of events: a view for people on standard error, and with --events the stream itself on standard output.

`Watch.tell` is the listener of an RLM and is called in a thread of its own; a turn that is watched is over only once
everything that happened in it has been shown. Views are told only of what is watched, the stream of everything.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TextIO

from rlm.cli.terminal import Output
from rlm.narrate import View
from rlm.types import Answered, Asked, Event, Failed, Ran, Resumed, Stopped

GRACE, PATIENCE = 0.5, 5.0  # seconds to wait for the end of a failed turn that may never have begun, or has


class Silence:
    """A view that shows nothing."""

    def tell(self, event: Event) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Watch:
    """Hands events on. gone: nobody reads what is written here any more; the main thread was interrupted for it."""

    def __init__(self, view: View, stream: TextIO | None = None) -> None:
        self.gone = False
        self._view = view
        self._stream = stream
        self._watching = self._begun = False
        self._ended = threading.Event()

    def tell(self, event: Event) -> None:
        if self.gone:
            return
        self._begun = self._begun or isinstance(event, (Asked, Resumed))
        try:
            if self._stream is not None:
                print(json.dumps(event.to_dict()), file=self._stream, flush=True)
            if self._watching:
                self._view.tell(event)
        except BrokenPipeError:
            self.gone = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        finally:
            if self.gone or _is_end(event):
                self._ended.set()

    @contextlib.contextmanager
    def watching(self, asked: Asked | None = None, *, may_be_known: bool = False) -> Iterator[None]:
        """Watch one turn, or one cell of the user's own; leaves when its last event has been shown.

        asked: how a turn began that is resumed now. may_be_known: the answer may be on record already, and then nothing
        happens. Raises `BrokenPipeError` where nobody reads on.
        """
        self._ended.clear()
        self._begun = False
        with self._view:
            if asked is not None:
                self._view.tell(asked)
            self._watching = True
            try:
                yield
                if self._begun or not may_be_known:  # a turn returns once all that it told has been handed on
                    self._ended.wait()
            except KeyboardInterrupt:
                self._check()
                raise
            except Exception:
                if not self._ended.wait(GRACE) and self._begun:
                    self._ended.wait(PATIENCE)
                self._check()
                raise
            finally:
                self._watching = False
        self._check()

    def _check(self) -> None:
        if self.gone:
            raise BrokenPipeError


def _is_end(event: Event) -> bool:
    own_cell = isinstance(event, Ran) and event.at.startswith("u") and event.at.count("/") == 1
    return own_cell or (isinstance(event, (Answered, Stopped, Failed)) and "/" not in event.at)


def view_of(output: Output) -> View:
    """How turns are shown: as a tree on a terminal, else as lines; not at all where nobody wants it."""
    if output.quiet or (output.events and sys.stdout.isatty()):
        return Silence()
    if output.is_live:
        from rlm.cli.live import LiveView

        return LiveView(output.notes)
    from rlm.cli.plain import PlainView

    return PlainView(sys.stderr)
