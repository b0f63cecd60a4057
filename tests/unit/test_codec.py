"""Values between a host and a worker: plain data comes back exactly, the rest as a stand-in, or not at all."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlm.environments import codec
from rlm.environments.codec import MAX_DEPTH, CodecError

# Characters of every kind, lone surrogates among them.
texts = st.text(st.characters(codec=None, exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary()
hashables = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=8
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
    ),
    max_leaves=20,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from(["$", "v"]), inner, max_size=3)
        | st.fixed_dictionaries(
            {
                "$": st.sampled_from(["int", "str", "bytes", "dict", "tuple", "set", "frozenset", "remote", "?"]),
                "v": inner | st.text("0123456789abcdefABCDEF=+/") | st.lists(st.tuples(inner, inner).map(list)),
            }
        )
    ),
    max_leaves=12,
)


def across(value: Any) -> Any:
    """What arrives at the other end of a channel."""
    return codec.decode(json.loads(json.dumps(codec.encode(value))))


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all through: 1, True and 1.0 differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (set, frozenset)):
        return one == other and sorted(map(_typed, one)) == sorted(map(_typed, other))
    return bool(one == other)


def _typed(value: Any) -> str:
    inner = (
        sorted(map(_typed, value))
        if isinstance(value, frozenset)
        else [_typed(v) for v in value]
        if isinstance(value, tuple)
        else repr(value)
    )
    return f"{type(value).__name__} {inner}"


@given(values)
@example("\ud83d\ude00")  # two surrogates side by side, which JSON would merge into one character
@example({"$": "int", "v": "7"})  # looks like a tag
@example({1: "int", "1": "str"})
@example({(1, "a"): [b"\x00\xff"], None: {frozenset({1})}})
@example(10**5000)
@example(-(1 << 63))
@example([math.inf, -math.inf, -0.0])
def test_plain_data_comes_back_exactly(value: Any) -> None:
    assert same(across(value), value)


def test_nan_comes_back() -> None:
    assert math.isnan(across(math.nan))


@given(st.integers(0, MAX_DEPTH))
def test_depth_up_to_the_limit_comes_back(depth: int) -> None:
    value: Any = b"\x00"
    for _ in range(depth):
        value = {1: value}
    assert across(value) == value


class Point:
    def __repr__(self) -> str:
        return "Point(1, 2)"


class Text(str):
    """Not exactly a str, so it would not come back as what it is."""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Point(), "value is of type Point"),
        ({"rows": [1, {"when": datetime.date(2020, 1, 1)}]}, "value['rows'][…]['when'] is of type date"),
        ({(1, Point()): 2}, "is of type Point"),
        (Text("x"), "value is of type Text"),
        ([True, range(3)], "value[…] is of type range"),
    ],
)
def test_what_has_no_exact_form_is_refused_with_its_place(value: Any, told: str) -> None:
    with pytest.raises(CodecError) as refused:
        codec.encode(value)
    assert told in str(refused.value)


def test_endless_and_too_deep_values_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CodecError, match="contains itself"):
        codec.encode(endless)
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested over"):
        codec.encode({"deep": deep})


def test_described_values_keep_their_plain_parts() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    encoded = codec.encode({"point": Point(), "rows": endless, Point(): 1}, describe=True)
    arrived = codec.decode(json.loads(json.dumps(encoded)), lambda *told: told)
    assert arrived == {
        "point": ("Point", "Point(1, 2)"),
        "rows": [1, ("list", "[1, [...]]")],
        ("Point", "Point(1, 2)"): 1,
    }


def test_a_described_value_is_short_and_never_fails() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Long:
        def __repr__(self) -> str:
            return "\ud800" + "x" * 10_000

    assert codec.brief(Loud()) == "<Loud whose repr raised RuntimeError>"
    assert len(codec.brief(Long())) == codec.MAX_REPR + 1
    codec.brief(Long()).encode()  # text that every channel carries


HOSTILE = [
    {"$": "int", "v": 5},
    {"$": "int", "v": "seven"},
    {"$": "str", "v": "***"},
    {"$": "str", "v": "/w=="},
    {"$": "bytes", "v": None},
    {"$": "bytes"},
    {"$": "bytes", "v": "", "w": 1},
    {"$": "dict", "v": [[1, 2, 3]]},
    {"$": "dict", "v": ["ab"]},
    {"$": "dict", "v": [[[], 1]]},
    {"$": "dict", "v": {}},
    {"$": "set", "v": [[1]]},
    {"$": "set", "v": "abc"},
    {"$": "frozenset", "v": [{}]},
    {"$": "tuple", "v": {"a": 1}},
    {"$": "remote", "v": ["Point", "…"]},  # where no stand-in is expected
    {"$": "pickle", "v": "gASVCAAAAAAAAACMBGJhbGyULg=="},
    {"$": ["int"], "v": "7"},
    {"$": None, "v": None},
]


@pytest.mark.parametrize("data", HOSTILE, ids=json.dumps)
def test_what_no_codec_wrote_is_refused(data: Any) -> None:
    with pytest.raises(CodecError):
        codec.decode([data])


def test_a_stand_in_must_be_a_pair() -> None:
    with pytest.raises(CodecError):
        codec.decode({"$": "remote", "v": ["only a name"]}, lambda *told: told)


@pytest.mark.parametrize(
    "layer", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: {"$": "tuple", "v": [inner]}]
)
def test_depth_without_end_is_refused(layer: Any) -> None:
    data: Any = None
    for _ in range(100_000):
        data = layer(data)
    with pytest.raises(CodecError, match="nested over"):
        codec.decode(data)
    while data:  # freed layer by layer: the interpreter's own way to do it recurses
        data = data[0] if isinstance(data, list) else data.get("a", data.get("v"))


@given(json_values)
def test_any_json_gives_a_value_or_a_codec_error(data: Any) -> None:
    try:
        codec.decode(json.loads(json.dumps(data)), lambda name, text: (name, text))
    except CodecError:
        return
