"""The real Host: a model, a namespace, and the functions that cells may call.

One `LiveHost` serves one turn (or one child's) and knows its place in the tree; `Tree` is what all of a turn's hosts
share: the ledger through which every request passes, the models and tools that cells may use, and how a child's
namespace is opened.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlm import inputs
from rlm.engine import loop, prompts
from rlm.engine.budget import Ledger
from rlm.engine.journal import Journal, NeverBegan, Priced, Record
from rlm.errors import ModelError, ReplError, TurnError
from rlm.portal import in_thread
from rlm.ports import Answer, CallFailed, Model
from rlm.types import Event, Limits, Listener, Message, Messages, Printed, REPLResult, Reply, Tool, UsageSummary

SERVING: ContextVar[tuple[object, ...]] = ContextVar("rlm_serving", default=())
"""The sessions whose cells wait for the host function that runs here: it must not wait for one of them."""


class Runs(Protocol):
    """What runs cells."""

    async def run(
        self,
        code: str,
        answer: Answer | None = None,
        *,
        fresh: bool = False,
        printed: Callable[[str, str], None] | None = None,
    ) -> REPLResult: ...


class Namespace(Runs, Protocol):
    """A REPL as the engine uses one. `rlm.environments.repl.Namespace` describes the methods."""

    @property
    def isolation(self) -> str: ...
    @property
    def contexts(self) -> int: ...
    @property
    def histories(self) -> int: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def put_context(self, value: Any, index: int | None = None, name: str | None = None) -> int: ...
    async def put_history(self, messages: Sequence[Mapping[str, Any]], index: int | None = None) -> int: ...
    async def variables(self) -> Mapping[str, str]: ...
    async def get(self, name: str) -> Any: ...
    def take_notes(self) -> list[str]: ...


@dataclass(frozen=True)
class Setup:
    """How turns are run: everything about them that is configured and does not change.

    sub_models: what cells may ask by `model=`, the first by default. depth: the level of the root, 0 unless this whole
    RLM is somebody else's child. settings, sub_settings: for each request to the root model, and to sub-models.
    open_namespace: makes a namespace with the given tools, without starting it; its second argument says whether more
    than one turn will use it.
    """

    model: Model
    sub_models: Sequence[Model]
    limits: Limits
    open_namespace: Callable[[Sequence[Tool], bool], Namespace]
    tools: Sequence[Tool] = ()
    sub_tools: Sequence[Tool] = ()
    depth: int = 0
    output_limit: int = 10_000
    system_prompt: str | None = None
    orchestrator: bool = True
    prologue: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sub_settings: Mapping[str, Any] = field(default_factory=dict)

    def sub_model(self, name: str | None) -> Model:
        """The model that a cell asks for. Cells may use what the user configured, nothing else on that account."""
        if name is None:
            return self.sub_models[0]
        for model in (*self.sub_models, self.model):
            if name in (model.name, model.name.partition(":")[2]):
                return model
        known = ", ".join(dict.fromkeys(model.name for model in (*self.sub_models, self.model)))
        raise CallFailed(f"model={name!r} is not one of this session's models: {known}", "model")


class Tree:
    """What the hosts of one turn share.

    session: whose turn it is. record: what is known of the turn from before. settled: waits until everything that was
    recorded is durable; asked before anything is done that the world notices. once: tools that must not be used twice.
    """

    def __init__(
        self,
        setup: Setup,
        ledger: Ledger,
        append: Callable[[Event], Awaitable[None]],
        tell: Listener,
        session: object = None,
        *,
        record: Record | None = None,
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.setup = setup
        self.ledger = ledger
        self.append = append
        self.tell = tell
        self.record = record or Record()
        self.settled = settled or _at_once
        self.once = frozenset(tool.name for tool in (*setup.tools, *setup.sub_tools) if tool.retry == "never")
        self._serving = (*SERVING.get(), session)
        self._tools_at_once = asyncio.Semaphore(setup.limits.concurrency)
        self._children_at_once: dict[int, asyncio.Semaphore] = {}

    def children_at_once(self, depth: int) -> asyncio.Semaphore:
        """As many children as requests, at each level: parents that wait for theirs must not starve them."""
        return self._children_at_once.setdefault(depth, asyncio.Semaphore(self.setup.limits.concurrency))

    async def use(self, tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a host function: an async one here, any other in a thread. What it raises is for the cell."""
        SERVING.set(self._serving)
        try:
            if inspect.iscoroutinefunction(tool.value):
                return await tool.value(*args, **kwargs)
            async with self._tools_at_once:
                value = await in_thread(lambda: _guarded(tool, args, kwargs))
            return await value if inspect.isawaitable(value) else value
        except CallFailed:
            raise
        except asyncio.CancelledError as error:
            if _cancelled_by_us():
                raise
            raise _tool_failed(error) from error
        except (Exception, SystemExit) as error:
            raise _tool_failed(error) from error


