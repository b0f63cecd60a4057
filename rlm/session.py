"""A session: turns over one namespace and one log.

Turns queue in the order in which they were asked; a turn that is cut short leaves its context, its history and a usable
session. Everything a session knows of itself is a fold over its log of events. All of it lives on the portal's event
loop; the public methods come in a blocking and an awaitable form, made from one implementation.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rlm import inputs
from rlm.engine import loop, prompts
from rlm.engine.budget import Ledger
from rlm.engine.host import LiveHost, Namespace, Setup, Tree, _messages
from rlm.engine.journal import Journal, Record
from rlm.errors import CancellationError, ReplError, RLMError, SessionClosedError, TimeoutExceededError, TurnError
from rlm.portal import blocking, hopping, in_thread, portal
from rlm.types import (
    Answered,
    Asked,
    Called,
    ContextAdded,
    Event,
    Failed,
    Limits,
    Listener,
    Ran,
    Replied,
    REPLResult,
    RLMChatCompletion,
    Stopped,
    UsageSummary,
)


class _Nothing:
    """No input came with this turn (None is a value, and may be one)."""


NOTHING = _Nothing()
NOTE = 400  # characters of a user's own cell that the model is told


@dataclass(slots=True)
class _Turn:
    """What is known of a turn while it runs."""

    number: int
    question: str | None
    context: prompts.ContextInfo | None
    ledger: Ledger
    transcript: loop.Transcript
    started: float
    key: str | None = None
    digest: str | None = None

    @property
    def path(self) -> str:
        return f"t{self.number}"


class Session:
    """A conversation with one namespace. Made by `RLM.session`; not started before it is used.

    name: its name. log: its events so far. limits, where given, hold for the session's whole life, beside those of each
    turn.
    """

    def __init__(
        self, setup: Setup, name: str, *, limits: Limits | None = None, listeners: Sequence[Listener] = ()
    ) -> None:
        self.name = name
        self._setup = setup
        self._listeners = list(listeners)
        self._log: list[Event] = []
        self._namespace: Namespace = setup.open_namespace(setup.tools)
        self._ledger = Ledger(limits or Limits())
        self._ledger.require_prices([setup.model, *setup.sub_models])
        self._queue = asyncio.Lock()
        self._conversation: list[prompts.Exchange] = []
        self._answers: dict[str, tuple[str, RLMChatCompletion]] = {}
        self._unanswered: tuple[Any, prompts.ContextInfo] | None = None
        self._notes: list[str] = []
        self._turns = 0
        self._cells = 0
        self._running: asyncio.Task[Any] | None = None
        self._closed = False

    # -- turns -----------------------------------------------------------------------------------------------------

    async def _ask(self, question: str, *, key: str | None = None, output_type: Any = None) -> RLMChatCompletion:
        """A turn without new input: the model answers from what the session has.

        key: asked again with the same key and the same inputs, the recorded answer is returned, free. output_type: a type
        that the answer is validated against; `output` of the result is the value. Raises a `TurnError` with the partial
        answer where the turn ends early, `ModelError` where the provider fails.
        """
        return await self._turn(NOTHING, question, key, output_type)

    async def _completion(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> RLMChatCompletion:
        """A turn with a new input: `prompt` becomes the next `context_N`, `root_prompt` is the question about it.

        Without a question the task is in the input itself. The rest is as with `ask`.
        """
        return await self._turn(prompt, root_prompt, key, output_type)

    ask, aask = blocking(_ask), hopping(_ask)
    completion, acompletion = blocking(_completion), hopping(_completion)

    async def _turn(self, prompt: Any, question: str | None, key: str | None, output_type: Any) -> RLMChatCompletion:
        async with self._queue:
            self._check_open()
            started = time.perf_counter()
            value = prompt if prompt is NOTHING else await _read(prompt)
            digest = _digest(value, question, output_type) if key is not None else None
            if key is not None and key in self._answers and self._answers[key][0] == digest:
                return self._answers[key][1]
            self._running = asyncio.current_task()
            try:
                turn = await self._open_turn(value, question, output_type, started)
                turn.key, turn.digest = key, digest
                return await self._answer(turn, prompt, output_type)
            except asyncio.CancelledError as cancelled:
                if self._closed:
                    raise cancelled.__cause__ or CancellationError("the session was closed during this turn") from None
                raise
            finally:
                self._running = None

    async def _open_turn(self, value: Any, question: str | None, output_type: Any, started: float) -> _Turn:
        """Bring the input in, and write down what the model is told at the beginning."""
        await self._namespace.start()
        context = None if value is NOTHING else await self._add_input(value, None)
        schema = None
        if output_type is not None:
            from rlm.outputs import Output

            schema = Output(output_type).schema
        notes, self._notes = [*self._namespace.take_notes(), *self._notes], []
        opening = prompts.turn(
            question=question,
            context=context,
            contexts=self._namespace.contexts,
            histories=self._namespace.histories,
            conversation=self._conversation,
            notes=notes,
            output_type=schema,
        )
        prologue = f"{self._setup.prologue}\n\n" if self._setup.prologue else ""
        system = prompts.system(
            self._setup.tools,
            depth_left=self._setup.depth + 1 < self._setup.limits.depth,
            custom=self._setup.system_prompt,
            orchestrator=self._setup.orchestrator,
        )
        transcript = loop.Transcript(
            [{"role": "system", "content": system}, {"role": "user", "content": prologue + opening}]
        )
        number, self._turns = self._turns, self._turns + 1
        return _Turn(number, question, context, Ledger(self._setup.limits, parent=self._ledger), transcript, started)

    async def _answer(self, turn: _Turn, prompt: Any, output_type: Any) -> RLMChatCompletion:
        """Run the turn to its end, whatever that is, and leave the session ready for the next one."""
        limits = self._setup.limits
        turn.ledger.require_prices([self._setup.model, *self._setup.sub_models])
        index = turn.context.index if turn.context else None
        await self._append(Asked(turn.path, turn.question, index, turn.key, self._setup.model.name))
        try:
            async with asyncio.timeout(limits.seconds) as deadline:
                outcome = await self._run_turn(turn, prompt, output_type)
        except TimeoutError as error:
            if isinstance(error, TurnError) or not deadline.expired():
                await self._cut_short(turn, error)
                raise
            elapsed, allowed = time.perf_counter() - turn.started, limits.seconds or 0.0
            late = TimeoutExceededError(
                f"the turn took over Limits(seconds={allowed:g})", elapsed=elapsed, timeout=allowed
            )
            await self._cut_short(turn, late)
            raise late from None
        except asyncio.CancelledError:
            why = "the session was closed during this turn" if self._closed else "the turn was cancelled"
            cancelled = CancellationError(why)
            await asyncio.shield(self._cut_short(turn, cancelled))
            raise asyncio.CancelledError from cancelled  # for blocking callers, who hear of it as an error
        except Exception as error:  # recorded and told to the next turn, then raised again
            await self._cut_short(turn, error)
            raise
        await self._end_turn(turn, turn.transcript.messages[1:], outcome.response)
        completion = RLMChatCompletion(
            self._setup.model.name,
            turn.question if prompt is NOTHING or turn.question is not None else prompt,
            outcome.response,
            turn.ledger.usage,
            time.perf_counter() - turn.started,
            self._metadata(turn),
            outcome.output,
            turn.number,
        )
        if turn.key is not None and turn.digest is not None:
            self._answers[turn.key] = (turn.digest, completion)
        await self._append(Answered(turn.path, completion))
        return completion

    async def _run_turn(self, turn: _Turn, prompt: Any, output_type: Any) -> loop.Outcome:
        setup = self._setup
        check = None
        if output_type is not None:
            from rlm.outputs import Output

            check = Output(output_type).check
        tree = Tree(setup, turn.ledger, self._append, self._tell)
        host = LiveHost(tree, self._namespace, path=turn.path, model=setup.model, tools=setup.tools, depth=setup.depth)
        if setup.depth >= setup.limits.depth:
            return await self._plain(host, turn, prompt)
        return await loop.turn(
            Journal(host, turn.path, Record(), self._append, tell=self._tell),
            turn.transcript,
            iterations=setup.limits.iterations,
            errors=setup.limits.errors,
            output_limit=setup.output_limit,
            check=check,
        )

    async def _plain(self, host: LiveHost, turn: _Turn, prompt: Any) -> loop.Outcome:
        """At the deepest level there is no REPL: the model reads the input itself."""
        question = [{"role": "user", "content": turn.question}] if turn.question else []
        messages = [*([] if prompt is NOTHING else _messages(prompt)), *question]
        turn.transcript.messages[:] = messages
        journal = Journal(host, turn.path, Record(), self._append, tell=self._tell)
        reply = await journal.ask(messages)
        turn.transcript.say("assistant", reply.text)
        return loop.Outcome(reply.text, None, 1)

    async def _end_turn(self, turn: _Turn, messages: Sequence[Mapping[str, Any]], answer: str) -> None:
        """What every turn leaves behind, however it ended: a history, and its place in the conversation."""
        self._conversation.append(prompts.Exchange(turn.question, answer))
        await self._namespace.put_history(messages)

    async def _cut_short(self, turn: _Turn, error: BaseException) -> None:
        """Record a turn that ended without an answer, and give the exception what there is."""
        partial = turn.transcript.partial
        if isinstance(error, TurnError):
            error.partial_answer = partial = error.partial_answer or partial
            error.usage = turn.ledger.usage
            error.transcript = tuple(turn.transcript.messages)
            event: Event = Stopped(turn.path, type(error).__name__, str(error), partial)
        else:
            event = Failed(turn.path, type(error).__name__, str(error), partial)
        await self._append(event)
        ended = prompts.ended(str(error))
        try:
            await self._end_turn(turn, [*turn.transcript.messages[1:], {"role": "assistant", "content": ended}], ended)
        except RLMError as lost:
            self._notes.append(f"The messages of turn {turn.number} could not be kept: {lost}")

    def _metadata(self, turn: _Turn) -> Mapping[str, Any]:
        return {
            "session": self.name,
            "iterations": turn.transcript.iterations,
            "cells": turn.transcript.cells,
            "calls": turn.ledger.usage.total_calls,
            "uncertain_calls": turn.ledger.uncertain,
            "isolation": self._namespace.isolation,
            "context": turn.context.index if turn.context else None,
        }

    # -- inputs ----------------------------------------------------------------------------------------------------

    async def _add_context(self, value: Any, name: str | None = None) -> int:
        """Bring an input into the namespace without asking anything; returns N of its `context_N`.

        name: a second name for it. Raises `ContextError` for what cannot be brought in.
        """
        if name is not None and not name.isidentifier():
            raise ValueError(f"add_context(name={name!r}): a name must be a Python identifier")
        async with self._queue:
            self._check_open()
            context = await self._add_input(await _read(value), name)
            also = f" (also `{name}`)" if name else ""
            self._notes.append(f"the user added `context_{context.index}`{also}: {context.type}")
            self._unanswered = None
            return context.index

    add_context, aadd_context = blocking(_add_context), hopping(_add_context)

    async def _add_input(self, value: Any, name: str | None) -> prompts.ContextInfo:
        if self._unanswered is not None and name is None and _same(self._unanswered[0], value):
            context = self._unanswered[1]  # a turn that failed is asked again: its input is already there
        else:
            index = await self._namespace.put_context(value, None, name)
            kind, size = type(value).__name__, inputs.size(value)
            context = prompts.ContextInfo(index, kind, size, name, inputs.preview(value))
            await self._append(ContextAdded(f"context_{index}", index, kind, size, name))
        self._unanswered = (value, context)
        return context

    # -- stepping inside -------------------------------------------------------------------------------------------

    async def _run(self, code: str) -> REPLResult:
        """Run your own cell in the namespace. Calls in it are answered and charged as the model's are.

        The model is told of it at the beginning of the next turn.
        """
        async with self._queue:
            self._check_open()
            self._running = asyncio.current_task()
            path, self._cells = f"u{self._cells}", self._cells + 1
            setup = self._setup
            tree = Tree(setup, Ledger(setup.limits, parent=self._ledger), self._append, self._tell)
            host = LiveHost(tree, self._namespace, path=path, model=setup.model, tools=setup.tools, depth=setup.depth)
            try:
                result = await Journal(host, path, Record(), self._append, tell=self._tell).run(code)
            finally:
                self._running = None
            shown = " ".join(code.split())
            ended = f", which failed with {result.error.type}" if result.error else ""
            self._notes.append(f"the user ran a cell: `{shown[:NOTE]}{'…' if len(shown) > NOTE else ''}`{ended}")
            return result

    async def _variables(self) -> Mapping[str, str]:
        """Names of the namespace and the names of their types, as they are now."""
        async with self._queue:
            self._check_open()
            return await self._namespace.variables()

    async def _get(self, name: str) -> Any:
        """The value of a variable: plain data exactly, anything else as a `RemoteValue`. Raises KeyError."""
        async with self._queue:
            self._check_open()
            return await self._namespace.get(name)

    run, arun = blocking(_run), hopping(_run)
    variables, avariables = blocking(_variables), hopping(_variables)
    get, aget = blocking(_get), hopping(_get)

    def usage(self) -> UsageSummary:
        """What the session has consumed so far, over all turns and all models."""
        return usage_of(self._log)

    @property
    def log(self) -> Sequence[Event]:
        """The recorded events so far, oldest first."""
        return tuple(self._log)

    @property
    def turns(self) -> int:
        """Turns begun so far."""
        return self._turns

    @property
    def isolation(self) -> str:
        """The level of isolation in force."""
        return self._namespace.isolation

    # -- events ----------------------------------------------------------------------------------------------------

    async def _append(self, event: Event) -> None:
        self._log.append(event)
        self._tell(event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def _events(
        self, prompt: Any, question: str | None, key: str | None, output_type: Any
    ) -> AsyncIterator[Event]:
        """The events of one turn as they happen; leaving early cancels the turn."""
        arrived: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.append(arrived.put_nowait)
        task = asyncio.ensure_future(self._turn(prompt, question, key, output_type))
        task.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (event := await arrived.get()) is not None:
                yield event
            completion = task.result()
            if completion is not None and key is not None and completion.turn != self._turns - 1:
                yield Answered(f"t{completion.turn}", completion)  # recorded earlier, so nothing happened now
        finally:
            self._listeners.remove(arrived.put_nowait)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Iterator[Event]:
        """`completion` as a stream of typed events; the last one is `Answered`, with the completion."""
        return _blocking_iterator(self._events(prompt, root_prompt, key, output_type))

    def astream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> AsyncIterator[Event]:
        """The async form of `stream`."""
        return _hopping_iterator(self._events(prompt, root_prompt, key, output_type))

    def stream_ask(self, question: str, *, key: str | None = None, output_type: Any = None) -> Iterator[Event]:
        """`ask` as a stream of typed events."""
        return _blocking_iterator(self._events(NOTHING, question, key, output_type))

    def astream_ask(self, question: str, *, key: str | None = None, output_type: Any = None) -> AsyncIterator[Event]:
        """The async form of `stream_ask`."""
        return _hopping_iterator(self._events(NOTHING, question, key, output_type))

    # -- life ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """End the session: a running turn is cancelled, the namespace destroyed. Twice is fine."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        async with self._queue:
            await self._namespace.close()

    close, aclose = blocking(_close), hopping(_close)

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.name!r} was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def usage_of(events: Sequence[Event]) -> UsageSummary:
    """What the events say was consumed: replies at all levels, and calls that went straight to a model."""
    total: dict[str, UsageSummary] = {}
    summary = UsageSummary()
    del total
    for event in events:
        if isinstance(event, Replied):
            summary = summary.add(event.reply.model, event.reply.usage)
        elif isinstance(event, Called) and event.name == "llm_query":
            summary = summary + event.usage_summary
    return summary


async def _read(value: Any) -> Any:
    return await in_thread(lambda: inputs.read(value)) if hasattr(value, "__fspath__") else value


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, (str, bytes)) and one == other


def _digest(value: Any, question: str | None, output_type: Any) -> str:
    """Stands for a turn's inputs: what is asked about what, and the type of the answer."""
    told = hashlib.blake2b(repr((question, repr(output_type))).encode("utf-8", "backslashreplace"), digest_size=32)
    if isinstance(value, str):
        told.update(b"text" + value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        told.update(b"bytes" + value)
    elif value is not NOTHING:
        import cloudpickle

        try:
            told.update(b"pickle" + cloudpickle.dumps(value))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ReplError(
                f"an input of type {type(value).__name__} has no digest, so key= cannot be used: {error}"
            ) from error
    return told.hexdigest()


def _blocking_iterator(events: AsyncIterator[Event]) -> Iterator[Event]:
    try:
        while (event := portal().run(_next(events))) is not None:
            yield event
    finally:
        portal().run(_end(events))


async def _hopping_iterator(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    try:
        while (event := await portal().hop(_next(events))) is not None:
            yield event
    finally:
        await portal().hop(_end(events))


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


async def _end(events: AsyncIterator[Event]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
