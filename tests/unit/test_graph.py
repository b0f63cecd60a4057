"""Which names of a namespace belong together: the analysis alone, in this process."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sandboxed import importlib

definitions, graph, sources = map(importlib.import_module, ("definitions", "graph", "sources"))


@pytest.fixture
def namespace() -> Any:
    """The namespace of a module that is `__main__`, as in a worker."""
    before, module = sys.modules["__main__"], types.ModuleType("__main__")
    sys.modules["__main__"] = module
    yield vars(module)
    sys.modules["__main__"] = before


def walk(namespace: dict[str, Any], code: str, budget: int | None = None, **given_values: Any) -> Any:
    namespace.update(given_values)
    exec(compile(code, "<cell 1>", "exec", dont_inherit=True), namespace)
    names = [name for name in namespace if not name.startswith("__") and name not in given_values]
    found = definitions.Definitions(namespace)
    found.update(names)
    made = graph.Walk(found, {id(value): name for name, value in given_values.items()}, budget, lambda name: [name])
    made.groups = {tuple(group) for group in made.run(names)}
    return made


TOGETHER = {
    "an alias": ("a = []; b = a; c = []", {("a", "b"), ("c",)}),
    "through a third": ("x = []; a = [x]; b = {'k': x}; del x", {("a", "b")}),
    "a chain of three": ("a = []; b = [a]; c = [b]; d = 5", {("a", "b", "c"), ("d",)}),
    "small texts and numbers": ("a = ['t', 5]; b = ['t', 5]; c = (1, 't'); d = [c]", {("a",), ("b",), ("c",), ("d",)}),
    "a large text": ("t = 'x' * 5000; a = [t]", {("a", "t")}),
    "constants of one cell": ("def f(a=(1, 2)): pass\ndef g(a=(1, 2)): pass", {("f",), ("g",)}),
    "functions over one name": ("l = []\ndef f(): l\ndef g(): l", {("l",), ("f",), ("g",)}),
    "closures over one cell": (
        "def m():\n    n = 0\n    return lambda: n, lambda: n\na, b = m(); del m", {("a", "b")}),
    "an instance and its class": ("class A: pass\na = A(); b = A()", {("A",), ("a",), ("b",)}),
    "a class and its base": ("class A: pass\nclass B(A): pass\nclass C: pass", {("A", "B"), ("C",)}),
    "instances of a class without a name": ("class A: pass\na = A(); b = A(); del A", {("a", "b")}),
    "a class attribute": ("class A: l = []\na = A(); x = a.l", {("A", "x"), ("a",)}),
    "a bound method": ("class A:\n    def f(self): pass\na = A(); m = a.f; n = A.f", {("A", "n"), ("a", "m")}),
    "members of an Enum": ("import enum\nclass C(enum.Enum): X = 1\na = C.X; b = [C.X]; del enum", {("C",), ("a",), ("b",)}),
    "a generator and its local": ("def g(x): yield x\nl = []; a = g(l); next(a)", {("a", "l"), ("g",)}),
    "views of a buffer": ("b = bytearray(4); v = memoryview(b); w = memoryview(b)", {("b", "v", "w")}),
    "a weak reference": ("import weakref\nclass A: pass\na = A(); r = weakref.ref(a); del weakref", {("A",), ("a", "r")}),
    "imported functions": ("from os.path import join as a; b = [a]; c = [a]", {("a",), ("b",), ("c",)}),
    "one module": ("import json as a; b = [a]", {("a",), ("b",)}),
}  # fmt: skip


@pytest.mark.parametrize("what", TOGETHER)
def test_groups_are_those_that_share(what: str, namespace: dict[str, Any]) -> None:
    code, groups = TOGETHER[what]
    assert walk(namespace, code).groups == groups


def test_a_walk_notes_what_it_refers_to_by_name_and_which_names_its_code_uses(namespace: dict[str, Any]) -> None:
    found = walk(namespace, "class A:\n    def f(self): return other\na = [A()]\ndef g(): return a\nh = {'g': g}")
    assert found.refs[found.number["a"]] == {"A"}
    assert found.refs[found.number["h"]] == {"g"}
    assert "other" in found.uses[found.number["A"]]
    assert "a" in found.uses[found.number["g"]]


def test_values_of_the_hosts_are_no_part_of_a_group(namespace: dict[str, Any]) -> None:
    found = walk(namespace, "a = [context]; b = [context]", context="x" * 5000)
    assert found.groups == {("a",), ("b",)}
    assert found.flags[found.number["a"]] == {"given"}


def test_a_walk_ends_with_its_budget(namespace: dict[str, Any]) -> None:
    with pytest.raises(graph.OverBudget):
        walk(namespace, "a = [[n] for n in range(5_000)]", 1_000)
    with pytest.raises(graph.OverBudget):
        walk(namespace, "a = 'x' * 5_000_000", 1_000)


def test_a_method_is_found_by_its_class(namespace: dict[str, Any]) -> None:
    found = walk(
        namespace, "class A:\n    class B:\n        @classmethod\n        def f(cls): pass\nx = A.B; C = A"
    ).definitions
    assert found.locate(namespace["A"]) == ("A", ())
    assert found.locate(namespace["A"].B) in (("x", ()), ("A", ("B",)))
    assert found.locate(vars(namespace["A"].B)["f"].__func__) == ("A", ("B", "f"))


def test_a_definition_that_is_bound_anew_is_told(namespace: dict[str, Any]) -> None:
    found = walk(namespace, "def f(): pass\ng = f").definitions
    assert found.name(namespace["f"]) == "f"
    old = namespace.pop("f")
    assert found.update(["f", "g"]) == {"f"}
    assert found.name(old) == "g"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_names_are_in_one_group_exactly_where_a_list_leads_from_both(edges: list[tuple[int, int]]) -> None:
    names = [f"v{n}" for n in range(8)]
    namespace: dict[str, Any] = {name: [] for name in names}
    for one, other in edges:
        namespace[names[one]].append(namespace[names[other]])
    reached = {name: {name} for name in names}
    for _ in names:
        for one, other in edges:
            reached[names[one]] |= reached[names[other]]
    groups = graph.Walk(definitions.Definitions(namespace), {}, None, lambda name: [name]).run(names)
    assert sorted(name for group in groups for name in group) == names
    together = {frozenset(group) for group in groups}
    for one in names:
        for other in names:
            if reached[one] & reached[other]:
                assert any({one, other} <= group for group in together)
    assert len(groups) == len(names) - sum(len(group) - 1 for group in groups)


def test_the_statements_of_a_cell_are_those_that_bound_a_name_last() -> None:
    found = sources.statements(
        "@deco\ndef f(x=K): return y\nclass A(Base): z = W\ng = 1\ndef g(): pass\ndef h(): pass\nh = 2\n"
        "if 1:\n    def i(): pass\nimport a.b as j, c.d\n"
    )
    assert found["f"] == ("@deco\ndef f(x=K): return y\n", {"deco", "K"})
    assert found["A"] == ("class A(Base): z = W\n", {"Base", "z", "W"})
    assert found["g"][0] == "def g(): pass\n"
    assert {name for name, (source, _) in found.items() if not source} == {"h", "i", "j", "c"}
    assert sources.statements("def (") == {}
