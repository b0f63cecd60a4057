"""Which turn a question is: one that has its answer on record, one that was cut off and goes on, or a new one."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from rlm import inputs
from rlm.errors import CancellationError, ConfigurationError, SessionError, UnfinishedTurnError
from rlm.folds import PastTurn
from rlm.portal import in_thread
from rlm.session.contexts import NOTHING, Contexts
from rlm.session.living import Living
from rlm.session.turn import Turn
from rlm.types import Asked, RLMChatCompletion

if TYPE_CHECKING:
    from rlm.outputs import Output


class Turns:
    """The turns of one open session. Whoever uses it has the session to himself."""

    def __init__(self, living: Living, contexts: Contexts) -> None:
        self._living, self._contexts = living, contexts

    async def answer(self, prompt: Any, question: str | None, key: str | None, output_type: Any) -> RLMChatCompletion:
        """The recorded answer, or that of a turn."""
        started = time.perf_counter()
        output = _output(output_type)
        value = await in_thread(lambda: inputs.read(prompt)) if hasattr(prompt, "__fspath__") else prompt
        past, asked = self._living.past, None
        if key is not None:
            asked = await in_thread(lambda: _digest(value, question, output))
            if known := past.answer(key, asked):
                known = _with_output(known, output)
                return known if question is not None else dataclasses.replace(known, prompt=prompt)
        unfinished = past.unfinished
        if unfinished is not None:
            if key is None or (unfinished.asked.key, unfinished.asked.inputs) != (key, asked):
                self.require_finished()
            completion = await self._go_on(unfinished, output, started, value)
        else:
            await self._living.awake()
            allowed = self._living.seconds.allowed()
            turn = Turn.begun(self._living, self._contexts, Asked("", question, None, key, inputs=asked), value)
            completion = await turn.to_the_end(output, started, allowed)
        return completion if question is not None else dataclasses.replace(completion, prompt=prompt)

    # -- a turn that was cut off -----------------------------------------------------------------------------------

    @property
    def lacks_input(self) -> bool:
        """Whether there is an unfinished turn whose input had not arrived."""
        turn = self._living.past.unfinished
        return turn is not None and turn.asked.given and turn.context is None

    def require_finished(self) -> None:
        """Raise `UnfinishedTurnError` where there is an unfinished turn."""
        if (unfinished := self._living.past.unfinished) is not None:
            mend = "discard() gives it up" if self.lacks_input else "resume() goes on with it, discard() gives it up"
            raise UnfinishedTurnError(f"turn {unfinished.number} of session {self._living.name!r} was cut off: {mend}")

    async def resume(self, output_type: Any) -> RLMChatCompletion:
        """The answer of the unfinished turn. Raises `SessionError` where there is nothing to go on with."""
        started, output = time.perf_counter(), _output(output_type)
        return await self._go_on(self._resumable(output), output, started)

    def _resumable(self, output: Output | None) -> PastTurn:
        """The unfinished turn, where it can go on with an answer of this type."""
        turn, name = self._living.past.unfinished, self._living.name
        if turn is None:
            raise SessionError(f"session {name!r} has no unfinished turn")
        if self.lacks_input:
            raise SessionError(
                f"turn {turn.number} of session {name!r} was cut off before its input had arrived: discard() it, and "
                "ask again"
            )
        if turn.briefed is not None and (turn.briefed.schema is None) != (output is None):
            wanted = "has one: give resume(output_type=…)" if output is None else "has none"
            raise ConfigurationError(f"the answer of turn {turn.number} is of a type where it {wanted}")
        return turn

    async def _go_on(
        self, past: PastTurn, output: Output | None, started: float, value: Any = NOTHING
    ) -> RLMChatCompletion:
        await self._living.awake()
        allowed = self._living.seconds.allowed()
        turn = Turn.resumed(self._living, self._contexts, past, value)
        return await turn.to_the_end(output, started, allowed)

    async def discard(self) -> None:
        """Give the unfinished turn up. Does nothing where there is none."""
        past = self._living.past.unfinished
        if past is not None:
            turn = Turn.cut_off(self._living, self._contexts, past)
            await turn.record_the_end(CancellationError("the turn was discarded after its process ended"))


def _output(kind: Any) -> Output | None:
    if kind is None:
        return None
    from rlm.outputs import Output

    return Output(kind)


def _digest(value: Any, question: str | None, output: Output | None) -> str:
    """Stands for a turn's inputs: what is asked about what, and the form of the answer."""
    about = None if value is NOTHING else inputs.digest(value)
    return inputs.digest(repr((about, question, output and (output.kind, output.schema))))


def _with_output(completion: RLMChatCompletion, output: Output | None) -> RLMChatCompletion:
    """A recorded answer with its value, which no log keeps."""
    if output is None or completion.output is not None:
        return completion
    return dataclasses.replace(completion, output=output.check(completion.response))
