"""What becomes of what users pass as input, and when they are told that it is probably not what they meant."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import RLM, ScriptedModel, inputs
from rlm.errors import ContextError
from tests.turns import submit


def warned(value: object, question: str | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs.warn_if_unlikely(value, question, stacklevel=2)
    return [str(one.message) for one in caught]


# -- paths ---------------------------------------------------------------------------------------------------------


def test_a_file_is_its_text_with_its_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes("ä\r\nb\n\0".encode())
    assert inputs.read(file) == "ä\r\nb\n\0"


def test_what_is_not_utf8_comes_as_bytes(tmp_path: Path) -> None:
    file = tmp_path / "photo"
    file.write_bytes(b"\xff\xd8")
    assert inputs.read(file) == b"\xff\xd8"


def test_gz_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "log.gz"
    file.write_bytes(gzip.compress(b"text\r\n"))
    assert inputs.read(file) == "text\r\n"


@pytest.mark.parametrize("damage", [b"no gzip at all", gzip.compress(b"a" * 999)[:-9], gzip.compress(b"a" * 999)[:15]])
def test_a_gz_that_cannot_be_opened_is_named(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "log.gz"
    file.write_bytes(damage)
    with pytest.raises(ContextError, match=r"log\.gz cannot be read: "):
        inputs.read(file)


def test_damage_within_a_gz_is_named(tmp_path: Path) -> None:
    file = tmp_path / "log.gz"
    packed = bytearray(gzip.compress(os.urandom(999)))
    packed[12:40] = b"\xff" * 28
    file.write_bytes(packed)
    with pytest.raises(ContextError, match=r"log\.gz cannot be read: "):
        inputs.read(file)


def test_a_folder_maps_paths_to_texts_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".git/config", "__pycache__/x.pyc", ".hidden", "c.txt.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"packed") if path.suffix == ".gz" else name.encode())
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    files = inputs.read(tmp_path)
    assert files == {"a.txt": "a.txt", "c.txt.gz": "packed", "b/1.txt": "b/1.txt", "b/2.txt": "b/2.txt"}
    assert list(files) == ["a.txt", "c.txt.gz", "b/1.txt", "b/2.txt"]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match=r"nothing\.txt does not exist"):
        inputs.read(tmp_path / "nothing.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named_and_not_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0)
    try:
        with pytest.raises(ContextError, match="secret cannot be read"):
            inputs.read(tmp_path)
    finally:
        secret.chmod(0o700)


@pytest.mark.parametrize("value", ["a/path/as/text", b"bytes", None, [Path("p")], {"a": 1}, 3])
def test_everything_else_goes_as_it_is(value: object) -> None:
    assert inputs.read(value) is value


@given(st.binary())
def test_any_file_is_its_text_or_its_bytes_and_nothing_is_lost(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        read = inputs.read(Path(file.name))
    assert (read.encode() if isinstance(read, str) else read) == data


# -- size, preview, digest -----------------------------------------------------------------------------------------


def test_size_counts_characters_bytes_and_items() -> None:
    assert [inputs.size(value) for value in ("äb", b"abc", [1], {}, 5, None)] == [2, 3, 1, 0, None, None]


def test_a_preview_shows_head_and_tail_of_a_text_and_says_what_is_between() -> None:
    assert inputs.preview("short") == "short"
    assert inputs.preview(["no text"]) is None
    shown = inputs.preview("a" * 1_500 + "b" * 1_000_000 + "c" * 500)
    assert shown == f"{'a' * 1_500}\n… [1,000,000 characters between] …\n{'c' * 500}"


def test_equal_inputs_have_equal_digests_and_different_ones_do_not() -> None:
    values = ["a", b"a", ["a"], ("a",), {"a": 1}, "\ud800", 1, 1.0, None, "", b""]
    digests = [inputs.digest(value) for value in values]
    assert digests == [inputs.digest(value) for value in values]
    assert len(set(digests)) == len(values)


def test_digests_are_the_same_in_every_process() -> None:
    code = """
        from rlm import inputs
        loop = []; loop.append(loop)
        values = [{"b", "a", ("c", 1)}, {"k": frozenset({"x", "y"})}, [1, True, 1.0, None, b"a", "a", "\\ud800"], loop]
        print([inputs.digest(value) for value in values])
    """
    runs = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "012"
    }
    assert len(runs) == 1


@given(st.recursive(st.integers() | st.text() | st.binary() | st.booleans(), st.lists), st.lists(st.text()))
def test_values_of_one_digest_are_equal(one: Any, other: Any) -> None:
    assert (inputs.digest(one) == inputs.digest(other)) == (repr(one) == repr(other))


def test_what_does_not_pickle_has_no_digest() -> None:
    with pytest.raises(ContextError, match="an input of type generator has no digest"):
        inputs.digest(one for one in [1])


# -- inputs that are probably something else -----------------------------------------------------------------------


def test_the_name_of_a_file_as_text_is_pointed_out(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    [said] = warned(str(file), "What is in it?")
    assert f"pass Path({str(file)!r})" in said


def test_a_question_as_input_is_pointed_out() -> None:
    [said] = warned("How many rows are there?")
    assert "completion(input, question)" in said


def test_a_swapped_input_and_question_are_pointed_out() -> None:
    [said] = warned("How many rows are there?", "row\n" * 1_000)
    assert "the order is completion(input, question)" in said


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("How many rows are there?\nrow\nrow", None),
        ("Count the rows: a b c", None),
        ("Is it so?", "What kind of sentence is it?"),
        ("x" * 400 + "?", None),
        ("", None),
        ("nul\0", None),
        ("a" * 290, "?"),
        (b"How?", None),
        (["How?"], None),
    ],
)
def test_what_may_well_be_meant_so_passes_in_silence(value: object, question: str | None) -> None:
    assert warned(value, question) == []


def test_the_warning_points_at_the_callers_line() -> None:
    rlm = RLM(ScriptedModel([submit("1")] * 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno
        rlm.completion("How many?")
        list(rlm.stream("How many?"))
        with rlm.session() as session:
            session.completion("How many?")
        rlm.close()
    assert [(one.filename, one.lineno - line) for one in caught] == [(__file__, 1), (__file__, 2), (__file__, 4)]
