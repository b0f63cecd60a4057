"""A Host that answers from the record while it lasts, then asks the real one and records.

Asks and cells are matched by their place in the turn (a cell also by its code), calls by cell, function, digest of the
arguments and order among equals, so that threads and a changed order do not matter. An event is recorded before anyone
acts on it: what a journal has answered is never paid for again. What the record does not hold is asked anew.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from rlm import types
from rlm.ports import Answer, CallFailed, Host
from rlm.types import (
    Attempted,
    Called,
    CallRecord,
    CellError,
    Event,
    Message,
    Messages,
    Ran,
    Replied,
    REPLResult,
    Reply,
    UsageSummary,
)

_BATCHED = {"llm_query_batched": "llm_query", "rlm_query_batched": "rlm_query"}
_PROMPT_SHOWN = 2_000  # characters of what a call asked, in its event
_VALUE_SHOWN = 4_000  # characters and items of what a tool returned, in the result of the cell
_SIZED = (str, bytes, bytearray, dict, list, tuple, set, frozenset)
INTERRUPTED = (
    "Interrupted: the process ended while this cell ran, and it was not run again. What it did to the namespace is "
    "undone; what it did elsewhere is not."
)
UNCERTAIN = (
    "was under way when the process ended. It may have taken effect or not, and must not be repeated: check before "
    "you go on."
)
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Priced:
    """What `Host.call` may return in place of a value: the value, and the usage it took to get it."""

    value: Any
    usage_summary: UsageSummary


class NeverBegan(asyncio.CancelledError):
    """A cell was cancelled before anything of it ran: it leaves no trace, neither in the namespace nor on record."""


class Record:
    """Past events by the places at which a journal looks for them. Of equals the first counts."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.replied: dict[tuple[str, str], Replied] = {}
        self.ran: dict[tuple[str, str], Ran] = {}
        self.called: dict[str, Called] = {}
        self.begun: dict[str, dict[str, None]] = {}
        """A cell's calls of one function ("t3/c1/order"), those without an answer too, in the order of their making."""
        for event in events:
            match event:
                case Attempted():
                    self._begins(event.at)
                case Replied():
                    self.replied.setdefault((event.at, event.purpose), event)
                case Ran():
                    self.ran.setdefault((event.at, event.code), event)
                case Called():
                    self._begins(event.at)
                    self.called.setdefault(event.at, event)
        self.places = {at for at, _ in (*self.replied, *self.ran)}
        self.passed: set[str] = set()
        """Places of journals that have come to the end of it."""

    def _begins(self, key: str) -> None:
        self.begun.setdefault(_function(key), {})[key] = None


