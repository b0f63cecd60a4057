"""Checkpoints of a namespace: what was bound before comes back equal, and the same objects are the same again."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import importlib.util

import pytest

from tests.heaps import Session, session

NUMPY = importlib.util.find_spec("numpy") is not None
numpy_only = pytest.mark.skipif(not NUMPY, reason="numpy is not installed here")

# What a probe, an expression, says before and after: cells that ran with a capture after each, and the probe.
KEPT = {
    "plain values": (["x, y, z = 1, 'two', 3.0", "big = 10 ** 400; n = None; e = ...; c = 1j"], "x, y, z, big, n, e, c"),
    "nested containers": (["d = {'a': [1, {2, 3}, (4, b'5')], 6: frozenset('7')}"], "d"),
    "an alias": (["a = [1]", "b = a", "b.append(2)"], "a, b, a is b"),
    "an object within two others": (["p = []", "q, r = [p], {'p': p}", "p.append(1)"], "q[0] is p, r['p'] is p, q"),
    "a cycle": (["c = []", "c.append(c)"], "c[0] is c, len(c)"),
    "one large text under two names": (["t = 'x' * 5000", "u = t"], "t is u, len(t)"),
    "a name bound anew": (["a = [1]", "b = a", "a = [2]"], "a, b"),
    "a name that is gone": (["a = b = [1]", "del a"], "'a' in globals(), b"),
    "an iterator": (["i = iter([1, 2, 3]); next(i)"], "list(__import__('copy').copy(i))"),
    "names that begin with underscores": (["_x = 1; __y = [2]"], "_x, __y"),
    "annotations of the module": (["x: int = 1"], "__annotations__, x"),
    "nan and zeros": (["n, m, z = float('nan'), float('inf'), -0.0"], "n, m, z"),
    "lone surrogates": (["s = '\\ud800' * 3; big = '\\udcff' * 3000"], "ascii(s), len(big), ascii(big[:2])"),
    # functions
    "a function": (["k = 2\ndef f(x, y=[3]): return x * k, y"], "f(1), f.__name__, f.__defaults__"),
    "a function that sees later rebinding": (["k = 1\ndef f(): return k", "k = 5"], "f()"),
    "a function that writes a global": (["n = 0\ndef f():\n    global n; n += 1; return n", "f()"], "(f(), n)"),
    "recursion": (["def fact(n): return n * fact(n - 1) if n else 1"], "fact(5)"),
    "a lambda in a dict": (["ops = {'+': lambda a, b: a + b}"], "ops['+'](1, 2)"),
    "closures over one cell": (
        ["def make():\n    n = 0\n    def inc():\n        nonlocal n; n += 1; return n\n    return inc, lambda: n",
         "inc, get = make()", "inc()"],
        "(inc(), get(), inc.__closure__[0] is get.__closure__[0])",
    ),
    "a closure that holds itself": (
        ["def make():\n    def f(n): return n and f(n - 1)\n    return f", "g = make()"],
        "g(3), g.__closure__[0].cell_contents is g",
    ),
    "closures that hold each other": (
        ["def make():\n    def even(n): return n == 0 or odd(n - 1)\n    def odd(n): return n != 0 and even(n - 1)\n"
         "    return even, odd", "even, odd = make(); del make"],
        "even(4), odd(4), even.__closure__[0].cell_contents is odd",
    ),
    "a cell without a value": (
        ["def make():\n    if 0: v = 1\n    def f(): return v\n    return f", "f = make()"], "len(f.__closure__)",
    ),
    "a list in a closure": (
        ["l = []\ndef make(l):\n    return lambda x: l.append(x)", "add = make(l)", "add(1)"], "add(2), l",
    ),
    "a default that is shared": (["l = [1]\ndef f(a=l): return a", "f().append(2)"], "f() is l, l"),
    "keyword defaults, annotations, attributes, doc": (
        ["def f(a, *, b: int = 2) -> str:\n    'doc'\nf.note = [1]"],
        "f.__kwdefaults__, f.__annotations__, f.note, f.__doc__",
    ),
    "a partial": (["import functools\ndef f(a, b): return a, b\np = functools.partial(f, [1])"], "p(2), p.func is f"),
    "a cached function": (
        ["import functools\n@functools.lru_cache(maxsize=9)\ndef f(n): return n * 2", "f(3)"],
        "f(3), f.cache_parameters()['maxsize'], f.__name__",
    ),
    "a decorated function": (
        ["import functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a) * 2\n    return g",
         "@twice\ndef f(x): return x + 1"],
        "f(1), f.__name__, f.__wrapped__(1)",
    ),
    "a bound method": (
        ["class A:\n    def __init__(self): self.n = 0\n    def inc(self): self.n += 1; return self.n",
         "a = A(); m = a.inc", "m()"],
        "m(), a.n, m.__self__ is a, m.__func__ is A.inc, type(a) is A",
    ),
    "a method taken from its class": (["class A:\n    def f(self): return 1", "m = [A.f]"], "m[0] is A.f"),
    "an imported function": (["from math import sqrt\nfrom os.path import join as j"], "sqrt(4), j('a', 'b')"),
    "a method that a module offers": (["from random import randint"], "randint.__self__ is __import__('random')._inst"),
    "the methods of builtins": (["l = []; add = l.append", "add(1)"], "add(2), l, add.__self__ is l"),
    "a coroutine function": (["async def f(): return 5"], "__import__('asyncio').iscoroutinefunction(f)"),
    "functions of exec": (["d = {}; exec('def f(): return 7', d); f = d['f']"], "f()"),
    # classes
    "an instance of a class": (["class A: pass", "a = A(); a.x = [1]"], "type(a) is A, a.x, isinstance(a, A)"),
    "an instance of a class that was replaced": (
        ["class A:\n    v = 1", "a = A()", "class A:\n    v = 2", "b = A()"], "type(a) is A, type(b) is A, a.v, b.v",
    ),
    "two instances of a class that was replaced": (
        ["class A:\n    v = 1", "a, b = A(), A()", "class A: pass"], "type(a) is type(b), type(a) is A, a.v",
    ),
    "an instance of a class without a name": (["class A: pass", "a = A()", "del A"], "type(a).__name__"),
    "a class under another name": (["class A: pass", "a = A()", "B = A", "del A"], "type(a) is B"),
    "super and __class__": (
        ["class A:\n    def f(self): return 'A'", "class B(A):\n    def f(self): return super().f() + __class__.__name__",
         "b = B()"],
        "b.f(), B.__mro__[1] is A",
    ),
    "class attributes": (["class A:\n    items = []", "a = A(); x = a.items", "x.append(1)"], "a.items is x, A.items, x"),
    "static, class methods and properties": (
        ["class A:\n    def __init__(self): self._v = 1\n    @staticmethod\n    def s(): return 's'\n    @classmethod\n"
         "    def c(cls): return cls.__name__\n    @property\n    def p(self): return self._v\n    @p.setter\n"
         "    def p(self, v): self._v = v",
         "a = A(); a.p = 5"],
        "A.s(), A.c(), a.p, a.c()",
    ),
    "slots": (
        ["class A:\n    __slots__ = ('x', 'y')\n    def __init__(self): self.x = [1]", "a = A()"],
        "a.x, hasattr(a, 'y'), hasattr(a, '__dict__')",
    ),
    "a dataclass": (
        ["from dataclasses import dataclass, field, fields, replace\n@dataclass(order=True)\nclass P:\n    x: int\n"
         "    y: list = field(default_factory=list)", "p = P(1)"],
        "p, replace(p, x=2), P(1) == p, fields(p)[0].default is __import__('dataclasses').MISSING, repr(P.__match_args__)",
    ),
    "a frozen dataclass with slots": (
        ["from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int", "d = {P(1): 2}"], "d[P(1)]",
    ),
    "an Enum": (
        ["import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 'b'\n    def low(self): return self.name.lower()",
         "c = C.RED; l = [C.BLUE, c]"],
        "c is C.RED, l[0] is C.BLUE, c.low(), list(C), C('b')",
    ),
    "a Flag": (["import enum\nclass F(enum.Flag):\n    A = 1\n    B = 2", "f = F.A | F.B"], "f == F.A | F.B, F.A in f"),
    "a namedtuple": (
        ["import collections\nP = collections.namedtuple('P', 'x y')", "p = P(1, [2])"], "p, p.x, type(p) is P, p._fields",
    ),
    "a typed NamedTuple": (["import typing\nclass N(typing.NamedTuple):\n    x: int = 3", "n = N()"], "n, type(n) is N"),
    "a TypedDict": (["import typing\nclass T(typing.TypedDict):\n    x: int", "t = T(x=1)"], "t, T.__annotations__"),
    "an abstract class": (
        ["import abc\nclass B(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...", "class D(B):\n    def f(self): return 1",
         "d = D(); B.register(int)"],
        "d.f(), isinstance(d, B), isinstance(1, B), B.__abstractmethods__",
    ),
    "a generic class": (
        ["import typing\nT = typing.TypeVar('T')\nclass S(typing.Generic[T]):\n    def __init__(self, v: T): self.v = v",
         "s = S[int](3)"],
        "s.v, S.__parameters__[0] is T, S.__orig_bases__[0].__args__[0] is T",
    ),
    "a protocol": (
        ["import typing\n@typing.runtime_checkable\nclass P(typing.Protocol):\n    def f(self): ...",
         "class A:\n    def f(self): pass", "a = A()"],
        "isinstance(a, P), isinstance(1, P)",
    ),
    "a metaclass, which does not make its classes twice": (
        ["made = []\nclass M(type):\n    def __new__(m, n, b, d): made.append(n); return super().__new__(m, n, b, d)\n"
         "    def __len__(cls): return 7", "class A(metaclass=M): pass", "a = A()"],
        "made, len(A), type(A) is M, type(a) is A",
    ),
    "a base that keeps a list of its subclasses": (
        ["class Base:\n    known = []\n    def __init_subclass__(cls): Base.known.append(cls)", "class A(Base): pass",
         "a = A()"],
        "[c.__name__ for c in Base.known], Base.known[0] is A, type(a) is A",
    ),
    "a nested class": (["class A:\n    class B: pass", "b = A.B()"], "type(b) is A.B"),
    "a cached property": (
        ["import functools\nclass A:\n    @functools.cached_property\n    def p(self): return [1]", "a = A(); x = a.p"],
        "a.p is x, A().p",
    ),
    "a class made in a function": (
        ["def make():\n    class A:\n        def me(self): return __class__\n    return A", "B = make()", "b = B()"],
        "type(b) is B, b.me() is B",
    ),
    "an object with its own way to be pickled": (
        ["class A:\n    def __init__(self, v): self.v = v\n    def __reduce__(self): return A, (self.v,)", "a = A([1]); l = a.v"],
        "a.v is l, type(a) is A",
    ),
    "an object with getstate and setstate": (
        ["class A:\n    def __getstate__(self): return {'n': self.n + 1}\n    def __setstate__(self, s): self.n = s['n'] - 1",
         "a = A(); a.n = 4"],
        "a.n",
    ),
    "an exception with its notes": (["e = ValueError('bad', 3)"], "repr(e), e.args"),
    "subclasses of builtins": (
        ["class L(list): pass\nclass D(dict):\n    def __missing__(self, k): return k", "l = L([1]); l.x = 2; d = D(a=1)"],
        "l, l.x, type(l) is L, d['q'], d['a']",
    ),
    # others
    "collections": (
        ["import collections\nd = collections.deque([1], maxlen=2); c = collections.Counter('aab')\n"
         "dd = collections.defaultdict(list, a=[1]); o = collections.OrderedDict(b=1)", "dd['n'].append(d)"],
        "d, d.maxlen, c, dd, dd['n'][0] is d, o",
    ),
    "dates, decimals, paths, patterns": (
        ["import datetime, decimal, pathlib, re, uuid\nv = [datetime.date(2020, 1, 2), decimal.Decimal('1.10'), "
         "pathlib.Path('a/b'), re.compile('x+'), uuid.UUID(int=5), datetime.timezone.utc]"],
        "v",
    ),
    "modules": (["import json as j, os.path, xml.etree.ElementTree", "from concurrent import futures"],
                "j.__name__, os.path.__name__, xml.etree.ElementTree.__name__, futures.__name__"),
    "standard output": (["import sys\nout = sys.stdout; w = out.write"], "out is sys.stdout"),
    "a logger": (["import logging\nlog = logging.getLogger('mine')"], "log is logging.getLogger('mine')"),
    "a bytearray and its view": (
        ["b = bytearray(b'abc'); v = memoryview(b)", "v[0] = 120"], "bytes(b), v.obj is b, bytes(v)",
    ),
    "an array and its view": (["import array\na = array.array('i', [1, 2]); v = memoryview(a)", "v[0] = 9"], "a, v.obj is a"),
    "functions under two names": (["def f(): return 1", "g = f"], "f is g"),
    "a random generator": (["import random\nr = random.Random(4); r.random()"], "r.getstate()[1][5], r.getstate()[1][-1]"),
    "a type alias": (["import typing\nP = list[int]; Q = typing.Optional[int]"], "P, Q"),
    "a singleton of a module": (["import dataclasses\nm = [dataclasses.MISSING]"], "m[0] is dataclasses.MISSING"),
    "a deep nest": (["l = []\nfor _ in range(20_000): l = [l]"], "len(l)"),
    "a linked list": (
        ["class N:\n    def __init__(self, n): self.n = n\nl = None\nfor _ in range(5_000): l = N(l)"], "type(l.n) is N",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_a_restored_namespace_says_what_the_old_one_said(what: str) -> None:
    cells, probe = KEPT[what]

    async def script(s: Session) -> None:
        await s.cells(*cells)
        before = await s.run(f"print(repr(({probe})))")
        assert await s.restore() == {}
        assert await s.run(f"print(repr(({probe})))") == before

    session(script)
