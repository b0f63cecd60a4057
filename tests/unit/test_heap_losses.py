"""What cannot be saved or brought back is told by name, and harms nothing beside it; what the host gave stays its own."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from rlm.environments.limits import MAX_LONG, MAX_TEXT
from rlm.errors import SandboxError
from rlm.types import HeapChange, Lost
from tests.heaps import Session, session

NUMPY = importlib.util.find_spec("numpy") is not None
numpy_only = pytest.mark.skipif(not NUMPY, reason="numpy is not installed here")

# Cells after which `bad` cannot be saved, and what its reason says.
LOST = {
    "a generator": (["bad = (i for i in l)"], "cannot pickle 'generator' object"),
    "a coroutine": (["async def f(): pass", "bad = f()"], "cannot pickle 'coroutine' object"),
    "a thread": (["import threading; bad = threading.Thread(target=print)"], "Thread"),
    "a lock": (["import threading; bad = threading.Lock()"], "lock"),
    "a lock, deep within": (["import threading; bad = {'a': [(threading.RLock(),)], 'l': l}"], "RLock"),
    "an event": (["import threading; bad = [l, threading.Event()]"], "Event"),
    "a queue": (["import queue; bad = queue.Queue()"], "lock"),
    "a process": (["import subprocess, sys; bad = subprocess.Popen([sys.executable, '-c', '']); bad.wait()"], "Popen"),
    "a socket": (["import socket; bad = socket.socketpair()[0]"], "socket"),
    "a file": (["bad = open(__import__('os').devnull)"], "TextIOWrapper"),
    "a binary file": (["bad = open(__import__('os').devnull, 'rb')"], "BufferedReader"),
    "a database": (["import sqlite3; bad = sqlite3.connect(':memory:')"], "Connection"),
    "an event loop": (["import asyncio; bad = asyncio.new_event_loop(); bad.close()"], "Loop"),
    "a weak reference": (["import weakref\nclass A: pass\na = A(); bad = weakref.ref(a)"], "weakref"),
    "a match": (["import re; bad = re.match('a', 'a')"], "Match"),
    "a part of a bytearray": (["b = bytearray(b'abc'); bad = memoryview(b)[1:]"], "memoryview of a part"),
    "a module of a cell's": (["import types; bad = types.ModuleType('mine')"], "a module that a cell has made"),
    "a reducer that raises": (["class A:\n    def __reduce__(self): raise OSError('no way')\nbad = A()"], "OSError: no way"),
    "a reducer that exits": (["class A:\n    def __reduce__(self): raise SystemExit(3)\nbad = A()"], "SystemExit"),
    "a reducer that lies": (["class A:\n    def __reduce__(self): return 5\nbad = A()"], "reduce"),
    "a state that cannot be had": (["class A:\n    def __getstate__(self): return 1 / 0\nbad = A()"], "ZeroDivisionError"),
    "a closure over a generator": (["def make(g):\n    def f(): return g\n    return f\nbad = make(i for i in [])"], "generator"),
    "the worker itself": (["bad = llm_query.__self__"], "Worker"),
    "a mapped file": (["import mmap; bad = mmap.mmap(-1, 10)"], "mmap"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_a_tombstone_stands_for(what: str) -> None:
    cells, reason = LOST[what]

    async def script(s: Session) -> None:
        await s.cells("l = [1]; other = {'l': l}", *cells)
        assert set(s.heap.lost) == {"bad"}
        lost = s.heap.lost["bad"]
        assert reason in lost.reason, lost
        assert len(lost.repr) <= 200
        await s.restore()
        assert await s.run("print('bad' in globals(), l, other['l'] is l)") == "False [1] True"

    session(script)


def test_of_names_that_share_an_object_only_those_are_lost_that_hold_what_cannot_be_saved() -> None:
    async def script(s: Session) -> None:
        await s.cells("l = [1]; m = [l]; g = (x for x in l); h = [l, g]; n = {'m': m}")
        assert set(s.change.lost) == {"g", "h"}
        assert ("l", "m", "n") in s.groups()
        await s.restore()
        assert await s.run("l.append(2); print(n['m'][0] is l, m)") == "True [[1, 2]]"

    session(script)


def test_a_name_that_was_lost_is_saved_once_it_can_be() -> None:
    async def script(s: Session) -> None:
        await s.cells("x = (i for i in [])", "x = 1")
        assert not s.heap.lost
        await s.cells("x = (i for i in [])", "del x")
        assert not s.heap.lost
        assert list(s.change.gone) == ["x"]

    session(script)


def test_a_loss_is_told_once() -> None:
    async def script(s: Session) -> None:
        await s.cells("x = (i for i in [])")
        await s.run("x")
        assert not (await s.capture()).lost

    session(script)


def test_code_that_runs_while_it_is_pickled_changes_nothing_and_prints_nowhere() -> None:
    async def script(s: Session) -> None:
        await s.cells(
            "n = 0\nclass A:\n    def __reduce__(self):\n        global n, new\n        n, new = 5, 1\n"
            "        print('hello'); import os; os.write(1, b'there'); os.write(2, b'!')\n        return A, ()",
            "a = A()",
        )
        assert await s.run("print(n, 'new' in globals())") == "0 False"
        assert "a" in s.heap.types

    session(script)


@numpy_only
@pytest.mark.parametrize(
    ("cells", "probe"),
    [
        (["a = np.arange(10); v = a[::2]", "v[0] = 99"], "a, v, v.base is a"),
        (["a = np.arange(12.).reshape(3, 4); t = a.T; r = a[::-1]", "t[0] = 7"], "a, t, r, np.shares_memory(a, t)"),
        (["a = np.zeros((2, 3), order='F'); v = a[:, 1]", "v[:] = 4"], "a, a.flags.f_contiguous, v"),
        (["a = np.array([(1, 2.5)], dtype=[('x', 'i4'), ('y', 'f8')]); y = a['y']", "y[0] = 9"], "a, y, a.dtype"),
        (
            ["l = [1]; a = np.array([l, None, 'x'], dtype=object); v = a[1:]", "v[0] = l"],
            "a[0] is l, a[1] is l, v[0] is l",
        ),
        (["b = bytearray(b'abcd'); a = np.frombuffer(b, np.uint8)", "a[0] = 120"], "bytes(b), a"),
        (["b = b'abcd'; a = np.frombuffer(b, np.uint8)"], "a, a.flags.writeable"),
        (["a = np.arange(3); v = a.view(); v.flags.writeable = False"], "v, a.flags.writeable, v.flags.writeable"),
        (
            ["a = np.array(5); e = np.zeros((0, 3)); s = np.array(['ä', 'bc']); d = np.array(['2020-01-01'], 'M8[D]')"],
            "a, e, s, d, a.flags.owndata, d.flags.owndata",
        ),
        (["x = np.float64(1.5); y = np.int8(3); d = np.dtype('i4')"], "x, y, type(x), d"),
        (["m = np.matrix([[1, 2]]); r = np.ma.array([1, 2], mask=[0, 1])"], "m, type(m), r"),
        (["a = np.arange(4); m = memoryview(a)", "m[0] = 9"], "a, m.obj is a"),
        (["class S(np.ndarray): pass", "s = np.arange(3).view(S)"], "s, type(s) is S"),
        (["a = np.arange(6)", "f = a.reshape(2, 3)", "del a"], "f, f.base"),
    ],
)
def test_arrays_and_their_views_come_back(cells: list[str], probe: str) -> None:
    async def script(s: Session) -> None:
        await s.cells("import numpy as np", *cells)
        before = await s.run(f"print(repr(({probe})))")
        assert await s.restore() == {}
        assert await s.run(f"print(repr(({probe})))") == before
        await s.run("; ".join(n for n in ("a", "v", "t", "r", "y", "m", "s", "f") if n in s.heap.types) or "pass")
        await s.capture()
        assert not s.saved() - {"s", "r"}, "what is the same again has the same bytes again"

    session(script)


@numpy_only
def test_a_view_of_the_addresses_of_objects_is_lost_and_the_objects_are_not() -> None:
    async def script(s: Session) -> None:
        await s.cells("import numpy as np\na = np.array([[1], None], object)\nv = np.frombuffer(a, np.uint8)")
        assert set(s.change.lost) == {"v"}
        await s.restore()
        assert await s.run("print(a)") == "[list([1]) None]"

    session(script)


@numpy_only
def test_an_array_over_a_file_is_lost_and_says_so() -> None:
    async def script(s: Session) -> None:
        await s.cells("import numpy as np\na = np.memmap('f.bin', shape=(4,), mode='w+')\nv = np.asarray(a)[1:]")
        assert set(s.change.lost) == {"a", "v"}
        assert "memmap" in s.change.lost["a"].reason

    session(script)


# -- what the host gave -----------------------------------------------------------------------------------------------

TEXT = "a long text " * 500


def test_a_context_is_not_saved_again_but_referred_to() -> None:
    async def script(s: Session) -> None:
        await s.give(TEXT, "context", "context_0")
        await s.cells("doc = context; docs = [context, 1]; ask = llm_query; d = {'ask': llm_query}")
        assert s.change.given == {"doc": "context", "ask": "llm_query"}
        assert sum(group.size for group in s.change.groups) < 500
        assert await s.restore() == {}
        assert await s.run("print(doc is context, docs[0] is context, ask is llm_query, d['ask'] is ask)") == " ".join(
            ["True"] * 4
        )

    session(script)


@pytest.mark.parametrize("size", [3, 30_000])
def test_a_context_that_a_cell_has_changed_is_saved_and_one_that_none_has_is_not(size: int) -> None:
    async def script(s: Session) -> None:
        await s.give([{"n": n} for n in range(size)], "context", "context_0")
        await s.cells("n = len(context); rows = context")
        assert s.saved() == {"answer", "n"}
        assert s.change.given == {"rows": "context"}
        await s.cells("context; rows")
        assert s.saved() == set()
        await s.cells("rows[0]['n'] = 'new'")
        assert ("context", "context_0", "rows") in s.groups()
        assert await s.restore() == {}
        assert await s.run("print(context[0], rows is context, context_0 is context)") == "{'n': 'new'} True True"
        await s.run("context = 5")
        assert await s.run("print(context[0])") == "{'n': 'new'}"
        await s.cells("context.append(7)")
        assert await s.restore() == {}
        assert await s.run("print(context[-1], rows is context)") == "7 True"

    session(script)


def test_a_part_of_a_context_stays_a_part_of_it() -> None:
    async def script(s: Session) -> None:
        await s.give([{"n": 1}], "context", "context_0")
        await s.cells("first = context[0]", "first['n'] = 2")
        assert await s.restore() == {}
        assert await s.run("print(context, context[0] is first)") == "[{'n': 2}] True"

    session(script)


def test_the_draft_of_an_answer_is_restored_and_not_reported_as_a_new_one() -> None:
    async def script(s: Session) -> None:
        await s.cells("answer['content'] = 'half of it'")
        await s.restore()
        result = await s.kernel.run("print(answer)")
        assert result.stdout == "{'content': 'half of it', 'ready': False}\n"
        assert result.draft is None
        result = await s.kernel.run("answer['ready'] = True")
        assert result.final_answer == "half of it"

    session(script)


def test_the_answer_of_a_new_turn_is_saved_though_no_cell_names_it() -> None:
    async def script(s: Session) -> None:
        await s.cells("answer['content'] = 'of the first turn'")
        await s.kernel.run("x = 1", fresh=True)
        await s.capture()
        await s.restore()
        assert await s.run("print(answer)") == "{'content': '', 'ready': False}"

    session(script)


# -- blobs that are missing, damaged or worse --------------------------------------------------------------------------


def test_a_damaged_blob_and_a_missing_one_cost_their_own_names(tmp_path: Path) -> None:
    async def script(s: Session) -> None:
        await s.cells("a = [1]", "b = [2]", "c = [3]", "def f(): return 4", "class A: pass", "x = A()")
        digests = {name: group.digest for group in s.heap.image().groups for name in group.names}
        s.blobs[digests["a"]] = s.blobs[digests["a"]][:-1] + b"!"
        del s.blobs[digests["b"]]
        del s.blobs[digests["A"]]
        lost = await s.restore()
        assert set(lost) == {"a", "b", "A", "x"}
        assert lost["a"] == Lost("list", "damaged: its blob has another digest")
        assert lost["b"] == Lost("list", "its blob is missing")
        assert lost["x"].type == "A"
        assert "it needs A, which is lost" in lost["x"].reason
        assert await s.run("print(c, f(), 'a' in globals())") == "[3] 4 False"

    session(script)


def test_loading_that_raises_exits_or_prints_costs_its_own_names() -> None:
    async def script(s: Session) -> None:
        await s.cells(
            "class A:\n    def __init__(self, how): self.how = how\n    def __setstate__(self, d):\n        print('loading')\n"
            "        exec(d['how'])",
            "a = A('1 / 0'); b = A('raise SystemExit(1)'); c = A('pass'); d = [5]",
        )
        lost = await s.restore()
        assert {name: loss.reason for name, loss in lost.items()} == {
            "a": "ZeroDivisionError: division by zero",
            "b": "SystemExit: 1",
        }
        assert await s.run("print(type(c) is A, d)") == "True [5]"

    session(script)


def test_a_module_that_cannot_be_imported_any_more_is_lost() -> None:
    async def script(s: Session) -> None:
        await s.cells("open('mine.py', 'w').write('x = 1')", "import mine, json", "import os; os.unlink('mine.py')")
        lost = await s.restore()
        assert lost == {"mine": Lost("module", "ModuleNotFoundError: No module named 'mine'")}
        assert await s.run("print(json.dumps(1))") == "1"

    session(script)


def test_a_module_in_the_sessions_folder_comes_back_before_what_needs_it() -> None:
    async def script(s: Session) -> None:
        await s.cells("open('mine.py', 'w').write('class P:\\n    pass\\ndef f(): return 1')", "import mine; p = mine.P()",
                      "from mine import f")  # fmt: skip
        assert await s.restore() == {}
        assert await s.run("print(type(p) is mine.P, f())") == "True 1"

    session(script)


def test_the_names_afterwards_are_those_of_the_image_and_the_listing_says_so() -> None:
    async def script(s: Session) -> None:
        await s.give("x" * 10, "context", "context_0")
        await s.cells("a = 1; b = [2]", "def f(): pass")
        before = dict(await s.kernel.refresh())
        await s.restore()
        assert dict(s.kernel.names) == before
        await s.run("c = 3; del a")
        assert set(s.kernel.names) == {"b", "c", "f", "context", "context_0"}

    session(script)


def test_what_was_restored_is_not_sent_again() -> None:
    async def script(s: Session) -> None:
        await s.give({"k": [1]}, "context", "context_0")
        await s.cells(
            "a = [1]; b = {'a': a}; n = 1; t = 'x' * 5000\ndef f(x: int = 3): 'doc'; return n\nclass A:\n"
            "    z = 1\n    def m(self): return f()\nx = A(); doc = context",
            "open('t.txt', 'w').write('hello')",
        )
        await s.restore()
        await s.run("a, b, n, t, f, A, x, doc, context")
        await s.capture()
        change = dataclasses.replace(
            s.change, seconds=0.0, pause=0.0, python="", groups=(), gone=(), files_gone=(), caught=()
        )
        assert not s.saved()
        assert change == HeapChange()
        await s.capture(whole=True)
        assert not s.change.caught

    session(script)


LONGEST = f"""
import importlib.machinery, sys, types
names, longest, longer = globals(), 'n' * {MAX_TEXT}, 'm' * {MAX_TEXT + 1}
names[longest] = names[longer] = names[''] = kept = [1]
names[longer + 'f'] = again = lambda: kept
value = type('T' * {MAX_TEXT + 1}, (), {{}})
held = [value]
module = types.ModuleType('z' * {MAX_LONG + 1})
module.__spec__ = importlib.machinery.ModuleSpec('z', None)
sys.modules[module.__name__] = module
class Failing(Exception):
    def __str__(self): return 'w' * {MAX_TEXT + 1}