class Journal:
    """One turn's host, or one child's: `path` is its place in the tree ("t3", or the key of the call that started it).

    inner: who is asked where the record has no answer; `inner.run` is given the `answer` by which the cell's calls come
    back here. append: makes an event durable, awaited before the result is handed on. restored: how many cells the
    namespace already contains; those are not run again, later ones are, with their recorded calls, for what they do to
    the namespace. What the loop gets is always the recorded result. tell: gets the events that are not recorded. clock:
    seconds. diverged: how often the record held something else than what was asked of it.

    first: the number of the first cell that will be run. rerun: a cell that the record has begun and not ended is run
    again, with what it was answered before; else its result says that it was cut off. once: functions that must not be
    called twice. children: functions whose calls have journals of their own, which count for themselves. cut: why a
    cell is being cancelled.
    uncertain: requests that the record does not have and that may have been under way when it broke off.
    """

    def __init__(
        self,
        inner: Host,
        path: str,
        record: Record,
        append: Callable[[Event], Awaitable[None]],
        *,
        restored: int = 0,
        first: int = 0,
        rerun: bool = True,
        once: Collection[str] = (),
        children: Collection[str] = (),
        tell: types.Listener | None = None,
        cut: Callable[[], CellError] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.diverged = 0
        self.uncertain = 0
        self.record = record
        self._inner, self._path, self._append = inner, path, append
        self._restored, self._rerun, self.once, self._children = restored, rerun, once, children
        self._tell, self._cut, self._clock = tell or _silence, cut or _cancelled, clock
        self._asks, self._cells, self._sent = 0, first, 0
        self._resumes = bool(record.places) and _parent(path) not in record.passed
        self._goes_on = False  # with the code of a reply that is on record
        self._made: dict[str, list[CallRecord]] = {}

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        """The recorded reply, or a new one. Raises what `inner.ask` raises."""
        at = f"{self._path}/a{self._asks}"
        sent, self._sent = self._sent, len(messages) + 1  # the reply comes back with the next request
        self._asks += 1
        recorded = self.record.replied.get((at, purpose))
        self._goes_on = recorded is not None
        if recorded:
            return recorded.reply
        self.diverged += at in self.record.places
        self.uncertain += self._resumes
        self._goes_past_the_record()
        self._tell(types.Asking(at, purpose=purpose))
        began = self._clock()
        reply = await self._inner.ask(messages, purpose)
        new: list[Message] = list(messages[sent:])
        await self._append(Replied(at, purpose=purpose, reply=reply, seconds=self._clock() - began, sent=new))
        return reply

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        """The recorded result, or that of running the cell. A cell that took its worker along is not run again: the
        namespace is as it was before it."""
        at, restored = f"{self._path}/c{self._cells}", self._cells < self._restored
        self._cells += 1
        recorded = self.record.ran.get((at, code))
        if recorded and (restored or recorded.result.took_its_worker_along):
            return recorded.result
        if recorded is None and self._resumes and not self._rerun:
            self._goes_past_the_record()
            error = CellError("Interrupted", INTERRUPTED)
            result = REPLResult(stderr=f"{INTERRUPTED}\n", error=error, restarted=True)
            await self._append(Ran(at, code=code, result=result))
            return result
        self._tell(types.Running(at, code=code))
        calls = _Calls(self, at, answer, complete=recorded is not None, same=self._goes_on)
        began = self._clock()
        try:
            result = await self._inner.run(code, calls.answer)
        except NeverBegan as never:
            cancelled = never.__cause__ or asyncio.CancelledError()
            raise cancelled from cancelled.__cause__  # itself: `asyncio.timeout` takes no subclass for a cancellation
        except asyncio.CancelledError:
            if recorded is None:  # what it did up to here, it did
                cut = REPLResult(error=self._cut(), execution_time=self._clock() - began)
                await self._append(Ran(at, code=code, result=cut))
            raise
        if recorded:
            self.diverged += _differ(result, recorded.result)
            return recorded.result
        self._goes_past_the_record()
        self.diverged += at in self.record.places
        await self._append(Ran(at, code=code, result=result))
        return replace(result, rlm_calls=self._made.pop(at)) if at in self._made else result

    async def call(
        self,
        key: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        answer: Answer | None = None,
        *,
        repeats: bool = False,
    ) -> Any:
        """The recorded value or failure of the call at `key`, or that of making it: by `answer`, else `inner.call`.

        repeats: it may be one that was made before, and must not be made again.
        """
        if recorded := self.record.called.get(key):
            if recorded.error is not None:
                raise CallFailed(recorded.error, recorded.reason or "error")
            return recorded.value
        if repeats:
            lost = CallFailed(f"{name}() {UNCERTAIN}", "uncertain")
            await self._made_call(Called(key, name, "", None, str(lost), lost.reason))
            raise lost
        self.uncertain += self._resumes and name not in self._children
        prompt = (args[0] if args and isinstance(args[0], str) else _text(list(args)))[:_PROMPT_SHOWN]
        model = kwargs.get("model")
        self._tell(types.Calling(key, name=name, prompt=prompt, model=model if isinstance(model, str) else None))
        if name in self.once:
            await self._append(Attempted(key, name, prompt))
        began = self._clock()
        try:
            value = await (answer(name, args, kwargs) if answer else self._inner.call(key, name, args, kwargs))
        except CallFailed as failed:
            seconds, used = self._clock() - began, failed.usage_summary or _NOTHING
            await self._made_call(Called(key, name, prompt, None, str(failed), failed.reason, used, seconds))
            raise
        seconds = self._clock() - began
        priced = value if isinstance(value, Priced) else Priced(value, _NOTHING)
        await self._made_call(Called(key, name, prompt, priced.value, None, None, priced.usage_summary, seconds))
        return priced.value

    def _goes_past_the_record(self) -> None:
        self._resumes = False
        self.record.passed.add(self._path)

    async def _made_call(self, event: Called) -> None:
        await self._append(event)
        response = _shown(event.value)
        record = CallRecord(
            event.at,
            event.name,
            event.prompt,
            event.error or response,
            event.usage_summary,
            event.seconds,
            event.error,
        )
        self._made.setdefault(event.at.rpartition("/")[0], []).append(record)


class _Calls:
    """Answers the calls of one cell. complete: it ran to its end once, so that all of its calls should be on record.
    same: it is, also where it did not end, the cell that made those that are."""

    def __init__(self, journal: Journal, cell: str, answer: Answer | None, complete: bool, same: bool) -> None:
        self._journal, self._cell, self._answer = journal, cell, answer
        self._complete, self._same = complete, complete or same
        self._seen: Counter[str] = Counter()
        self._asked: set[str] = set()

    async def answer(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name in _BATCHED:
            return await self._batch(name, args, dict(kwargs))
        key = self._key(name, args, kwargs)
        repeats = False
        if name in self._journal.once and key not in self._journal.record.called:
            key, repeats = self._made_before(key)
        return await self._journal.call(key, name, args, kwargs, self._answer, repeats=repeats)

    def _made_before(self, key: str) -> tuple[str, bool]:
        """Which recorded call one of a function that must not be called twice is, and whether it may be one that was
        made and has no answer on record.

        With arguments that are on no record it is the first call of that function that nobody has asked for again, if
        it is the same cell. A user's own cell that was cut off may be another one by now.
        """
        record = self._journal.record
        begun = record.begun.get(_function(key), {})
        if key in begun:
            return key, True
        left = next((one for one in begun if one not in self._asked), None)
        if left is None or not self._same:
            return key, self._complete or left is not None
        self._asked.add(left)
        return left, left not in record.called

    async def _batch(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        """A batch is as many single calls, each with its own place, made concurrently; a failing one fails alone."""
        prompts, *positional = args or [kwargs.pop("prompts", None)]
        if not isinstance(prompts, (list, tuple)):
            raise CallFailed(f"{name}() takes a list of prompts, not {type(prompts).__name__}", "value")
        kwargs |= dict(zip(["model"], positional, strict=False))
        settings = {key: value for key, value in kwargs.items() if value is not None}
        single = _BATCHED[name]
        try:
            async with asyncio.TaskGroup() as group:
                items = [
                    group.create_task(self._item(self._key(single, [prompt], settings), single, [prompt], settings))
                    for prompt in prompts
                ]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [item.result() for item in items]

    async def _item(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"value": await self._journal.call(key, name, args, kwargs, self._answer)}
        except CallFailed as failed:
            return {"error": str(failed), "reason": failed.reason}

    def _key(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        call = f"{name}:{_digest(args, kwargs)}"
        key = f"{self._cell}/{call}#{self._seen[call]}"
        self._asked.add(key)
        self._seen[call] += 1
        self._journal.diverged += self._complete and key not in self._journal.record.called
        return key


def _parent(path: str) -> str:
    """The place of the journal whose cell called for the child at `path`; of a turn itself."""
    return path.rsplit("/", 2)[0]


def _function(key: str) -> str:
    """The cell and the function of a call: "t3/c1/order" of "t3/c1/order:9f…#0"."""
    return key.rpartition(":")[0]


def _digest(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """16 digits. A text alone is hashed as it is: prompts are large, and writing them as JSON first takes longer."""
    if len(args) == 1 and isinstance(args[0], str):
        digest = blake2b(f"text{_text(dict(kwargs))}\n".encode("utf-8", "surrogatepass"), digest_size=8)
        digest.update(args[0].encode("utf-8", "surrogatepass"))
    else:
        digest = blake2b(_text([list(args), dict(kwargs)]).encode("utf-8", "surrogatepass"), digest_size=8)
    return digest.hexdigest()


def _differ(result: REPLResult, recorded: REPLResult) -> bool:
    """Whether a cell that was run again did, as far as one can see, something else than the first time."""
    kinds = [one.error.type if one.error else None for one in (result, recorded)]
    return kinds[0] != kinds[1] or result.stdout != recorded.stdout


def _cancelled() -> CellError:
    return CellError("Cancelled", "the cell was cancelled")


def _shown(value: Any) -> str:
    """A value as a result of a cell shows it. Text is shown whole; what else is large is told by its type and length,
    because `repr` of it would hold everything else up."""
    if isinstance(value, str):
        return value
    room, parts = _VALUE_SHOWN, [value]
    while parts and room >= 0:
        part = parts.pop()
        if isinstance(part, int):
            room -= 1 + part.bit_length() // 3  # a digit is more than 3 bits; `repr` refuses thousands of them
        else:
            room -= 1 + (len(part) if isinstance(part, _SIZED) else 0)
        if room >= 0 and isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif room >= 0 and isinstance(part, (list, tuple, set, frozenset)):
            parts += part
    if room >= 0:
        return repr(value)
    length = f" of length {len(value):,}" if isinstance(value, _SIZED) else ""
    return f"<{type(value).__name__}{length}, too large to be shown>"


def _text(value: Any) -> str:
    try:
        return _canonical(value)
    except TypeError:  # bytes, tuples as keys, and what else a tool may be given and JSON has not
        return repr(value)


_NOTHING = UsageSummary()


def _silence(event: Event) -> None:
    """Nobody listens."""
