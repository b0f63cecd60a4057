"""What must be true of a session that was killed: after each life, and at its end beside a twin that nobody killed.

Everything is read from the store as another process finds it, from the provider's bill, and from what the lives said
before they ended. What is not so is a `Violation`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlm.log import dump
from rlm.types import Answered, Asked, Called, ContextAdded, Event, Failed, Ran, Recorded, Replied, Restored
from tests.crash.life import CONCURRENCY, KILLED, SESSION
from tests.crash.provider import Billed
from tests.crash.script import CELL, PLAN, Script, Step

WITHOUT = "(This turn ended without an answer: "
DISCARDED = f"{WITHOUT}the turn was discarded"

Logs = Mapping[str, Sequence[Recorded]]
"""The logs of all sessions of a store, by name."""


class Violation(Exception):
    """Something that must always be true was not."""


@dataclass
class Life:
    """What is known of one life. done: results by the numbers of the steps; struck: what of a session's processes was
    hit while the host went on; strikes: kills that met somebody."""

    number: int
    dooms: Sequence[Any] = ()
    done: dict[int, Any] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    usage: Sequence[int] | None = None
    appended: int = 0
    failed: str | None = None
    ended: bool = False
    struck: list[str] = field(default_factory=list)
    strikes: int = 0
    killed: bool = False
    errors: str = ""


class Truth:
    """Follows one session through its lives. twin: the results of the steps, and how often each request was made,
    where nobody was killed; None where no other run can be compared."""

    def __init__(self, script: Script, run: str, twin: Truth | None = None) -> None:
        self.script, self.run, self.twin = script, run, twin
        self.results: dict[int, Any] = {}
        self.logs: Logs = {}
        self.recorded: set[int] = set()
        self.unrecorded = 0
        self.effects: Counter[str] = Counter()
        self._dumped: dict[str, list[str]] = {}

    # -- after each life -----------------------------------------------------------------------------------------------

    def lived(self, life: Life, logs: Logs, bill: Sequence[Billed]) -> None:
        """Take in what came of a life. Raises `Violation`."""
        if life.failed is not None:
            raise Violation(f"a life failed:\n{life.failed}")
        if life.logged:
            raise Violation(f"a life logged: {life.logged}")
        if not life.ended and not life.killed:
            raise Violation(f"a life ended by itself:\n{life.errors}")
        self._only_grew(logs)
        self.logs = logs
        self.effects.update(life.effects)
        for number, result in life.done.items():
            self._stands(self.script.steps[number], result, logs[SESSION])
            if self.twin is not None:
                self._agrees(self.script.steps[number], result, self.twin.results[number])
            self.results[number] = result
        self._nothing_twice()
        self._bill(life, [billed for billed in bill if billed.run == self.run])
        if life.ended:
            self._usage(life, bill)

    def _only_grew(self, logs: Logs) -> None:
        """What one process found in a log, all later ones find there."""
        for name, before in self._dumped.items():
            found = [dump(record.event) for record in logs.get(name, ())[: len(before)]]
            if found != before:
                raise Violation(f"the log of {name!r} is no longer what it was: {_first_difference(before, found)}")
        self._dumped = {name: [dump(record.event) for record in log] for name, log in logs.items()}

    def _stands(self, step: Step, result: Any, log: Sequence[Recorded]) -> None:
        """What the user was told is in the log."""
        events = [record.event for record in log]
        match step.what:
            case "ask" | "completion" if "answer" in result:
                places = {event.at for event in events if isinstance(event, Asked) and _is_of(step, event)}
                answers = [event for event in events if isinstance(event, Answered) and event.at in places]
                if result["answer"] not in [event.completion.response for event in answers]:
                    raise Violation(f"a committed turn is lost: {step.name} was answered {result['answer']!r}")
            case "run":
                said = [event.result.stdout for event in events if isinstance(event, Ran) and event.code == step.value]
                if result["printed"] not in said:
                    raise Violation(f"a cell of the user's is lost: {step.name}")
            case "add":
                if not any(isinstance(event, ContextAdded) and event.index == result for event in events):
                    raise Violation(f"an input is lost: {step.name}")

    def _agrees(self, step: Step, result: Any, expected: Any) -> None:
        """The result is what the twin's was."""
        if step.what in ("fork", "carry"):
            for one, mine, its in zip(step.within, result, expected, strict=True):
                self._agrees(one, mine, its)
            return
        if step.what == "run":
            result, mine = _without_lost(result)
            expected, its = _without_lost(expected)
            told = {name for restored in self._events(Restored) for name in restored.lost}
            if missing := its - mine - told:
                raise Violation(f"{sorted(missing)} are gone, and nobody was told")
        if step.what == "given":
            result, expected = [self._given(each) for each in (result, expected)]
        if result != expected:
            difference = _first_difference(_lines(expected), _lines(result))
            if step.what in ("ask", "completion") and self.twin is not None:
                difference += f"\nin {_first_difference(self.twin.told(step), self.told(step))}"
            raise Violation(f"step {step.name} ({step.what}) came out differently from its twin: {difference}")

    def _given(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        shown = [_shown(each, self.script) for each in result["histories"] if _counts(each)]
        return {**result, "histories": shown}

    def told(self, step: Step) -> list[str]:
        """What the model was told in the turn of a step, line by line, openings left out."""
        places = {asked.at for asked in self._events(Asked) if _is_of(step, asked)}
        sent = [replied.sent for replied in self._events(Replied) if replied.at.partition("/")[0] in places]
        return [
            line
            for some in sent
            for one in some[-1:]
            if len(some) == 1
            for line in CELL.sub("<cell>", one["content"]).splitlines()
        ]

    def _nothing_twice(self) -> None:
        """No reply, and no answer to a call, is on record twice."""
        for name, log in self.logs.items():
            seen: Counter[tuple[str, ...]] = Counter()
            for record in log:
                match record.event:
                    case Replied(at=at, purpose=purpose):
                        seen["reply", at, purpose] += 1
                    case Called(at=at):
                        seen["call", at] += 1
                    case Ran(at=at):
                        seen["cell", at] += 1
            if twice := [place for place, times in seen.items() if times > 1]:
                raise Violation(f"on record twice in {name!r}, and so asked for again: {twice[:5]}")

    # -- the bill ------------------------------------------------------------------------------------------------------

    def _bill(self, life: Life, bill: Sequence[Billed]) -> None:
        recorded = set()
        for name, log in self.logs.items():
            numbers = [usage[3] for usage in requests(log)]
            if len(numbers) != len(set(numbers)):
                raise Violation(f"a request stands in the log of {name!r} twice")
            recorded |= set(numbers)
        served = {billed.number: billed for billed in bill if billed.served}
        if not recorded <= set(served):
            raise Violation(f"the log has requests that the bill has not: {sorted(recorded - set(served))}")
        open_ = [billed for billed in served.values() if billed.life == life.number and billed.number not in recorded]
        most = CONCURRENCY * life.strikes
        if len(open_) > most:
            raise Violation(
                f"{len(open_)} requests of life {life.number} are on no record, of which {most} may have been in flight"
            )
        self.recorded, self.unrecorded = recorded, self.unrecorded + len(open_)
        if self.twin is not None:
            self._asked_again(open_, served)

    def _asked_again(self, open_: Sequence[Billed], served: Mapping[int, Billed]) -> None:
        """No request was made where all of its kind were on record. A cell that took its worker along is tried again,
        by the model or the user, which may repeat its requests."""
        assert self.twin is not None
        tries = 1 + sum(bool(KILLED.search(failed.message)) for failed in self._events(Failed))
        tries += sum(
            ran.result.error is not None and ran.result.error.type == "WorkerDied" for ran in self._events(Ran)
        )
        there = Counter(served[number].signature for number in self.recorded)
        for signature, times in there.items():
            if times > self.twin.made[signature] * tries:
                raise Violation(
                    f"a request was made {times} times and recorded, by the twin {self.twin.made[signature]}"
                )
        for billed in open_:
            before = sum(served[n].signature == billed.signature for n in self.recorded if n < billed.number)
            if before >= self.twin.made[billed.signature] * tries:
                raise Violation(f"request {billed.number} was made although its reply was on record: {billed}")

    made: Counter[str]
    """Of a twin: how often each request was made."""

    def close_the_twin(self, bill: Sequence[Billed]) -> None:
        """The twin is complete: what it asked is what is expected of others."""
        self.made = Counter(billed.signature for billed in bill if billed.run == self.run and billed.served)

    def _usage(self, life: Life, bill: Sequence[Billed]) -> None:
        """What the session says it has consumed is what the provider bills for what is on record."""
        numbers = {usage[3] for usage in requests(self.logs[SESSION])}
        billed = [one for one in bill if one.number in numbers]
        expected = [
            len(billed),
            sum(one.input_tokens for one in billed),
            sum(one.output_tokens for one in billed),
            sum(one.number for one in billed),
        ]
        if list(life.usage or ()) != expected:
            raise Violation(f"the session's usage is {life.usage}, and its bill {expected}")

    # -- at the end ----------------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """The session has done all of its steps."""
        missing = [step.name for number, step in enumerate(self.script.steps) if number not in self.results]
        if missing:
            raise Violation(f"steps are missing: {missing}")
        if not (self.script.accidents or self.script.wild):
            twice = [word for word, times in self.effects.items() if times > 1]
            if twice:
                raise Violation(f"a tool that must not be called twice was: {twice}")
        for called in self._events(Called):
            if called.name == "effect" and called.error is None and not self.effects[called.prompt]:
                raise Violation(f"the effect of {called.at} is on record, and never was")

    def _events(self, kind: type[Any]) -> list[Any]:
        return [record.event for log in self.logs.values() for record in log if isinstance(record.event, kind)]


def requests(log: Sequence[Recorded]) -> list[tuple[int, int, int, int]]:
    """The usage of each request that the log has a reply to: calls, input, output, number on the bill."""
    found = []
    children = {record.event.at.rpartition("/")[0] for record in log if isinstance(record.event, Replied)}
    for record in log:
        event: Event = record.event
        if isinstance(event, Replied):
            usage = event.reply.usage
        elif isinstance(event, Called) and event.at not in children and event.usage_summary.total_calls:
            usage = event.usage_summary.total
        else:
            continue
        found.append((usage.calls, usage.input_tokens, usage.output_tokens, usage.cached_tokens))
    return found


def _is_of(step: Step, asked: Asked) -> bool:
    return asked.key == step.name or asked.question == step.question


def _without_lost(result: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """The output of a probe without its last line, and the names in it, that cannot be saved."""
    printed = result["printed"]
    head, mark, tail = printed.rpartition("\nlost [")
    if not mark:
        return result, set()
    return {**result, "printed": head}, set(json.loads("[" + tail.strip().replace("'", '"')))


def _counts(history: Sequence[Mapping[str, str]]) -> bool:
    """False for a turn that was asked again: its input had not arrived when its process ended, or no worker lived long
    enough to begin it."""
    last = history[-1]["content"]
    return not (last.startswith(DISCARDED) or (last.startswith(WITHOUT) and KILLED.search(last)))


def _shown(history: Sequence[Mapping[str, str]], script: Script) -> Any:
    """A turn's messages as they are to be the same. Of the opening that is the name of the plan."""
    plans = PLAN.findall(history[0]["content"])
    messages = history[-1:] if script.accidents else history[1:]
    return [plans[-1] if plans else "", *(CELL.sub("<cell>", message["content"]) for message in messages)]


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and "printed" in value:
        return [*value["printed"].splitlines(), f"error: {value['error']}"]
    return json.dumps(value, indent=1).splitlines()


def _first_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    for number, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return f"line {number}:\n  expected {one[:2000]}\n  found    {other[:2000]}"
    return f"{len(expected)} lines expected, {len(found)} found, the first ones the same"
