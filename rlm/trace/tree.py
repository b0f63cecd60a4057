"""A log as a tree of plain data, as a page shows it: turns, iterations, cells, calls, and children below their call.

A fold over records: it knows no HTML, and reads no clock. A place in the log (`Event.at`) becomes a node with an `id`
of its own, which is that place unless two nodes share it. Usage is summed as `Session.usage` does: a child's requests
are counted where they stand, and then not once more with their call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rlm.folds import is_own, root_of
from rlm.types import (
    Answered,
    Asked,
    Attempted,
    Briefed,
    Called,
    Checkpointed,
    ContextAdded,
    Event,
    Failed,
    Forked,
    HeapChange,
    Lost,
    Opened,
    Ran,
    Recorded,
    Replied,
    Restored,
    Rewound,
    Stopped,
    Usage,
    UsageSummary,
)

_COLOURS = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")  # and other sequences that only make sense to a terminal
_BIDI = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # what is read would not be what runs
_SEEN: Mapping[int, str] = {
    **{code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)},
    127: "\N{SYMBOL FOR DELETE}",
    **{code: f"⟨U+{code:04X}⟩" for code in (*range(128, 160), *_BIDI)},
    **dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"),  # surrogates have no UTF-8
}
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text as a page may show it: colours of terminals are gone, every other control character can be seen."""
    if not _UNSEEN.search(text):
        return text
    return _COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(_SEEN)


