"""What a log says: a session's turns, inputs, heap, bill and unfinished business, as folds over its events; pure.

`Past` takes one event after the other and is right after each. A `Rewound` moves it back to the end of a turn: the
events that it stands on are a path through the log, from the latest one back to the first, and what lies beside the
path counts only where money is concerned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from rlm.engine.prompts import Exchange
from rlm.errors import LogError
from rlm.types import (
    Answered,
    Asked,
    Briefed,
    Called,
    Checkpointed,
    ContextAdded,
    Event,
    Failed,
    HeapChange,
    HeapImage,
    Lost,
    Message,
    Opened,
    Ran,
    Recorded,
    Replied,
    Restored,
    Rewound,
    RLMChatCompletion,
    Saved,
    SavedFile,
    Stopped,
    UsageSummary,
)

NOTE = 400  # characters of a user's own cell that the model is told
NOT_AGAIN = frozenset({"Cancelled", "CellTimeout", "Interrupted", "TimeLimit"})
"""Errors of cells that were cut short from outside: run again, they would take another way."""

End: TypeAlias = Answered | Stopped | Failed


def root_of(at: str) -> str:
    """The turn, or the user's own cell, that a place belongs to: "t3" of "t3/c1/llm_query:9f…#0"."""
    return at.partition("/")[0]


def is_own(event: Event) -> bool:
    """Whether it is the session's own cell or request, not a child's."""
    return event.at.count("/") == 1


def turn_number(at: str) -> int | None:
    """3 of "t3/c1"; None where the place is in no turn."""
    root = root_of(at)
    return int(root[1:]) if root[:1] == "t" and root[1:].isdigit() else None


def may_run_again(ran: Ran) -> bool:
    """Whether running the cell once more would do to the namespace what it did the first time."""
    result = ran.result
    return not (result.took_its_worker_along or (result.error is not None and result.error.type in NOT_AGAIN))


