"""Events as JSON and back: exactly, also those of older versions; what is no event is refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import log, types
from rlm.errors import LogError
from rlm.folds import Past
from rlm.types import (
    Answered,
    Called,
    CellError,
    Checkpointed,
    Draft,
    Event,
    HeapChange,
    Lost,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    RLMChatCompletion,
    Saved,
    SavedFile,
    Usage,
    UsageSummary,
)

PAGE = Path(__file__).parents[2] / "docs" / "log.md"
GOLDEN = Path(__file__).parents[1] / "golden"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda items: st.lists(items) | st.tuples(items, items) | st.dictionaries(st.text() | st.integers(), items),
    max_leaves=8,
)


@given(plain)
def test_the_value_of_a_call_comes_back_exactly(value: Any) -> None:
    event = Called("t0/c0/tool:0#0", "tool", "", value)
    again = log.load(log.dump(event))
    assert again == event
    assert repr(again) == repr(event)  # 1 is not True, and a tuple no list


@pytest.mark.parametrize(
    "event",
    [
        Replied(
            "t0/a0",
            reply=Reply("\ud800 \x00 é", "m", Usage(1, 2, 3, 4, None)),
            sent=({"role": "user", "content": "q"},),
        ),
        Ran(
            "t0/c0",
            "x",
            REPLResult("out", "err", CellError("E", "text"), "answer", draft=Draft("a", True), restarted=True),
        ),
        Checkpointed(
            "",
            3,
            HeapChange(
                (Saved(("a", ""), ("int", "str"), "ab" * 32, 7, True, True, {"a": "a = 1"}),),
                {"np": "numpy"},
                {"doc": "context"},
                {"g": Lost("generator", "cannot", "<generator>")},
                ("old",),
                {"f.txt": SavedFile("cd" * 32, 3, 0o644), "l": SavedFile("", 0, link="f.txt")},
                whole=True,
            ),
            base=True,
        ),
        Answered(
            "t0",
            RLMChatCompletion("m", None, "r", UsageSummary({"m": Usage(1, 2, 3)}), 1.5, {"cells": 2}, turn=4),
            2,
            ({"role": "assistant", "content": "r"},),
        ),
    ],
    ids=lambda event: event.kind,
)
def test_an_event_comes_back_equal(event: Event) -> None:
    text = log.dump(event)
    assert text.isascii()
    assert "\n" not in text
    assert log.dump(log.load(text)) == text
    assert dataclasses.asdict(log.load(text)) == dataclasses.asdict(event)


@pytest.mark.parametrize("kind", log.EVENTS.values(), ids=list(log.EVENTS))
def test_an_event_of_defaults_is_little_more_than_its_kind(kind: type[Event]) -> None:
    data = json.loads(log.dump(kind("t0")))
    assert data == {"v": log.VERSION, "kind": kind.kind, "at": "t0"}
    assert log.load(json.dumps(data)) == kind("t0")


def test_names_and_calls_of_a_result_and_a_validated_answer_stand_elsewhere() -> None:
    result = REPLResult("out", locals={"x": "int"}, rlm_calls=(types.CallRecord("k", "f", "p", "r"),))
    assert log.load(log.dump(Ran("t0/c0", "x", result))) == Ran("t0/c0", "x", REPLResult("out"))
    completion = RLMChatCompletion("m", "q", "1", output=object())
    assert log.load(log.dump(Answered("t0", completion))) == Answered(
        "t0", dataclasses.replace(completion, output=None)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"v": 1}',
        '{"v": 1, "kind": "nothing", "at": "t0"}',
        '{"v": 1, "kind": "ran"}',
        '{"v": "1", "kind": "ran", "at": "t0"}',
        '{"v": 1, "kind": "ran", "at": "t0", "result": 3}',
        '{"v": 1, "kind": "called", "at": "t0", "value": {"$": "rocket", "v": 1}}',
        '{"v": 1, "kind": "called", "at": "t0", "value": ' + "[" * 100_000,
    ],
)
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(LogError):
        log.load(text)


def test_an_event_of_a_newer_version_is_refused_with_the_mend() -> None:
    with pytest.raises(LogError, match=r"schema 99.*reads up to 1: update rlm"):
        log.load('{"v": 99, "kind": "ran", "at": "t0"}')


def test_a_record_is_a_line_and_comes_back() -> None:
    record = Recorded(7, 1.5, types.Rewound("", 3))
    assert log.load_record(log.dump_record(record)) == record
    with pytest.raises(LogError, match="not a record"):
        log.load_record('{"n": 1}')


def test_the_page_describes_every_event_with_every_field() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows.keys() == log.EVENTS.keys()
    for kind, event in log.EVENTS.items():
        fields = {field.name for field in dataclasses.fields(event)} - {"at"}
        assert fields <= set(re.findall(r"`(\w+)`", rows[kind])), kind


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("log-v*.jsonl")), ids=lambda path: path.stem)
def test_a_log_of_every_earlier_version_still_loads(path: Path) -> None:
    records = [log.load_record(line) for line in path.read_text(encoding="ascii").splitlines()]
    past = Past(records)
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert {record.event.kind for record in records} >= set(told["kinds"])
    assert [(turn.asked.question, turn.answer) for turn in past.ended] == [tuple(one) for one in told["turns"]]
    assert dict(past.heap.types) == told["variables"]
    assert past.usage.total_calls == told["calls"]
    assert past.unfinished is not None
    assert past.unfinished.number == told["unfinished"]


def test_there_is_a_golden_log_of_this_version() -> None:
    assert (GOLDEN / f"log-v{log.VERSION}.jsonl").exists()
