"""What of a namespace a capture looks at again: everything that a cell can have changed, by whichever way."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import pytest

from tests.heaps import Session, session

# A way to change `l`, or what it stands for, without naming it: cells before, the cell that changes it, and a probe.
AT_ONCE = {
    "a closure": (["l = []\ndef make(x):\n    return lambda v: x.append(v)", "add = make(l)"], "add(1)", "l"),
    "a function that names it": (["l = []\ndef f(): g()\ndef g(): l.append(1)"], "f()", "l"),
    "a method": (["l = []\nclass A:\n    def f(self): l.append(1)\na = A()"], "a.f()", "l"),
    "a special method": (["l = []\nclass A:\n    def __add__(self, o): l.append(o)\na = A()"], "a + 1", "l"),
    "a property": (["l = []\nclass A:\n    @property\n    def p(self): l.append(1)\na = A()"], "a.p", "l"),
    "a metaclass": (["l = []\nclass M(type):\n    def __call__(cls): l.append(1)\nclass A(metaclass=M): pass"], "A()", "l"),
    "a base class": (["l = []\nclass A:\n    def f(self): l.append(1)\nclass B(A): pass\nb = B()"], "b.f()", "l"),
    "a decorator's wrapper": (
        ["l = []\ndef noted(f):\n    def g(): l.append(1); f()\n    return g", "@noted\ndef f(): pass"], "f()", "l"),
    "a default": (["l = []\ndef f(x=l): x.append(1)"], "f()", "l"),
    "a partial": (["import functools\nl = []\ndef add(x, v): x.append(v)\np = functools.partial(add, l)"], "p(1)", "l"),
    "a bound method of it": (["l = []\nadd = l.append"], "add(1)", "l"),
    "a bound method": (["class A:\n    def f(self): self.l.append(1)\na = A(); a.l = l = []; m = a.f"], "m()", "l"),
    "an alias within another object": (["l = []\nd = {'x': [l]}"], "d['x'][0].append(1)", "l"),
    "a callback": (["l = []\nhooks = [lambda v: l.append(v)]"], "for h in hooks: h(1)", "l"),
    "a generator": (["l = []\ndef gen():\n    while True: l.append(1); yield\ng = gen()"], "next(g)", "l"),
    "a generator's frame": (["def gen(x):\n    while True: x.append(1); yield\nl = []; g = gen(l)"], "next(g)", "l"),
    "a generator expression": (["l = []\ng = (l.append(i) for i in range(9))"], "next(g)", "l"),
    "an iterator over a map": (["l = []\nm = map(l.append, range(9))"], "next(m)", "l"),
    "a memoryview": (["l = bytearray(b'abc')\nv = memoryview(l)"], "v[0] = 100", "bytes(l)"),
    "a weak reference": (["import weakref\nclass A: pass\nl = A(); l.n = 0\nr = weakref.ref(l)"], "r().n = 5", "l.n"),
    "exec": (["l = []"], "exec('l' + '.append(1)')", "l"),
    "eval": (["l = []"], "eval('l' + '.append(1)')", "l"),
    "globals()": (["l = []"], "globals()['l' * 1].append(1)", "l"),
    "a function that uses globals()": (["l = []\ndef f(n): globals()[n].append(1)"], "f('l')", "l"),
    "eval under another name": (["l = []; e = eval"], "e('l' + '.append(1)')", "l"),
    "sys.modules": (["l = []; import sys"], "getattr(sys.modules['__main__'], 'l').append(1)", "l"),
    "__main__": (["l = []"], "import __main__ as m; getattr(m, 'l').append(1)", "l"),
    "setattr of the module": (["l = []; import sys; m = sys.modules['__main__']"], "setattr(m, 'l', [3])", "l"),
    "a function's globals": (["l = []\ndef f(): pass"], "f.__globals__['l'].append(1)", "l"),
    "gc": (["l = ['find me']; import gc"],
           "[o.append(1) for o in gc.get_objects() if type(o) is list and o[:1] == ['find me'] and len(o) == 1]", "l"),
    "a frame": (["l = []; import sys"], "sys._getframe().f_globals['l'].append(1)", "l"),
    "ctypes": (["l = bytearray(b'abc'); import ctypes\nat = ctypes.addressof(ctypes.c_char.from_buffer(l))"],
               "ctypes.memmove(at, b'x', 1)", "bytes(l)"),
    "a C function": (["l = bytearray(b'abc'); import ctypes\nat = ctypes.addressof(ctypes.c_char.from_buffer(l))\n"
                      "mm = ctypes.memmove"], "mm(at, b'x', 1)", "bytes(l)"),
    "a thread": (["l = []\nimport threading, time\ngo = threading.Event()\ndef work():\n    go.wait(); l.append(1)\n"
                  "    while True: time.sleep(.01)\nt = threading.Thread(target=work, daemon=True); t.start()"],
                 "go.set(); time.sleep(.05)", "l"),
    "a task": (["l = []\nimport asyncio\nasync def work():\n    await go.wait(); l.append(1); await asyncio.sleep(99)\ngo = asyncio.Event()\n"
                "_ = asyncio.create_task(work())\nawait asyncio.sleep(0)"], "go.set(); await asyncio.sleep(.01)", "l"),
    "a signal handler": (["l = []\nimport signal, os\ndef got(*_): l.append(1)\n_ = signal.signal(signal.SIGUSR1, got)"],
                         "os.kill(os.getpid(), signal.SIGUSR1)", "l"),
    "a name bound by a function": (["l = 1\ndef f():\n    global l; l = 2"], "f()", "l"),
    "a name bound by two functions": (["l = 1\ndef f():\n    global l; l = 2\ndef g(): f()", "h = g"], "h()", "l"),
    "a function that was replaced after": (["l = []\ndef f(): l.append(1)"], "f()\ndef f(): pass", "l"),
    "a cached value": (["import functools\n@functools.lru_cache\ndef f(): return []\nl = f()"], "f().append(1)", "l"),
    "an object found in a class": (["l = []\nclass A: held = {'x': l}"], "A.held['x'].append(1)", "l"),
    "an instance's class": (["l = []\nclass A: held = {'x': l}\na = A()"], "a.held['x'].append(1)", "l"),
    "sorting by a key": (["l = []\nkeys = {'k': lambda v: l.append(v) or 0}"], "sorted([1, 2], key=keys['k'])", "l"),
}  # fmt: skip

# The same where only a look at all names finds it: the way leads through a module's own state, or C code's memory.
BY_VERIFICATION = {
    "a module's attribute": (["import os\nl = []\nos.mine = l"], "os.mine.append(1)", "l"),
    "a registered function": (["import codecs\nl = []\ncodecs.register_error('mine', lambda e: (l.append(1), ('', e.end))[1])"],
                              "'ä'.encode('ascii', 'mine')", "l"),
    "an address": (["l = bytearray(b'abc')\nimport ctypes, json\n"
                    "json.mine = (ctypes.c_char * 3).from_buffer(l)"], "json.mine[0] = b'x'", "bytes(l)"),
}  # fmt: skip


@pytest.mark.parametrize("way", AT_ONCE)
def test_a_change_is_found_at_once_that_comes_by(way: str) -> None:
    cells, change, probe = AT_ONCE[way]

    async def script(s: Session) -> None:
        await s.cells(*cells, "unrelated = 5")
        before = await s.run(f"print({probe})")
        await s.capture()
        await s.run(change)
        after = await s.run(f"print({probe})") if "signal" in way or "thread" in way or "task" in way else None
        await s.capture()
        after = after or await s.run(f"print({probe})")
        assert after != before
        await s.restore()
        assert await s.run(f"print({probe})") == after

    session(script)


@pytest.mark.parametrize("way", BY_VERIFICATION)
def test_a_change_is_found_by_the_verification_that_comes_by(way: str) -> None:
    cells, change, probe = BY_VERIFICATION[way]

    async def script(s: Session) -> None:
        await s.cells(*cells)
        await s.run(change)
        await s.capture()
        assert "l" not in s.saved()
        changed = await s.capture(whole=True)
        assert "l" in s.saved()
        assert list(changed.caught) == ["l"]
        after = await s.run(f"print({probe})")
        await s.restore()
        assert await s.run(f"print({probe})") == after

    session(script)


def test_a_key_of_the_namespace_that_is_no_name_is_nobodys() -> None:
    async def script(s: Session) -> None:
        await s.cells("kept = [1]; globals()[5] = [2]", "more = [3]")
        assert s.saved() == {"more"}

    session(script)
