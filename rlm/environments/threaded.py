"""A third party's blocking environment as the engine uses one: in a thread of its own, with an LM handler beside it.

The thread is the only one that ever touches the environment. A cancelled cell cannot be stopped from outside, so its
thread is abandoned, the environment cleaned up, and every later use says that the session is lost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rlm.environments.base_env import BaseEnv, SupportsPersistence
from rlm.environments.lm_handler import LMHandler
from rlm.errors import ConfigurationError, ReplError, SessionError
from rlm.ports import Answer
from rlm.types import REPLResult, Tool

FRESH = 'answer = {"content": "", "ready": False}'


@runtime_checkable
class SupportsTools(Protocol):
    """An environment that can make host functions callable in its cells."""

    def add_tool(self, name: str, doc: str) -> None:
        """Bind `name` to a function that asks the LM handler: `lm_handler.call(address, name, args, kwargs)`."""
        ...


class Threaded:
    """Runs `environment` for the engine. The same methods as `rlm.environments.repl.Namespace`."""

    def __init__(self, environment: BaseEnv, tools: Sequence[Tool] = ()) -> None:
        if tools and not isinstance(environment, SupportsTools):
            raise ConfigurationError(
                f"tools={[tool.name for tool in tools]}: {type(environment).__name__} has no add_tool(name, doc), "
                "so cells in it cannot call host functions; leave tools out or add that method"
            )
        self.isolation = str(getattr(environment, "isolation", "unknown"))
        self._environment = environment
        self._tools = tools
        self._handler = LMHandler()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False
        self._lost = ""
        self._names: Mapping[str, Any] = {}
        self._lock = asyncio.Lock()

    @property
    def contexts(self) -> int:
        environment = self._environment
        return environment.get_context_count() if isinstance(environment, SupportsPersistence) else int(self._started)

    @property
    def histories(self) -> int:
        environment = self._environment
        return environment.get_history_count() if isinstance(environment, SupportsPersistence) else 0

    async def start(self) -> None:
        """Start the thread, the handler and the environment."""
        if self._started:
            return
        self._started = True
        threading.Thread(target=self._work, daemon=True, name=f"rlm-{type(self._environment).__name__}").start()
        address = await self._handler.start()
        await self._do(self._environment.setup)
        if isinstance(self._environment, SupportsPersistence):
            environment = self._environment
            await self._do(lambda: environment.update_handler_address(address))
        for tool in self._tools:
            await self._do(lambda tool=tool: self._environment.add_tool(tool.name, tool.description))  # type: ignore

    async def close(self) -> None:
        """Clean the environment up and end its thread."""
        if self._started and not self._lost:
            await self._do(self._environment.cleanup)
        self._lost = self._lost or "it was closed"
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
        await self.start()
        async with self._lock:
            if fresh:
                await self._do(lambda: self._environment.execute_code(FRESH))
            self._handler.answer = answer
            try:
                result = await self._do(lambda: self._environment.execute_code(code))
            finally:
                self._handler.answer = None
        names = {name: kind if isinstance(kind, str) else type(kind).__name__ for name, kind in result.locals.items()}
        self._names = names
        return dataclasses.replace(result, locals=names)

    async def put_context(self, value: Any, index: int | None = None, name: str | None = None) -> int:
        """As the environment can: `add_context`, or `load_context` for the only context of one that does not persist."""
        await self.start()
        environment = self._environment
        if isinstance(environment, SupportsPersistence):
            number: int = await self._do(lambda: environment.add_context(value, index))
        else:
            number = 0
            await self._do(lambda: self._environment.load_context(value))
        if name:
            await self._do(lambda: self._environment.execute_code(f"{name} = context_{number}"))
        return number

    async def put_history(self, messages: Sequence[Mapping[str, Any]], index: int | None = None) -> int:
        await self.start()
        environment = self._environment
        if not isinstance(environment, SupportsPersistence):
            return 0
        number: int = await self._do(lambda: environment.add_history([dict(m) for m in messages], index))
        return number

    async def variables(self) -> Mapping[str, str]:
        return self._names

    async def get(self, name: str) -> Any:
        values = getattr(self._environment, "locals", None)
        if not isinstance(values, Mapping):
            raise ReplError(f"{type(self._environment).__name__} has no mapping `locals`, so values cannot be fetched")
        return await self._do(lambda: values[name])

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def _do(self, work: Callable[[], Any]) -> Any:
        if self._lost:
            raise SessionError(f"this session is lost: {self._lost}")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(value)
                else:
                    done.set_exception(error)

        def job() -> None:
            try:
                value, error = work(), None
            except Exception as raised:  # goes to whoever asked
                value, error = None, raised
            loop.call_soon_threadsafe(settle, value, error)

        self._jobs.put(job)
        try:
            return await done
        except asyncio.CancelledError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._lost = "a cell of it was cancelled, which this environment cannot do but by ending"
        self._jobs.put(None)
        cleanup = self._environment.cleanup
        threading.Thread(target=cleanup, daemon=True, name="rlm-cleanup").start()
