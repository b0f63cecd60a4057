"""The contract of base_env.py, implemented once, over any Transport: `Namespace` for the engine, `REPL` for blocking.

A namespace starts its worker on first use, keeps what it was given (contexts, histories, values), and when the worker
is lost starts another one, brings back what it was given, and says by name what is gone. A killed worker is a result
with `restarted=True`; only a worker that cannot be started again is an exception (`SandboxError`).
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rlm.environments import lm_handler
from rlm.environments.base_env import BaseEnv
from rlm.environments.kernel import Kernel, Printed, WorkerGone
from rlm.environments.payload import Payload, is_quick, pack
from rlm.errors import ContextError, ReplError, SandboxError, SessionClosedError
from rlm.portal import in_thread, portal
from rlm.ports import Answer, CallFailed, Transport
from rlm.types import CallRecord, CellError, REPLResult, Tool

if TYPE_CHECKING:
    from rlm.environments.images import Capture

T = TypeVar("T")

Connect = Callable[[Path], Transport | Awaitable[Transport]]
"""Makes the transport to a new worker, whose files live in the given folder where it has none of its own."""

Revive = Callable[[Kernel], Awaitable[str]]
"""Brings a heap back into a new worker, which has its inputs already; returns what is to be said of it.

Where that ends the worker, it raises `WorkerGone`, and is asked again with another one."""

MAX_NAMED = 40  # lost names that are listed one by one
MAX_ATTEMPTS = 5  # workers that may end while a heap is brought back, each for another reason


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A value that the host owns in the namespace, under all of `names`."""

    names: tuple[str, ...]
    payload: Payload


