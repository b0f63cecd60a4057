"""Inputs arrive in the namespace exactly as they are; what cannot be brought in is named, and does no harm."""

from __future__ import annotations

import collections
import datetime
import fractions
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlm.environments import LocalREPL, payload
from rlm.errors import ContextError, SandboxError, SessionClosedError
from rlm.types import Tool

texts = st.text(st.characters(codec=None, exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | texts, inner, max_size=4)
        | st.sets(scalars, max_size=4)
    ),
    max_leaves=15,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=5
)


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalREPL]:
    """One REPL for all examples of a property."""
    with LocalREPL() as repl:
        yield repl


@pytest.fixture
def repl() -> Iterator[LocalREPL]:
    with LocalREPL() as repl:
        yield repl


def shown(repl: LocalREPL, expression: str) -> str:
    result = repl.execute_code(f"print({expression})")
    assert result.error is None, result.stderr
    return result.stdout[:-1]


def arrived(repl: LocalREPL, value: Any) -> Any:
    """The value as the namespace has it, once it was given as an input."""
    repl.add_context(value, 0)
    return repl.locals["context"]


@settings(max_examples=60)
@given(values)
@example("line\r\nline\n\r")
@example("\ud800 alone, \ud83d\ude00 side by side")
@example("nul \x00 nul")
@example('ends in a quote"')
@example("'''\\\"\"\"\\")
@example("")
@example(b"")
@example([1, 2, 3])
@example({1: "int", "1": "str"})
@example([])
@example(None)
@example([{"role": "user", "content": "\ud800"}])
def test_an_input_arrives_exactly(shared: LocalREPL, value: Any) -> None:
    there = arrived(shared, value)
    assert (repr(there), type(there)) == (repr(value), type(value)) if not _has_sets(value) else there == value


def _has_sets(value: Any) -> bool:
    """Whether equal values may have different reprs: the order of a set is its process's own."""
    if isinstance(value, (list, tuple)):
        return any(map(_has_sets, value))
    return isinstance(value, set) or (isinstance(value, dict) and any(map(_has_sets, value.values())))


@settings(max_examples=20)
@given(messages)
def test_a_history_arrives_exactly(shared: LocalREPL, history: list[dict[str, str]]) -> None:
    shared.add_history(history, 0)
    assert shared.locals["history"] == shared.locals["history_0"] == history


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *itertools.product(
            ["text", "bytes", "rows"], [payload.INLINE - 1, payload.INLINE, payload.INLINE + 1, 400_000]
        ),
        ("text", 10_000_000),
    ],
)
def test_every_size_arrives(repl: LocalREPL, kind: str, size: int) -> None:
    unit = "ab\r\n\x00\udc80ä漢"
    value: Any = (unit * (size // len(unit) + 1))[:size]
    if kind == "bytes":
        value = value.encode("utf-8", "surrogatepass")
    elif kind == "rows":
        value = [value, {size: (None, value)}]
    assert arrived(repl, value) == value


def test_a_large_input_goes_by_file_and_is_there_once(
    repl: LocalREPL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repl.add_context("x" * 30_000_000)
    [file] = tmp_path.glob("*/inputs/*")
    assert file.stat().st_size == 30_000_000
    repl.add_context("short")
    repl.add_context({"a": [1]})
    assert list(tmp_path.glob("*/inputs/*")) == [file]
    repl.cleanup()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2020, 2, 29),
        fractions.Fraction(1, 3),
        collections.OrderedDict(a=1),
        collections.Counter("abca"),
        range(5),
        1 + 2j,
        Path("a/b"),
        ValueError("x"),
        frozenset({1}),
        bytearray(b"x"),
        collections.deque([1, 2]),
        {"when": [datetime.timedelta(1)]},
    ],
    ids=repr,
)
def test_any_value_that_pickles_arrives(repl: LocalREPL, value: Any) -> None:
    repl.add_context(value)
    assert shown(repl, "repr(context), type(context).__name__") == f"{value!r} {type(value).__name__}" or (
        shown(repl, "repr(context)") == repr(value)
    )


SCRIPT = """
import dataclasses, sys
from rlm.environments import LocalREPL

FACTOR = 3

@dataclasses.dataclass
class Point:
    x: int
    def scaled(self):
        return Point(self.x * FACTOR)

def shout(text):
    return text.upper()

if __name__ == "__main__":
    with LocalREPL() as repl:
        repl.add_context([Point(1), shout])
        result = repl.execute_code("print(context[0].scaled(), context[1]('hi'), type(context[0]).__module__)")
        print(result.stdout, result.stderr)
"""