def when(seconds: float) -> str:
    """A record's time for people, to the minute; a clock may have said anything."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "at no known time"


def tree(records: Sequence[Recorded], limit: int) -> dict[str, Any]:
    """The whole run as JSON has it; of texts longer than `limit` characters head and tail.

    items: the nodes of the session itself, each with its `kids`, its usage (`use`: calls, tokens in, cached, out, and
    cost or None) and its seconds (`s`), those of its kids included. heaps: changes of the namespace, each with the
    index of the one it stands on (`on`, or None); an item's `heap` is the index of its last one. messages: texts that
    were sent to models, by index.
    """
    fold = _Fold(limit)
    for record in records:
        fold.take(record)
    return fold.result(records)


@dataclass(eq=False)
class _Node:
    """A place in the tree. own: what it consumed itself. seconds: None where nothing was recorded of it.

    answers: the last reply of a turn or child, to which the cells that follow belong. cells: a turn's own ones that
    ended. before: the item that the session stood at when this one began. heap: of an item, its last change.
    """

    kind: str
    id: str
    facts: dict[str, Any] = field(default_factory=dict)
    kids: list[_Node] = field(default_factory=list)
    own: UsageSummary = field(default_factory=UsageSummary)
    seconds: float | None = None
    ended: bool = False
    answers: _Node | None = None
    cells: list[_Node] = field(default_factory=list)
    before: _Node | None = None
    heap: int | None = None

    @property
    def is_parent(self) -> bool:
        """Whether this is a call with a child that made requests, which stand below it."""
        return self.kind == "call" and any(kid.kind == "iteration" for kid in self.kids)


class _Fold:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: list[_Node] = []
        self.heaps: list[dict[str, Any]] = []
        self.messages: dict[str, int] = {}
        self.opened: dict[str, Any] = {}
        self.places: dict[str, _Node] = {}
        self.ids: set[str] = set()
        self.last: _Node | None = None  # where the session stands: itself, and what came before it, are not dropped
        self.turn: _Node | None = None  # the one under way
        self.heap: int | None = None

    # -- events ----------------------------------------------------------------------------------------------------

    def take(self, record: Recorded) -> None:
        event, at = record.event, record.event.at
        facts: dict[str, Any]
        match event:
            case Opened():
                facts = {"name": event.name, "model": event.model, "environment": event.environment}
                self.opened = self.opened or self.facts({**facts, "version": event.version})
            case Asked():
                self.asked(event, record.time)
            case ContextAdded():
                facts = {"index": event.index, "type": event.type, "size": event.size, "name": event.name}
                self.note(event, "context", {**facts, "preview": event.preview})
            case Briefed():
                facts = {"contexts": event.contexts, "histories": event.histories, "schema": event.schema}
                notes = [self.text(note) for note in event.notes]
                self.place(at).facts |= self.facts({**facts, "context": event.context}) | (
                    {"told": notes} if notes else {}
                )
            case Replied():
                self.replied(event)
            case Ran():
                self.ran(event)
            case Called():
                self.called(event)
            case Checkpointed():
                self.checkpointed(event)
            case Restored():
                lost = self.lost(event.lost)
                if lost:
                    self.change({"lost": lost})
                counts = {name: getattr(event, name) for name in ("live", "cells", "rerun", "skipped", "diverged")}
                self.note(event, "restored", {**counts, "lost": lost})
            case Attempted():
                self.place(at).facts |= self.facts({"name": event.name, "prompt": event.prompt, "attempted": True})
            case Forked():
                self.note(event, "forked", {"source": event.source, "turn": event.turn})
            case Rewound():
                self.rewound(event)
            case Answered() | Stopped() | Failed():
                self.end(event)
            case _:
                self.note(event, event.kind, {})

    def asked(self, event: Asked, time: float) -> None:
        if (known := self.places.get(event.at)) and "state" in known.facts:
            self.forget(event.at)  # the number is used again, after the session was rewound
        self.turn = self.place(event.at)
        facts = {"question": event.question, "context": event.context, "key": event.key, "model": event.model}
        self.turn.facts |= {**self.facts(facts), "began": when(time), "state": "unfinished"}

    def replied(self, event: Replied) -> None:
        node = self.unused(event.at)
        sent = [[message["role"], self.message(message["content"])] for message in event.sent]
        facts = {"purpose": event.purpose, "model": event.reply.model, "reply": event.reply.text, "sent": sent}
        node.facts |= {**self.facts(facts), "asking": event.seconds}
        node.own, node.seconds, node.ended = UsageSummary({event.reply.model: event.reply.usage}), event.seconds, True
        level = self.place(event.at.rpartition("/")[0])
        level.answers = node
        node.facts["n"] = sum(kid.kind == "iteration" for kid in level.kids)

    def ran(self, event: Ran) -> None:
        node, result = self.unused(event.at), event.result
        stderr = result.stderr
        if result.error and result.error.text.strip() not in stderr:
            stderr = f"{stderr}\n{result.error.text}" if stderr else result.error.text
        facts = {"code": event.code, "out": result.stdout, "err": stderr, "answer": result.final_answer}
        state = {"state": "failed", "error": visible(result.error.type)} if result.error else {"state": "ok"}
        node.facts |= {**self.facts(facts), **state}
        if result.restarted:
            node.facts["restarted"] = True
        node.seconds, node.ended = result.execution_time, True
        if is_own(event):
            self.place(root_of(event.at)).cells.append(node)

    def called(self, event: Called) -> None:
        node = self.unused(event.at)
        facts = {"prompt": event.prompt, "error": event.error, "reason": event.reason}
        node.facts |= {**self.facts(facts), "name": visible(event.name), "state": "failed" if event.error else "ok"}
        if event.error is None:
            node.facts["value"] = self.text(_shown(event.value))
        node.own, node.seconds, node.ended = event.usage_summary, event.seconds, True
        if models := list(event.usage_summary.model_usage_summaries):
            node.facts["model"] = visible(models[0])

    def checkpointed(self, event: Checkpointed) -> None:
        change = _change(event.change)
        index = self.change(change, base=event.base)
        cell = self.cell(event.cells)
        owner = cell[0] if cell else self.turn or self.last
        if owner is not None:
            owner.heap = index
        if not _says_something(change):
            return
        node = self.new("checkpoint", f"{cell[1].id if cell else owner.id if owner else ''}/saved")
        node.facts |= {"cells": event.cells, "heap": index}
        (cell[1].kids if cell else owner.kids if owner else self.items).append(node)

    def rewound(self, event: Rewound) -> None:
        self.turn = None
        found: _Node | None = None
        if event.turn is not None:
            known = [item for item in self.items if item.kind == "turn" and item.facts.get("n") == event.turn]
            found = known[-1] if known else None
        self.last, self.heap = found, None if found is None else _heap(found)
        node = self.new("rewound", visible(event.at or "rewound"))
        node.facts |= {"turn": event.turn}
        self.items.append(node)

    def end(self, event: Answered | Stopped | Failed) -> None:
        node = self.place(event.at)
        match event:
            case Answered(completion=completion):
                facts = {"answer": completion.response, **_of_metadata(completion.metadata)}
                if node.facts.get("question") is None and completion.prompt is not None:
                    facts["about"] = _shown(completion.prompt)
                node.facts |= {**self.facts(facts), "state": "answered"}
                node.seconds = completion.execution_time
            case Stopped(reason=why) | Failed(error=why):
                facts = {"why": why, "message": event.message, "partial": event.partial_answer}
                node.facts |= {**self.facts(facts), "state": event.kind}
                node.seconds = event.seconds or node.seconds
        node.ended = True
        if node is self.turn:
            self.turn = None

    # -- places ----------------------------------------------------------------------------------------------------

    def place(self, at: str) -> _Node:
        """The node of a place, made where there is none yet."""
        if node := self.places.get(at):
            return node
        above, _, name = at.rpartition("/")
        if not above:
            node = self.item("own" if re.fullmatch(r"u\d+", at) else "turn", at)
        elif re.fullmatch(r"u\d+", above) and name == "c0":
            node = self.place(above)  # the user's own cell stands for itself
        else:
            node = self.below(self.place(above), name)
        self.places[at] = node
        return node

    def below(self, parent: _Node, name: str) -> _Node:
        kind = "iteration" if re.fullmatch(r"a\d+", name) else "cell" if re.fullmatch(r"c\d+", name) else "call"
        node = self.new(kind, f"{parent.id}/{visible(name)}")
        if kind == "call":
            node.facts["name"] = visible(name.partition(":")[0])
        if kind == "cell":
            node.facts["n"] = 1 + int(name[1:])
        holder = parent.answers if kind == "cell" and parent.answers else parent
        holder.kids.append(node)
        return node

    def unused(self, at: str) -> _Node:
        """The node of a place whose event has not come yet: a second one there did not follow the record."""
        node = self.place(at)
        if not node.ended:
            return node
        self.forget(at)
        return self.place(at)

    def forget(self, at: str) -> None:
        for place in [place for place in self.places if place == at or place.startswith(f"{at}/")]:
            del self.places[place]

    def item(self, kind: str, at: str) -> _Node:
        """A new node of the session itself, where it stands now."""
        node = self.new(kind, visible(at))
        if number := re.fullmatch(r"[tu](\d+)", at):
            node.facts["n"] = int(number[1])
        node.before, self.last = self.last, node
        self.items.append(node)
        return node

    def note(self, event: Event, kind: str, facts: Mapping[str, Any]) -> None:
        """What is told beside iterations and cells: in the turn that it names, or under way, else of the session."""
        turn = self.places.get(root_of(event.at)) or self.turn
        if turn is not None:
            node = self.new(kind, f"{turn.id}/{visible(event.at if event.at.startswith('context') else kind)}")
            turn.kids.append(node)
        else:
            node = self.item(kind, event.at or kind)
        node.facts |= self.facts(facts)

    def new(self, kind: str, wanted: str) -> _Node:
        name, number = wanted, 1
        while name in self.ids:
            number += 1
            name = f"{wanted}~{number}"
        self.ids.add(name)
        return _Node(kind, name)

    def line(self) -> list[_Node]:
        """The items that the session consists of, oldest first: without those that it was rewound from."""
        line, node = [], self.last
        while node is not None:
            line.append(node)
            node = node.before
        return line[::-1]

    def cell(self, number: int) -> tuple[_Node, _Node] | None:
        """The session's cell of this number, counted from 1, after the item it belongs to."""
        for item in self.line():
            if 0 < number <= len(item.cells):
                return item, item.cells[number - 1]
            number -= len(item.cells)
        return None

    # -- values ----------------------------------------------------------------------------------------------------

    def facts(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those that say something; texts as a page may show them."""
        said = {name: value for name, value in values.items() if value not in (None, "", [], {})}
        return {name: self.text(value) if isinstance(value, str) else value for name, value in said.items()}

    def text(self, text: str) -> str:
        if len(text) <= self.limit:
            return visible(text)
        head, tail = text[: self.limit * 2 // 3], text[len(text) - self.limit // 3 :]
        left_out = len(text) - len(head) - len(tail)
        return visible(f"{head}\n… {left_out:,} characters are not in this page …\n{tail}")

    def message(self, text: str) -> int:
        return self.messages.setdefault(self.text(text), len(self.messages))

    def change(self, change: dict[str, Any], base: bool = False) -> int:
        self.heaps.append({**change, "on": None if base else self.heap})
        self.heap = len(self.heaps) - 1
        return self.heap

    @staticmethod
    def lost(lost: Mapping[str, Lost]) -> dict[str, Any]:
        return _lost(lost)

    # -- the end ---------------------------------------------------------------------------------------------------

    def result(self, records: Sequence[Recorded]) -> dict[str, Any]:
        line = set(self.line())
        for item in self.items:
            if item.kind not in ("rewound", "forked") and item not in line:
                item.facts["dropped"] = True
            if item.kind in ("turn", "own") and (heap := _heap(item)) is not None:
                item.facts["heap"] = heap
                item.facts["since"] = _heap(item.before) if item.before else None
        counts = {"turn": 0, "iteration": 0, "cell": 0, "call": 0}
        for node in _walk(self.items):
            kind = "cell" if node.kind == "own" else node.kind
            if kind in counts:
                counts[kind] += 1
        done = [_plain(item) for item in self.items]
        items = [item for item, _ in done]
        usage = sum((used for _, used in done), UsageSummary())
        return {
            "opened": self.opened,
            "began": when(records[0].time) if records else None,
            "counts": counts,
            "use": _use(usage.total),
            "s": sum(item["s"] for item in items),
            "models": {visible(name): _use(used) for name, used in usage.model_usage_summaries.items()},
            "events": len(records),
            "items": items,
            "heaps": self.heaps,
            "messages": list(self.messages),
        }


def _walk(nodes: Sequence[_Node]) -> Iterator[_Node]:
    for node in nodes:
        yield node
        yield from _walk(node.kids)


def _heap(item: _Node) -> int | None:
    """The last change of the namespace up to the end of this item."""
    node: _Node | None = item
    while node is not None and node.heap is None:
        node = node.before
    return node.heap if node else None


def _use(usage: Usage) -> list[float | None]:
    return [usage.calls, usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.cost]


def _plain(node: _Node) -> tuple[dict[str, Any], UsageSummary]:
    """The node as JSON has it, and what it and all below it consumed."""
    done = [_plain(kid) for kid in node.kids]
    kids = [kid for kid, _ in done]
    usage = sum((used for _, used in done), UsageSummary() if node.is_parent else node.own)
    data = {"kind": node.kind, "id": node.id, **node.facts, "s": round(_seconds(node, [kid["s"] for kid in kids]), 4)}
    if node.kind in ("cell", "own", "call"):
        data.setdefault("state", "unfinished")
    if usage.model_usage_summaries:
        data["use"] = _use(usage.total)
    return ({**data, "kids": kids} if kids else data), usage


def _seconds(node: _Node, below: Sequence[float]) -> float:
    """How long a node took; of one whose end nobody saw, as long as what is known of it. Calls run side by side."""
    if node.kind == "iteration":  # the request, and then its cells
        return (node.seconds or 0.0) + sum(below)
    if node.seconds is not None:
        return node.seconds
    return max(below, default=0.0) if node.kind in ("cell", "own") else sum(below)


def _of_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    uncertain, isolation = metadata.get("uncertain_calls"), metadata.get("isolation")
    return {
        "uncertain": uncertain if isinstance(uncertain, int) and uncertain else None,
        "isolation": isolation if isinstance(isolation, str) else None,
    }


def _change(change: HeapChange) -> dict[str, Any]:
    """A change of the namespace; what is empty is left out."""
    data: dict[str, Any] = {
        "saved": [
            {
                "names": [visible(name) for name in group.names],
                "types": [visible(kind) for kind in group.types],
                "size": group.size,
                **({"definition": True} if group.definition else {}),
            }
            for group in change.groups
        ],
        "modules": {visible(name): visible(module) for name, module in change.modules.items()},
        "given": {visible(name): visible(given) for name, given in change.given.items()},
        "lost": _lost(change.lost),
        "gone": [visible(name) for name in change.gone],
        "files": {visible(path): file.size for path, file in change.files.items()},
        "files_gone": [visible(path) for path in change.files_gone],
        "files_lost": _lost(change.files_lost),
        "caught": [visible(name) for name in change.caught],
        "seconds": change.seconds,
        "pause": change.pause,
        "whole": change.whole,
    }
    return {name: value for name, value in data.items() if value}


def _says_something(change: Mapping[str, Any]) -> bool:
    """Whether a change is worth a row: more of the namespace changed than `answer`, which every turn begins anew."""
    saved = {name for group in change.get("saved", ()) for name in group["names"]}
    return bool(saved - {"", "answer"} or set(change) - {"saved", "seconds", "pause", "whole"})


def _lost(lost: Mapping[str, Lost]) -> dict[str, Any]:
    return {visible(name): [visible(one.type), visible(one.reason), visible(one.repr)] for name, one in lost.items()}


def _shown(value: Any) -> str:
    """A value as text: the same in every process, however it is nested."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=1, default=_described)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return repr(value)
    except (ValueError, RecursionError) as error:
        return f"<{type(value).__name__} that cannot be shown: {error}>"


def _described(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else repr(value)