class Namespace:
    """One namespace and the worker that holds it, on the event loop that uses it first.

    setup_code runs before the first cell of each worker, when the inputs given so far are there. place: the folder in
    which its own folder is made, the system's for temporary files by default. cells: how many were run in it, those of
    earlier workers included. revive: asked at each new worker to bring back what only workers have.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        tools: Sequence[Tool] = (),
        cell_timeout: float | None = None,
        isolation: str | Callable[[], str] = "none",
        setup_code: str | None = None,
    ) -> None:
        self._isolation = isolation
        self.contexts = 0
        self.histories = 0
        self.cells = 0
        self.place: Path | None = None
        self.revive: Revive | None = None
        self.cell_timeout = cell_timeout
        self._connect = connect
        self._functions = [tool for tool in tools if tool.is_function]
        self._values = [tool for tool in tools if not tool.is_function]
        self._given: dict[str, Given] = {}
        self._setup_code = setup_code
        self._kernel: Kernel | None = None
        self._prepared: Kernel | None = None
        self._folder: Path | None = None
        self._lock = asyncio.Lock()
        self._notes: list[str] = []
        self._ended = self._revived = ""
        self._closed = False
        self._process = os.getpid()
        self._captures = 0

    @property
    def isolation(self) -> str:
        """The level of isolation in force. Where it has not been tried out yet, that is done now, and blocks."""
        return self._isolation if isinstance(self._isolation, str) else self._isolation()

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the worker if it is not running. Raises `SandboxError`."""
        async with self._lock:
            await self._live()

    async def release(self) -> None:
        """End the worker, which is idle, and keep everything else: the next use starts another one."""
        async with self._lock:
            kernel, self._kernel = self._kernel, None
            if kernel is not None:
                await kernel.close()

    @property
    def is_live(self) -> bool:
        """Whether a worker runs."""
        return self._kernel is not None and self._kernel.dead is None

    async def close(self) -> None:
        """End the worker and remove its files. Twice is fine, and so is a namespace that never started."""
        if self._process != os.getpid():
            return  # a forked child does not own its parent's worker
        self._closed = True
        try:
            if self._kernel is not None:
                await self._kernel.close()
        finally:
            folder, self._folder = self._folder, None
            if folder is not None:
                await _remove(folder)
            _open.discard(self)

    def disown(self) -> None:
        """In a forked child: let go of the parent's worker, which would else live for as long as the child does."""
        if self._kernel is not None:
            self._kernel.disown()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this REPL was closed")
        if self._process != os.getpid():
            raise ReplError("this REPL belongs to the process that forked this one: open a new one here")

    async def _live(self) -> Kernel:
        """The kernel of a running worker, which has everything that the host gave."""
        self._check_open()
        kernel = self._kernel
        if kernel is not None and kernel.dead is None:
            return kernel
        if kernel is not None:
            self._kernel = None
            await self._leave(kernel)
        return await self._start_worker()

    async def _leave(self, kernel: Kernel) -> None:
        """Let go of a worker that is gone. The next one, whenever it starts, has to say so."""
        self._kernel = None
        lost = "" if self.revive else self._losses(kernel)
        self._ended = said = f"The REPL was restarted: {kernel.dead}. {lost}".rstrip()
        await kernel.close()
        if self._ended == said:  # how the worker ended may be known only now
            self._ended = f"The REPL was restarted: {kernel.dead}. {lost}".rstrip()

    async def _start_worker(self) -> Kernel:
        """A new worker with everything that is to be in it; what is to be said of it stands in the notes."""
        for attempt in reversed(range(MAX_ATTEMPTS)):
            try:
                kernel = await self._start_empty()
            except SandboxError as error:
                if not isinstance(error.__cause__, WorkerGone) or not attempt:
                    raise
                continue  # somebody may have killed it
            try:
                told = ""
                if self.revive is not None:
                    await self._set_up(kernel)
                    told = await self.revive(kernel)
            except WorkerGone as gone:
                await kernel.close()
                if not attempt:
                    raise SandboxError(f"no worker survives what is brought back into it: {gone}") from gone
            except BaseException:
                await kernel.close()
                raise
            else:
                kernel.cells = max(kernel.cells, self.cells)
                self._kernel = kernel
                self._revived = told
                if self._ended:
                    self._notes.append(f"{self._ended} {told}".rstrip())
                    self._ended = ""
                return kernel
        raise AssertionError("the last attempt returns or raises")

    async def _start_empty(self) -> Kernel:
        work = await self._open_folder()
        await _emptied(work)  # files go with their worker; those of a saved heap are brought back with it
        transport = self._connect(work)
        transport = await transport if isinstance(transport, Awaitable) else transport
        kernel = Kernel(transport, self._functions, captured=self.place is not None)
        try:
            await kernel.start()
            for tool in self._values:
                if tool.name not in self._given:
                    self._given[tool.name] = Given((tool.name,), await self._pack(tool.value))
            for given in self._given.values():
                await kernel.load(given.names, given.payload)
            self._check_open()
        except WorkerGone as gone:
            await kernel.close()
            raise SandboxError(f"the worker did not survive its inputs: {gone}") from gone
        except BaseException:
            await kernel.close()
            raise
        return kernel

    async def prepare(self) -> None:
        """Start the worker and run the setup code, where the first cell else would. Raises `ReplError` if it fails."""
        async with self._lock:
            await self._prepare()

    async def _prepare(self) -> Kernel:
        kernel = await self._live()
        await self._set_up(kernel)
        return kernel

    async def _set_up(self, kernel: Kernel) -> None:
        if self._setup_code is not None and self._prepared is not kernel:
            if failed := (await kernel.run(self._setup_code, timeout=self.cell_timeout)).error:
                raise ReplError(f"the setup code failed:\n{failed.text}")
            self._prepared = kernel

    async def _open_folder(self) -> Path:
        self._check_open()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rlm-", dir=self.place))
            (self._folder / "inputs").mkdir()
            _open.add(self)
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        return work

    async def _pack(self, value: Any) -> Payload:
        folder = (self._folder or (await self._open_folder()).parent) / "inputs"
        return pack(value, folder) if is_quick(value) else await in_thread(lambda: pack(value, folder))

    def _losses(self, kernel: Kernel) -> str:
        """What a lost worker leaves behind: names the host has, and names that nobody has."""
        back = sorted({name for given in self._given.values() for name in given.names})
        lost = [f"{name} ({kind})" for name, kind in kernel.names.items() if name not in back]
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        told_back = f"Back: {', '.join(back)}. " if back else ""
        told_lost = f"Lost: {', '.join(lost[:MAX_NAMED])}{more}." if lost else "Nothing else was in it."
        return told_back + told_lost

    def take_notes(self) -> list[str]:
        """What happened to the namespace outside of a cell's result since the last call, a sentence each."""
        notes, self._notes = self._notes, []
        return notes

    # -- cells -----------------------------------------------------------------------------------------------------

    async def run(
        self, code: str, answer: Answer | None = None, *, fresh: bool = False, printed: Printed | None = None
    ) -> REPLResult:
        """Run one cell; its calls go to `answer` (None: they fail, there is nobody to ask).

        `fresh` begins a turn. Cancelling stops the cell within a second. Raises `SandboxError` only.
        """
        async with self._lock:
            kernel = await self._prepare()
            before = " ".join(self.take_notes())
            try:
                result = await kernel.run(code, answer, timeout=self.cell_timeout, fresh=fresh, printed=printed)
            except WorkerGone as gone:
                return await self._restarted(kernel, gone, before)
            finally:
                self.cells += 1
            if before:
                lost = self.revive is None  # else all is as it was
                return dataclasses.replace(result, stderr=f"{before}\n{result.stderr}", restarted=lost)
            return result

    async def _restarted(self, kernel: Kernel, gone: WorkerGone, before: str) -> REPLResult:
        """The result of a cell that took its worker with it: a new one stands, and the losses are named."""
        losses = self._losses(kernel)
        await self._leave(kernel)
        await self._start_worker()
        self.take_notes()
        if self.revive is not None:
            losses = f"The namespace is as it was before this cell. {self._revived}".rstrip()
        kind = "CellTimeout" if gone.stopped == "timeout" else "WorkerDied"
        limit = f" The cell ran over its limit of {self.cell_timeout:g} s." if gone.stopped == "timeout" else ""
        error = CellError(kind, f"{kind}: {gone}.{limit} The REPL was restarted. {losses}")
        partial = gone.partial
        return dataclasses.replace(
            partial,
            stderr="\n".join([*filter(None, (before, partial.stderr.rstrip("\n"))), error.text, ""]),
            error=error,
            locals=self._kernel.names if self._kernel is not None else {},
            restarted=True,
        )

    async def capture(self, *, whole: bool = False) -> tuple[int, Capture]:
        """What changed in the heap since the last capture, and after how many cells that was. Waits for a running cell.

        Raises `WorkerGone` where there is no worker any more, and so nothing to be captured.
        """
        async with self._lock:
            kernel, cells = self._kernel, self.cells
            if kernel is None:
                raise WorkerGone("no worker runs")
            spool = (await self._open_folder()).parent / "spool"
            spool.mkdir(exist_ok=True)
            await _emptied(spool)  # of what a capture left that nobody took over
            self._captures += 1
            file = spool / str(self._captures)
            file.touch(0o600)
            captured = asyncio.ensure_future(kernel.capture(file, whole=whole))
            await asyncio.sleep(0)  # it is on its way now, before any other cell
        return cells, await captured

    # -- values ----------------------------------------------------------------------------------------------------

    async def pack(self, value: Any) -> Payload:
        """Lay a value down as `put` takes it. Raises `ContextError`."""
        return await self._pack(value)

    async def put(self, kind: str, payload: Payload, index: int | None = None, name: str | None = None) -> int:
        """Bind what was laid down to `context_N` or `history_N` (and `name`); returns N. Raises `ContextError`."""
        async with self._lock:
            if kind == "context":
                number = self.contexts if index is None else index
                await self._put(kind, number, payload, name)
            else:
                number = self.histories if index is None else index
                await self._put_history(number, payload)
            self._count(kind, number)
            return number

    def give(self, kind: str, payload: Payload, index: int, name: str | None = None) -> None:
        """The same for a namespace whose worker has not started: it will have it. In the order of the indices."""
        names = _names(kind, index, name)
        self._given[names[0]] = Given(names, payload)
        self._count(kind, index)

    def forget_given(self) -> None:
        """As if no context and no history had ever been put; for a namespace without a worker."""
        kept = {tool.name for tool in self._values}
        self._given = {name: given for name, given in self._given.items() if name in kept}
        self.contexts = self.histories = 0

    def _count(self, kind: str, number: int) -> None:
        if kind == "context":
            self.contexts = max(self.contexts, number + 1)
        else:
            self.histories = max(self.histories, number + 1)

    async def put_context(self, value: Any, index: int | None = None, name: str | None = None) -> int:
        """Bind `value` to `context_N` (and `name`); returns N. Raises `ContextError`."""
        payload = await self._pack(value)
        async with self._lock:
            number = self.contexts if index is None else index
            await self._put("context", number, payload, name)
            self.contexts = max(self.contexts, number + 1)
            return number

    async def put_history(self, messages: Sequence[Mapping[str, Any]], index: int | None = None) -> int:
        """Bind a copy of the messages to `history_N`; returns N. No worker is started for it: the next one has it."""
        payload = await self._pack([dict(message) for message in messages])
        async with self._lock:
            number = self.histories if index is None else index
            await self._put_history(number, payload)
            self._count("history", number)
            return number

    async def _put_history(self, number: int, payload: Payload) -> None:
        if self.is_live:
            await self._put("history", number, payload, None)
        else:
            self._check_open()
            names = _names("history", number, None)
            self._given[names[0]] = Given(names, payload)

    async def holds(self, index: int, value: Any) -> bool:
        """Whether `context_{index}` was made of a value that is laid down as this one is. Raises `ContextError`."""
        given = self._given.get(f"context_{index}")
        if given is None:
            return False
        payload = await self._pack(value)
        try:
            return await in_thread(lambda: payload.equals(given.payload))
        finally:
            if payload.path is not None:
                payload.path.unlink(missing_ok=True)

    async def _put(self, kind: str, number: int, payload: Payload, name: str | None) -> None:
        names = _names(kind, number, name)
        try:
            await (await self._live()).load(names, payload)
        except WorkerGone:  # it died idle; a second death in a row is the value's own doing
            try:
                await (await self._live()).load(names, payload)
            except WorkerGone as gone:
                raise ContextError(
                    f"{names[0]} cannot be brought into the REPL, whose worker it ends: {gone}"
                ) from gone
        self._given[names[0]] = Given(names, payload)

    async def variables(self) -> Mapping[str, str]:
        """Names of the namespace and their types, as they are now."""
        return await self._ask(Kernel.refresh)

    async def get(self, name: str) -> Any:
        """The value of a name; a `RemoteValue` where it has no exact JSON form. Raises KeyError."""
        return await self._ask(lambda kernel: kernel.get(name))

    async def _ask(self, question: Callable[[Kernel], Awaitable[T]]) -> T:
        """Ask the worker what changes nothing; where it dies meanwhile, the next one."""
        async with self._lock:
            try:
                return await question(await self._live())
            except WorkerGone:
                return await question(await self._live())