def test_objects_of_a_scripts_own_classes_arrive(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("Point(x=3) HI __main__", "")


class Bomb:
    """Ends whatever process unpickles it."""

    def __reduce__(self) -> Any:
        return os.abort, ()


class Broken:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_what_does_not_pickle_is_named_and_nothing_is_lost(repl: LocalREPL) -> None:
    repl.add_context("first")
    repl.execute_code("mine = 1")
    for value, kind in ((threading.Lock(), "lock"), ({"a": (n for n in [1])}, "dict"), ([sys.stdout, open], "list")):
        with pytest.raises(ContextError, match=f"a context of type {kind} cannot be pickled"):
            repl.add_context(value)
    assert repl.get_context_count() == 1
    assert shown(repl, "mine, context_0, 'context_1' in globals()") == "1 first False"
    assert repl.add_context("second") == 1


def test_what_cannot_be_built_on_the_other_side_is_told(repl: LocalREPL) -> None:
    repl.execute_code("mine = 1")
    with pytest.raises(ContextError, match=r"context_0 cannot be brought into the REPL: ValueError: invalid literal"):
        repl.add_context(Broken())
    assert shown(repl, "mine") == "1"
    assert repl.get_context_count() == 0


def test_an_input_that_ends_the_worker_is_told_and_the_next_one_stands(repl: LocalREPL) -> None:
    repl.add_context("first")
    with pytest.raises(ContextError, match=r"context_1 .* whose worker it ends: .* SIGABRT"):
        repl.add_context(Bomb())
    assert shown(repl, "context") == "first"
    assert (repl.get_context_count(), repl.add_context("second")) == (1, 1)


class Fuse:
    """Ends the process that unpickles it once its file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"import os\nif os.path.exists({str(self.path)!r}): os.abort()",)


def test_an_input_that_ends_every_new_worker_is_a_failed_start(tmp_path: Path) -> None:
    with LocalREPL(extra_paths=[tmp_path]) as repl:
        repl.add_context("first")
        repl.add_context(Fuse(tmp_path / "lit"))
        (tmp_path / "lit").touch()
        for _ in range(2):
            with pytest.raises(SandboxError, match=r"did not survive its inputs: .*SIGABRT"):
                repl.execute_code("import os; os._exit(1)")
        (tmp_path / "lit").unlink()
        result = repl.execute_code("print(context)")
        assert (result.stdout, result.restarted) == ("first\n", True)


def test_an_input_given_at_construction_is_there_from_the_start() -> None:
    with LocalREPL(context_payload=[1, 2], setup_code="total = sum(context)") as repl:
        assert repl.locals["total"] == 3
        assert repl.get_context_count() == 1

    class Odd:
        """As arrays do, answers a comparison with something that is neither true nor false."""

        def __eq__(self, other: object) -> Any:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    with LocalREPL(context_payload=Odd()) as repl:
        assert shown(repl, "type(context).__name__") == "Odd"


def test_inputs_added_from_many_threads_are_all_there(repl: LocalREPL) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda n=n: numbers.append(repl.add_context(f"input {n}"))) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(9))
    assert shown(repl, "*sorted(globals()[f'context_{n}'] for n in range(9)), sep=','") == ",".join(
        f"input {n}" for n in range(9)
    )


def test_an_index_is_replaced_and_counts(repl: LocalREPL) -> None:
    assert [repl.add_context("a"), repl.add_context("b", 5), repl.add_context("c"), repl.add_context("d", 0)] == [
        0,
        5,
        6,
        0,
    ]
    assert repl.get_context_count() == 7
    assert shown(repl, "context, context_0, context_5, context_6") == "d d b c"
    with pytest.raises(ValueError, match="context_-1: an index starts at 0"):
        repl.add_context("e", -1)


def test_a_history_is_a_deep_copy(repl: LocalREPL) -> None:
    history = [{"role": "user", "content": ["part"]}]
    assert repl.add_history(history) == 0
    history[0]["content"].append("changed later")
    history.append({"role": "user", "content": "more"})
    assert repl.locals["history"] == [{"role": "user", "content": ["part"]}]
    repl.execute_code("history[0]['content'].append('changed there')")
    assert history[0]["content"] == ["part", "changed later"]


def test_values_may_be_given_beside_functions() -> None:
    with LocalREPL(tools=[Tool("table", {"a": (1, 2)}), Tool("upper", str.upper, "Shouts.")]) as repl:
        assert shown(repl, "table, upper.__doc__") == "{'a': (1, 2)} Shouts."
        repl.execute_code("table = None\nimport os; os._exit(0)")
        assert shown(repl, "table, upper.__name__") == "{'a': (1, 2)} upper"


def test_nothing_is_given_to_a_closed_repl(repl: LocalREPL, tmp_path: Path) -> None:
    repl.cleanup()
    with pytest.raises(SessionClosedError):
        repl.add_context("x" * 1_000_000)
    with pytest.raises(SessionClosedError):
        repl.execute_code("1")


def older_python() -> str | None:
    """Another minor version of Python than this one."""
    for minor in (9, 10, 12, 13):
        for path in (shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")):
            if path and minor != sys.version_info.minor:
                if subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                    return str(path)
    return None


def test_code_is_not_given_to_another_version_of_python() -> None:
    python = older_python()
    if python is None:
        pytest.skip("no other version of Python here")
    with LocalREPL(python=python) as repl:
        local_class = type("Local", (), {"__module__": "__main__"})
        with pytest.raises(ContextError, match="holds functions or classes of this program, which Python"):
            repl.add_context([local_class()])
        plain = [1, {"a": (2, "cloudpickle.cloudpickle is a name")}]
        assert arrived(repl, plain) == plain
