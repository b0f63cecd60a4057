"""Typed answers: what counts as one, and what a model hears of one that is not."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import TypedDict

from rlm.engine.loop import AnswerRejected
from rlm.errors import ConfigurationError
from rlm.outputs import Output


class Party(BaseModel):
    name: str
    shares: list[int] = []


class Parties(BaseModel):
    parties: list[Party]


@dataclass
class Point:
    x: float
    y: float


class Row(TypedDict):
    id: int


def rejected(kind: Any, text: str) -> str:
    with pytest.raises(AnswerRejected) as caught:
        Output(kind).check(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Parties, '{"parties": [{"name": "Ada"}]}', Parties(parties=[Party(name="Ada")])),
        (Point, '{"x": 1, "y": 2.5}', Point(1.0, 2.5)),
        (Row, '{"id": 7}', {"id": 7}),
        (list[int], "[1, 2, 3]", [1, 2, 3]),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (Literal["yes", "no"], "yes", "yes"),
        (Literal["yes", "no"], '"no"', "no"),
        (Literal["1"], "1", "1"),
        (int, "42", 42),
        (int, " 42\n", 42),
        (float, "0.5", 0.5),
        (bool, "True", True),
        (bool, "false", False),
        (str, "plain words, not JSON", "plain words, not JSON"),
        (str, "42", "42"),
        (str, '{"a": 1}', '{"a": 1}'),
        (datetime.date, "2026-11-23", datetime.date(2026, 11, 23)),
        (int | None, "null", None),
    ],
)
def test_answers_are_validated_as_json_or_as_plain_text(kind: Any, text: str, value: Any) -> None:
    found = Output(kind).check(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["```json\n[1, 2]\n```", "```\n[1, 2]\n```", "\n```json\n[1,\n 2]\n```\n"])
def test_a_fence_around_the_json_is_taken_off(text: str) -> None:
    assert Output(list[int]).check(text) == [1, 2]


def test_a_mismatch_is_told_with_its_path() -> None:
    told = rejected(Parties, '{"parties": [{"name": "Ada", "shares": [1, "x"]}, {}]}')
    assert "parties.0.shares.1: Input should be a valid integer" in told
    assert "parties.1.name: Field required" in told


def test_text_in_place_of_json_is_told_so() -> None:
    assert "the answer: Invalid JSON" in rejected(Parties, "There are two parties.")


def test_of_very_many_mismatches_some_are_told() -> None:
    told = rejected(list[int], json.dumps(["x"] * 1_000))
    assert told.count("valid integer") == 10


def test_the_schema_is_compact_json_for_the_prompt() -> None:
    assert json.loads(Output(list[int]).schema) == {"items": {"type": "integer"}, "type": "array"}
    assert "\n" not in Output(Parties).schema


@pytest.mark.parametrize("kind", [object(), 5])
def test_what_cannot_be_validated_is_refused_before_anything_is_asked(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"output_type=.* cannot be used"):
        Output(kind)


def test_a_type_without_a_schema_is_refused() -> None:
    from collections.abc import Callable

    with pytest.raises(ConfigurationError, match="cannot be used"):
        Output(list[Callable[[], int]])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_any_json_comes_back_as_the_value_it_stands_for(value: Any) -> None:
    assert Output(list[Any]).check(json.dumps([value])) == [value]


@given(st.text(min_size=1).filter(lambda text: text == text.strip() and not text.startswith(("`", '"'))))
def test_any_plain_text_is_an_answer_of_type_str(text: str) -> None:
    assert Output(str).check(text) == text