class Heap:
    """The heap as its checkpoints add up. cells: how many of the session's cells are in it."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.cells = 0
        self.python = ""
        self.lost: dict[str, Lost] = {}
        self.modules: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.files: dict[str, SavedFile] = {}
        self.files_lost: dict[str, Lost] = {}
        self._saved: dict[str, Saved] = {}
        self._needed: Counter[tuple[str, int]] = Counter()

    def apply(self, event: Checkpointed) -> None:
        """Take a checkpoint in."""
        if event.base:
            self._clear()
        change = event.change
        self.cells, self.python = event.cells, change.python or self.python
        for name in (*change.gone, *change.modules, *change.given, *change.lost):
            self._forget(name)
        for group in change.groups:
            names = list(filter(None, group.names))
            self._forget_all(names)
            self._saved.update(dict.fromkeys(names, group))
            if names:
                self._needed[group.digest, group.size] += len(names)
        self.modules.update(change.modules)
        self.given.update(change.given)
        self.lost.update(change.lost)
        self._apply_files(change)

    def _forget(self, name: str) -> None:
        for known in (self.modules, self.given, self.lost):
            known.pop(name, None)
        group = self._saved.pop(name, None)
        if group is not None:
            self._needed_less(group, 1)

    def _forget_all(self, names: Sequence[str]) -> None:
        """The same for names that are saved anew at once. There may be 100,000, and all else waits."""
        if len(names) == 1:
            self._forget(names[0])
            return
        for known in (self.modules, self.given, self.lost):
            for name in known.keys() & set(names) if known else ():
                known.pop(name)
        for _, run in groupby(filter(None, map(self._saved.get, names)), id):
            groups = list(run)
            self._needed_less(groups[0], len(groups))

    def _needed_less(self, group: Saved, names: int) -> None:
        blob = group.digest, group.size
        self._needed[blob] -= names
        if not self._needed[blob]:
            del self._needed[blob]

    def _apply_files(self, change: HeapChange) -> None:
        for path in (*change.files_gone, *change.files, *change.files_lost):
            self.files.pop(path, None)
            self.files_lost.pop(path, None)
        self.files.update(change.files)
        self.files_lost.update(change.files_lost)

    @property
    def types(self) -> Mapping[str, str]:
        """Names and types of the variables, those that could not be saved included; `answer` is not one."""
        told: dict[int, Mapping[str, str]] = {}
        for group in self._saved.values():
            if id(group) not in told:
                told[id(group)] = dict(zip(group.names, group.types, strict=True))
        kinds = {name: told[id(group)][name] for name, group in self._saved.items()}
        kinds |= dict.fromkeys(self.modules, "module") | {name: lost.type for name, lost in self.lost.items()}
        return {name: kind for name, kind in kinds.items() if name != "answer"}

    def image(self) -> HeapImage:
        """The whole of it, as a new worker takes it."""
        groups: dict[int, Saved] = {}
        for group in self._saved.values():
            groups.setdefault(id(group), group)
        return HeapImage(
            [self._without_stale(group) for group in groups.values()],
            dict(self.modules),
            dict(self.given),
            dict(self.lost),
            dict(self.files),
            dict(self.files_lost),
            self.python,
        )

    def _without_stale(self, group: Saved) -> Saved:
        if all(self._saved.get(name) is group for name in group.names):
            return group
        names = [name if self._saved.get(name) is group else "" for name in group.names]
        return Saved(names, group.types, group.digest, group.size, group.definition, group.code, group.sources)

    def blobs(self) -> Mapping[str, int]:
        """Digest -> bytes of every blob that it needs."""
        files = {file.digest: file.size for file in self.files.values() if file.link is None}
        return dict(self._needed.keys()) | files


@dataclass(slots=True)
class PastTurn:
    """A turn as the log has it. messages: without the system's once it has ended. end: None while it is unfinished."""

    number: int
    asked: Asked
    events: list[Event] = field(default_factory=list)
    context: int | None = None
    briefed: Briefed | None = None
    messages: list[Message] = field(default_factory=list)
    end: End | None = None

    @property
    def path(self) -> str:
        return f"t{self.number}"

    @property
    def completion(self) -> RLMChatCompletion | None:
        """What the caller got, if there was an answer."""
        return self.end.completion if isinstance(self.end, Answered) else None

    @property
    def answer(self) -> str:
        """The answer, or what the conversation says in its place."""
        if isinstance(self.end, Answered):
            return self.end.completion.response
        said = self.end.said if self.end is not None else ()
        return said[-1]["content"] if said else ""

    @property
    def history(self) -> list[Message]:
        """The turn's messages as `history_N` holds them."""
        return [message for message in self.messages if message["role"] != "system"]

    @property
    def cells(self) -> list[Ran]:
        """Its own cells, without those of children."""
        return [event for event in self.events if isinstance(event, Ran) and is_own(event)]

    def take(self, event: Event) -> None:
        match event:
            case Briefed():
                self.briefed = event
            case Replied() if is_own(event):
                self.messages += [*event.sent, {"role": "assistant", "content": event.reply.text}]
            case Answered() | Stopped() | Failed() if "/" not in event.at:
                self.messages = [*self.messages[: event.kept], *event.said]
                self.end = event
                self.events = []  # nobody runs it again from here; the log has them
                return
        self.events.append(event)


class _State:
    """What the events of one path add up to."""

    def __init__(self) -> None:
        self.opened = Opened("")
        self.turns: list[PastTurn] = []
        self.contexts: dict[int, ContextAdded] = {}
        self.cells: list[Ran] = []
        self.heap = Heap()
        self.answers: dict[str, tuple[str, RLMChatCompletion]] = {}
        self.notes: list[str] = []

    @property
    def running(self) -> PastTurn | None:
        return self.turns[-1] if self.turns and self.turns[-1].end is None else None

    def take(self, event: Event) -> None:
        match event:
            case Opened():
                self.opened = event
            case Asked():
                self.turns.append(PastTurn(turn_number(event.at) or 0, event, context=event.context))
                return
            case ContextAdded():
                self._add_context(event)
            case Ran() if is_own(event):
                self.cells.append(event)
                if event.at.startswith("u"):
                    self.notes.append(_note_of_cell(event))
            case Briefed() if "/" not in event.at:
                self.notes.clear()
            case Checkpointed():
                self.heap.apply(event)
            case Restored():
                self.notes += filter(None, [note_of_restore(event)])
        if self.running is not None and (root_of(event.at) == self.running.path or isinstance(event, ContextAdded)):
            turn = self.running
            turn.take(event)
            if isinstance(event, Answered) and turn.end is event and turn.asked.key is not None:
                self.answers[turn.asked.key] = (turn.asked.inputs or "", event.completion)

    def _add_context(self, event: ContextAdded) -> None:
        self.contexts[event.index] = event
        if self.running is not None:
            self.running.context = event.index
        else:
            also = f" (also `{event.name}`)" if event.name else ""
            size = "" if event.size is None else f", {event.size:,} long"
            self.notes.append(f"the user added `context_{event.index}`{also}: {event.type}{size}")


