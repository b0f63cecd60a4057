"""What a log says of its session, whatever stands in it, and however often it went back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import LogError
from rlm.folds import Heap, Past, may_run_again, note_of_restore
from rlm.types import (
    Answered,
    Asked,
    Briefed,
    Called,
    CellError,
    Checkpointed,
    ContextAdded,
    Event,
    Forked,
    HeapChange,
    Lost,
    Message,
    Opened,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    Restored,
    Rewound,
    RLMChatCompletion,
    Saved,
    SavedFile,
    Stopped,
    Usage,
    UsageSummary,
)


def past(*events: Event) -> Past:
    return Past(Recorded(number, 0.0, event) for number, event in enumerate(events))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def saved(digest: str, *names: str, size: int = 1) -> Saved:
    return Saved(names, ["list"] * len(names), digest, size)


def checkpoint(cells: int, *groups: Saved, **change: Any) -> Checkpointed:
    return Checkpointed("", cells, HeapChange(groups, **change))


def turn(number: int, answer: str | None = "a", key: str | None = None) -> list[Event]:
    """A turn of one cell, which ends with an answer, or without one."""
    at = f"t{number}"
    sent: Sequence[Message] = [{"role": "system", "content": "s"}, user(f"q{number}")]
    events: list[Event] = [
        Asked(at, f"q{number}", key=key, inputs="i" if key else None),
        Briefed(at),
        Replied(f"{at}/a0", reply=Reply("code", "m", Usage(1, 10, 5)), sent=sent),
        Ran(f"{at}/c0", f"x = {number}", REPLResult()),
    ]
    tail = [user("printed"), said(answer or "(ended)")]
    if answer is None:
        return [*events, Stopped(at, "CancellationError", "stopped", kept=3, said=tail)]
    completion = RLMChatCompletion("m", None, answer, execution_time=1.0, turn=number)
    return [*events, Answered(at, completion, 3, tail)]


# -- turns ---------------------------------------------------------------------------------------------------------


def test_a_turn_leaves_its_history_its_place_in_the_conversation_and_its_bill() -> None:
    known = past(Opened("", "s", "m"), *turn(0), *turn(1, None))
    assert [(one.question, one.answer) for one in known.conversation] == [("q0", "a"), ("q1", "(ended)")]
    assert known.turns[0].history == [user("q0"), said("code"), user("printed"), said("a")]
    assert (known.turns_begun, len(known.cells), known.unfinished, known.seconds) == (2, 2, None, 1.0)
    assert known.usage.total_calls == 2
    assert known.usage_of_turns[1] == UsageSummary({"m": Usage(1, 10, 5)})


def test_a_turn_without_an_end_is_unfinished_and_keeps_its_events() -> None:
    known = past(*turn(0), *turn(1)[:-1])
    assert known.unfinished is not None
    assert (known.unfinished.number, len(known.unfinished.cells), len(known.ended)) == (1, 1, 1)
    assert [event.kind for event in known.unfinished.events] == ["briefed", "replied", "ran"]


def test_a_key_finds_its_answer_only_for_the_same_inputs() -> None:
    known = past(*turn(0, key="k"))
    answer = known.answer("k", "i")
    assert answer is not None
    assert answer.response == "a"
    assert known.answer("k", "other") is None
    assert known.answer("other", "i") is None


def test_the_input_of_a_turn_is_the_context_that_came_within_it() -> None:
    before = ContextAdded("context_0", 0, "str", 3, "doc", "d0", "text")
    within = ContextAdded("context_1", 1, "dict", None, None, "d1", "pickle")
    events = turn(0)
    known = past(before, events[0], within, *events[1:])
    assert known.turns[0].context == 1
    assert known.blobs() == {"d0": 0, "d1": 0}


def test_a_childs_requests_are_billed_once() -> None:
    call = "t0/c0/rlm_query:00#0"
    child = Replied(f"{call}/a0", reply=Reply("r", "m", Usage(1, 7, 7)))
    summary = UsageSummary({"m": Usage(1, 7, 7)})
    assert past(child, Called(call, "rlm_query", usage_summary=summary)).usage == summary
    assert past(Called("t0/c0/llm_query:00#0", "llm_query", usage_summary=summary)).usage == summary


# -- notes ---------------------------------------------------------------------------------------------------------


def test_the_model_is_told_once_of_what_the_user_did() -> None:
    events: list[Event] = [
        ContextAdded("context_0", 0, "str", 1234, "doc"),
        Ran("u0/c0", "x = 1\nprint(x)", REPLResult()),
        Ran("u1/c0", "1/0", REPLResult(error=CellError("ZeroDivisionError", ""))),
        Ran("u2/c0", "wait()", REPLResult(error=CellError("Cancelled", ""))),
        Ran("u3/c0", "y" * 900, REPLResult(error=CellError("TimeLimit", ""))),
    ]
    told = list(past(*events).notes)
    assert told[:4] == [
        "the user added `context_0` (also `doc`): str, 1,234 long",
        "the user ran a cell: `x = 1 print(x)`",
        "the user ran a cell: `1/0`, which failed with ZeroDivisionError",
        "the user ran a cell: `wait()`, which was cancelled",
    ]
    assert told[4].endswith("…`, which was stopped by the limit on seconds")
    assert past(*events, *turn(0)[:2]).notes == []
    assert past(*events).cells_begun == 4


def test_a_restore_is_told_in_one_line_and_only_where_something_is_missing() -> None:
    assert note_of_restore(Restored("", 3, 1, 9)) == ""
    lost = {"g": Lost("generator", "cannot pickle"), **{f"n{n}": Lost("T", "r") for n in range(30)}}
    note = note_of_restore(Restored("", lost=lost, diverged=1, skipped=2))
    assert note.startswith("The REPL was restored; could not be brought back: g (generator: cannot pickle), n0 (T: r)")
    assert "and 11 more" in note
    assert "something else than the first time" in note
    assert "2 of the last cells were not run again" in note
    assert "\n" not in note


@pytest.mark.parametrize("kind", ["Cancelled", "CellTimeout", "Interrupted", "TimeLimit"])
def test_a_cell_that_was_cut_short_is_not_run_again(kind: str) -> None:
    assert not may_run_again(Ran("t0/c0", "x", REPLResult(error=CellError(kind, ""))))
    died = CellError("WorkerDied", "")
    assert not may_run_again(Ran("t0/c0", "x", REPLResult(restarted=True, error=died)))
    assert may_run_again(Ran("t0/c0", "x", REPLResult(restarted=True)))  # the worker was lost before it
    assert may_run_again(Ran("t0/c0", "x", REPLResult(error=CellError("ValueError", ""))))


# -- back ----------------------------------------------------------------------------------------------------------


def test_a_rewind_goes_back_and_forth_with_heap_inputs_and_conversation() -> None:
    known = past(
        Opened("", "s"),
        *turn(0, key="k0"),
        checkpoint(1, saved("d0", "x")),
        ContextAdded("context_0", 0, digest="c"),
        *turn(1, key="k1"),
        checkpoint(2, saved("d1", "x")),
        Rewound("", 0),
    )
    assert [one.number for one in known.turns] == [0]
    assert (len(known.cells), known.heap.cells, known.blobs(), known.contexts) == (1, 1, {"d0": 1}, {})
    assert (known.answer("k0", "i") is None, known.answer("k1", "i") is None) == (False, True)
    assert (known.turns_begun, known.usage.total_calls, known.ends) == (2, 2, [0, 1])
    for event in (*turn(2), Rewound("", 1)):
        known.take(event)
    assert [one.number for one in known.turns] == [0, 1]
    assert known.blobs() == {"c": 0, "d1": 1}
    known.take(Rewound("", None))
    assert (known.turns, known.cells, known.blobs(), known.opened.name) == ([], [], {}, "s")
    assert known.held == {0: {"d0": 1}, 1: {"c": 0, "d1": 1}, 2: {"d0": 1}}


def test_a_rewind_to_what_there_is_not_is_a_damaged_log() -> None:
    with pytest.raises(LogError, match="rewinds to turn 7"):
        past(*turn(0), Rewound("", 7))


def test_a_gap_in_the_numbers_is_a_damaged_log() -> None:
    with pytest.raises(LogError, match="event 2 stands where event 1 should"):
        Past([Recorded(0, 0.0, Opened("")), Recorded(2, 0.0, Forked(""))])


steps = st.lists(st.sampled_from(["turn", "stop", "cell", "context", "checkpoint", "rewind", "back"]), max_size=25)


@given(steps, st.data())
def test_what_a_session_stands_on_is_all_that_matters(kinds: list[str], data: st.DataObject) -> None:
    """However a log went back and forth, it says what the events on its path alone would say."""
    known = past(Opened("", "s"))
    for number, kind in enumerate(kinds):
        begun = known.turns_begun
        match kind:
            case "turn" | "stop":
                events = turn(begun, "a" if kind == "turn" else None, key=f"k{number}")
            case "cell":
                events = [Ran(f"u{known.cells_begun}/c0", f"c{number}", REPLResult())]
            case "context":
                events = [ContextAdded("c", len(known.contexts), digest=f"c{number}")]
            case "checkpoint":
                names = data.draw(st.lists(st.sampled_from("xyz"), min_size=1, unique=True))
                gone = data.draw(st.lists(st.sampled_from("xyz"), unique=True))
                events = [checkpoint(len(known.cells), saved(f"d{number}", *names), gone=gone)]
            case _:
                events = [Rewound("", data.draw(st.sampled_from([None, *known.ends])))]
        for event in events:
            known.take(event)
    twin = past(*known.path())
    assert twin.conversation == known.conversation
    assert list(twin.cells) == list(known.cells)
    assert twin.contexts == known.contexts
    assert list(twin.notes) == list(known.notes)
    assert (twin.heap.cells, twin.heap.types, twin.heap.image()) == (
        known.heap.cells,
        known.heap.types,
        known.heap.image(),
    )
    assert twin.blobs() == known.blobs()
    for number in known.ends:
        assert past(*known.path_to(number)).blobs() == known.held[number]


# -- the heap ------------------------------------------------------------------------------------------------------


def test_a_name_is_where_it_was_saved_last() -> None:
    heap = Heap()
    heap.apply(checkpoint(1, saved("d0", "a", "b"), modules={"np": "numpy"}, lost={"g": Lost("generator", "r")}))
    heap.apply(checkpoint(2, saved("d1", "b", "c"), gone=["np"], given={"g": "context"}, python="3.11"))
    image = heap.image()
    assert [(group.names, group.digest) for group in image.groups] == [(["a", ""], "d0"), (("b", "c"), "d1")]
    assert (image.modules, image.given, image.lost, image.python) == ({}, {"g": "context"}, {}, "3.11")
    assert heap.types == {"a": "list", "b": "list", "c": "list"}
    assert heap.blobs() == {"d0": 1, "d1": 1}
    heap.apply(checkpoint(3, saved("d2", "a")))
    assert heap.blobs() == {"d1": 1, "d2": 1}
    heap.apply(checkpoint(4, saved("d3", "g", "b", "x")))
    assert (heap.given, heap.blobs()) == ({}, {"d1": 1, "d2": 1, "d3": 1})
    heap.apply(checkpoint(5, saved("d4", "a", "b", "c", "x")))
    assert (heap.types.keys(), heap.blobs()) == ({"a", "b", "c", "g", "x"}, {"d3": 1, "d4": 1})


def test_files_come_and_go_and_have_blobs_too() -> None:
    heap = Heap()
    files = {"a.txt": SavedFile("f0", 3), "link": SavedFile("", 0, link="a.txt")}
    heap.apply(checkpoint(1, files=files, files_lost={"big": Lost("file", "too large")}))
    assert heap.blobs() == {"f0": 3}
    heap.apply(checkpoint(2, files_gone=["a.txt"], files={"big": SavedFile("f1", 9)}))
    assert (set(heap.image().files), heap.image().files_lost, heap.blobs()) == ({"big", "link"}, {}, {"f1": 9})


def test_a_base_stands_on_nothing_before_it() -> None:
    heap = Heap()
    heap.apply(checkpoint(1, saved("d0", "a")))
    heap.apply(Checkpointed("", 2, HeapChange([saved("d1", "b")]), base=True))
    assert (heap.types, heap.blobs(), heap.cells) == ({"b": "list"}, {"d1": 1}, 2)


def test_the_draft_of_an_answer_is_saved_and_no_variable() -> None:
    heap = Heap()
    heap.apply(checkpoint(1, saved("d0", "answer"), saved("d1", "x")))
    assert heap.types == {"x": "list"}
    assert set(heap.blobs()) == {"d0", "d1"}
