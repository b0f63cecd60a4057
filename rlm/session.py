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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from rlm import inputs, plain, waking
from rlm.checkpoints import Keepable, Keeper
from rlm.engine import loop, prompts
from rlm.engine.budget import Ledger
from rlm.engine.host import SERVING, LiveHost, Namespace, Runs, Setup, Tree, context_info, opening, plain_opening
from rlm.engine.journal import Journal, Record
from rlm.errors import (
    BlobError,
    CancellationError,
    ConfigurationError,
    RLMError,
    SessionClosedError,
    SessionError,
    SessionExistsError,
    StoreError,
    TimeoutExceededError,
    TurnError,
    UnfinishedTurnError,
)
from rlm.folds import Past, PastTurn, is_own, root_of
from rlm.listeners import Listening
from rlm.portal import Closing, aiterate, blocking, hopping, in_thread, iterate, portal
from rlm.ports import Lease, Store
from rlm.recording import Log
from rlm.replay import Replay, replay
from rlm.stores.names import check_name as check_stored_name
from rlm.tools import check_name
from rlm.types import (
    Answered,
    Asked,
    Briefed,
    CellError,
    ContextAdded,
    Event,
    Failed,
    Forked,
    Limits,
    Listener,
    Message,
    Opened,
    Ran,
    Recorded,
    REPLResult,
    Restored,
    Resumed,
    Rewound,
    RLMChatCompletion,
    Stopped,
    UnfinishedTurn,
    UsageSummary,
)

if TYPE_CHECKING:
    from rlm.outputs import Output

T = TypeVar("T")
P = ParamSpec("P")


class _Nothing:
    """No input came with this turn (None is a value, and may be one)."""


NOTHING = _Nothing()
UNCHANGING = (str, bytes)  # types of inputs that are later what they were
OF_TURNS = ("iterations", "depth", "errors", "concurrency")  # limits that a session's whole life does not have


@dataclass(slots=True)
class _Turn:
    """What is known of a turn while it runs. value: its input, as the namespace has it, or NOTHING. context: what the
    model is told of it, once it is there. events, restored: of a turn that is resumed, what is on record of it, and how
    many of its cells the namespace contains. notes: what its opening had to tell."""

    number: int
    question: str | None
    value: Any
    ledger: Ledger
    transcript: loop.Transcript
    context: prompts.ContextInfo | None = None
    events: Sequence[Event] = ()
    restored: int = 0
    journal: Journal | None = None
    notes: Sequence[str] = ()

    @property
    def path(self) -> str:
        return f"t{self.number}"


@runtime_checkable
class KnowsContexts(Protocol):
    """A namespace that can say whether a context is this value, as it was when it was given."""

    async def holds(self, index: int, value: Any) -> bool: ...


Sibling = Callable[[str, Lease, Sequence[Recorded]], "Session"]
"""Opens another session of the same RLM, over a log that exists already."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a durable session lives, and how it is brought back.

    strict: losses are a `LossError`. rerun: cells that no checkpoint holds are run again, and so is one that the end of
    the process cut off. idle: seconds after which an unused worker is released (None: never).
    """

    store: Store
    lease: Lease
    sibling: Sibling
    records: Sequence[Recorded] = ()
    strict: bool = False
    rerun: bool = True
    idle: float | None = None


