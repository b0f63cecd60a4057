"""Any split of a worker's bytes gives the same frames, and what no worker sends is one clear error, for good."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.environments import wire
from rlm.environments.wire import CHUNK, Wire
from rlm.errors import ProtocolError

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
ids = st.integers(0, 10**9)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
frames = st.one_of(
    st.fixed_dictionaries({"type": st.just("ready"), "python": texts, "pid": ids}),
    st.fixed_dictionaries({"type": st.just("out"), "id": ids, "stream": texts, "text": texts}),
    st.fixed_dictionaries(
        {
            "type": st.just("call"),
            "id": ids,
            "cell": ids,
            "name": texts,
            "args": st.lists(json_values, max_size=3),
            "kwargs": st.dictionaries(st.text(), json_values, max_size=2),
        }
    ),
    st.fixed_dictionaries({"type": st.just("value"), "id": ids}, optional={"value": json_values, "error": texts}),
)


def line(frame: Any) -> bytes:
    return json.dumps(frame).encode("ascii") + b"\n"


def in_parts(frame: Any, number: int, cuts: Sequence[int]) -> list[bytes]:
    """The frame as lines of parts, cut at the given places of its JSON."""
    text = json.dumps(frame)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    return [
        line({"type": "part", "id": number, "last": place == len(pieces) - 1, "data": piece})
        for place, piece in enumerate(pieces)
    ]


def fed(data: bytes, cuts: Sequence[int] = ()) -> list[Any]:
    """What a new wire makes of the data, handed over in pieces that end at the given places."""
    reader, edges = Wire(), [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [frame for start, end in pairwise(edges) for frame in reader.feed(data[start:end])]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_any_split_gives_the_same_frames(sent: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(line, sent))
    assert fed(data, cuts) == fed(data) == json.loads(json.dumps(sent))


@given(st.data())
def test_frames_in_parts_may_interleave(data: st.DataObject) -> None:
    sent = data.draw(st.lists(frames, min_size=1, max_size=5))
    lines = [in_parts(frame, n, data.draw(st.lists(st.integers(0, 999), max_size=4))) for n, frame in enumerate(sent)]
    order = data.draw(st.permutations([n for n, parts in enumerate(lines) for _ in parts]))
    stream, finished = b"", []
    for number in order:
        stream += lines[number].pop(0)
        if not lines[number]:
            finished.append(json.loads(json.dumps(sent[number])))
    assert fed(stream, data.draw(st.lists(st.integers(0, 10**6), max_size=8))) == finished


@pytest.mark.parametrize("length", [0, CHUNK - 100, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_what_a_host_sends_arrives(length: int) -> None:
    frame = {"type": "out", "id": 1, "stream": "stdout", "text": 'ä"\\\n'[:length] * (length // 4)}
    data = wire.encode(frame, number=7)
    assert fed(data) == [frame]
    assert max(map(len, data.split(b"\n"))) <= wire.MAX_LINE
    assert data.isascii()


def test_frames_come_as_soon_as_their_last_byte() -> None:
    reader, data = Wire(), line({"type": "value", "id": 1})
    assert reader.feed(data[:-1]) == []
    assert reader.feed(data[-1:]) == [{"type": "value", "id": 1}]
    assert reader.feed(b"") == []
    assert reader.feed(b"\n\n") == []


def done(**changes: Any) -> dict[str, Any]:
    frame = {"type": "done", "id": 1, "error": None, "answer": None, "names": {}, "gone": [], "streams": {}}
    return {**frame, **changes}


def call(**changes: Any) -> dict[str, Any]:
    return {"type": "call", "id": 1, "cell": 1, "name": "llm_query", "args": [], "kwargs": {}, **changes}


def without(frame: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name != field}


def part(**changes: Any) -> dict[str, Any]:
    return {"type": "part", "id": 1, "last": False, "data": "{", **changes}


HOSTILE: dict[str, bytes] = {
    "not JSON": b"hello\n",
    "half of a frame": line(done())[:20] + b"\n",
    "two frames in a line": line(done())[:-1] + line(done()),
    "not an object": b"[1]\n",
    "a number": b"7\n",
    "null": b"null\n",
    "no type": line({"id": 1}),
    "a type that is a list": line({"type": ["done"]}),
    "an unknown type": line({"type": "exec", "id": 1}),
    "a host's frame": line({"type": "run", "id": 1, "code": "", "fresh": False}),
    "a reply": line({"type": "reply", "id": 1, "value": 1}),
    "a missing field": line(without(call(), "cell")),
    "an unknown field": line(call(token="")),
    "an unknown field in a frame with optional ones": line({"type": "value", "id": 1, "valve": 1}),
    "text for an id": line(call(id="1")),
    "bool for an id": line(call(id=True)),
    "float for an id": line(call(id=1.0)),
    "null for an id": line(call(id=None)),
    "an object for args": line(call(args={})),
    "a list for kwargs": line(call(kwargs=[])),
    "text for an error": line(done(error="oops")),
    "a list for names": line(done(names=[])),
    "an object for gone": line(done(gone={})),
    "a list for streams": line(done(streams=[])),
    "a number for an error": line({"type": "value", "id": 1, "error": 5}),
    "a number for last": line(part(last=1)),
    "a number for data": line(part(data=1)),
    "deep nesting": b"[" * 500_000 + b"]" * 500_000 + b"\n",
    "deep nesting within": b'{"type":"value","id":1,"value":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001 + b"\n",
    "a huge number": b'{"type":"value","id":1,"value":' + b"9" * 5_000 + b"}\n",
    "invalid UTF-8": b'{"type":"value","id":1,"error":"\xff"}\n',
    "UTF-8": '{"type":"value","id":1,"error":"ä"}\n'.encode(),
    "UTF-16": '{"type":"value","id":1}'.encode("utf-16-le") + b"\n",
    "NUL": b"\x00\n",
    "a byte order mark": b"\xef\xbb\xbf" + line(done()),
    "a part in parts": line(part(data=json.dumps(part()), last=True)),
    "parts of no frame": line(part(data="[]", last=True)),
    "parts of a hostile frame": line(part(data='{"type":"exec"}', last=True)),
    "parts that are not ASCII": line(part(data='{"type":"value","id":1,"error":"\ud800"}', last=True)),
    "nothing in a part": line(part(data="", last=True)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_an_error_for_good(data: bytes) -> None:
    reader = Wire()
    with pytest.raises(ProtocolError):
        reader.feed(data)
    with pytest.raises(ProtocolError, match="before"):
        reader.feed(line({"type": "value", "id": 1}))
    with pytest.raises(ProtocolError, match="before"):
        reader.feed(b"")


def test_the_error_shows_the_beginning_and_no_more() -> None:
    with pytest.raises(ProtocolError) as error:
        Wire().feed(b'{"type":"exec","code":"' + b"x" * 100_000 + b'"}\n')
    assert "exec" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("ended", [b"", b"\n"], ids=["without an end", "with an end"])
@pytest.mark.parametrize("piece", [1 << 16, 1 << 24])
def test_a_line_that_is_too_long_is_an_error_before_it_is_held(ended: bytes, piece: int) -> None:
    data = b"x" * 1_000_001 + ended
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    assert taken(Wire(max_line=1_000_000), pieces) < len(pieces)


def taken(reader: Wire, pieces: Iterable[bytes]) -> int:
    """How many of the pieces a wire takes before it has enough."""
    for count, piece in enumerate(pieces):
        try:
            reader.feed(piece)
        except ProtocolError:
            return count
    raise AssertionError("it took all of them")


def test_parts_without_end_are_an_error() -> None:
    assert taken(Wire(max_frame=100_000), (line(part(data="x" * 10_000)) for _ in range(100))) < 10


def test_empty_parts_without_end_are_an_error() -> None:
    assert taken(Wire(max_frame=100_000), (line(part(data="")) for _ in range(10_000))) <= 1_000


def test_too_many_open_frames_are_an_error() -> None:
    assert taken(Wire(), (line(part(id=number)) for number in range(1_000))) == wire.MAX_OPEN


def test_finished_parts_give_their_room_back() -> None:
    reader, frame = Wire(max_frame=10_000), {"type": "value", "id": 1, "value": "x" * 5_000}
    for number in range(20):
        assert reader.feed(b"".join(in_parts(frame, number, [100, 2_000]))) == [frame]


@given(st.binary(max_size=300))
def test_any_bytes_give_frames_or_a_protocol_error(data: bytes) -> None:
    try:
        assert all(frame["type"] in wire.FROM_WORKER for frame in Wire().feed(data + b"\n"))
    except ProtocolError:
        return


any_field = st.sampled_from(sorted({field for fields in wire.FROM_WORKER.values() for field in fields} | {"x"}))
any_frame = st.fixed_dictionaries(
    {"type": st.sampled_from([*wire.FROM_WORKER, "run", None])},
    optional={field: json_values for fields in wire.FROM_WORKER.values() for field in fields},
)


@settings(max_examples=100)
@given(st.lists(any_frame | st.dictionaries(any_field, json_values), max_size=4))
def test_any_json_gives_frames_or_a_protocol_error(sent: list[Any]) -> None:
    reader = Wire()
    for frame in sent:
        try:
            found = reader.feed(line(frame))
        except ProtocolError:
            with pytest.raises(ProtocolError):
                reader.feed(line(frame))
            return
        for one in found:
            for field, rule in wire.FROM_WORKER[one["type"]].items():
                assert isinstance(one[field], rule.types) if field in one else rule.optional
