"""A session: turns over one namespace and one log.

Turns queue in the order in which they were asked; a turn that is cut short leaves its context, its history and a usable
session. Everything a session knows of itself is a fold over its log of events. All of it lives on the portal's event
loop; the public methods come in a blocking and an awaitable form, made from one implementation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from rlm import inputs
from rlm.engine import loop, prompts
from rlm.engine.budget import Ledger
from rlm.engine.host import SERVING, LiveHost, Namespace, Setup, Tree, context_info, opening, plain_opening
from rlm.engine.journal import Journal, Record
from rlm.errors import (
    CancellationError,
    ConfigurationError,
    RLMError,
    SessionClosedError,
    SessionError,
    TimeoutExceededError,
    TurnError,
)
from rlm.listeners import Listening
from rlm.portal import Closing, aiterate, blocking, hopping, in_thread, iterate, portal
from rlm.tools import check_name
from rlm.types import (
    Answered,
    Asked,
    Called,
    ContextAdded,
    Event,
    Failed,
    Limits,
    Listener,
    Message,
    Replied,
    REPLResult,
    RLMChatCompletion,
    Stopped,
    UsageSummary,
)

if TYPE_CHECKING:
    from rlm.outputs import Output

T = TypeVar("T")


class _Nothing:
    """No input came with this turn (None is a value, and may be one)."""


NOTHING = _Nothing()
NOTE = 400  # characters of a user's own cell that the model is told
UNCHANGING = (str, bytes)  # types of inputs that are later what they were
OF_TURNS = ("iterations", "depth", "errors", "concurrency")  # limits that a session's whole life does not have


@dataclass(slots=True)
class _Turn:
    """What is known of a turn while it runs. value: its input, as the namespace has it, or NOTHING. context: what the
    model is told of it, once it is there."""

    number: int
    question: str | None
    value: Any
    ledger: Ledger
    transcript: loop.Transcript
    context: prompts.ContextInfo | None = None

    @property
    def path(self) -> str:
        return f"t{self.number}"


@runtime_checkable
class KnowsContexts(Protocol):
    """A namespace that can say whether a context is this value, as it was when it was given."""

    async def holds(self, index: int, value: Any) -> bool: ...


class Session(Closing):
    """A conversation with one namespace. Made by `RLM.session`; not started before it is used.

    name: its name. log: its events so far. limits, where given, hold for the session's whole life, beside those of each
    turn. persistent: more than one turn will be asked of it. listening: told of all events. Raises `ConfigurationError`
    where that is more than there is: without a REPL there is nothing that a second turn could go on from.
    """

    def __init__(
        self,
        setup: Setup,
        name: str,
        *,
        limits: Limits | None = None,
        persistent: bool = True,
        listening: Listening | None = None,
    ) -> None:
        self.name = name
        self._setup = setup
        if persistent:
            require_namespace(setup, f"session {name!r}")
        self._limits = _of_a_life(limits or Limits())
        self._ledger = Ledger(self._limits)
        self._ledger.require_prices([setup.model, *setup.sub_models])
        self._namespace: Namespace = setup.open_namespace(setup.tools, persistent)
        self._listening = listening or Listening([])
        self._listeners = [self._listening.begin()]
        self._log: list[Event] = []
        self._queue = asyncio.Lock()
        self._conversation: list[prompts.Exchange] = []
        self._answers: dict[str, tuple[str, RLMChatCompletion]] = {}
        self._unanswered: tuple[Any, prompts.ContextInfo] | None = None
        self._notes: list[str] = []
        self._turns = 0
        self._cells = 0
        self._seconds = 0.0
        self._running: asyncio.Task[Any] | None = None
        self._closed = False
        self._finalizer: weakref.finalize[..., Session] | None = None

    # -- turns -----------------------------------------------------------------------------------------------------

    def _ask(
        self, question: str, *, key: str | None = None, output_type: Any = None
    ) -> Coroutine[Any, Any, RLMChatCompletion]:
        """A turn without new input: the model answers from what the session has.

        key: asked again with the same key and the same inputs, the recorded answer is returned, free. output_type: a
        type that the answer is validated against; `output` of the result is the value. Raises a `TurnError` with the
        partial answer where the turn ends early, `ModelError` where the provider fails.
        """
        return self.turn(NOTHING, question, key, output_type)

    def _completion(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Coroutine[Any, Any, RLMChatCompletion]:
        """A turn with a new input: `prompt` becomes the next `context_N`, `root_prompt` is the question about it.

        Without a question the task is in the input itself. The rest is as with `ask`.
        """
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=4)
        return self.turn(prompt, root_prompt, key, output_type)

    ask, aask = blocking(_ask), hopping(_ask)
    completion, acompletion = blocking(_completion), hopping(_completion)

    async def turn(
        self,
        prompt: Any,
        question: str | None,
        key: str | None = None,
        output_type: Any = None,
        spectator: Listener | None = None,
    ) -> RLMChatCompletion:
        """One turn, in the order of arrival; to be awaited on the portal's loop. `prompt` is NOTHING for a turn without
        input; `spectator` is told of the events of this turn alone."""
        try:
            async with self._alone("turn"):
                if spectator is None:
                    completion = await self._answer(prompt, question, key, output_type)
                else:
                    self._listeners.append(spectator)
                    try:
                        completion = await self._answer(prompt, question, key, output_type)
                    finally:
                        self._listeners.remove(spectator)
        except Exception:
            await self._listening.caught_up()
            raise
        await self._listening.caught_up()
        return completion

    @contextlib.asynccontextmanager
    async def _alone(self, what: str) -> AsyncIterator[None]:
        """The session to oneself, in the order of arrival. close() ends it, with a `CancellationError`."""
        if self in SERVING.get():
            raise SessionError(
                f"session {self.name!r} runs the cell that called this function: the two would wait for each other"
            )
        async with self._queue:
            self._check_open()
            if self._finalizer is None:
                self._finalizer = weakref.finalize(self, _abandon, self._namespace)
                self._finalizer.atexit = False  # when the interpreter ends, namespaces see to themselves
            task = self._running = asyncio.current_task()
            try:
                yield
            except asyncio.CancelledError as cancelled:
                if not self._closed or task is None:
                    raise
                task.uncancel()
                told = cancelled.__cause__
                closed = CancellationError(f"the session was closed during this {what}")
                raise (told if isinstance(told, CancellationError) else closed) from None
            finally:
                self._running = None

    async def _answer(self, prompt: Any, question: str | None, key: str | None, output_type: Any) -> RLMChatCompletion:
        """The recorded answer, or that of a new turn."""
        started = time.perf_counter()
        output = _output(output_type)
        value = await in_thread(lambda: inputs.read(prompt)) if hasattr(prompt, "__fspath__") else prompt
        asked = ""
        if key is not None:
            asked = await in_thread(lambda: _digest(value, question, output))
            if key in self._answers and self._answers[key][0] == asked:
                known = self._answers[key][1]
                return known if question is not None else dataclasses.replace(known, prompt=prompt)
        turn, outcome = await self._play(value, question, key, output, started)
        completion = RLMChatCompletion(
            self._setup.model.name,
            _short(prompt) if question is None else question,
            outcome.response,
            turn.ledger.usage,
            time.perf_counter() - started,
            self._metadata(turn),
            outcome.output,
            turn.number,
        )
        await _to_its_end(self._conclude(turn, completion, key, asked))
        return completion if question is not None else dataclasses.replace(completion, prompt=prompt)

    async def _play(
        self, value: Any, question: str | None, key: str | None, output: Output | None, started: float
    ) -> tuple[_Turn, loop.Outcome]:
        """A turn to its end. One that is cut short is recorded, and the session ready for the next one."""
        allowed = self._allowed_seconds()
        left = None if allowed is None else allowed - (time.perf_counter() - started)
        turn = await self._begin(value, question, key)
        try:
            async with asyncio.timeout(left) as deadline:
                await self._open(turn, output)
                return turn, await self._run_turn(turn, output)
        except asyncio.CancelledError:
            why = "session was closed during this turn" if self._closed else "turn was cancelled"
            stopped = CancellationError(f"the {why}")
            await _to_its_end(self._record_the_end(turn, stopped))
            raise asyncio.CancelledError from stopped  # whom the portal blocks for gets to see `stopped`
        except Exception as error:
            if not deadline.expired() or type(error) is not TimeoutError:
                await _to_its_end(self._record_the_end(turn, error))
                raise
            timed_out = _timed_out("turn", time.perf_counter() - started, allowed)
            await _to_its_end(self._record_the_end(turn, timed_out))
            raise timed_out from None
        finally:
            self._seconds += time.perf_counter() - started

    def _allowed_seconds(self) -> float | None:
        """What the limits of turns, and what is left of the session's, allow the next turn, or cell of the user's."""
        allowed, life = self._setup.limits.seconds, self._limits.seconds
        if life is None:
            return allowed
        if self._seconds >= life:
            used = f"Limits(seconds={life:g}) of session {self.name!r} is used up"
            raise TimeoutExceededError(used, elapsed=self._seconds, timeout=life)
        left = life - self._seconds
        return left if allowed is None else min(allowed, left)

    async def _begin(self, value: Any, question: str | None, key: str | None) -> _Turn:
        """Number the turn and record it, before anything that takes time or can fail: however it ends is then known."""
        number, self._turns = self._turns, self._turns + 1
        turn = _Turn(number, question, value, Ledger(self._setup.limits, parent=self._ledger), loop.Transcript([]))
        if self._unanswered is not None and type(value) in UNCHANGING and value is self._unanswered[0]:
            turn.context = self._unanswered[1]
        index = turn.context.index if turn.context else None
        await self._append(Asked(turn.path, question, index, key, self._setup.model.name))
        return turn

    async def _open(self, turn: _Turn, output: Output | None) -> None:
        """Bring the input in, and write down what the model is told at the beginning."""
        await self._namespace.start()
        if turn.value is not NOTHING and turn.context is None:
            turn.context = await self._take_in(turn.value)
        schema = output.schema if output else None
        if self._is_plain:
            given = [] if turn.value is NOTHING else [turn.value]
            turn.transcript.messages += plain_opening(given, turn.question, schema)
            return
        notes, self._notes = [*self._namespace.take_notes(), *self._notes], []
        turn.transcript.messages += opening(
            self._setup,
            self._setup.depth,
            question=turn.question,
            context=turn.context,
            contexts=self._namespace.contexts,
            histories=self._namespace.histories,
            conversation=self._conversation,
            notes=notes,
            schema=schema,
        )

    @property
    def _is_plain(self) -> bool:
        """At the deepest level there is no REPL: the model reads the input itself."""
        return self._setup.depth >= self._setup.limits.depth

    async def _run_turn(self, turn: _Turn, output: Output | None) -> loop.Outcome:
        setup = self._setup
        return await loop.turn(
            Journal(self._host(turn.path, turn.ledger), turn.path, Record(), self._append, tell=self._tell),
            turn.transcript,
            iterations=0 if self._is_plain else setup.limits.iterations,
            errors=setup.limits.errors,
            output_limit=setup.output_limit,
            check=output.check if output else None,
        )

    def _host(self, path: str, ledger: Ledger) -> LiveHost:
        setup = self._setup
        tree = Tree(setup, ledger, self._append, self._tell, self)
        return LiveHost(tree, self._namespace, path=path, model=setup.model, tools=setup.tools, depth=setup.depth)

    async def _conclude(self, turn: _Turn, completion: RLMChatCompletion, key: str | None, asked: str) -> None:
        self._unanswered = None
        if key is not None:
            self._answers[key] = (asked, completion)
        await self._leave_history(turn, turn.transcript.messages, completion.response)
        await self._append(Answered(turn.path, completion))

    async def _record_the_end(self, turn: _Turn, error: Exception) -> None:
        """Record a turn that ended without an answer, and give the exception what there is."""
        partial = turn.transcript.partial
        if isinstance(error, RLMError):
            error.partial_answer = partial = error.partial_answer or partial
            error.usage = turn.ledger.usage
            error.transcript = tuple(turn.transcript.messages)
        kind = Stopped if isinstance(error, TurnError) else Failed
        await self._append(kind(turn.path, type(error).__name__, str(error), partial))
        if turn.context is not None:
            self._unanswered = (turn.value if type(turn.value) in UNCHANGING else NOTHING, turn.context)
        asked: list[Message] = [{"role": "user", "content": turn.question or "(a task inside its input)"}]
        ended = prompts.ended(str(error))
        messages = turn.transcript.messages or asked
        await self._leave_history(turn, [*messages, {"role": "assistant", "content": ended}], ended)

    async def _leave_history(self, turn: _Turn, messages: Sequence[Message], answer: str) -> None:
        """What every turn leaves behind, however it ended: its messages, and its place in the conversation."""
        self._conversation.append(prompts.Exchange(turn.question, answer))
        if self._closed:
            return
        try:
            await self._namespace.put_history([message for message in messages if message["role"] != "system"])
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

    def _add_context(self, value: Any, name: str | None = None) -> Coroutine[Any, Any, int]:
        """Bring an input into the namespace without asking anything; returns N of its `context_N`.

        name: a second name for it. Raises `ContextError` for what cannot be brought in.
        """
        if name is not None:
            check_name(name, f"add_context(name={name!r})")
            if name in [tool.name for tool in self._setup.tools]:
                raise ConfigurationError(f"add_context(name={name!r}): a tool has this name; choose another")
        inputs.warn_if_unlikely(value, "", stacklevel=4)
        return self._add(value, name)

    async def _add(self, value: Any, name: str | None) -> int:
        async with self._alone("add_context()"):
            value = await in_thread(lambda: inputs.read(value)) if hasattr(value, "__fspath__") else value
            context = await self._put(value, name)
            also = f" (also `{name}`)" if name else ""
            size = "" if context.size is None else f", {context.size:,} long"
            self._notes.append(f"the user added `context_{context.index}`{also}: {context.type}{size}")
            return context.index

    add_context, aadd_context = blocking(_add_context), hopping(_add_context)

    async def _take_in(self, value: Any) -> prompts.ContextInfo:
        """The context of a turn's input: a new one, unless a turn that failed left the same input unanswered."""
        if self._unanswered is not None:
            known, context = self._unanswered
            if await self._is_the_same(value, known, context):
                await self._tell_of(context)
                return context
        return await self._put(value, None)

    async def _is_the_same(self, value: Any, known: Any, context: prompts.ContextInfo) -> bool:
        """Whether the value is what the context was made of, which costs nothing before somebody asks.

        A text is compared with the text itself. The user's own list may have changed since it came in, so that what
        cannot be trusted to stay as it is, is compared with what the namespace was given.
        """
        if (type(value).__name__, inputs.size(value)) != (context.type, context.size):
            return False
        if type(value) in UNCHANGING:
            return type(value) is type(known) and bool(value == known)
        return isinstance(self._namespace, KnowsContexts) and await self._namespace.holds(context.index, value)

    async def _put(self, value: Any, name: str | None) -> prompts.ContextInfo:
        index = await self._namespace.put_context(value, None, name)
        context = context_info(index, value, name)
        await self._tell_of(context)
        return context

    async def _tell_of(self, context: prompts.ContextInfo) -> None:
        index = context.index
        await self._append(ContextAdded(f"context_{index}", index, context.type, context.size, context.name))

    # -- stepping inside -------------------------------------------------------------------------------------------

    async def _run(self, code: str) -> REPLResult:
        """Run your own cell in the namespace. Calls in it are answered and charged as the model's are.

        The model is told of it at the beginning of the next turn. It is bounded as a turn is by `Limits(seconds=)`, and
        counts into the session's seconds. Raises `TimeoutExceededError`.
        """
        async with self._alone("cell"):
            allowed, started = self._allowed_seconds(), time.perf_counter()
            path, self._cells = f"u{self._cells}", self._cells + 1
            host = self._host(path, Ledger(self._setup.limits, parent=self._ledger))
            ended = ", which was cancelled"
            try:
                async with asyncio.timeout(allowed) as deadline:
                    result = await Journal(host, path, Record(), self._append, tell=self._tell).run(code)
                ended = f", which failed with {result.error.type}" if result.error else ""
            except asyncio.CancelledError:
                raise asyncio.CancelledError from CancellationError("the cell was cancelled")
            except TimeoutError as error:
                if not deadline.expired() or type(error) is not TimeoutError:
                    raise
                ended = ", which was stopped by the limit on seconds"
                raise _timed_out("cell", time.perf_counter() - started, allowed) from None
            finally:
                self._seconds += time.perf_counter() - started
                shown = " ".join(code[: 2 * NOTE].split())
                cut = "…" if len(shown) > NOTE or len(code) > 2 * NOTE else ""
                self._notes.append(f"the user ran a cell: `{shown[:NOTE]}{cut}`{ended}")
            return result

    async def _variables(self) -> Mapping[str, str]:
        """Names of the namespace and the names of their types, as they are now."""
        async with self._alone("variables()"):
            return await self._namespace.variables()

    async def _get(self, name: str) -> Any:
        """The value of a variable: plain data exactly, anything else as a `RemoteValue`. Raises KeyError."""
        async with self._alone("get()"):
            return await self._namespace.get(name)

    run, arun = blocking(_run), hopping(_run)
    variables, avariables = blocking(_variables), hopping(_variables)
    get, aget = blocking(_get), hopping(_get)

    def usage(self) -> UsageSummary:
        """What the session has consumed so far, over all turns, with their children, and all models."""
        summary = UsageSummary()
        children = set()
        for event in self._log:
            if isinstance(event, Replied):
                summary = summary.add(event.reply.model, event.reply.usage)
                children.add(event.at.rpartition("/")[0])
            elif isinstance(event, Called) and event.at not in children:  # a child's requests stand below its call
                summary = summary + event.usage_summary
        return summary

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

    async def events(
        self, prompt: Any, question: str | None, key: str | None, output_type: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of one turn as they happen; arguments and event loop are those of `turn`. Leaving early cancels
        the turn."""
        arrived: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.ensure_future(self.turn(prompt, question, key, output_type, arrived.put_nowait))
        task.add_done_callback(lambda _: arrived.put_nowait(None))
        last: Event | None = None
        try:
            while (event := await arrived.get()) is not None:
                yield event
                last = event
            completion = task.result()
            if not isinstance(last, Answered):
                short = completion.prompt if question is not None else _short(prompt)
                completion = dataclasses.replace(completion, prompt=short)
                yield Answered(f"t{completion.turn}", completion)  # recorded earlier, so nothing happened now
        except asyncio.CancelledError:
            task.cancel()
            await task  # its own cancellation knows how far the turn came
            raise
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> Generator[Event, None, None]:
        """`completion` as a stream of typed events; the last one is `Answered`, with the completion.

        Where no question came with it, the completion's `prompt` is there the beginning and end of the input, not all.
        A turn that ends without an answer raises what `completion` would. Leaving the stream early cancels the turn.
        """
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=3)
        return iterate(self.events(prompt, root_prompt, key, output_type))

    def astream(
        self, prompt: Any, root_prompt: str | None = None, *, key: str | None = None, output_type: Any = None
    ) -> AsyncGenerator[Event, None]:
        """The async form of `stream`; to leave it early and go on at once, use `contextlib.aclosing`."""
        inputs.warn_if_unlikely(prompt, root_prompt, stacklevel=3)
        return aiterate(self.events(prompt, root_prompt, key, output_type))

    def stream_ask(
        self, question: str, *, key: str | None = None, output_type: Any = None
    ) -> Generator[Event, None, None]:
        """`ask` as a stream of typed events."""
        return iterate(self.events(NOTHING, question, key, output_type))

    def astream_ask(
        self, question: str, *, key: str | None = None, output_type: Any = None
    ) -> AsyncGenerator[Event, None]:
        """The async form of `stream_ask`."""
        return aiterate(self.events(NOTHING, question, key, output_type))

    # -- life ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """End the session: a running turn is cancelled, the namespace destroyed. Twice is fine."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        async with self._queue:
            await _to_its_end(self._namespace.close())
        if self._finalizer is not None:
            self._finalizer.detach()

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.name!r} was closed")