def _cancelled_by_us() -> bool:
    """Whether this task is asked to end; else a `CancelledError` is of the user's own making."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _guarded(tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function so that no exception but `CallFailed` leaves its thread: some of them would end an event loop."""
    try:
        return tool.value(*args, **kwargs)
    except BaseException as error:
        raise _tool_failed(error) from error


def _tool_failed(error: BaseException) -> CallFailed:
    if isinstance(error, CallFailed):
        return error
    said = str(error)
    return CallFailed(f"{type(error).__name__}: {said}" if said else type(error).__name__, "tool")


class LiveHost:
    """Answers the asks, cells and calls of one turn, or of one child, from the world.

    path: its place in the tree. depth: its level; cells of level d have REPL children while d + 1 < `Limits.depth`.
    begun: how many of its cells ran before.
    """

    def __init__(
        self,
        tree: Tree,
        namespace: Runs,
        *,
        path: str,
        model: Model,
        tools: Sequence[Tool],
        depth: int,
        begun: int = 0,
    ) -> None:
        self.usage = UsageSummary()
        self.tree = tree
        self._namespace = namespace
        self._path = path
        self._model = model
        self._tools = {tool.name: tool for tool in tools if tool.is_function}
        self._depth = depth
        self._settings = tree.setup.settings if depth == tree.setup.depth else tree.setup.sub_settings
        self._cells = begun

    @property
    def children(self) -> Collection[str]:
        """The functions that start a turn of their own."""
        return ("rlm_query",) if self._depth + 1 < self.tree.setup.limits.depth else ()

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        """One reply, through the ledger."""
        return await self._ask(self._model, messages, self._settings)

    async def _ask(self, model: Model, messages: Messages, settings: Mapping[str, Any]) -> Reply:
        async with self.tree.ledger.reserve(model, messages, settings.get("max_tokens")) as slot:
            await self.tree.settled()
            slot.sent = True
            try:
                reply = await model.reply(messages, **settings)
            except ModelError as error:
                slot.sent = error.status is None  # a request that was refused with a status was not served, nor billed
                raise
            except (asyncio.CancelledError, SystemExit) as error:
                if _cancelled_by_us():
                    raise
                raise ModelError(f"{model.name}: {type(error).__name__}: {error}", model=model.name) from error
            if not isinstance(reply, Reply):
                raise ModelError(f"{model.name}: reply() gave {reply!r}, not a rlm.types.Reply", model=model.name)
            slot.settle(reply.usage)
        self.usage = self.usage.add(model.name, reply.usage)
        return reply if reply.model == model.name else dataclasses.replace(reply, model=model.name)

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        """One cell in the namespace."""
        fresh, at = not self._cells, f"{self._path}/c{self._cells}"
        self._cells += 1
        before = getattr(self._namespace, "cells", None)
        try:
            await self.tree.settled()
        except asyncio.CancelledError as cancelled:
            raise NeverBegan(*cancelled.args) from cancelled

        def printed(stream: str, text: str) -> None:
            self.tree.tell(Printed(at, "stderr" if stream == "stderr" else "stdout", text))

        try:
            return await self._namespace.run(code, answer, fresh=fresh, printed=printed)
        except asyncio.CancelledError as cancelled:
            if before is not None and getattr(self._namespace, "cells", None) == before:
                raise NeverBegan(*cancelled.args) from cancelled
            raise

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Answer a call of a cell: a model, a child, or a tool."""
        if name in self._tools:
            await self.tree.settled()
            return await self.tree.use(self._tools[name], args, kwargs)
        if name not in ("llm_query", "rlm_query"):
            known = ", ".join(["llm_query", "rlm_query", *self._tools])
            raise CallFailed(f"{name}() is not a function of this session; there are {known}", "unknown")
        prompt, model = _query(name, args, kwargs)
        chosen = self.tree.setup.sub_model(model)
        try:
            if name in self.children:
                return await self._child(key, prompt, chosen)
            reply = await self._ask(chosen, as_messages(prompt), self.tree.setup.sub_settings)
        except CallFailed:
            raise
        except Exception as error:  # also what a model of the user's own raises: only this call fails
            raise _failed(error) from error
        return Priced(reply.text, UsageSummary({chosen.name: reply.usage}))

    async def _child(self, key: str, prompt: Any, model: Model) -> Priced:
        """A turn of its own, in a namespace of its own, from this tree's ledger; its events stand under the call."""
        tree, setup, depth = self.tree, self.tree.setup, self._depth + 1
        async with tree.children_at_once(depth):
            namespace = setup.open_namespace(setup.sub_tools, False)
            try:
                await namespace.put_context(prompt)
                host = LiveHost(tree, namespace, path=key, model=model, tools=setup.sub_tools, depth=depth)
                journal = Journal(
                    host,
                    key,
                    tree.record,
                    tree.append,
                    once=tree.once,
                    children=host.children,
                    tell=tree.tell,
                )
                transcript = loop.Transcript(opening(setup, depth, context=context_info(0, prompt)))
                try:
                    outcome = await loop.turn(
                        journal,
                        transcript,
                        iterations=setup.limits.iterations,
                        errors=setup.limits.errors,
                        output_limit=setup.output_limit,
                    )
                except Exception as error:  # the call fails, and what it consumed is told
                    raise _failed(error, host.usage) from error
                finally:
                    self.usage = self.usage + host.usage
                    tree.ledger.uncertain += journal.uncertain
            finally:
                await asyncio.shield(namespace.close())
        return Priced(outcome.response, host.usage)


