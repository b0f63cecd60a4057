"""A session: turns over one namespace and one log.

Turns queue in the order in which they were asked; a turn that is cut short leaves its context, its history and a usable
session. Everything a session knows of itself is a fold over its log of events. All of it lives on the portal's event
loop; the public methods come in a blocking and an awaitable form, made from one implementation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Mapping, Sequence
from typing import Any

from rlm import inputs, waking
from rlm.engine.host import Setup
from rlm.errors import ConfigurationError
from rlm.folds import is_own
from rlm.listeners import Listening
from rlm.portal import Closing, aiterate, blocking, hopping, in_thread, iterate
from rlm.replay import Replay, replay
from rlm.session import branches, cells
from rlm.session.contexts import NOTHING, Contexts, short
from rlm.session.living import Living
from rlm.session.terms import Stored, check_life, check_session_name, require_namespace
from rlm.session.turns import Turns
from rlm.session.turnstile import Turnstile
from rlm.tools import check_name
from rlm.types import (
    Answered,
    Event,
    Limits,
    Listener,
    Opened,
    Recorded,
    REPLResult,
    Restored,
    RLMChatCompletion,
    UnfinishedTurn,
    UsageSummary,
)


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
        if persistent:
            require_namespace(setup, f"session {name!r}")
        limits = limits or Limits()
        check_life(limits)
        self._listening = listening or Listening([])
        self._living = Living(
            setup,
            name,
            limits=limits,
            persistent=persistent,
            listener=self._listening.begin(),
            stored=stored,
            opened=opened,
        )
        self._turnstile = Turnstile(self._living)
        self._contexts = Contexts(self._living)
        self._turns = Turns(self._living, self._contexts)

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
        listeners = self._living.listeners
        async with self._heard(), self._turnstile.alone("turn"):
            if spectator is None:
                return await self._turns.answer(prompt, question, key, output_type)
            listeners.append(spectator)
            try:
                return await self._turns.answer(prompt, question, key, output_type)
            finally:
                listeners.remove(spectator)

    @contextlib.asynccontextmanager
    async def _heard(self) -> AsyncIterator[None]:
        """What ends in here is told to whoever asked once all listeners have heard of it; a cancellation at once."""
        try:
            yield
        except Exception:
            await self._listening.caught_up()
            raise
        await self._listening.caught_up()

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
                about = completion.prompt if question is not None else short(prompt)
                completion = dataclasses.replace(completion, prompt=about)
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

    # -- stepping inside -------------------------------------------------------------------------------------------

    def _add_context(self, value: Any, name: str | None = None) -> Coroutine[Any, Any, int]:
        """Bring an input into the namespace without asking anything; returns N of its `context_N`.

        name: a second name for it. Raises `ContextError` for what cannot be brought in.
        """
        if name is not None:
            check_name(name, f"add_context(name={name!r})")
            if name in [tool.name for tool in self._living.setup.tools]:
                raise ConfigurationError(f"add_context(name={name!r}): a tool has this name; choose another")
        inputs.warn_if_unlikely(value, "", stacklevel=4)
        return self._add(value, name)

    async def _add(self, value: Any, name: str | None) -> int:
        async with self._turnstile.alone("add_context()"):
            self._turns.require_finished()
            value = await in_thread(lambda: inputs.read(value)) if hasattr(value, "__fspath__") else value
            await self._living.awake()
            context = await self._contexts.put(value, name)
            await self._living.log.settled()
            return context.index

    async def _run(self, code: str) -> REPLResult:
        """Run your own cell in the namespace. Calls in it are answered and charged as the model's are.

        The model is told of it at the beginning of the next turn. It is bounded as a turn is by `Limits(seconds=)`, and
        counts into the session's seconds. Raises `TimeoutExceededError`.
        """
        async with self._turnstile.alone("cell"):
            return await cells.run(self._living, code)

    async def _variables(self) -> Mapping[str, str]:
        """Names of the namespace and the names of their types, as they are now."""
        living = self._living
        async with self._turnstile.alone("variables()"):
            if living.asleep and living.keeper is not None and living.keeper.is_safe:
                return waking.names(living.past, living.setup.tools)
            await living.awake()
            return await living.namespace.variables()

    async def _get(self, name: str) -> Any:
        """The value of a variable: plain data exactly, anything else as a `RemoteValue`. Raises KeyError."""
        async with self._turnstile.alone("get()"):
            await self._living.awake()
            return await self._living.namespace.get(name)

    add_context, aadd_context = blocking(_add_context), hopping(_add_context)
    run, arun = blocking(_run), hopping(_run)
    variables, avariables = blocking(_variables), hopping(_variables)
    get, aget = blocking(_get), hopping(_get)

    # -- what there is ---------------------------------------------------------------------------------------------

    def usage(self, turn: int | None = None) -> UsageSummary:
        """What the session has consumed so far, or one turn of it, with all children and models.

        Turns that were dropped by `rewind` count: they were paid. Raises KeyError for a turn that there is not.
        """
        past = self._living.past
        if turn is None:
            return past.usage
        if not 0 <= turn < past.turns_begun:
            raise KeyError(f"session {self.name!r} has no turn {turn}")
        return past.usage_of_turns.get(turn, UsageSummary())

    @property
    def log(self) -> Sequence[Event]:
        """The recorded events so far, oldest first."""
        return tuple(self._living.log.events)

    @property
    def turns(self) -> int:
        """Turns begun so far, those that were dropped by `rewind` included."""
        return self._living.past.turns_begun

    @property
    def isolation(self) -> str:
        """The level of isolation in force."""
        return self._living.namespace.isolation

    @property
    def unfinished(self) -> UnfinishedTurn | None:
        """The turn that was cut off by the end of its process, if there is one."""
        turn = self._living.past.unfinished
        if turn is None or self._turnstile.is_taken:
            return None
        replies = sum(event.kind == "replied" and is_own(event) for event in turn.events)
        typed = turn.briefed is not None and turn.briefed.schema is not None
        return UnfinishedTurn(
            turn.number, turn.asked.question, turn.asked.key, replies, len(turn.cells), self._turns.lacks_input, typed
        )

    @property
    def restored(self) -> Restored | None:
        """What the last restore brought back, and what it did not; None where there was none."""
        return self._living.past.restored

    # -- on, back, and aside ---------------------------------------------------------------------------------------

    async def _resume(self, *, output_type: Any = None) -> RLMChatCompletion:
        """Go on with the unfinished turn: what is on record is not asked again, the first unanswered request is.

        output_type: the type that the turn was asked for, where it was. Raises what `ask` raises, and `SessionError`
        where there is nothing to go on with.
        """
        async with self._heard(), self._turnstile.alone("turn"):
            return await self._turns.resume(output_type)

    async def _discard(self) -> None:
        """Give the unfinished turn up. Its input, and what its cells did, stay. Does nothing where there is none."""
        async with self._turnstile.alone("discard()"):
            await self._turns.discard()

    async def _rewind(self, after: int | None = None) -> None:
        """Go back to the end of turn `after` (None: to the beginning), with heap, inputs and conversation.

        The log keeps what came later: rewind(after=) to a later turn brings it back. Raises KeyError for a turn that
        has no end.
        """
        async with self._turnstile.alone("rewind()"):
            await branches.rewind(self._living, self._contexts, after)

    async def _fork(self, name: str, after: int | None = None) -> Session:
        """A new session that begins where this one stood at the end of turn `after` (None: as it is now).

        It shares all stored values, has a worker of its own, and belongs to the same RLM. Raises `SessionExistsError`,
        KeyError for a turn that has no end, and `SessionError` for a session that is not in a store.
        """
        check_session_name(name)
        async with self._turnstile.alone("fork()"):
            forked: Session = await branches.fork(self._living, name, after)
            return forked

    async def _replay(self) -> Replay:
        """Whether this version would send to the model what was sent then; asks and runs nothing (`rlm.replay`)."""
        async with self._turnstile.alone("replay()"):
            records = [Recorded(number, 0.0, event) for number, event in enumerate(self._living.log.events)]
            return await replay(self._living.setup, records)

    resume, aresume = blocking(_resume), hopping(_resume)
    discard, adiscard = blocking(_discard), hopping(_discard)
    rewind, arewind = blocking(_rewind), hopping(_rewind)
    fork, afork = blocking(_fork), hopping(_fork)
    replay, areplay = blocking(_replay), hopping(_replay)

    # -- life ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """End the session: a running turn is cancelled, the namespace destroyed. Twice is fine."""
        await self._turnstile.close()

    @property
    def closed(self) -> bool:
        return self._living.closed
