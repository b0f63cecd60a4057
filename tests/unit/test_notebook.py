"""A session as a notebook: what was asked, run, printed and answered, in a form that Jupyter takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.notebook import notebook, write
from rlm.types import (
    Answered,
    Asked,
    Called,
    CellError,
    ContextAdded,
    Event,
    Failed,
    Forked,
    Lost,
    Opened,
    Ran,
    Replied,
    REPLResult,
    Reply,
    Restored,
    Rewound,
    RLMChatCompletion,
    Stopped,
)
from tests.runs import HOSTILE, real_session, recorded

try:
    import nbformat
except ImportError:
    nbformat = None

ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
TRACEBACK = (
    'Traceback (most recent call last):\n  File "<cell 2>", line 1, in <module>\nZeroDivisionError: division by zero'
)


def made(events: Sequence[Event], title: str = "a session") -> dict[str, Any]:
    """The notebook of these events, which holds what nbformat 4.5 asks of it."""
    book = notebook(recorded(events), title=title)
    check(json.loads(json.dumps(book)))
    return book


def check(book: Mapping[str, Any]) -> None:
    """The rules of nbformat 4.5 that apply, and nbformat's own where it is installed."""
    assert book.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == keys | code
        assert cell["cell_type"] in ("code", "markdown")
        assert ID.fullmatch(cell["id"])
        assert all(isinstance(line, str) for line in cell["source"])
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                assert output.keys() == {"output_type", "name", "text"}
                assert output["name"] in ("stdout", "stderr")
            else:
                assert output.keys() == {"output_type", "ename", "evalue", "traceback"}
    if nbformat is not None:
        nbformat.validate(nbformat.from_dict(book))