async def _at_once() -> None:
    """Nothing is recorded that one would have to wait for."""


def opening(
    setup: Setup,
    depth: int,
    *,
    question: str | None = None,
    context: prompts.ContextInfo | None = None,
    contexts: int = 1,
    histories: int = 0,
    conversation: Sequence[prompts.Exchange] = (),
    notes: Sequence[str] = (),
    schema: str | None = None,
) -> list[Message]:
    """The first messages of a turn at `depth`, as `prompts.turn` takes them; a child's task stands in its context."""
    is_root = depth == setup.depth
    system = prompts.system(
        setup.tools if is_root else setup.sub_tools,
        depth_left=depth + 1 < setup.limits.depth,
        custom=setup.system_prompt,
        orchestrator=setup.orchestrator,
    )
    turn = prompts.turn(
        question=question,
        context=context,
        contexts=contexts,
        histories=histories,
        conversation=conversation,
        notes=notes,
        output_type=schema,
    )
    prologue = f"{setup.prologue}\n\n" if setup.prologue and is_root else ""
    return [{"role": "system", "content": system}, {"role": "user", "content": prologue + turn}]


def plain_opening(value: Sequence[Any], question: str | None, schema: str | None) -> list[Message]:
    """The messages of a turn without a REPL: the model reads the input (at most one in `value`) itself."""
    messages: list[Message] = []
    for one in value:
        messages += as_messages(one)
    if question is not None:
        messages.append({"role": "user", "content": question})
    if schema is not None:
        form = f"Answer with JSON that fits this schema, and nothing else:\n{schema}"
        messages.append({"role": "user", "content": form})
    return messages


def context_info(index: int, value: Any, name: str | None = None) -> prompts.ContextInfo:
    """What the model is told of an input."""
    return prompts.ContextInfo(index, type(value).__name__, inputs.size(value), name, inputs.preview(value))


def _query(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str | None]:
    """(prompt, model) of a query, whichever way a cell passed them."""
    given = dict(zip(("prompt", "model"), args, strict=False)) | dict(kwargs)
    prompt, model = given.pop("prompt", None), given.pop("model", None)
    if given or len(args) > 2 or prompt is None or not isinstance(model, (str, type(None))):
        raise CallFailed(f"{name}(prompt, model=None) takes a prompt and the name of a model", "value")
    return prompt, model


def as_messages(prompt: Any) -> list[Message]:
    """A prompt as messages: a text is the user's, bytes are text, a list of messages goes as it is."""
    if isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        return [{"role": message["role"], "content": message["content"]} for message in prompt]
    if isinstance(prompt, bytes):
        prompt = prompt.decode("utf-8", "replace")
    return [{"role": "user", "content": prompt if isinstance(prompt, str) else str(prompt)}]


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
    )


def _failed(error: Exception, usage: UsageSummary | None = None) -> CallFailed:
    failed = CallFailed(f"{type(error).__name__}: {error}", _reason(error))
    failed.usage_summary = usage
    return failed


def _reason(error: Exception) -> str:
    if isinstance(error, TurnError):
        return "limit"
    return "repl" if isinstance(error, ReplError) else "model"