@dataclass(slots=True)
class _Node:
    """An event and the one that it follows."""

    event: Event
    before: _Node | None


class Past:
    """A session as its log tells it, up to the last event taken.

    number: of the next event. turns_begun, cells_begun: the numbers of the next turn, and of the next cell of the
    user's own, which no turn or cell beside the path has. usage: everything that was ever paid. seconds: that turns
    and the user's own cells took. held: turn -> the blobs, with their sizes, that the session needed at its end.
    """

    def __init__(self, records: Iterable[Recorded] = ()) -> None:
        self.number = 0
        self.turns_begun = 0
        self.cells_begun = 0
        self.usage = UsageSummary()
        self.usage_of_turns: dict[int, UsageSummary] = {}
        self.seconds = 0.0
        self.restored: Restored | None = None
        self.held: dict[int, Mapping[str, int]] = {}
        self._state = _State()
        self._head: _Node | None = None
        self._ends: dict[int | None, _Node | None] = {None: None}
        self._at_rest: int | None = None
        self._children: set[str] = set()
        for record in records:
            if record.number != self.number:
                raise LogError(f"event {record.number} stands where event {self.number} should: the log is damaged")
            self.take(record.event)

    def take(self, event: Event) -> None:
        """Take the next event in. Raises `LogError` for a rewind to a turn that there is not."""
        self.number += 1
        self._count(event)
        if isinstance(event, Rewound):
            if event.turn not in self._ends:
                raise LogError(f"the log rewinds to turn {event.turn}, which it does not have")
            self._go_to(self._ends[event.turn])
            self._at_rest = event.turn
            return
        self._head = _Node(event, self._head)
        self._state.take(event)
        self._mark(event)

    def _count(self, event: Event) -> None:
        match event:
            case Asked():  # a fork of a session that was rewound has not all numbers
                self.turns_begun = max(self.turns_begun, (turn_number(event.at) or 0) + 1)
            case Ran() if is_own(event) and event.at.startswith("u"):
                self.cells_begun = max(self.cells_begun, int(root_of(event.at)[1:]) + 1)
                self.seconds += event.result.execution_time
            case Restored():
                self.restored = event
            case Answered() if "/" not in event.at:
                self.seconds += event.completion.execution_time
            case Stopped() | Failed() if "/" not in event.at:
                self.seconds += event.seconds
            case Replied():
                self._pay(event, UsageSummary().add(event.reply.model, event.reply.usage))
                self._children.add(event.at.rpartition("/")[0])
            case Called() if event.at not in self._children:  # a child's requests stand below its call
                self._pay(event, event.usage_summary)

    def _pay(self, event: Event, used: UsageSummary) -> None:
        self.usage = self.usage + used
        number = turn_number(event.at)
        if number is not None:
            self.usage_of_turns[number] = self.usage_of_turns.get(number, UsageSummary()) + used

    def _mark(self, event: Event) -> None:
        """Remember where turns end. What comes right after an end of the heap alone, belongs to it."""
        number = turn_number(event.at)
        if isinstance(event, (Answered, Stopped, Failed)) and "/" not in event.at and number is not None:
            self._at_rest = number
            self._ends[number], self.held[number] = self._head, self.blobs()
        elif isinstance(event, (Checkpointed, Restored)) and self._at_rest in self._ends:
            self._ends[self._at_rest] = self._head
            if self._at_rest is not None:
                self.held[self._at_rest] = self.blobs()
        elif isinstance(event, Opened) or (event.kind == "forked" and self._at_rest is None):
            self._ends[None] = self._head
        else:
            self._at_rest = -1

    def _go_to(self, head: _Node | None) -> None:
        self._head, self._state = head, _State()
        for event in self.path():
            self._state.take(event)

    def path(self) -> Sequence[Event]:
        """The events that the session stands on, oldest first."""
        return _path(self._head)

    def path_to(self, turn: int | None) -> Sequence[Event]:
        """The same as of the end of a turn (None: before the first). Raises KeyError where it has no end."""
        return _path(self._ends[turn])

    # -- what there is -----------------------------------------------------------------------------------------------

    @property
    def opened(self) -> Opened:
        return self._state.opened

    @property
    def turns(self) -> Sequence[PastTurn]:
        """The turns on the path, the unfinished one included."""
        return self._state.turns

    @property
    def ended(self) -> Sequence[PastTurn]:
        """The turns on the path that have an end."""
        turns = self._state.turns
        return turns if self.unfinished is None else turns[:-1]

    @property
    def unfinished(self) -> PastTurn | None:
        """The turn that has no end."""
        return self._state.running

    @property
    def contexts(self) -> Mapping[int, ContextAdded]:
        return self._state.contexts

    @property
    def conversation(self) -> list[Exchange]:
        """Questions and answers, oldest first."""
        return [Exchange(turn.asked.question, turn.answer) for turn in self.ended]

    @property
    def cells(self) -> Sequence[Ran]:
        """The cells that ran in the namespace, in their order."""
        return self._state.cells

    @property
    def heap(self) -> Heap:
        return self._state.heap

    @property
    def notes(self) -> Sequence[str]:
        """What the model has not been told yet."""
        return self._state.notes

    @property
    def ends(self) -> Sequence[int]:
        """The numbers of all turns that one can rewind to, those beside the path included."""
        return sorted(turn for turn in self._ends if turn is not None and turn >= 0)

    def blobs(self) -> Mapping[str, int]:
        """Digest -> bytes (0 where nobody said) of every blob that the session needs as it stands."""
        inputs = {event.digest: 0 for event in self.contexts.values() if event.digest is not None}
        return {**inputs, **self.heap.blobs()}

    def answer(self, key: str, inputs: str) -> RLMChatCompletion | None:
        """The recorded answer to this key and these inputs."""
        known = self._state.answers.get(key)
        return known[1] if known is not None and known[0] == inputs else None