class Session(Closing):
    """A conversation with one namespace. Made by `RLM.session`; not started before it is used.

    name: its name. log: its events so far. limits, where given, hold for the session's whole life, beside those of each
    turn. persistent: more than one turn will be asked of it. listening: told of all events. stored: where it is kept;
    without it the session lives in memory and ends with `close`. Raises `ConfigurationError` where that is more than
    there is: without a REPL there is nothing that a second turn could go on from.
    """

    def __init__(
        self,
        setup: Setup,
        name: str,
        *,
        limits: Limits | None = None,
        persistent: bool = True,
        listening: Listening | None = None,
        stored: Stored | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.name = name
        self._setup = setup
        self._stored = stored
        if persistent:
            require_namespace(setup, f"session {name!r}")
        self._limits = _of_a_life(limits or Limits())
        self._listening = listening or Listening([])
        self._listeners = [self._listening.begin()]
        lease, records = (stored.lease, stored.records) if stored else (None, ())
        self._log = Log(lease, records, opening=opened, tell=_held_weakly(self._tell))
        self._ledger = Ledger(self._limits, self._past.usage)
        self._ledger.require_prices([setup.model, *setup.sub_models])
        self._namespace: Namespace = setup.open_namespace(setup.tools, persistent)
        self._keeper = self._keep() if persistent else None
        self._queue = asyncio.Lock()
        self._unanswered = self._left_unanswered()
        self._untold: list[str] = []
        self._asleep = self._past.number > 0
        self._seconds = self._past.seconds
        self._running: asyncio.Task[Any] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = self._gone = False
        self._process = os.getpid()
        self._finalizer: weakref.finalize[..., Session] | None = None
        if stored is not None:
            self._watch()

    def _watch(self) -> None:
        """A session that nobody holds any more lets go of what it has."""
        self._finalizer = weakref.finalize(self, _abandon, self._namespace, self._log, self._process)
        self._finalizer.atexit = False  # when the interpreter ends, namespaces see to themselves

    def _keep(self) -> Keeper | None:
        namespace, stored, connected = self._namespace, self._stored, _held_weakly(self._connected)
        if not isinstance(namespace, Keepable):
            return None
        if stored is None:
            return Keeper(self._log, namespace, connected)
        namespace.place = stored.lease.folder
        return Keeper(self._log, namespace, connected, store=stored.store, rerun=stored.rerun, strict=stored.strict)

    @property
    def _past(self) -> Past:
        return self._log.past

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
        if self._process != os.getpid():
            raise SessionError(
                f"session {self.name!r} belongs to the process that forked this one: an RLM made here can open it once "
                "that process has closed it"
            )
        if self in SERVING.get():
            raise SessionError(
                f"session {self.name!r} runs the cell that called this function: the two would wait for each other"
            )
        async with self._queue:
            self._check_open()
            self._log.check()
            if self._finalizer is None:
                self._watch()
            if self._idle is not None:
                self._idle.cancel()
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
                self._release_when_idle()

    async def _answer(self, prompt: Any, question: str | None, key: str | None, output_type: Any) -> RLMChatCompletion:
        """The recorded answer, or that of a new turn."""
        started = time.perf_counter()
        output = _output(output_type)
        value = await in_thread(lambda: inputs.read(prompt)) if hasattr(prompt, "__fspath__") else prompt
        asked = None
        if key is not None:
            asked = await in_thread(lambda: _digest(value, question, output))
            if known := self._past.answer(key, asked):
                known = _with_output(known, output)
                return known if question is not None else dataclasses.replace(known, prompt=prompt)
        unfinished = self._past.unfinished
        if unfinished is not None:
            if key is None or (unfinished.asked.key, unfinished.asked.inputs) != (key, asked):
                self._require_finished()
            completion = await self._go_on(unfinished, output, started, value)
        else:
            await self._awake()
            completion = await self._play(Asked("", question, None, key, inputs=asked), value, output, started)
        return completion if question is not None else dataclasses.replace(completion, prompt=prompt)

    async def _play(self, asked: Asked, value: Any, output: Output | None, started: float) -> RLMChatCompletion:
        """A new turn to its end."""
        allowed = self._allowed_seconds()
        turn = self._begin(asked, value)
        return await self._to_the_end(turn, output, started, allowed)

    def _require_finished(self) -> None:
        if (unfinished := self._past.unfinished) is not None:
            mend = "discard() gives it up" if self._lacks_input else "resume() goes on with it, discard() gives it up"
            raise UnfinishedTurnError(f"turn {unfinished.number} of session {self.name!r} was cut off: {mend}")

    async def _to_the_end(
        self, turn: _Turn, output: Output | None, started: float, allowed: float | None
    ) -> RLMChatCompletion:
        """A turn to its end. One that is cut short is recorded, and the session ready for the next one."""

        def seconds() -> float:
            return time.perf_counter() - started

        left = None if allowed is None else allowed - seconds()
        try:
            async with asyncio.timeout(left) as deadline:
                await self._open(turn, output)
                outcome = await self._run_turn(turn, output, deadline)
        except asyncio.CancelledError:
            why = "session was closed during this turn" if self._closed else "turn was cancelled"
            stopped = CancellationError(f"the {why}")
            await _to_its_end(self._record_the_end(turn, stopped, seconds()))
            raise asyncio.CancelledError from stopped  # whom the portal blocks for gets to see `stopped`
        except Exception as error:
            if not deadline.expired() or type(error) is not TimeoutError:
                await _to_its_end(self._record_the_end(turn, error, seconds()))
                raise
            timed_out = _timed_out("turn", seconds(), allowed)
            await _to_its_end(self._record_the_end(turn, timed_out, timed_out.elapsed))
            raise timed_out from None
        finally:
            self._seconds += seconds()
        completion = RLMChatCompletion(
            self._setup.model.name,
            _short(turn.value) if turn.question is None else turn.question,
            outcome.response,
            turn.ledger.usage,
            seconds(),
            self._metadata(turn),
            outcome.output,
            turn.number,
        )
        await _to_its_end(self._conclude(turn, completion))
        return completion

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

    def _begin(self, asked: Asked, value: Any) -> _Turn:
        """Number the turn and record it, before anything that takes time or can fail: however it ends is then known."""
        number = self._past.turns_begun
        turn = _Turn(
            number, asked.question, value, Ledger(self._setup.limits, parent=self._ledger), loop.Transcript([])
        )
        if self._unanswered is not None and type(value) in UNCHANGING and value is self._unanswered[0]:
            known = self._unanswered[1]
            if asked.question is not None or self._past.contexts[known.index].preview is not None:
                turn.context = known
        index = turn.context.index if turn.context else None
        given, model = value is not NOTHING, self._setup.model.name
        self._log.add(dataclasses.replace(asked, at=turn.path, context=index, model=model, given=given), hold=True)
        return turn

    async def _open(self, turn: _Turn, output: Output | None) -> None:
        """Bring the input in, and write down what the model is told at the beginning."""
        await self._namespace.start()
        if turn.value is not NOTHING and turn.context is None:
            turn.context = await self._take_in(turn.value, preview=turn.question is None)
        if turn.transcript.messages:
            return  # recorded already
        schema = output.schema if output else None
        if self._is_plain:
            given = [] if turn.value is NOTHING else [turn.value]
            turn.transcript.messages += plain_opening(given, turn.question, schema)
            return
        namespace = self._namespace
        notes = (*turn.notes, *namespace.take_notes(), *self._untold, *self._past.notes)
        self._untold.clear()
        index = turn.context.index if turn.context else None
        briefed = Briefed(turn.path, index, namespace.contexts, namespace.histories, notes, schema)
        self._log.add(briefed, hold=True)
        turn.transcript.messages += opening(
            self._setup,
            self._setup.depth,
            question=turn.question,
            context=turn.context,
            contexts=namespace.contexts,
            histories=namespace.histories,
            conversation=self._past.conversation,
            notes=notes,
            schema=schema,
        )

    @property
    def _is_plain(self) -> bool:
        """At the deepest level there is no REPL: the model reads the input itself."""
        return self._setup.depth >= self._setup.limits.depth

    async def _run_turn(self, turn: _Turn, output: Output | None, deadline: asyncio.Timeout) -> loop.Outcome:
        setup = self._setup
        record = Record(turn.events)
        host = self._host(turn.path, turn.ledger, record=record, begun=turn.restored)
        turn.journal = Journal(
            host,
            turn.path,
            record,
            self._append,
            restored=turn.restored,
            rerun=self._stored is None or self._stored.rerun,
            once=host.tree.once,
            children=host.children,
            tell=self._tell,
            cut=_because_of(deadline),
        )
        return await loop.turn(
            turn.journal,
            turn.transcript,
            iterations=0 if self._is_plain else setup.limits.iterations,
            errors=setup.limits.errors,
            output_limit=setup.output_limit,
            check=output.check if output else None,
        )

    def _host(
        self,
        path: str,
        ledger: Ledger,
        *,
        record: Record | None = None,
        begun: int = 0,
        runs: Runs | None = None,
    ) -> LiveHost:
        setup = self._setup
        tree = Tree(setup, ledger, self._append, self._tell, self, record=record, settled=self._log.settled)
        runs = runs or self._namespace
        return LiveHost(tree, runs, path=path, model=setup.model, tools=setup.tools, depth=setup.depth, begun=begun)

    def _connected(self, path: str, runs: Runs, record: Record, begun: int) -> LiveHost:
        """The host for a cell that is run again."""
        ledger = Ledger(self._setup.limits, parent=self._ledger)
        return self._host(path, ledger, record=record, begun=begun, runs=runs)

    async def _conclude(self, turn: _Turn, completion: RLMChatCompletion) -> None:
        self._unanswered = None
        if self._keeper is not None:  # so that as a rule answer and heap are safe together
            await self._keeper.answered()
        await self._leave_history(turn, turn.transcript.messages)
        kept, said = self._tail(turn.transcript.messages)
        await self._log.append(Answered(turn.path, completion, kept, said))

    async def _record_the_end(self, turn: _Turn, error: Exception, seconds: float = 0.0) -> None:
        """Record a turn that ended without an answer, and give the exception what there is."""
        partial = turn.transcript.partial
        if isinstance(error, RLMError):
            error.partial_answer = partial = error.partial_answer or partial
            error.usage = turn.ledger.usage
            error.transcript = tuple(turn.transcript.messages)
        if isinstance(error, StoreError):
            return  # nothing more can be recorded; the turn goes on when the session is opened again
        if turn.context is not None:
            self._unanswered = (turn.value if type(turn.value) in UNCHANGING else NOTHING, turn.context)
        asked: list[Message] = [{"role": "user", "content": turn.question or "(a task inside its input)"}]
        messages = turn.transcript.messages or asked
        messages = [*messages, {"role": "assistant", "content": prompts.ended(str(error))}]
        kind = Stopped if isinstance(error, TurnError) else Failed
        kept, said = self._tail(messages)
        self._log.add(kind(turn.path, type(error).__name__, str(error), partial, kept, said, seconds))
        await self._leave_history(turn, messages)
        await self._log.settled()

    def _tail(self, messages: Sequence[Message]) -> tuple[int, Sequence[Message]]:
        """How many of the messages the log's events say already, and the others."""
        known = self._past.unfinished.messages if self._past.unfinished else []
        kept = 0
        while kept < min(len(known), len(messages)) and known[kept] == messages[kept]:
            kept += 1
        return kept, tuple(messages[kept:])

    async def _leave_history(self, turn: _Turn, messages: Sequence[Message]) -> None:
        """What every turn leaves in the namespace, however it ended: its messages."""
        if self._closed:
            return
        try:
            await self._namespace.put_history([message for message in messages if message["role"] != "system"])
        except RLMError as lost:
            self._untold.append(f"The messages of turn {turn.number} could not be kept: {lost}")

    def _metadata(self, turn: _Turn) -> Mapping[str, Any]:
        return {
            "session": self.name,
            "iterations": turn.transcript.iterations,
            "cells": turn.transcript.cells,
            "calls": turn.ledger.usage.total_calls,
            "uncertain_calls": turn.ledger.uncertain + (turn.journal.uncertain if turn.journal else 0),
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
            self._require_finished()
            value = await in_thread(lambda: inputs.read(value)) if hasattr(value, "__fspath__") else value
            await self._awake()
            context = await self._put(value, name)
            await self._log.settled()
            return context.index

    add_context, aadd_context = blocking(_add_context), hopping(_add_context)

    async def _take_in(self, value: Any, preview: bool) -> prompts.ContextInfo:
        """The context of a turn's input: a new one, unless a turn that failed left the same input unanswered."""
        if self._unanswered is not None:
            known, context = self._unanswered
            if await self._is_the_same(value, known, context):
                told = self._past.contexts[context.index]
                if preview and told.preview is None:  # it came with a question, and is now the task itself
                    told = dataclasses.replace(told, preview=inputs.preview(value))
                self._log.add(told)
                return dataclasses.replace(context, preview=told.preview or context.preview)
        return await self._put(value, None, preview)

    async def _is_the_same(self, value: Any, known: Any, context: prompts.ContextInfo) -> bool:
        """Whether the value is what the context was made of, which costs nothing before somebody asks.

        A text is compared with the text itself. The user's own list may have changed since it came in, so that what
        cannot be trusted to stay as it is, is compared with what the namespace was given.
        """
        if (type(value).__name__, inputs.size(value)) != (context.type, context.size):
            return False
        if type(value) in UNCHANGING and type(value) is type(known):
            return bool(value == known)
        digest = self._past.contexts[context.index].digest
        if digest is not None and isinstance(self._namespace, Keepable):
            payload = await self._namespace.pack(value)
            return await in_thread(payload.hashed) == digest
        return isinstance(self._namespace, KnowsContexts) and await self._namespace.holds(context.index, value)

    async def _put(self, value: Any, name: str | None, preview: bool = False) -> prompts.ContextInfo:
        namespace = self._namespace
        if self._stored is None or not isinstance(namespace, Keepable):
            index = await namespace.put_context(value, None, name)
            context = context_info(index, value, name)
            digest, form, blobs = plain.written(value) if self._stored is not None else (None, None, {})
            self._log.add(_told(context, digest, form, context.preview if preview else None), blobs)
            return context
        payload = await namespace.pack(value)
        index = namespace.contexts
        putting = asyncio.ensure_future(namespace.put("context", payload, index, name))
        try:  # the worker reads while the store writes: neither waits for the other
            digest, content = await payload.placed(self._stored.lease)
            await putting
        except BaseException:
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            raise
        context = context_info(index, value, name)
        event = _told(context, digest, payload.format, context.preview if preview else None)
        self._log.add(event, {digest: content}, hold=True)
        return context

    # -- stepping inside -------------------------------------------------------------------------------------------

    async def _run(self, code: str) -> REPLResult:
        """Run your own cell in the namespace. Calls in it are answered and charged as the model's are.

        The model is told of it at the beginning of the next turn. It is bounded as a turn is by `Limits(seconds=)`, and
        counts into the session's seconds. Raises `TimeoutExceededError`.
        """
        async with self._alone("cell"):
            await self._awake()
            allowed, started = self._allowed_seconds(), time.perf_counter()
            path = f"u{self._past.cells_begun}"
            # Where the end of a process cut a cell off, it has no end on record, but its calls have their answers.
            record = Record(event for event in self._past.path() if root_of(event.at) == path)
            host = self._host(path, Ledger(self._setup.limits, parent=self._ledger), record=record)
            try:
                async with asyncio.timeout(allowed) as deadline:
                    journal = Journal(
                        host,
                        path,
                        record,
                        self._append,
                        once=host.tree.once,
                        tell=self._tell,
                        cut=_because_of(deadline),
                    )
                    result = await journal.run(code)
            except asyncio.CancelledError:
                raise asyncio.CancelledError from CancellationError("the cell was cancelled")
            except TimeoutError as error:
                if not deadline.expired() or type(error) is not TimeoutError:
                    raise
                raise _timed_out("cell", time.perf_counter() - started, allowed) from None
            finally:
                self._seconds += time.perf_counter() - started
            await self._log.settled()
            return result

    async def _variables(self) -> Mapping[str, str]:
        """Names of the namespace and the names of their types, as they are now."""
        async with self._alone("variables()"):
            if self._asleep and self._keeper is not None and self._keeper.is_safe:
                return waking.names(self._past, self._setup.tools)
            await self._awake()
            return await self._namespace.variables()

    async def _get(self, name: str) -> Any:
        """The value of a variable: plain data exactly, anything else as a `RemoteValue`. Raises KeyError."""
        async with self._alone("get()"):
            await self._awake()
            return await self._namespace.get(name)

    run, arun = blocking(_run), hopping(_run)
    variables, avariables = blocking(_variables), hopping(_variables)
    get, aget = blocking(_get), hopping(_get)

    def usage(self, turn: int | None = None) -> UsageSummary:
        """What the session has consumed so far, or one turn of it, with all children and models.

        Turns that were dropped by `rewind` count: they were paid. Raises KeyError for a turn that there is not.
        """
        if turn is None:
            return self._past.usage
        if not 0 <= turn < self._past.turns_begun:
            raise KeyError(f"session {self.name!r} has no turn {turn}")
        return self._past.usage_of_turns.get(turn, UsageSummary())

    @property
    def log(self) -> Sequence[Event]:
        """The recorded events so far, oldest first."""
        return tuple(self._log.events)

    @property
    def turns(self) -> int:
        """Turns begun so far, those that were dropped by `rewind` included."""
        return self._past.turns_begun

    @property
    def isolation(self) -> str:
        """The level of isolation in force."""
        return self._namespace.isolation

    # -- what survives ---------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> UnfinishedTurn | None:
        """The turn that was cut off by the end of its process, if there is one."""
        turn = self._past.unfinished
        if turn is None or self._running is not None:
            return None
        replies = sum(event.kind == "replied" and is_own(event) for event in turn.events)
        typed = turn.briefed is not None and turn.briefed.schema is not None
        return UnfinishedTurn(
            turn.number, turn.asked.question, turn.asked.key, replies, len(turn.cells), self._lacks_input, typed
        )

    @property
    def _lacks_input(self) -> bool:
        turn = self._past.unfinished
        return turn is not None and turn.asked.given and turn.context is None

    @property
    def restored(self) -> Restored | None:
        """What the last restore brought back, and what it did not; None where there was none."""
        return self._past.restored

    def _resume(self, *, output_type: Any = None) -> Coroutine[Any, Any, RLMChatCompletion]:
        """Go on with the unfinished turn: what is on record is not asked again, the first unanswered request is.

        output_type: the type that the turn was asked for, where it was. Raises what `ask` raises, and `SessionError`
        where there is nothing to go on with.
        """
        return self._resume_alone(output_type)

    async def _resume_alone(self, output_type: Any) -> RLMChatCompletion:
        try:
            async with self._alone("turn"):
                started, output = time.perf_counter(), _output(output_type)
                completion = await self._go_on(self._resumable(output), output, started)
        except Exception:
            await self._listening.caught_up()
            raise
        await self._listening.caught_up()
        return completion

    def _resumable(self, output: Output | None) -> PastTurn:
        """The unfinished turn, where it can go on with an answer of this type."""
        turn = self._past.unfinished
        if turn is None:
            raise SessionError(f"session {self.name!r} has no unfinished turn")
        if self._lacks_input:
            raise SessionError(
                f"turn {turn.number} of session {self.name!r} was cut off before its input had arrived: discard() "
                "it, and ask again"
            )
        if turn.briefed is not None and (turn.briefed.schema is None) != (output is None):
            wanted = "has one: give resume(output_type=…)" if output is None else "has none"
            raise ConfigurationError(f"the answer of turn {turn.number} is of a type where it {wanted}")
        return turn

    async def _go_on(
        self, past: PastTurn, output: Output | None, started: float, value: Any = NOTHING
    ) -> RLMChatCompletion:
        """An unfinished turn to its end."""
        await self._awake()
        allowed = self._allowed_seconds()
        ledger = Ledger(self._setup.limits, self._past.usage_of_turns.get(past.number), parent=self._ledger)
        turn = _Turn(past.number, past.asked.question, value, ledger, loop.Transcript([]))
        turn.events, turn.restored = list(past.events), len(past.cells)
        turn.notes = past.briefed.notes if past.briefed is not None else ()
        if past.context is not None:
            turn.context = _info(self._past.contexts[past.context])
        first = next((event for event in past.events if event.kind == "replied" and is_own(event)), None)
        if first is not None:
            turn.transcript.messages += first.sent  # type: ignore[attr-defined]
        self._log.add(Resumed(turn.path))
        return await self._to_the_end(turn, output, started, allowed)

    async def _discard(self) -> None:
        """Give the unfinished turn up. Its input, and what its cells did, stay. Does nothing where there is none."""
        async with self._alone("discard()"):
            past = self._past.unfinished
            if past is not None:
                turn = _Turn(past.number, past.asked.question, NOTHING, Ledger(Limits()), loop.Transcript([]))
                turn.transcript.messages = list(past.messages)
                turn.context = None if past.context is None else _info(self._past.contexts[past.context])
                await self._record_the_end(turn, CancellationError("the turn was discarded after its process ended"))

    async def _rewind(self, after: int | None = None) -> None:
        """Go back to the end of turn `after` (None: to the beginning), with heap, inputs and conversation.

        The log keeps what came later: rewind(after=) to a later turn brings it back. Raises KeyError for a turn that
        has no end.
        """
        async with self._alone("rewind()"):
            self._require_turn(after)
            if not isinstance(self._namespace, Keepable):
                raise SessionError(f"session {self.name!r}: this environment cannot go back, only be opened anew")
            if self._stored is None:
                raise SessionError(f"session {self.name!r} lives in memory: only one with a name in a store goes back")
            if self._keeper is not None:
                await self._keeper.settled()
                await self._keeper.stop()
            await self._namespace.release()
            self._log.add(Rewound("", after))  # from here on nothing may come between
            self._namespace.forget_given()
            self._unanswered, self._asleep = self._left_unanswered(), True
            await self._log.settled()

    async def _fork(self, name: str, after: int | None = None) -> Session:
        """A new session that begins where this one stood at the end of turn `after` (None: as it is now).

        It shares all stored values, has a worker of its own, and belongs to the same RLM. Raises `SessionExistsError`,
        KeyError for a turn that has no end, and `SessionError` for a session that is not in a store.
        """
        check_session_name(name)
        async with self._alone("fork()"):
            stored = self._stored
            if stored is None:
                raise SessionError(f"session {self.name!r} lives in memory: only one with a name in a store has forks")
            if after is not None:
                self._require_turn(after)
            if self._keeper is not None:
                await self._keeper.settled()
            await self._log.settled()
            events = self._past.path() if after is None else self._past.path_to(after)
            times = dict(zip(map(id, self._log.events), self._log.times, strict=True))
            records = [Recorded(number, times[id(event)], event) for number, event in enumerate(events)]
            records.append(Recorded(len(records), time.time(), Forked("", self.name, after)))
            taken = SessionExistsError(f"session {name!r} exists: fork into another name, or delete it first")
            if any(one.name == name and one.events for one in await stored.store.list()):
                raise taken
            lease = await stored.store.lease(name)
            try:
                if await stored.store.read(name):
                    raise taken
                await lease.append(records, dict.fromkeys(await self._in_store(Past(records))))
                return stored.sibling(name, lease, records)
            except BaseException:
                await lease.release(unused=True)
                raise

    async def _replay(self) -> Replay:
        """Whether this version would send to the model what was sent then; asks and runs nothing (`rlm.replay`)."""
        async with self._alone("replay()"):
            records = [Recorded(number, 0.0, event) for number, event in enumerate(self._log.events)]
            return await replay(self._setup, records)

    async def _in_store(self, past: Past) -> list[str]:
        """The blobs that a session needs, without those of checkpoints that the store has let go: cells make them."""
        there = [event.digest for event in past.contexts.values() if event.digest is not None]
        for digest in past.heap.blobs():
            with contextlib.suppress(BlobError):
                if self._stored is not None:
                    await self._stored.store.blob(digest)
                    there.append(digest)
        return there

    def _require_turn(self, turn: int | None) -> None:
        if turn is not None and turn not in self._past.ends:
            known = ", ".join(map(str, self._past.ends)) or "none yet"
            raise KeyError(f"session {self.name!r} has no ended turn {turn}; there are: {known}")

    resume, aresume = blocking(_resume), hopping(_resume)
    discard, adiscard = blocking(_discard), hopping(_discard)
    rewind, arewind = blocking(_rewind), hopping(_rewind)
    fork, afork = blocking(_fork), hopping(_fork)
    replay, areplay = blocking(_replay), hopping(_replay)

    async def _awake(self) -> None:
        """Have the namespace as the log says it was: inputs and histories, the heap, and what ran since."""
        if not self._asleep:
            return
        namespace = self._namespace
        stored = self._stored
        store = stored.store if stored is not None else None
        if isinstance(namespace, Keepable) and self._keeper is not None:
            await waking.from_checkpoint(namespace, self._keeper, self._past, store)
            await self._namespace.start()
        else:
            await self._namespace.start()
            rerun, strict = stored is None or stored.rerun, stored is not None and stored.strict
            await waking.by_running(self._namespace, self._log, self._connected, store, rerun=rerun, strict=strict)
        await self._log.settled()
        self._asleep = False

    def _left_unanswered(self) -> tuple[Any, prompts.ContextInfo] | None:
        """The input that the last turn, which ended without an answer, left behind."""
        turn = self._past.ended[-1] if self._past.ended else None
        if turn is None or turn.context is None or isinstance(turn.end, Answered):
            return None
        return NOTHING, _info(self._past.contexts[turn.context])

    def _release_when_idle(self) -> None:
        if self._stored is not None and self._stored.idle is not None and not self._closed:
            begin = _if_held(self._begin_release)
            self._idle = asyncio.get_running_loop().call_later(self._stored.idle, begin)

    def _begin_release(self) -> None:
        if not self._queue.locked() and not self._closed:
            self._releasing = asyncio.ensure_future(self._release())

    async def _release(self) -> None:
        """Give an idle worker back, if nothing in it would be lost."""
        async with self._queue:
            keeper, namespace = self._keeper, self._namespace
            if self._closed or keeper is None or not isinstance(namespace, Keepable) or not namespace.is_live:
                return
            await keeper.settled()
            if keeper.is_safe and not self._past.heap.lost and not self._past.heap.files_lost:
                await namespace.release()

    # -- events ----------------------------------------------------------------------------------------------------

    async def _append(self, event: Event) -> None:
        """Record what happened in a turn. The end of a cell is waited for only before the next thing is done."""
        if isinstance(event, Ran) and is_own(event):
            self._log.add(event, hold=True)
            if self._keeper is not None:
                self._keeper.cell_ended()
        else:
            await self._log.append(event)

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
        if self._process != os.getpid():
            return  # what is under way is the parent's, and on a loop that does not run here
        if self._running is not None:
            self._running.cancel()
        async with self._queue:
            if not self._gone:
                self._gone = True
                await _to_its_end(self._let_go())
        if self._finalizer is not None:
            self._finalizer.detach()

    async def _let_go(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        try:
            if self._keeper is not None:
                await self._keeper.settled()
                await self._keeper.stop()
                await self._keeper.thin()
                if self._keeper.dropped and self._stored is not None and not self._log.failed:
                    await self._stored.store.collect()
        finally:
            try:
                await self._namespace.close()
            finally:
                await self._log.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self.name!r} was closed")


def check_session_name(name: str) -> None:
    """Raise `ConfigurationError` for a name that no session can have."""
    try:
        check_stored_name(name)
    except StoreError as error:
        raise ConfigurationError(str(error)) from None


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


def _info(event: ContextAdded) -> prompts.ContextInfo:
    return prompts.ContextInfo(event.index, event.type, event.size, event.name, event.preview)


def _with_output(completion: RLMChatCompletion, output: Output | None) -> RLMChatCompletion:
    """A recorded answer with its value, which no log keeps."""
    if output is None or completion.output is not None:
        return completion
    return dataclasses.replace(completion, output=output.check(completion.response))


def _told(
    context: prompts.ContextInfo, digest: str | None = None, format: str | None = None, preview: str | None = None
) -> ContextAdded:
    at = f"context_{context.index}"
    return ContextAdded(at, context.index, context.type, context.size, context.name, digest, format, preview)


def _held_weakly(method: Callable[P, T]) -> Callable[P, T]:
    """A bound method for those who must not keep its session alive: a session that nobody holds is closed."""
    held = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = held()
        if bound is None:
            raise SessionClosedError("nobody holds this session any more")
        return bound(*args, **kwargs)

    return call


def _if_held(method: Callable[[], None]) -> Callable[[], None]:
    """Calls a bound method whose session somebody still holds."""
    held = weakref.WeakMethod(method)

    def call() -> None:
        bound = held()
        if bound is not None:
            bound()

    return call


def _because_of(deadline: asyncio.Timeout) -> Callable[[], CellError]:
    """Says why a cell is being cancelled."""

    def why() -> CellError:
        if deadline.expired():
            return CellError("TimeLimit", "the cell was stopped by the limit on seconds")
        return CellError("Cancelled", "the cell was cancelled")

    return why


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


def _abandon(namespace: Namespace, log: Log, process: int) -> None:
    """Close a session that nobody holds; called by the garbage collector, so it must not wait."""
    if process != os.getpid():
        return

    async def close() -> None:
        try:
            await namespace.close()
        finally:
            await log.close()

    asyncio.run_coroutine_threadsafe(close(), portal().loop)