def texts(book: Mapping[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown"]


def code(book: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def answered(turn: int, text: str) -> Answered:
    return Answered(f"t{turn}", RLMChatCompletion("scripted", None, text, turn=turn))


def test_a_turn_is_its_question_its_inputs_what_the_model_said_its_cells_and_its_answer() -> None:
    book = made(
        [
            Opened("", "a", "openai:gpt-5", "local", "0.1"),
            Asked("t0", "How many\n*rows* are there?"),
            ContextAdded("context_0", 0, "str", 12_345, "rows"),
            Replied("t0/a0", reply=Reply("I count them.\n```repl\nprint(len(rows))\n```", "openai:gpt-5")),
            Ran("t0/c0", "print(len(rows))", REPLResult(stdout="7\n")),
            answered(0, "There are **7**."),
        ]
    )
    assert texts(book) == [
        "# a session\n\nopenai:gpt-5 · local · rlm 0.1",
        "## Turn 0\n\nHow many\n*rows* are there?",
        "`context_0` (also `rows`): str, 12,345 long",
        "I count them.",
        "**Answer**\n\nThere are **7**.",
    ]
    [cell] = code(book)
    assert cell["source"] == ["print(len(rows))"]
    assert cell["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["7\n"]}]
    assert (cell["execution_count"], cell["metadata"]["rlm"]["at"]) == (1, "t0/c0")


def test_a_failing_cell_shows_what_it_printed_and_its_traceback_once() -> None:
    result = REPLResult("one\n", f"careful\n{TRACEBACK}\n", CellError("ZeroDivisionError", TRACEBACK))
    [cell] = code(made([Asked("t0", "?"), Ran("t0/c0", "1 / 0", result)]))
    stdout, stderr, error = cell["outputs"]
    assert (stdout["text"], stderr["text"]) == (["one\n"], ["careful\n"])
    assert (error["ename"], error["evalue"]) == ("ZeroDivisionError", "division by zero")
    assert error["traceback"] == TRACEBACK.split("\n")


def test_calls_are_counted_with_their_cell_and_children_have_no_cells_of_their_own() -> None:
    book = made(
        [
            Asked("t0", "?"),
            Called("t0/c0/llm_query:ab#0", "llm_query"),
            Called("t0/c0/llm_query:cd#0", "llm_query"),
            Ran("t0/c0/rlm_query:ef#0/c0", "inside = 1"),
            Called("t0/c0/rlm_query:ef#0/c0/llm_query:12#0", "llm_query"),
            Called("t0/c0/rlm_query:ef#0", "rlm_query"),
            Ran("t0/c0", "ask()"),
        ]
    )
    [cell] = code(book)
    assert cell["metadata"]["rlm"]["calls"] == {"llm_query": 2, "rlm_query": 1}
    assert texts(book)[-1] == "*The cell called: 2 × `llm_query`, 1 × `rlm_query`*"


def test_turns_without_an_answer_say_why_and_what_there_was() -> None:
    told = texts(
        made(
            [
                Asked("t0", None),
                Stopped("t0", "BudgetExceededError", "the money\nis used up", "half an answer"),
                Asked("t1", "again?"),
                Failed("t1", "ModelError", "the provider said no"),
            ]
        )
    )
    assert told[1] == "## Turn 0\n\n(the task is in the input)"
    assert told[2].startswith("**No answer**: stopped by BudgetExceededError: the money is used up")
    assert told[2].endswith("half an answer")
    assert told[4] == "**No answer**: failed with ModelError: the provider said no"


def test_what_was_dropped_by_a_rewind_is_left_out_and_the_users_own_cells_are_not() -> None:
    book = made(
        [
            Opened("", "a"),
            Asked("t0", "first"),
            answered(0, "one"),
            Asked("t1", "dropped"),
            Ran("t1/c0", "dropped = True"),
            answered(1, "two"),
            Rewound("", 0),
            Ran("u0/c0", "mine = 1"),
            Asked("t2", "third"),
            answered(2, "three"),
        ]
    )
    assert "dropped" not in json.dumps(book)
    assert [cell["source"] for cell in code(book)] == [["mine = 1"]]
    assert "*The user's own cell:*" in texts(book)


def test_forks_and_losses_are_noted() -> None:
    told = texts(made([Forked("", "the origin", 1), Restored("", lost={"f": Lost("generator", "it cannot be saved")})]))
    assert told[1] == "*Forked from the origin.*"
    assert "f (generator: it cannot be saved)" in told[2]


def test_the_same_records_give_the_same_file(tmp_path: Path) -> None:
    events, _ = real_session()
    for name in ("one", "other"):
        write(recorded(events), tmp_path / name, "a session")
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "other").read_bytes()
    assert b"\r" not in data
    check(json.loads(data))


def test_what_models_and_cells_wrote_is_text(tmp_path: Path) -> None:
    events = [
        Opened("", HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        Asked("t0", HOSTILE),
        ContextAdded("context_0", 0, HOSTILE, None, HOSTILE),
        Replied("t0/a0", reply=Reply(HOSTILE, HOSTILE)),
        Ran("t0/c0", HOSTILE, REPLResult(HOSTILE, HOSTILE, CellError(HOSTILE, HOSTILE))),
        answered(0, HOSTILE),
    ]
    write(recorded(events), tmp_path / "a.ipynb", HOSTILE)
    check(json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8")))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["t0/c0", "u1/c0", "t0/c/0", "ü/c1"]), st.text(max_size=20)), max_size=8))
def test_any_cells_make_a_notebook(cells: list[tuple[str, str]]) -> None:
    made([Asked("t0", "?"), *(Ran(at, text, REPLResult(text, text)) for at, text in cells if at[0] != "ü")])


@pytest.mark.skipif(nbformat is None, reason="nbformat is not installed: only our own check of its rules has run")
def test_jupyters_own_reader_takes_a_real_session(tmp_path: Path) -> None:
    events, _ = real_session()
    write(recorded(events), tmp_path / "a.ipynb", "a session")
    book = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    nbformat.validate(book)
    assert len(code(book)) == sum(isinstance(event, Ran) and event.at.count("/") == 1 for event in events)