class Mute(Exception):
    def __str__(self): raise self
class Bad:
    def __init__(self, error): self.error = error
    def __reduce__(self): raise self.error
bad, mute = Bad(Failing()), Bad(Mute())
open('f' * 255, 'w').close()
del names
"""


def test_whatever_is_longer_than_the_host_takes_is_told_as_lost() -> None:
    async def script(s: Session) -> None:
        await s.cells(LONGEST, f"def long(): return '{'y' * MAX_LONG}'")
        too_long = {"m" * 200 + f"… ({MAX_TEXT + more:,} characters)" for more in (1, 2)}
        assert set(s.heap.lost) == {*too_long, "''", "module", "bad", "mute"}
        assert s.heap.lost["mute"].reason == "Mute: its text cannot be had: Mute"
        await s.cells("[globals().pop(name) for name in ('', longer, longer + 'f')]", "del module")
        assert set(s.heap.lost) == {"bad", "mute"}
        assert not await s.restore()
        assert await s.run(f"print(kept, globals()['n' * {MAX_TEXT}] is kept, again() is kept)") == "[1] True True"
        assert await s.run("print(len(value.__name__), held == [value], len(long()))") == "10001 True 1000000"

    session(script)


def test_what_cannot_be_brought_back_is_told_in_few_words() -> None:
    async def script(s: Session) -> None:
        await s.cells(
            "class Failing(Exception):\n    def __str__(self): return 'w' * 20_000 if self.args else 1 / 0",
            "class A:\n    def __init__(self, *args): self.args = args\n    def __setstate__(self, state): raise Failing(*state['args'])",
            "a = A(); b = A(1)",
        )
        lost = await s.restore()
        assert lost["a"].reason == "Failing: its text cannot be had: ZeroDivisionError"
        assert lost["b"].reason.startswith("Failing: www")
        assert await s.run("print(A)") == "<class '__main__.A'>"

    session(script)


ENDLESS = """
import collections, itertools
class Endless:
    def __init__(self, deaf): self.deaf = deaf
    def __setstate__(self, state):
        if state['deaf']: collections.deque(itertools.repeat(0), 0)  # in C, where nothing strikes
        while True: pass
"""


def test_code_that_does_not_end_costs_its_own_names() -> None:
    async def script(s: Session) -> None:
        await s.cells("kept = [1]", ENDLESS, "bad = Endless(False)", "worse = [Endless(False)]", "z = [kept]")
        lost = await s.restore(seconds=1.0)
        assert set(lost) == {"bad", "worse"}
        assert all(why.reason.startswith("it took over 0.") for why in lost.values())
        assert await s.run("print(z[0] is kept, Endless.__name__)") == "True Endless"

    session(script)


def test_code_that_neither_ends_nor_can_be_interrupted_is_an_error_that_names_what_it_may_be() -> None:
    async def script(s: Session) -> None:
        await s.cells("kept = [1]", ENDLESS, "bad = Endless(True)")
        with pytest.raises(SandboxError, match=r"took over 0.5 s: the code of one of Endless, .*bad.* does not end"):
            await s.restore(seconds=0.5)
        assert s.kernel.dead is not None

    session(script)
