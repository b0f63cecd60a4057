"""One turn of a session, from its number to its end on record.

However it ends, its input and its messages (as `history_N`) stay in the namespace, and the session is ready for the
next one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlm.engine import loop, prompts
from rlm.engine.budget import Ledger
from rlm.engine.host import opening, plain_opening
from rlm.engine.journal import Journal, Record
from rlm.errors import CancellationError, RLMError, StoreError, TurnError
from rlm.folds import PastTurn, is_own
from rlm.portal import to_its_end
from rlm.session.contexts import NOTHING, Contexts, short
from rlm.session.living import Living
from rlm.session.seconds import because_of, timed_out
from rlm.types import (
    Answered,
    Asked,
    Briefed,
    Event,
    Failed,
    Limits,
    Message,
    Replied,
    Resumed,
    RLMChatCompletion,
    Stopped,
)

if TYPE_CHECKING:
    from rlm.outputs import Output


class Turn:
    """What is known of a turn while it runs. Made by `begun`, `resumed` or `cut_off`.

    value: its input, as the namespace has it, or NOTHING.
    """

    def __init__(
        self, living: Living, contexts: Contexts, number: int, question: str | None, value: Any, ledger: Ledger
    ) -> None:
        self._living, self._contexts = living, contexts
        self._number, self._question, self._value, self._ledger = number, question, value, ledger
        self._path = f"t{number}"
        self._transcript = loop.Transcript([])
        self._context: prompts.ContextInfo | None = None
        self._events: Sequence[Event] = ()  # on record of it,
        self._restored = 0  # and so many of its cells are in the namespace
        self._notes: Sequence[str] = ()  # what its opening had to tell
        self._journal: Journal | None = None

    @classmethod
    def begun(cls, living: Living, contexts: Contexts, asked: Asked, value: Any) -> Turn:
        """A new turn, numbered and recorded before anything that takes time or can fail: however it ends is known."""
        turn = cls(living, contexts, living.past.turns_begun, asked.question, value, living.ledger_below())
        turn._context = contexts.at_once(value, is_task=asked.question is None)
        index = turn._context.index if turn._context else None
        given, model = value is not NOTHING, living.setup.model.name
        living.log.add(dataclasses.replace(asked, at=turn._path, context=index, model=model, given=given), hold=True)
        return turn

    @classmethod
    def resumed(cls, living: Living, contexts: Contexts, past: PastTurn, value: Any) -> Turn:
        """The unfinished turn, which goes on from what is on record."""
        ledger = living.ledger_below(living.past.usage_of_turns.get(past.number))
        turn = cls(living, contexts, past.number, past.asked.question, value, ledger)
        turn._events, turn._restored = list(past.events), len(past.cells)
        turn._notes = past.briefed.notes if past.briefed is not None else ()
        if past.context is not None:
            turn._context = contexts.known(past.context)
        first = next((event for event in past.events if isinstance(event, Replied) and is_own(event)), None)
        if first is not None:
            turn._transcript.messages += first.sent
        living.log.add(Resumed(turn._path))
        return turn

    @classmethod
    def cut_off(cls, living: Living, contexts: Contexts, past: PastTurn) -> Turn:
        """The unfinished turn, as far as it came, to be given up."""
        turn = cls(living, contexts, past.number, past.asked.question, NOTHING, Ledger(Limits()))
        turn._transcript.messages = list(past.messages)
        turn._context = None if past.context is None else contexts.known(past.context)
        return turn

    async def to_the_end(self, output: Output | None, started: float, allowed: float | None) -> RLMChatCompletion:
        """The answer. A turn that is cut short is recorded, and the session ready for the next one.

        output: the form of the answer. started: when the caller began. allowed: seconds from then on.
        """

        def seconds() -> float:
            return time.perf_counter() - started

        living = self._living
        left = None if allowed is None else allowed - seconds()
        try:
            async with asyncio.timeout(left) as deadline:
                await self._open(output)
                outcome = await self._run(output, deadline)
        except asyncio.CancelledError:
            why = "session was closed during this turn" if living.closed else "turn was cancelled"
            stopped = CancellationError(f"the {why}")
            await to_its_end(self.record_the_end(stopped, seconds()))
            raise asyncio.CancelledError from stopped  # whom the portal blocks for gets to see `stopped`
        except Exception as error:
            if not deadline.expired() or type(error) is not TimeoutError:
                await to_its_end(self.record_the_end(error, seconds()))
                raise
            late = timed_out("turn", seconds(), allowed)
            await to_its_end(self.record_the_end(late, late.elapsed))
            raise late from None
        finally:
            living.seconds.used += seconds()
        completion = RLMChatCompletion(
            living.setup.model.name,
            short(self._value) if self._question is None else self._question,
            outcome.response,
            self._ledger.usage,
            seconds(),
            self._metadata(),
            outcome.output,
            self._number,
        )
        await to_its_end(self._conclude(completion))
        return completion

    async def _open(self, output: Output | None) -> None:
        """Bring the input in, and write down what the model is told at the beginning."""
        living, transcript = self._living, self._transcript
        namespace = living.namespace
        await namespace.start()
        if self._value is not NOTHING and self._context is None:
            self._context = await self._contexts.take_in(self._value, is_task=self._question is None)
        if transcript.messages:
            return  # recorded already
        schema = output.schema if output else None
        if self._is_plain:
            given = [] if self._value is NOTHING else [self._value]
            transcript.messages += plain_opening(given, self._question, schema)
            return
        notes = (*self._notes, *namespace.take_notes(), *living.untold, *living.past.notes)
        living.untold.clear()
        index = self._context.index if self._context else None
        briefed = Briefed(self._path, index, namespace.contexts, namespace.histories, notes, schema)
        living.log.add(briefed, hold=True)
        transcript.messages += opening(
            living.setup,
            living.setup.depth,
            question=self._question,
            context=self._context,
            contexts=namespace.contexts,
            histories=namespace.histories,
            conversation=living.past.conversation,
            notes=notes,
            schema=schema,
        )

    @property
    def _is_plain(self) -> bool:
        """At the deepest level there is no REPL: the model reads the input itself."""
        setup = self._living.setup
        return setup.depth >= setup.limits.depth

    async def _run(self, output: Output | None, deadline: asyncio.Timeout) -> loop.Outcome:
        living, setup = self._living, self._living.setup
        record = Record(self._events)
        host = living.host(self._path, self._ledger, record=record, begun=self._restored)
        self._journal = Journal(
            host,
            self._path,
            record,
            living.append,
            restored=self._restored,
            rerun=living.rerun,
            once=host.tree.once,
            children=host.children,
            tell=living.tell,
            cut=because_of(deadline),
        )
        return await loop.turn(
            self._journal,
            self._transcript,
            iterations=0 if self._is_plain else setup.limits.iterations,
            errors=setup.limits.errors,
            output_limit=setup.output_limit,
            check=output.check if output else None,
        )

    def _metadata(self) -> Mapping[str, Any]:
        return {
            "session": self._living.name,
            "iterations": self._transcript.iterations,
            "cells": self._transcript.cells,
            "calls": self._ledger.usage.total_calls,
            "uncertain_calls": self._ledger.uncertain + (self._journal.uncertain if self._journal else 0),
            "isolation": self._living.namespace.isolation,
            "context": self._context.index if self._context else None,
        }

    # -- its end ---------------------------------------------------------------------------------------------------

    async def _conclude(self, completion: RLMChatCompletion) -> None:
        self._contexts.answered()
        if self._living.keeper is not None:  # so that as a rule answer and heap are safe together
            await self._living.keeper.answered()
        messages = self._transcript.messages
        await self._leave_history(messages)
        kept, said = self._tail(messages)
        await self._living.log.append(Answered(self._path, completion, kept, said))

    async def record_the_end(self, error: Exception, seconds: float = 0.0) -> None:
        """Record a turn that ended without an answer, and give the exception what there is."""
        transcript, log = self._transcript, self._living.log
        partial = transcript.partial
        if isinstance(error, RLMError):
            error.partial_answer = partial = error.partial_answer or partial
            error.usage = self._ledger.usage
            error.transcript = tuple(transcript.messages)
        if isinstance(error, StoreError):
            return  # nothing more can be recorded; the turn goes on when the session is opened again
        if self._context is not None:
            self._contexts.left(self._value, self._context)
        asked: list[Message] = [{"role": "user", "content": self._question or "(a task inside its input)"}]
        messages = transcript.messages or asked
        messages = [*messages, {"role": "assistant", "content": prompts.ended(str(error))}]
        kind = Stopped if isinstance(error, TurnError) else Failed
        kept, said = self._tail(messages)
        log.add(kind(self._path, type(error).__name__, str(error), partial, kept, said, seconds))
        await self._leave_history(messages)
        await log.settled()

    def _tail(self, messages: Sequence[Message]) -> tuple[int, Sequence[Message]]:
        """How many of the messages the log's events say already, and the others."""
        unfinished = self._living.past.unfinished
        known = unfinished.messages if unfinished else []
        kept = 0
        while kept < min(len(known), len(messages)) and known[kept] == messages[kept]:
            kept += 1
        return kept, tuple(messages[kept:])

    async def _leave_history(self, messages: Sequence[Message]) -> None:
        """What every turn leaves in the namespace, however it ended: its messages."""
        living = self._living
        if living.closed:
            return
        try:
            await living.namespace.put_history([message for message in messages if message["role"] != "system"])
        except RLMError as lost:
            living.untold.append(f"The messages of turn {self._number} could not be kept: {lost}")