def _names(kind: str, number: int, name: str | None) -> tuple[str, ...]:
    if number < 0:
        raise ValueError(f"{kind}_{number}: an index starts at 0; None takes the next one")
    return (f"{kind}_{number}", *((kind,) if number == 0 else ()), *((name,) if name else ()))


async def _remove(folder: Path) -> None:
    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    try:
        await in_thread(remove)  # a gigabyte takes its time
    except RuntimeError:  # an interpreter that is ending starts no more threads
        remove()


async def _emptied(folder: Path) -> None:
    if not _is_empty(folder):
        await _remove(folder)
        _make(folder)


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _make(folder: Path) -> None:
    folder.mkdir()


_open: weakref.WeakSet[Namespace] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends without close() leaves neither processes nor files behind."""
    namespaces = list(_open)
    if namespaces:

        async def close() -> None:
            await asyncio.gather(*(namespace.close() for namespace in namespaces), return_exceptions=True)

        portal().run(close())


def _after_fork() -> None:
    global _open
    for namespace in _open:
        namespace.disown()
    _open = weakref.WeakSet()


os.register_at_fork(after_in_child=_after_fork)


class Locals(Mapping[str, Any]):
    """The namespace as a mapping; a value is fetched when it is asked for, and not before."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __getitem__(self, name: str) -> Any:
        return portal().run(self._namespace.get(name))

    def __contains__(self, name: object) -> bool:
        return name in portal().run(self._namespace.variables())

    def __iter__(self) -> Iterator[str]:
        return iter(portal().run(self._namespace.variables()))

    def __len__(self) -> int:
        return len(portal().run(self._namespace.variables()))

    def __repr__(self) -> str:
        return f"<locals: {', '.join(self)}>"


