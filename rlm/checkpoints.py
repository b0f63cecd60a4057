"""The heap of a session kept safe, and brought back: which cells its last checkpoint holds, and which are run again.

After each cell the namespace is captured while the model thinks; captures coalesce, and large ones take at most a
quarter of the session's time. A new worker gets the last checkpoint, and then the cells after it once more, with the
recorded answers to their calls. What could not be saved, or not be brought back, is told by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rlm.engine.host import LiveHost, Runs
from rlm.engine.journal import Journal, Record
from rlm.environments.kernel import WorkerGone
from rlm.environments.payload import Payload
from rlm.errors import BlobError, LossError, ProtocolError, ReplError, StoreError
from rlm.folds import Heap, may_run_again, note_of_restore, root_of
from rlm.ports import Answer, Content, Part, Store
from rlm.recording import Log
from rlm.types import Checkpointed, HeapChange, HeapImage, Lost, Ran, REPLResult, Restored

if TYPE_CHECKING:
    from rlm.environments.images import Capture
    from rlm.environments.kernel import Kernel

log = logging.getLogger("rlm")

LARGE = 0.05  # seconds that a capture takes from which on it has to leave room for others
SHARE = 3  # such a capture waits until this many times its duration has passed: it takes a quarter of the time at most
WHOLE = 20  # every so many captures look at all names, whatever the cells' code says
PATIENCE = 0.05  # seconds that an answer waits for the checkpoint of its last cell
THIN_AFTER = 4 << 20  # bytes of checkpoints after which those of the past are looked at
KEEP = 64 << 20  # bytes of the past that are always kept; above it no more than the session needs now
BREACHES = 2  # captures in a row that broke the protocol, from which on none is taken: each costs its worker
FAILURES = 4  # captures in a row that failed, after which only the next cell has another one tried
DEADLY = 2  # deaths of a worker in one cell that is run again, from which on it is the cell's doing
DAMAGED = "damaged"  # what a worker's reason says where the bytes have another digest
AT_THE_END = 60.0  # seconds that close() waits for it


@runtime_checkable
class Keepable(Protocol):
    """A namespace whose heap can be captured, and brought back into another worker."""

    cells: int
    place: Path | None
    revive: Callable[[Kernel], Any] | None

    @property
    def is_live(self) -> bool: ...
    async def release(self) -> None: ...
    async def capture(self, *, whole: bool = False) -> tuple[int, Capture]: ...
    async def pack(self, value: Any) -> Payload: ...
    async def put(self, kind: str, payload: Payload, index: int | None = None, name: str | None = None) -> int: ...
    def give(self, kind: str, payload: Payload, index: int, name: str | None = None) -> None: ...
    def forget_given(self) -> None: ...


Connected = Callable[[str, Runs, Record, int], LiveHost]
"""The host of a place in the tree ("t3"), over something that runs cells, a record, and how many of its cells ran."""


class Keeper:
    """Keeps the heap of one namespace safe.

    log: the session's; checkpoints are taken where it is durable. connected: makes the hosts for cells that are run
    again. rerun: whether they are. strict: losses are a `LossError`.
    """

    def __init__(
        self,
        log: Log,
        namespace: Keepable,
        connected: Connected,
        *,
        store: Store | None = None,
        rerun: bool = True,
        strict: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._log, self._namespace, self._connected = log, namespace, connected
        self._store, self._rerun, self._strict, self._clock = store, rerun, strict, clock
        self._task: asyncio.Task[None] | None = None
        self._dirty = False
        self._captures = self._failures = self._breaches = 0
        self._written = self.dropped = 0
        self._urgent, self._waiting = asyncio.Event(), 0
        self._added, self._hold = asyncio.Event(), False
        self._deaths: Counter[str] = Counter()
        self._missing: dict[str, str] = {}  # digests, and why they are of no use
        self.inputs_lost: Mapping[str, Lost] = {}
        """Inputs that the store does not have any more; set by whoever brings the inputs back."""
        namespace.revive = self.revive

    # -- keeping -----------------------------------------------------------------------------------------------------

    @property
    def is_safe(self) -> bool:
        """Whether the log has everything that a new worker needs to be as this one is."""
        heap = self._log.past.heap
        return not self._dirty and self._task is None and heap.cells == len(self._log.past.cells)

    def cell_ended(self) -> None:
        """Capture the heap soon; to be called after each cell."""
        if self._store is None or self._breaches >= BREACHES:
            return
        if self._task is not None:
            self._dirty = True
        else:
            self._task = asyncio.get_running_loop().create_task(self._keep())
            self._task.add_done_callback(_say_how_it_ended)

    async def settled(self, seconds: float = AT_THE_END) -> None:
        """Wait until the heap is safe, but not for longer than that."""
        if self._task is not None:
            self._waiting += 1
            self._urgent.set()
            try:
                await asyncio.wait([self._task], timeout=seconds)
            finally:
                self._waiting -= 1

    async def answered(self) -> None:
        """Wait until the checkpoint of the last cell is on its way to the store, if that is quick; what is recorded
        next goes there with it."""
        if self._task is not None and not self._dirty:
            self._hold = True
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._added.wait(), PATIENCE)
            finally:
                self._hold = False

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._dirty = False

    async def _keep(self) -> None:
        try:
            again = True
            while again and not self._log.failed:
                self._dirty = False
                seconds = await self._capture()
                if self._written > THIN_AFTER and not self._dirty:
                    await self.thin()
                if seconds > LARGE and self._dirty and not self._waiting:
                    self._urgent.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._urgent.wait(), SHARE * seconds)
                again = self._dirty
        except StoreError:
            if not self._log.failed:  # else the log itself says so, to whoever uses it next
                raise
        finally:
            self._task = None
            self._added.set()

    async def _capture(self) -> float:
        """Capture the heap and record the checkpoint. Returns seconds."""
        began = self._clock()
        self._captures += 1
        self._added.clear()
        try:
            cells, capture = await self._namespace.capture(whole=self._captures % WHOLE == 0)
        except WorkerGone as gone:
            log.debug("no checkpoint: %s", gone)
            return 0.0  # with the worker went what it held; a new one is made of the log, and captured anew
        except ProtocolError as breach:
            self._breaches += 1
            self._dirty = self._dirty and self._breaches < BREACHES
            given_up = "; none is tried any more" if self._breaches >= BREACHES else ""
            log.error("a checkpoint could not be taken, and its worker was stopped: %s%s", breach, given_up)
            return 0.0
        except ReplError as failed:  # nothing counts as saved: the next capture looks at the same names again
            self._failures += 1
            log.warning("a checkpoint could not be taken: %s", failed)
            self._dirty = self._dirty or self._failures < FAILURES
            return self._clock() - began
        self._failures = self._breaches = 0
        change = capture.change
        blobs: dict[str, Content | None] = dict.fromkeys(_digests(change))
        blobs |= capture.blobs
        lease, large = self._log.lease, {digest for digest, content in blobs.items() if isinstance(content, Part)}
        if lease is not None and large:  # first, so that no event of a running turn has to wait for them
            with contextlib.suppress(StoreError):  # which comes again, and is told, where the event names them
                await lease.append([], {digest: blobs[digest] for digest in large})
                blobs |= dict.fromkeys(large)
        await self._until_recorded(cells)
        recorded = self._log.add(Checkpointed("", cells, change), blobs, hold=self._hold and not large)
        for digest in capture.blobs:  # made again, and given whole
            self._missing.pop(digest, None)
        self._added.set()
        self._written += sum(group.size for group in change.groups)
        if large and recorded is not None:
            await asyncio.wait([recorded])
            _unlink(content.path for content in capture.blobs.values() if isinstance(content, Part))
        return self._clock() - began

    async def thin(self) -> None:
        """Let go of checkpoints of the past, those of the oldest turns first, where they outweigh the present.

        What a turn's end then needs and the store no longer has is made again by running its cells, should anybody go
        back there. `dropped` counts the bytes that the store may free.
        """
        lease, past = self._log.lease, self._log.past
        if lease is None or not self._written or self._log.failed:
            return
        self._written = 0
        await self._log.settled()
        kept = dict(past.blobs())
        room, dropped = max(KEEP, sum(kept.values())), 0
        for turn in reversed(past.ends):
            more = {digest: size for digest, size in past.held[turn].items() if digest not in kept}
            room -= sum(more.values())
            if room < 0:
                dropped += sum(more.values())
            else:
                kept |= more
        await lease.hold(list(kept))
        self.dropped += dropped

    async def _until_recorded(self, cells: int) -> None:
        """The last cell has ended, and is on record in a moment: a checkpoint must not come before it."""
        while len(self._log.past.cells) < cells:
            self._log.check()
            await asyncio.sleep(0)

    # -- bringing back -----------------------------------------------------------------------------------------------

    async def revive(self, kernel: Kernel) -> str:
        """Bring the heap into a new worker. Returns what is to be said of it; "" where all is as it was.

        Raises `WorkerGone` where that ended the worker: the next attempt leaves out what did it.
        """
        past = self._log.past
        cells = past.cells
        if not cells and not past.heap.types and not self.inputs_lost:
            return ""
        heap, contents = await self._base()
        image = heap.image()
        if heap is not past.heap:  # what the worker says of changes from here on, it says against this one
            change = HeapChange(
                image.groups,
                image.modules,
                image.given,
                image.lost,
                files=image.files,
                files_lost=image.files_lost,
                python=image.python,
            )
            self._log.add(Checkpointed("", heap.cells, change, base=True), dict.fromkeys(heap.blobs()))
        lost = dict(await kernel.restore(image, contents)) if heap.cells else {}
        if self._rerun and (damaged := self._found_damaged(image, lost)):
            self._missing |= damaged  # an older checkpoint and the cells after it may be whole
            raise WorkerGone("what was brought back into it was damaged")
        lost = self._with_reasons(image, lost)
        again = await self._run_again(kernel, cells, heap.cells)
        names = await kernel.refresh()
        gone = {**image.lost, **image.files_lost, **lost, **self.inputs_lost}
        gone = {name: why for name, why in gone.items() if name not in names or name in lost}
        self._namespace.cells = len(cells)
        event = Restored("", heap.cells, again.cells, len(names), gone, again.diverged, again.skipped)
        self._log.add(event)
        if again.cells:
            self.cell_ended()
        self._check_strict(gone, again.skipped)
        return note_of_restore(event)

    def _check_strict(self, lost: Mapping[str, Lost], skipped: int) -> None:
        if skipped:
            lost = {**lost, "(cells)": Lost("cell", f"{skipped} of the last cells could not be run again")}
        if self._strict and lost:
            told = "; ".join(f"{name}: {why.type}, {why.reason}" for name, why in lost.items())
            raise LossError(f"strict=True, and not everything could be brought back: {told}", lost)

    async def _base(self) -> tuple[Heap, Mapping[str, bytes | Path]]:
        """The last checkpoint that the store has as a whole, and its blobs; if it has none, what there is of the last.

        An older one is as good where the cells after it may be run again.
        """
        past = self._log.past
        if self._store is not None:
            await self._log.settled()  # what is on its way there is not missing
        contents = await self._contents(past.heap.image())
        last = past.heap, contents
        if self._store is None or not self._rerun or set(past.heap.blobs()) <= set(contents):
            return last
        checkpoints = [event for event in past.path() if isinstance(event, Checkpointed)]
        for count in reversed(range(len(checkpoints))):
            heap = Heap()
            for event in checkpoints[:count]:
                heap.apply(event)
            if all(map(may_run_again, past.cells[heap.cells :])):
                contents = await self._contents(heap.image(), contents, whole=True)
                if set(heap.blobs()) <= set(contents):
                    return heap, contents
        return last

    async def _contents(
        self, image: HeapImage, known: Mapping[str, bytes | Path] | None = None, *, whole: bool = False
    ) -> dict[str, bytes | Path]:
        """The blobs of an image; those that are missing are left out, and what was in them is lost.

        known: such as were read already. whole: all or none are wanted, so that the first that is missing ends it.
        """
        known = known or {}
        contents: dict[str, bytes | Path] = {}
        wanted = list(_digests(image))
        if whole and any(digest in self._missing for digest in wanted):
            return {}
        for digest in wanted:
            if digest in known:
                contents[digest] = known[digest]
            elif self._store is not None and digest not in self._missing:
                try:
                    contents[digest] = await self._store.blob(digest)
                except BlobError as error:
                    self._missing[digest] = str(error)
                    if whole:
                        break
        return contents

    def _found_damaged(self, image: HeapImage, lost: Mapping[str, Lost]) -> Mapping[str, str]:
        """Blobs that a worker found damaged, which no host looks into; not those that are known to be."""
        held = {name: group.digest for group in image.groups for name in group.names if name}
        held |= {path: file.digest for path, file in image.files.items()}
        damaged = {held[name]: why.reason for name, why in lost.items() if name in held and DAMAGED in why.reason}
        return {digest: why for digest, why in damaged.items() if digest not in self._missing}

    def _with_reasons(self, image: HeapImage, lost: Mapping[str, Lost]) -> dict[str, Lost]:
        """Say of what a blob lacked for why the store did not give it."""
        why = {name: self._missing.get(group.digest) for group in image.groups for name in group.names}
        return {name: replace(one, reason=why.get(name) or one.reason) for name, one in lost.items()}

    async def _run_again(self, kernel: Kernel, cells: Sequence[Ran], held: int) -> Again:
        """Run the cells that the checkpoint does not hold."""

        def begins(number: int, ran: Ran) -> bool:
            kernel.cells = held + number
            return self._rerun and self._deaths[ran.at] < DEADLY

        def died(ran: Ran) -> None:
            self._deaths[ran.at] += 1

        inside = _Inside(kernel, self._namespace)
        return await run_again(self._log, cells[held:], self._connected, inside, begins, died)


@dataclass(slots=True)
class Again:
    """What came of running cells again: how many were, how often they did something else, and how many were not."""

    cells: int = 0
    diverged: int = 0
    skipped: int = 0


async def run_again(
    log: Log,
    cells: Sequence[Ran],
    connected: Connected,
    runs: Runs,
    begins: Callable[[int, Ran], bool],
    died: Callable[[Ran], None],
) -> Again:
    """Run recorded cells once more, with the recorded answers to their calls; what has none is asked anew.

    begins: told the number of each before it runs; may leave it out. died: told which one ended the worker, before the
    `WorkerGone` goes on.
    """
    again = Again()
    record = Record(log.past.path()) if cells else Record()
    for number, ran in enumerate(cells):
        if not begins(number, ran) or not may_run_again(ran):
            again.skipped += not ran.result.took_its_worker_along
            continue
        path, index = root_of(ran.at), int(ran.at.rpartition("/c")[2])
        host = connected(path, runs, record, index)
        once = host.tree.once
        journal = Journal(host, path, record, log.append, first=index, once=once, tell=log.tell)
        try:
            await journal.run(ran.code)
        except WorkerGone:
            died(ran)
            raise
        again.cells += 1
        again.diverged += journal.diverged
    return again


def _digests(heap: HeapChange | HeapImage) -> Iterable[str]:
    """The blobs that it is made of, each once."""
    digests = [group.digest for group in heap.groups]
    digests += [file.digest for file in heap.files.values() if file.link is None]
    return dict.fromkeys(digests)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _say_how_it_ended(task: asyncio.Task[None]) -> None:
    """A checkpoint that cannot be taken costs nothing but a longer way back, or else the log itself says so."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a checkpoint could not be taken", exc_info=error)


class _Inside:
    """Runs cells in a worker whose namespace waits for them."""

    def __init__(self, kernel: Kernel, namespace: Keepable) -> None:
        self._kernel = kernel
        self._timeout: float | None = getattr(namespace, "cell_timeout", None)

    async def run(
        self,
        code: str,
        answer: Answer | None = None,
        *,
        fresh: bool = False,
        printed: Callable[[str, str], None] | None = None,
    ) -> REPLResult:
        return await self._kernel.run(code, answer, timeout=self._timeout, fresh=fresh, printed=printed)