def _path(head: _Node | None) -> Sequence[Event]:
    return list(reversed(list(_back(head))))


def _back(head: _Node | None) -> Iterator[Event]:
    while head is not None:
        yield head.event
        head = head.before


def _note_of_cell(ran: Ran) -> str:
    shown = " ".join(ran.code[: 2 * NOTE].split())
    cut = "…" if len(shown) > NOTE or len(ran.code) > 2 * NOTE else ""
    error = ran.result.error
    match error.type if error else None:
        case None:
            ended = ""
        case "Cancelled":
            ended = ", which was cancelled"
        case "TimeLimit":
            ended = ", which was stopped by the limit on seconds"
        case kind:
            ended = f", which failed with {kind}"
    return f"the user ran a cell: `{shown[:NOTE]}{cut}`{ended}"


def note_of_restore(event: Restored) -> str:
    """What the model is told of a restore: one line; "" where there is nothing to tell."""
    parts = []
    if event.lost:
        shown = [f"{name} ({lost.type}: {lost.reason})" for name, lost in list(event.lost.items())[:20]]
        more = f" and {len(event.lost) - 20} more" if len(event.lost) > 20 else ""
        parts.append(f"could not be brought back: {', '.join(shown)}{more}")
    if event.diverged:
        parts.append("cells that were run again did something else than the first time: check what they made")
    if event.skipped:
        parts.append(f"{event.skipped} of the last cells were not run again, and what they did is undone")
    return f"The REPL was restored; {'; '.join(parts)}." if parts else ""
