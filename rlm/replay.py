"""A recorded session run once more without a model: is what this version would send to it what was sent then?

Replies and results of cells come from the log, everything else is made anew: openings, outputs as the model sees them,
warnings, corrections. It is the net under changes of prompts and of the loop. Nothing is asked, run or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlm.engine import loop, prompts
from rlm.engine.host import Setup, opening
from rlm.engine.journal import Record
from rlm.errors import RLMError
from rlm.folds import Past, is_own
from rlm.ports import Answer
from rlm.types import (
    Answered,
    Asked,
    Briefed,
    Event,
    Failed,
    Message,
    Messages,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    Stopped,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first differs: the request's place, which of its new messages, its text then and now.

    None stands for a message, or a whole request, that only the other side has.
    """

    at: str
    message: int
    recorded: str | None
    now: str | None

    def __str__(self) -> str:
        if self.recorded is None or self.now is None:
            missing = "this version would send it, and it was not sent" if self.recorded is None else "only sent then"
            return f"{self.at}, message {self.message}: {missing}"
        start = next((i for i, pair in enumerate(zip(self.recorded, self.now, strict=False)) if pair[0] != pair[1]), -1)
        start = start if start >= 0 else min(len(self.recorded), len(self.now))
        then, now = (text[max(0, start - 40) : start + 80] for text in (self.recorded, self.now))
        return f"{self.at}, message {self.message}, character {start}: then {then!r}, now {now!r}"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to. requests: how many were compared. skipped: requests behind an answer that was corrected
    because of its type, which no log knows. difference: the first one, None where all is as it was."""

    turns: int
    requests: int
    skipped: int = 0
    difference: Difference | None = None


async def replay(setup: Setup, records: Sequence[Recorded]) -> Replay:
    """Replay all turns that the session stands on, and their children. setup: as the session had it."""
    past = Past(records)
    turns = requests = skipped = 0
    for before, asked, events in _turns(past.path()):
        turns += 1
        for path, messages in (_root(setup, before, asked, events), *_children(events)):
            host = _Host(path, Record(events))
            difference = await _compare(setup, host, messages, path == asked.at)
            requests += host.asked
            skipped += host.left
            if difference is not None:
                return Replay(turns, requests, skipped, difference)
    return Replay(turns, requests, skipped)


def _turns(path: Sequence[Event]) -> Iterator[tuple[Past, Asked, list[Event]]]:
    """Each turn: what was known before it, its beginning, and its events."""
    before, running, asked = Past(), list[Event](), None
    held: list[Event] = []
    for event in path:
        if isinstance(event, Asked):
            asked, running, held = event, [], []
        held.append(event)
        running.append(event)
        ends = isinstance(event, (Answered, Stopped, Failed)) and "/" not in event.at
        if asked is not None and not ends:
            continue
        if asked is not None:
            yield before, asked, running
            asked = None
        for one in held:
            before.take(one)
        held = []
    if asked is not None:
        yield before, asked, running


def _root(setup: Setup, before: Past, asked: Asked, events: Sequence[Event]) -> tuple[str, list[Message]]:
    """The turn's opening as this version makes it."""
    known = Past()
    for event in (*before.path(), *events):
        if isinstance(event, (Answered, Stopped, Failed)) and event.at == asked.at:
            break
        known.take(event)
    briefed = next((event for event in events if isinstance(event, Briefed) and event.at == asked.at), Briefed(""))
    added = known.contexts.get(briefed.context) if briefed.context is not None else None
    context = None
    if added is not None:
        context = prompts.ContextInfo(added.index, added.type, added.size, added.name, added.preview)
    made = opening(
        setup,
        setup.depth,
        question=asked.question,
        context=context,
        contexts=briefed.contexts,
        histories=briefed.histories,
        conversation=before.conversation,
        notes=briefed.notes,
        schema=briefed.schema,
    )
    return asked.at, made


def _children(events: Sequence[Event]) -> Iterator[tuple[str, list[Message]]]:
    """Each child's place and its opening as it was: what it was asked is not in the log as a whole."""
    for event in events:
        if isinstance(event, Replied) and event.at.endswith("/a0") and not is_own(event) and event.sent:
            yield event.at.removesuffix("/a0"), list(event.sent)


async def _compare(setup: Setup, host: _Host, messages: list[Message], is_root: bool) -> Difference | None:
    try:
        await loop.turn(
            host,
            loop.Transcript(messages),
            iterations=setup.limits.iterations,
            errors=setup.limits.errors,
            output_limit=setup.output_limit,
        )
    except _Differs as found:
        return found.difference
    except (_EndOfRecordError, RLMError):
        return None  # the turn was cut off there, or cut short by a limit that still holds
    host.left = len([at for at, _ in host.record.replied if at.startswith(f"{host.path}/a")]) - host.asked
    return None


class _Differs(Exception):
    def __init__(self, difference: Difference) -> None:
        self.difference = difference


class _EndOfRecordError(Exception):
    """The record has nothing more of this turn."""


class _Host:
    """Answers from the record, and compares what is asked of it."""

    def __init__(self, path: str, record: Record) -> None:
        self.path, self.record = path, record
        self.asked = self.left = 0
        self._cells = self._sent = 0

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        at = f"{self.path}/a{self.asked}"
        recorded = self.record.replied.get((at, purpose))
        if recorded is None:
            other = next((one for (place, _), one in self.record.replied.items() if place == at), None)
            if other is not None:
                raise _Differs(Difference(at, 0, f"a request of purpose {other.purpose}", f"one of purpose {purpose}"))
            raise _EndOfRecordError
        new = list(messages[self._sent :])
        self._sent = len(messages) + 1
        self.asked += 1
        for index in range(max(len(new), len(recorded.sent))):
            then, now = (_text(side, index) for side in (recorded.sent, new))
            if then != now:
                raise _Differs(Difference(at, index, then, now))
        return recorded.reply

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        at = f"{self.path}/c{self._cells}"
        self._cells += 1
        recorded = self.record.ran.get((at, code))
        if recorded is None:
            other = next((one for (place, _), one in self.record.ran.items() if place == at), None)
            if other is not None:
                raise _Differs(Difference(at, 0, other.code, code))
            raise _EndOfRecordError
        return recorded.result

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        raise NotImplementedError("cells are not run, so that they call nothing")


def _text(messages: Sequence[Message], index: int) -> str | None:
    return f"{messages[index]['role']}: {messages[index]['content']}" if index < len(messages) else None
