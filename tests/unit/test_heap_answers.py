"""What the host lets a worker say of its heap: nothing that no worker says, and the worker that does is stopped."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.environments import images
from rlm.errors import ProtocolError
from rlm.ports import Part
from rlm.types import HeapChange, Lost, Saved, SavedFile

DATA = b"pickled"
DIGEST = hashlib.sha256(DATA).hexdigest()
FILE = hashlib.sha256(b"large").hexdigest()


def answer() -> dict[str, Any]:
    return {
        "groups": [[["a", "b"], ["list", "dict"], DIGEST, len(DATA), True, True, {"a": "def a(): pass"}]],
        "modules": {"os": "os"},
        "given": {"doc": "context"},
        "lost": {"g": ["generator", "TypeError: no", "<generator>"]},
        "gone": ["x"],
        "files": {"f": [FILE, 5, 0o644, None], "l": ["0" * 64, 0, 0o777, "f"]},
        "files_gone": ["y"],
        "files_lost": {"p": "a pipe"},
        "caught": ["a"],
        "python": "3.11",
        "seconds": 0.5,
        "pause": 0,
        "whole": True,
        "blobs": {DIGEST: base64.b64encode(DATA).decode(), FILE: {"at": 2, "size": 5}},
    }


def spooled(folder: Path) -> Path:
    """What a worker wrote to a file that the host had lent it."""
    file = folder / "spool"
    file.write_bytes(b"..large.")
    return file


def test_an_answer_is_a_change_and_its_blobs(tmp_path: Path) -> None:
    spool = spooled(tmp_path)
    found = images.capture(answer(), spool)
    assert found.blobs == {DIGEST: DATA, FILE: Part(spool, 2, 5)}
    assert found.change == HeapChange(
        groups=[Saved(["a", "b"], ["list", "dict"], DIGEST, len(DATA), True, True, {"a": "def a(): pass"})],
        modules={"os": "os"},
        given={"doc": "context"},
        lost={"g": Lost("generator", "TypeError: no", "<generator>")},
        gone=["x"],
        files={"f": SavedFile(FILE, 5, 0o644), "l": SavedFile("0" * 64, 0, 0o777, "f")},
        files_gone=["y"],
        files_lost={"p": Lost("file", "a pipe")},
        caught=["a"],
        python="3.11",
        seconds=0.5,
        pause=0.0,
        whole=True,
    )


Change = Callable[[dict[str, Any]], Any]
WRONG: dict[str, Change] = {
    "a field too few": lambda a: a.pop("gone"),
    "a field too many": lambda a: a.update(more=1),
    "names that are no text": lambda a: a["groups"][0].__setitem__(0, ["a", 5]),
    "a name twice": lambda a: a["groups"][0].__setitem__(0, ["a", "a"]),
    "an empty name": lambda a: a["groups"][0].__setitem__(0, ["a", ""]),
    "no names": lambda a: a["groups"][0].__setitem__(0, []),
    "too few types": lambda a: a["groups"][0].__setitem__(1, ["list"]),
    "a digest that is a path": lambda a: a["groups"][0].__setitem__(2, "../" + DIGEST[3:]),
    "a digest in capitals": lambda a: a["groups"][0].__setitem__(2, DIGEST.upper()),
    "a digest with a line's end": lambda a: a["groups"][0].__setitem__(2, DIGEST[:-1] + "\n"),
    "a negative size": lambda a: a["groups"][0].__setitem__(3, -1),
    "a size that is true": lambda a: a["groups"][0].__setitem__(3, True),
    "another size": lambda a: a["groups"][0].__setitem__(3, 4),
    "a group too short": lambda a: a["groups"][0].pop(),
    "sources of other kinds": lambda a: a["groups"][0].__setitem__(6, {"a": 1}),
    "a reason that is none": lambda a: a["lost"].update(g=["a", 1, "b"]),
    "a loss of two parts": lambda a: a["lost"].update(g=["a", "b"]),
    "modules in a list": lambda a: a.update(modules=[]),
    "a module that is none": lambda a: a.update(modules={"os": None}),
    "a text that never ends": lambda a: a.update(gone=["x" * 20_000]),
    "seconds that are none": lambda a: a.update(seconds=float("nan")),
    "a negative pause": lambda a: a.update(pause=-1.0),
    "neither whole nor not": lambda a: a.update(whole=1),
    "a blob that is no base64": lambda a: a["blobs"].update({DIGEST: "?!"}),
    "a blob of another digest": lambda a: a["blobs"].update({DIGEST: base64.b64encode(b"other").decode()}),
    "a place behind the spool's end": lambda a: a["blobs"].update({FILE: {"at": 4, "size": 5}}),
    "a place before its beginning": lambda a: a["blobs"].update({FILE: {"at": -1, "size": 5}}),
    "a negative part": lambda a: a["blobs"].update({FILE: {"at": 7, "size": -5}}),
    "a file by a path": lambda a: a["blobs"].update({FILE: {"at": 2, "size": 5, "path": "/etc/passwd"}}),
    "a blob under no digest": lambda a: a["blobs"].update(x=""),
    "a file of another size": lambda a: a["files"].update(f=[FILE, 6, 0o644, None]),
    "a link that is none": lambda a: a["files"].update(l=["0" * 64, 0, 0o777, 5]),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_is_refused_with(what: str, tmp_path: Path) -> None:
    spool = spooled(tmp_path)
    wrong = answer()
    WRONG[what](wrong)
    with pytest.raises(ProtocolError):
        images.capture(wrong, spool)


def test_without_a_spool_there_are_no_parts_of_one() -> None:
    with pytest.raises(ProtocolError, match="nowhere"):
        images.capture(answer(), None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(answer())), JSON)
def test_whatever_stands_in_a_field_it_is_a_change_or_refused(field: str, value: Any) -> None:
    data = copy.deepcopy(answer())
    del data["blobs"][FILE]
    data[field] = value
    try:
        found = images.capture(data, None)
    except ProtocolError:
        return
    assert isinstance(found.change, HeapChange)


@given(JSON)
def test_whatever_answers_a_restore_it_is_losses_or_refused(value: Any) -> None:
    try:
        found = images.lost(value)
    except ProtocolError:
        return
    assert all(isinstance(loss, Lost) for loss in found.values())
