"""The line that the appends of one lease stand in: they take effect in the order in which they were made.

Some need preparing, which happens in threads and takes as long as their blobs are large. Those behind wait for them;
other leases' do not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from rlm.errors import StoreError
from rlm.stores.lanes import Job, settle


class _Place:
    """A job in the line. job: None once its preparation failed."""

    __slots__ = ("job", "ready")

    def __init__(self, job: Job[Any, Any], ready: bool) -> None:
        self.job: Job[Any, Any] | None = job
        self.ready = ready


class Line:
    """Hands jobs to `put` in the order of `add`, each after it was prepared in a thread of `pool`."""

    def __init__(self, put: Callable[[Job[Any, Any]], None], pool: Executor) -> None:
        self._put = put
        self._pool = pool
        self._guard = threading.Lock()
        self._places: deque[_Place] = deque()

    def add(self, job: Job[Any, Any], prepare: Callable[[], None] | None = None, *, quick: bool = False) -> None:
        """The job fails with what `prepare` raises, and those behind it go on. quick: it takes less time than a thread
        does to wake, so that it is done here, and raises here.
        """
        if prepare is not None and quick:
            prepare()
            prepare = None
        place = _Place(job, ready=prepare is None)
        with self._guard:
            if prepare is None and not self._places:
                self._put(job)
                return
            self._places.append(place)
        if prepare is not None:
            try:
                self._pool.submit(self._prepare, place, prepare)
            except RuntimeError as error:  # the pool was shut down, or the interpreter is
                self._settled(place, StoreError(f"the store was closed ({error})"))

    def _prepare(self, place: _Place, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        except BaseException as error:  # noqa: BLE001 - goes to whoever awaits the job, whatever it is
            self._settled(place, error)
        else:
            self._settled(place, None)

    def _settled(self, place: _Place, error: BaseException | None) -> None:
        if error is not None and place.job is not None:
            settle([(place.job, None, error)])
            place.job = None
        with self._guard:
            place.ready = True
            while self._places and self._places[0].ready:
                if (job := self._places.popleft().job) is not None:
                    self._put(job)
