"""The inputs of a session: how they come into its namespace, and that one left unanswered does not come in twice."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

from rlm import inputs, plain
from rlm.checkpoints import Keepable
from rlm.engine.host import context_info
from rlm.engine.prompts import ContextInfo
from rlm.portal import in_thread
from rlm.session.living import Living
from rlm.types import Answered, ContextAdded


class _Nothing:
    """No input came with this turn (None is a value, and may be one)."""


NOTHING = _Nothing()
UNCHANGING = (str, bytes)  # types of inputs that are later what they were


@runtime_checkable
class KnowsContexts(Protocol):
    """A namespace that can say whether a context is this value, as it was when it was given."""

    async def holds(self, index: int, value: Any) -> bool: ...


class Contexts:
    """The inputs of one open session."""

    def __init__(self, living: Living) -> None:
        self._living = living
        self._unanswered: tuple[Any, ContextInfo] | None = None
        self.look_back()

    def look_back(self) -> None:
        """Learn from the log which input the last turn left behind, if that ended without an answer."""
        past = self._living.past
        turn = past.ended[-1] if past.ended else None
        if turn is None or turn.context is None or isinstance(turn.end, Answered):
            self._unanswered = None
        else:
            self._unanswered = NOTHING, self.known(turn.context)

    def known(self, index: int) -> ContextInfo:
        """What the model is told of a context that is there."""
        event = self._living.past.contexts[index]
        return ContextInfo(event.index, event.type, event.size, event.name, event.preview)

    def answered(self) -> None:
        """A turn has an answer: the next one's input is another one, whatever it is."""
        self._unanswered = None

    def left(self, value: Any, context: ContextInfo) -> None:
        """A turn ended without an answer, and left this input behind."""
        self._unanswered = (value if type(value) in UNCHANGING else NOTHING, context)

    def at_once(self, value: Any, is_task: bool) -> ContextInfo | None:
        """The context of a turn's input, where one can tell without a look that it is the one left unanswered, and
        nothing has to be added to what the model is told of it."""
        if self._unanswered is None or type(value) not in UNCHANGING or value is not self._unanswered[0]:
            return None
        context = self._unanswered[1]
        return context if not is_task or self._living.past.contexts[context.index].preview is not None else None

    async def take_in(self, value: Any, is_task: bool) -> ContextInfo:
        """The context of a turn's input: a new one, unless a turn that failed left the same input unanswered.

        is_task: the question is in it, so that the model is shown its head and tail.
        """
        if self._unanswered is not None:
            known, context = self._unanswered
            if await self._is_the_same(value, known, context):
                told = self._living.past.contexts[context.index]
                if is_task and told.preview is None:  # it came with a question, and is now the task itself
                    told = dataclasses.replace(told, preview=inputs.preview(value))
                self._living.log.add(told)
                return dataclasses.replace(context, preview=told.preview or context.preview)
        return await self.put(value, None, is_task)

    async def _is_the_same(self, value: Any, known: Any, context: ContextInfo) -> bool:
        """Whether the value is what the context was made of, which costs nothing before somebody asks.

        A text is compared with the text itself. The user's own list may have changed since it came in, so that what
        cannot be trusted to stay as it is, is compared with what the namespace was given.
        """
        if (type(value).__name__, inputs.size(value)) != (context.type, context.size):
            return False
        if type(value) in UNCHANGING and type(value) is type(known):
            return bool(value == known)
        namespace = self._living.namespace
        digest = self._living.past.contexts[context.index].digest
        if digest is not None and isinstance(namespace, Keepable):
            payload = await namespace.pack(value)
            return await in_thread(payload.hashed) == digest
        return isinstance(namespace, KnowsContexts) and await namespace.holds(context.index, value)

    async def put(self, value: Any, name: str | None, is_task: bool = False) -> ContextInfo:
        """Bring a new input in, also called `name`. Raises `ContextError` for what cannot be brought in."""
        namespace, stored, log = self._living.namespace, self._living.stored, self._living.log
        if stored is None or not isinstance(namespace, Keepable):
            index = await namespace.put_context(value, None, name)
            context = context_info(index, value, name)
            digest, form, blobs = plain.written(value) if stored is not None else (None, None, {})
            log.add(_told(context, digest, form, is_task), blobs)
            return context
        payload = await namespace.pack(value)
        index = namespace.contexts
        putting = asyncio.ensure_future(namespace.put("context", payload, index, name))
        try:  # the worker reads while the store writes: neither waits for the other
            digest, content = await payload.placed(stored.lease)
            await putting
        except BaseException:
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            raise
        context = context_info(index, value, name)
        log.add(_told(context, digest, payload.format, is_task), {digest: content}, hold=True)
        return context


def _told(context: ContextInfo, digest: str | None, format: str | None, is_task: bool) -> ContextAdded:
    preview = context.preview if is_task else None
    at = f"context_{context.index}"
    return ContextAdded(at, context.index, context.type, context.size, context.name, digest, format, preview)


def short(prompt: Any) -> Any:
    """Stands for what was asked in events, which go to every listener and stay in the log: never a whole input."""
    if prompt is NOTHING or prompt is None or isinstance(prompt, os.PathLike):
        return prompt
    size = inputs.size(prompt)
    return inputs.preview(prompt) or type(prompt).__name__ + ("" if size is None else f", {size:,} long")
