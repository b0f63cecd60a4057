"""What of a namespace is there again in another process: each row of the page's table, tried in a real session.

Run as a program, this file writes the table of docs/what-survives.md anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm import RLM, ScriptedModel

PAGE = Path(__file__).parents[2] / "docs" / "what-survives.md"
BEGIN, END = "<!-- begin: written by tests/integration/test_what_survives.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One row: what it is, code that makes `v` of it, and what must be true of `v` afterwards; None: it is lost."""

    what: str
    code: str
    check: str | None

    @property
    def survives(self) -> bool:
        return self.check is not None


COUNTER = """
def make():
    n = 0
    def add():
        nonlocal n
        n += 1
        return n
    return add
v = make(); v()
"""

ROWS: Sequence[Row] = [
    Row("None, numbers, text, bytes, ranges, slices", "v = [None, 1, 2.5, 3j, 'é', b'\\x00', range(3)]", "v[4] == 'é'"),
    Row("text with lone surrogates, integers of any size", "v = ('\\ud800', 10 ** 5000)", "v[1] == 10 ** 5000"),
    Row("lists, tuples, dicts, sets, of whatever survives", "v = [(1, {2: {3}}), frozenset({4})]", "v[0][1][2] == {3}"),
    Row("two names of one object", "w = []\nv = w", "v is w"),
    Row("an object that holds itself", "v = []\nv.append(v)", "v[0] is v"),
    Row(
        "`bytearray`, `array.array`, `deque`, `Counter`, `OrderedDict`",
        "from collections import *\nv = Counter('aab')",
        "v['a'] == 2",
    ),
    Row(
        "`datetime`, `Decimal`, `Fraction`, `Path`, `UUID`",
        "from pathlib import Path\nv = Path('a/b')",
        "v.name == 'b'",
    ),
    Row("compiled regular expressions", "import re\nv = re.compile('a+')", "v.match('aa')"),
    Row("modules (imported again)", "import json as v", "v.loads('1') == 1"),
    Row("functions defined in cells", "k = 2\ndef v(x): return x * k", "v(3) == 6"),
    Row(
        "… which see later values of names, as before",
        "k = 2\ndef v(): return k\n",
        "globals().update(k=5) or v() == 5",
    ),
    Row("lambdas, closures, decorated and recursive functions", COUNTER, "v() == 2"),
    Row(
        "two closures over one variable",
        "def make():\n    n = []\n    return (lambda: n), n\nf, v = make()",
        "f() is v",
    ),
    Row(
        "functions with attributes, `functools.partial`",
        "import functools\nv = functools.partial(int, base=2)",
        "v('11') == 3",
    ),
    Row("classes defined in cells, their instances", "class P:\n    x = 1\nv = P()", "type(v) is P and v.x == 1"),
    Row(
        "dataclasses, enums, named tuples, `__slots__`, ABCs",
        "import enum\nclass C(enum.Enum):\n    A = 1\nv = C.A",
        "v is C.A",
    ),
    Row(
        "instances of a class that was defined anew since", "class P: pass\nv = P()\nclass P: pass", "type(v) is not P"
    ),
    Row("bound methods", "class P:\n    def m(self): return self\np = P()\nv = p.m", "v() is p"),
    Row(
        "exceptions (without their traceback)", "try: 1/0\nexcept Exception as e: v = e", "type(v) is ZeroDivisionError"
    ),
    Row("iterators over lists, at their place", "v = iter([1, 2, 3]); next(v)", "list(v) == [2, 3]"),
    Row(
        "a `memoryview` of a whole `bytearray`",
        "b = bytearray(b'ab')\nv = memoryview(b)",
        "v.__setitem__(0, 120) or b == b'xb'",
    ),
    Row(
        "`random.Random`, with its state",
        "import random\nv = random.Random(1); x = v.random(); state = v.getstate()",
        "v.getstate() == state",
    ),
    Row(
        "inputs and histories, also where code changed them",
        "v = context\nv.append('more')",
        "v is context and v[-1] == 'more'",
    ),
    Row(
        "files in the session's folder, up to 64 MiB",
        "open('notes.txt', 'w').write('kept'); v = 1",
        "open('notes.txt').read() == 'kept'",
    ),
    Row("generators, coroutines", "v = (n for n in [1])", None),
    Row("threads, locks, executors", "import threading\nv = threading.Lock()", None),
    Row("processes", "import subprocess\nv = subprocess.Popen(['true'])\nc = v.wait()", None),
    Row("open files, sockets", "v = open('f.txt', 'w')", None),
    Row("`sqlite3` connections, cursors", "import sqlite3\nv = sqlite3.connect(':memory:')", None),
    Row("matches of regular expressions", "import re\nv = re.match('a', 'a')", None),
    Row("frames, tracebacks", "import sys\nv = sys._getframe()", None),
    Row("weak references", "import weakref\nclass P: pass\np = P()\nv = weakref.ref(p)", None),
    Row("modules made by cells", "import types\nv = types.ModuleType('mine')", None),
    Row(
        "an object that refuses to be pickled",
        "class P:\n    def __reduce__(self): raise ValueError('no')\nv = P()",
        None,
    ),
]


def tried(row: Row) -> tuple[bool, str]:
    """Whether `v` is as it must be in a second worker, and the reason that the report gives where it is not there."""
    with tempfile.TemporaryDirectory() as folder:
        with RLM(ScriptedModel([]), store=folder) as rlm, rlm.session("s") as session:
            session.add_context(["an input"])
            made = session.run(row.code)
            assert made.error is None, made.stderr
        with RLM(ScriptedModel([]), store=folder) as rlm, rlm.session("s") as session:
            there = session.run(f"print(bool({row.check or True}), 'v' in globals())")
            assert session.restored is not None
            lost = session.restored.lost.get("v")
    assert there.error is None, there.stderr
    right, bound = there.stdout.split()
    assert (bound == "True") == (lost is None)
    return right == "True" and lost is None, lost.reason if lost else ""


def reason(text: str) -> str:
    """Why something is lost, without what differs from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("|", "\\|")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_row_of_the_page_is_true(row: Row) -> None:
    survived, why = tried(row)
    assert survived == row.survives, why
    assert bool(why) == (not row.survives)


def table(reasons: Sequence[str]) -> str:
    lines = ["| what | in another process |", "|---|---|"]
    for row, why in zip(ROWS, reasons, strict=True):
        lines.append(f"| {row.what} | {'as it was' if row.survives else f'lost: {why}'} |")
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    rows = re.findall(r"^\| (.+?) \| (as it was|lost: .+) \|$", written, re.MULTILINE)
    assert [what for what, _ in rows] == [row.what for row in ROWS]
    assert [how == "as it was" for _, how in rows] == [row.survives for row in ROWS]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    reasons = [reason(tried(row)[1]) for row in ROWS]
    PAGE.write_text(f"{before}{BEGIN}\n{table(reasons)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
