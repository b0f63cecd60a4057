"""Values as bytes and back, bound to one namespace: the pickler alone, in this process."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandboxed import importlib

definitions, makers, pickles = map(importlib.import_module, ("definitions", "makers", "pickles"))


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    before, module = sys.modules["__main__"], types.ModuleType("__main__")
    sys.modules["__main__"] = module
    yield vars(module)
    sys.modules["__main__"] = before


def dumped(namespace: dict[str, Any], *names: str) -> tuple[bytes, bool]:
    """The names' values as a blob, and whether it holds code."""
    found = definitions.Definitions(namespace)
    found.update(namespace)
    file = io.BytesIO()
    saver = pickles.saver(pickles.cloudpickle(None)).plain(file, found, set(names), {})
    saver.dump([namespace[name] for name in names])
    return file.getvalue(), saver.code


def loaded(blob: bytes, namespace: dict[str, Any]) -> Any:
    makers.Target.namespace = namespace
    return pickle.loads(blob)


def cell(namespace: dict[str, Any], code: str) -> dict[str, Any]:
    exec(compile(code, "<cell 1>", "exec", dont_inherit=True), namespace)
    return namespace


def test_a_function_finds_itself_in_the_namespace_where_it_is_loaded(namespace: dict[str, Any]) -> None:
    blob, code = dumped(cell(namespace, "big = 'x' * 100_000\ndef f(): return len(big)"), "f")
    assert code
    assert len(blob) < 1_000
    other = {"big": "abc"}
    [f] = loaded(blob, other)
    assert f() == 3
    assert f.__globals__ is other


def test_an_instance_names_its_class(namespace: dict[str, Any]) -> None:
    blob, code = dumped(cell(namespace, "class A: pass\na = A(); a.x = 1"), "a")
    assert not code
    replaced = type("A", (), {})
    [a] = loaded(blob, {"A": replaced})
    assert (type(a), a.x) == (replaced, 1)


def test_a_traceback_names_no_cell_of_another_worker(namespace: dict[str, Any]) -> None:
    [f] = loaded(dumped(cell(namespace, "def f(): pass"), "f")[0], namespace)
    assert f.__code__.co_filename == "<cell 1 of an earlier worker>"
    cell(namespace, "pass")
    namespace["f"] = f
    [again] = loaded(dumped(namespace, "f")[0], namespace)
    assert again.__code__.co_filename == f.__code__.co_filename


DEFINED = [
    "def f(x, *, y: int = 3):\n    'doc'\n    return x, [z for z in range(y)], f",
    "def make():\n    n = 0\n    def f():\n        nonlocal n; n += 1; return f\n    return f\nf = make(); del make",
    "class f:\n    'doc'\n    x: int = 1\n    def m(self): return __class__\n    @property\n    def p(self): return self.x",
    "import dataclasses\n@dataclasses.dataclass\nclass f:\n    x: int\n    y: list = dataclasses.field(default_factory=list)",
    "import enum\nclass f(enum.Enum):\n    A = 1\n    B = 'x'",
    "import typing\nT = typing.TypeVar('T')\nclass f(typing.Generic[T]):\n    v: T",
    "import collections\nf = collections.namedtuple('f', 'a b')",
    "class f:\n    __slots__ = ('a', 'b')\n    def m(self): return self.a",
]


@pytest.mark.parametrize("code", DEFINED)
def test_the_same_definition_has_the_same_bytes_also_after_it_was_loaded(code: str, namespace: dict[str, Any]) -> None:
    first, _ = dumped(cell(namespace, code), "f")
    assert dumped(namespace, "f")[0] == first
    [namespace["f"]] = loaded(first, namespace)
    second, _ = dumped(namespace, "f")
    [namespace["f"]] = loaded(second, namespace)
    assert dumped(namespace, "f")[0] == second


def test_what_would_come_back_hollow_is_refused(namespace: dict[str, Any]) -> None:
    with Path(__file__).open() as file, subprocess.Popen([sys.executable, "-c", ""]) as process:
        for value in (threading.Lock(), threading.Thread(), threading.Event(), file, process, types.ModuleType("x")):
            namespace["v"] = [{"deep": (value,)}]
            with pytest.raises(TypeError):
                dumped(namespace, "v")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_plain_data_comes_back_equal(value: Any) -> None:
    blob, code = dumped({"v": value}, "v")
    assert not code
    assert loaded(blob, {}) == [value]
