"""A heap that moves to another minor version of Python: data and what its source can make again come along."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import itertools
import sys

import pytest

from tests.heaps import Session, session
from tests.sandboxed import python_of

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"]

CELLS = [
    "import enum, collections, json, functools\nfrom dataclasses import dataclass, field\nK = 3",
    "class Color(enum.Enum):\n    RED = 1\n    BLUE = 'b'\n    def low(self): return self.name.lower()",
    "@dataclass\nclass P:\n    x: int\n    y: list = field(default_factory=list)\n    def total(self): return self.x * K + add(1)",
    "def add(n, by=K): return n + by",
    "class Base:\n    def who(self): return type(self).__name__\nclass Sub(Base):\n    def who(self): return super().who() + '!'",
    "@functools.lru_cache(maxsize=None)\ndef slow(n): return n * 2",
    "N = collections.namedtuple('N', 'a b')",
    "class Flat(list):\n    pass",
    "p = P(2, [1]); shared = p.y; c = [Color.RED, Color.BLUE]; s = Sub(); f = Flat([1]); d = {'p': p, 5: {1, 2}, 'f': add}",
    "def make(n):\n    return lambda: n\nclosed = make(1); plain = [1, {'a': (2, 3)}]; text = 'ä' * 3000",
    "shared.append(7)",
]
PROBE = (
    "print(p, p.y is shared, p.total(), type(p) is P, c[0] is Color.RED, c[1].low(), s.who(), type(s) is Sub, f, type(f) is "
    "Flat, d['p'] is p, d['f'] is add, add(1), slow(4), plain, len(text), K, json.dumps(1), make(3)())"
)


def pairs() -> list[tuple[str, str]]:
    found = [(HERE, other) for other in VERSIONS if other != HERE]
    return found + [(other, here) for here, other in found]


@pytest.mark.parametrize(("old", "new"), pairs())
def test_a_heap_moves(old: str, new: str) -> None:
    pythons = {version: python_of(version) for version in (old, new)}
    for version, python in pythons.items():
        if python is None:
            pytest.skip(f"no Python {version} here")

    async def script(s: Session) -> None:
        await s.cells(*CELLS)
        before = await s.run(PROBE)
        lost = await s.restore(pythons[new])
        assert set(lost) == {"N", "closed"}
        assert f"made by Python {old}, cannot be loaded by {new}" in lost["closed"].reason
        assert await s.run(PROBE) == before
        await s.cells("p.x = 9", "c.reverse(); c.reverse()")
        before = await s.run(PROBE)
        assert set(await s.restore(pythons[old])) <= {"N", "closed"}, "and back"
        assert await s.run(PROBE) == before

    session(script, python=pythons[old])


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != HERE])
def test_each_version_restores_its_own(version: str) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no Python {version} here")

    async def script(s: Session) -> None:
        await s.cells(*CELLS, "m = p.total; t = (n for n in [])", "g = closed, m")
        before = await s.run(PROBE + "; print(closed(), m(), N(1, 2), g[0] is closed)")
        assert await s.restore() == {}
        assert await s.run(PROBE + "; print(closed(), m(), N(1, 2), g[0] is closed)") == before

    session(script, python=python)


def test_the_pairs_are_all_that_there_are() -> None:
    assert len(pairs()) == 2 * (len(VERSIONS) - 1)
    assert all(HERE in pair for pair in itertools.chain(pairs()))


def test_a_definition_whose_source_would_make_another_one_now_is_lost_elsewhere() -> None:
    python = python_of("3.12" if HERE != "3.12" else "3.11")
    if python is None:
        pytest.skip("no second Python here")

    async def script(s: Session) -> None:
        await s.cells(
            "K = 3\nclass Base: pass", "class Sub(Base):\n    def f(self): return 1", "def f(x=K): return x", "def g(x=1): return x",
            "K = 4", "class Base:\n    def f(self): return 2",
        )  # fmt: skip
        assert set(await s.restore(python)) == {"Sub", "f"}
        assert await s.run("print(g(), K, Base().f())") == "1 4 2"

    session(script)
