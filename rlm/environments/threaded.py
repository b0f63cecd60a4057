"""A third party's blocking environment as the engine uses one: in a thread of its own, with an LM handler beside it.

The thread is the only one that ever touches the environment. A cancelled cell cannot be stopped from outside, so its
thread is abandoned, the environment cleaned up, and every later use says that the session is lost.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import pickle
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from rlm.environments.base_env import BaseEnv, SupportsPersistence, require_persistence
from rlm.environments.lm_handler import HandlerAddress, LMHandler
from rlm.errors import ConfigurationError, ContextError, ReplError, RLMError, SessionError
from rlm.ports import Answer
from rlm.types import REPLResult, Tool

FRESH = 'answer = {"content": "", "ready": False}'

T = TypeVar("T")


@runtime_checkable
class SupportsTools(Protocol):
    """An environment that can make host functions callable in its cells."""

    def add_tool(self, name: str, doc: str) -> None:
        """Bind `name` to a function that asks the LM handler: `lm_handler.call(address, name, args, kwargs)`."""
        ...


def require_tools(kind: type, tools: Sequence[Tool]) -> None:
    """Raise `ConfigurationError` if cells of environments of this class cannot have host functions, and should."""
    functions = list(dict.fromkeys(tool.name for tool in tools if tool.is_function))
    if functions and not callable(getattr(kind, "add_tool", None)):
        raise ConfigurationError(
            f"tools={functions}: {kind.__name__} has no add_tool(name, doc), so its cells cannot call host functions; "
            "leave tools out or add that method"
        )


class Threaded:
    """Runs an environment of class `kind` for the engine. The same methods as `rlm.environments.repl.Namespace`.

    make: builds it; called in the thread too, as a constructor may block like everything else.
    """

    def __init__(self, kind: type[BaseEnv], make: Callable[[], BaseEnv], tools: Sequence[Tool] = ()) -> None:
        require_tools(kind, tools)
        self.contexts = 0
        self.histories = 0
        self._kind = kind
        self._make = make
        self._tools = tools
        self._built: BaseEnv | None = None
        self._handler = LMHandler()
        self._address: HandlerAddress | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lost = ""
        self._abandoned = False
        self._names: Mapping[str, str] = {}
        self._lock = asyncio.Lock()

    @property
    def isolation(self) -> str:
        """What the environment says of itself, by an attribute of this name."""
        return str(getattr(self._built or self._kind, "isolation", "unknown"))

    @property
    def _environment(self) -> BaseEnv:
        if self._built is None:
            raise SessionError(f"this session is lost: {self._lost or 'it was never started'}")
        return self._built

    async def start(self) -> None:
        """Start the thread, the handler and the environment; at each later turn look whether it can still be used.

        Raises `SessionError` once the session is lost, `ConfigurationError` where an environment that was to persist
        no longer can, and `SandboxError`.
        """
        if self._address is None:
            threading.Thread(target=self._work, daemon=True, name=f"rlm-{self._kind.__name__}").start()
            self._address = await self._handler.start()
            try:
                self._built = await self._do(self._build)
                await self._do(self._built.setup)
                await self._add_tools()
            except RLMError as error:
                self._lost = self._lost or f"it could not be set up: {error}"
                raise
        environment, address = self._environment, self._address
        if environment.persistent:
            require_persistence(type(environment).__name__, environment)
        if isinstance(environment, SupportsPersistence):
            await self._do(lambda: environment.update_handler_address(address))

    def _build(self) -> BaseEnv:
        environment = self._make()
        if self._abandoned:
            environment.cleanup()  # whoever asked for it does not wait any more
        return environment

    async def _add_tools(self) -> None:
        environment = self._environment
        for tool in self._tools:
            if not tool.is_function:
                await self._bind(tool)
            elif isinstance(environment, SupportsTools):
                await self._do(functools.partial(environment.add_tool, tool.name, tool.description))

    async def _bind(self, tool: Tool) -> None:
        """Give cells a value; all that every environment can do is to run code."""
        try:
            pickled = base64.b64encode(pickle.dumps(tool.value)).decode("ascii")
        except Exception as error:  # a __reduce__ of the user's may raise anything
            raise ContextError(f"tool {tool.name!r} cannot be pickled, so no cell can have it: {error}") from error
        code = f'{tool.name} = __import__("pickle").loads(__import__("base64").b64decode("{pickled}"))'
        result = await self._do(lambda: self._environment.execute_code(code))
        if result.error:
            raise ContextError(f"tool {tool.name!r} cannot be brought into the REPL:\n{result.error.text}")

    async def close(self) -> None:
        """Clean the environment up and end its thread. Twice is fine."""
        built, self._built = self._built, None
        self._lost = self._lost or "it was closed"
        try:
            if built is not None and not self._abandoned:
                await self._in_thread(built.cleanup)
        finally:
            self._jobs.put(None)
            await self._handler.close()

    def take_notes(self) -> list[str]:
        return []

    async def run(
        self,
        code: str,
        answer: Answer | None = None,
        *,
        fresh: bool = False,
        printed: Callable[[str, str], None] | None = None,
    ) -> REPLResult:
        """Run one cell in the thread, with the handler answering its calls from `answer` meanwhile."""
        await self._started()
        async with self._lock:
            if fresh:
                await self._do(lambda: self._environment.execute_code(FRESH))
            self._handler.answer = answer
            try:
                result = await self._do(lambda: self._environment.execute_code(code))
            finally:
                self._handler.end_cell()
        names = {name: kind if isinstance(kind, str) else type(kind).__name__ for name, kind in result.locals.items()}
        self._names = names
        return dataclasses.replace(result, locals=names)

    async def put_context(self, value: Any, index: int | None = None, name: str | None = None) -> int:
        """By `add_context`, or by `load_context` for the only context of an environment that does not persist."""
        await self._started()
        environment = self._environment
        if isinstance(environment, SupportsPersistence):
            number = await self._do(lambda: environment.add_context(value, index))
        else:
            number = 0
            await self._do(lambda: environment.load_context(value))
        self.contexts = max(self.contexts, number + 1)
        if name:
            await self._do(lambda: environment.execute_code(f"{name} = context_{number}"))
        return number

    async def put_history(self, messages: Sequence[Mapping[str, Any]], index: int | None = None) -> int:
        """By `add_history`; an environment that does not persist keeps none."""
        await self._started()
        environment = self._environment
        if not isinstance(environment, SupportsPersistence):
            return 0
        number = await self._do(lambda: environment.add_history([dict(message) for message in messages], index))
        self.histories = max(self.histories, number + 1)
        return number

    async def variables(self) -> Mapping[str, str]:
        """Names and types as of the end of the last cell."""
        return self._names

    async def get(self, name: str) -> Any:
        """From the environment's mapping `locals`, where it has one. Raises KeyError."""
        values = getattr(self._environment, "locals", None)
        if not isinstance(values, Mapping):
            raise ReplError(f"{type(self._environment).__name__} has no mapping `locals`, so values cannot be fetched")
        if not await self._do(lambda: name in values):
            raise KeyError(name)
        return await self._do(lambda: values[name])

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def _started(self) -> None:
        if self._address is None:
            await self.start()

    async def _do(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread. What the environment raises of its own comes as `ReplError`."""
        if self._lost:
            raise SessionError(f"this session is lost: {self._lost}")
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Callable[[], T]] = loop.create_future()

        def settle(outcome: Callable[[], T]) -> None:
            if not done.done():
                done.set_result(outcome)

        def job() -> None:
            outcome = self._outcome(work)
            with contextlib.suppress(RuntimeError):  # the loop may have ended before the thread
                loop.call_soon_threadsafe(settle, outcome)

        self._jobs.put(job)
        try:
            return (await done)()
        except asyncio.CancelledError:
            self._abandon()
            raise

    def _outcome(self, work: Callable[[], T]) -> Callable[[], T]:
        """Do the work; returns a function that gives what came of it."""
        try:
            value = work()
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it goes to whoever asked
            error = raised

            def fail() -> T:
                if isinstance(error, RLMError):
                    raise error
                raise ReplError(f"{self._kind.__name__} failed: {type(error).__name__}: {error}") from error

            return fail
        return lambda: value

    def _abandon(self) -> None:
        self._lost = "a cell of it was cancelled, which this environment cannot do but by ending"
        self._jobs.put(None)
        if not self._abandoned and self._built is not None:
            threading.Thread(target=self._built.cleanup, daemon=True, name="rlm-cleanup").start()
        self._abandoned = True