class REPL(BaseEnv):
    """An environment over our own worker. Subclasses say how to reach one; everything of the contract is here.

    lm_handler_address: where calls of cells go when the REPL is used alone. context_payload: becomes `context`.
    tools: host functions and values for the cells. cell_timeout: seconds a cell may run. setup_code: a first cell,
    which must not fail. Nothing is started before the first use.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        persistent: bool = False,
        lm_handler_address: tuple[str, int] | None = None,
        context_payload: Any = None,
        setup_code: str | None = None,
        tools: Sequence[Tool] = (),
        cell_timeout: float | None = None,
        isolation: str | Callable[[], str] = "none",
    ) -> None:
        super().__init__(persistent)
        if cell_timeout is not None and not cell_timeout > 0:
            raise ValueError(f"cell_timeout={cell_timeout!r}: give seconds above 0, or None for no limit")
        self.namespace = Namespace(
            connect, tools=tools, cell_timeout=cell_timeout, isolation=isolation, setup_code=setup_code
        )
        self._context = context_payload
        self._begun = context_payload is None and setup_code is None
        self._finalizer = weakref.finalize(self, _abandon, self.namespace)
        self._finalizer.atexit = False  # at the interpreter's end _close_all closes, and waits
        self._address = lm_handler_address

    @property
    def isolation(self) -> str:
        """The level of isolation in force."""
        return self.namespace.isolation

    @property
    def locals(self) -> Mapping[str, Any]:
        """The namespace as it is now; a value is fetched when it is asked for."""
        self._begin()
        return Locals(self.namespace)

    def setup(self) -> None:
        """Start the worker; otherwise the first use does."""
        portal().run(self.namespace.start())
        if self._begun:
            return
        self._begun = True
        context, self._context = self._context, None
        if context is not None:
            self.add_context(context)
        portal().run(self.namespace.prepare())

    def load_context(self, context_payload: Any) -> None:
        self.add_context(context_payload, 0)

    def execute_code(self, code: str) -> REPLResult:
        """Run one cell, as in any Python module; returns what came of it."""
        self._begin()
        calls: list[CallRecord] = []
        result = portal().run(self.namespace.run(code, self._answer(calls)))
        return dataclasses.replace(result, rlm_calls=calls) if calls else result

    def _answer(self, calls: list[CallRecord]) -> Answer | None:
        """Has calls answered by the handler, and notes them."""
        address = self._address
        if address is None:
            return None

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            began, value, failure = time.perf_counter(), None, None
            try:
                value = await lm_handler.acall(address, name, args, kwargs)
                return value
            except CallFailed as failed:
                failure = str(failed)
                raise
            finally:
                seconds, prompt = time.perf_counter() - began, str(args[0]) if args else ""
                response = failure or (value if isinstance(value, str) else repr(value))
                calls.append(CallRecord("", name, prompt, response, execution_time=seconds, error=failure))

        return answer

    def update_handler_address(self, address: tuple[str, int]) -> None:
        self._address = address

    def add_context(self, context_payload: Any, context_index: int | None = None) -> int:
        self._begin()
        return portal().run(self.namespace.put_context(context_payload, context_index))

    def get_context_count(self) -> int:
        self._begin()
        return self.namespace.contexts

    def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
        self._begin()
        return portal().run(self.namespace.put_history(message_history, history_index))

    def get_history_count(self) -> int:
        return self.namespace.histories

    def cleanup(self) -> None:
        """End the worker and remove its files. Twice is fine, and so is an object whose construction failed."""
        namespace = getattr(self, "namespace", None)
        if namespace is not None:
            portal().run(namespace.close())

    def _begin(self) -> None:
        if not self._begun:
            self.setup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()


def _abandon(namespace: Namespace) -> None:
    """Close a namespace that nobody holds any more; runs in the garbage collector, so it must not wait."""
    if not namespace._closed and namespace in _open:
        asyncio.run_coroutine_threadsafe(namespace.close(), portal().loop)