def require_namespace(setup: Setup, what: str) -> None:
    """Raise `ConfigurationError` where turns have no REPL, and so no namespace that `what` could keep."""
    if setup.depth >= setup.limits.depth:
        raise ConfigurationError(
            f"{what}: Limits(depth={setup.limits.depth}) leaves no REPL at depth {setup.depth}, so there is no "
            f"namespace to keep; give Limits(depth={setup.depth + 1}), or ask each question by completion() of an RLM "
            "that is not persistent"
        )


def _of_a_life(limits: Limits) -> Limits:
    for name in OF_TURNS:
        if getattr(limits, name) != getattr(Limits(), name):
            raise ConfigurationError(
                f"Limits({name}={getattr(limits, name)!r}) cannot hold for a session's whole life: give it to "
                "RLM(limits=), which holds for each turn"
            )
    return limits


def _output(kind: Any) -> Output | None:
    if kind is None:
        return None
    from rlm.outputs import Output

    return Output(kind)


def _digest(value: Any, question: str | None, output: Output | None) -> str:
    """Stands for a turn's inputs: what is asked about what, and the form of the answer."""
    about = None if value is NOTHING else inputs.digest(value)
    return inputs.digest(repr((about, question, output and (output.kind, output.schema))))


def _short(prompt: Any) -> Any:
    """Stands for what was asked in events, which go to every listener and stay in the log: never a whole input."""
    if prompt is NOTHING or prompt is None or isinstance(prompt, os.PathLike):
        return prompt
    size = inputs.size(prompt)
    return inputs.preview(prompt) or type(prompt).__name__ + ("" if size is None else f", {size:,} long")


def _timed_out(what: str, elapsed: float, allowed: float | None) -> TimeoutExceededError:
    late = f"Limits(seconds=) left this {what} {allowed or 0:g} s, and it took over {elapsed:.3g}"
    return TimeoutExceededError(late, elapsed=elapsed, timeout=allowed or 0.0)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What must not be left half done: whoever is cancelled while waiting for it waits on, and is cancelled then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(asyncio.shield(task), return_exceptions=True)
        raise


def _abandon(namespace: Namespace) -> None:
    """Close the namespace of a session that nobody holds; called by the garbage collector, so it must not wait."""
    asyncio.run_coroutine_threadsafe(namespace.close(), portal().loop)
