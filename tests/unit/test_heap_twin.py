"""Random programs, brought back from a checkpoint after any of their cells, beside a twin that never was."""

# ruff: noqa: E501 - programs in tables, a line each

from __future__ import annotations

import asyncio
import importlib.util
import os

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.heaps import Session

NUMPY = importlib.util.find_spec("numpy") is not None

# Says all of a namespace that a program could tell: values, types, and which objects are one and the same.
PROBE = """
def __look():
    import types, json
    numbers, out = {}, []
    kept = []
    def see(o, depth=0):
        kind = type(o)
        if kind in (int, float, bool, complex, type(None), bytes) or (kind is str and len(o) < 1025):
            return repr(o)[:80]
        if isinstance(o, types.ModuleType):
            return "module " + o.__name__
        if isinstance(o, type) and o.__module__ != "__main__" or isinstance(o, types.BuiltinFunctionType):
            return "imported " + o.__name__
        if kind is types.FunctionType and o.__module__ not in ("__main__",):
            return "imported " + o.__name__
        if kind in (types.CodeType, types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType):
            return kind.__name__
        kept.append(o)
        one = id(o) if kind not in (tuple, frozenset, types.MethodType) else None
        if one in numbers:
            return "#%d" % numbers[one]
        if one is not None:
            numbers[one] = len(numbers)
        me = "#%d:" % numbers[one] if one is not None else ""
        if kind is str:
            return me + "text %d %s" % (len(o), o[:20])
        parts = []
        if isinstance(o, (list, tuple)):
            parts += [see(x) for x in list(o)]
        elif isinstance(o, dict):
            parts += [see(k) + "=" + see(v) for k, v in o.items()]
        elif isinstance(o, (set, frozenset)):
            parts += sorted(see(x) for x in o)
        elif kind is bytearray:
            parts.append(bytes(o).hex())
        elif kind is memoryview:
            parts.append(see(o.obj))
        elif kind.__name__ == "ndarray":
            base = o
            while getattr(base, "base", None) is not None:
                base = base.base
            base = base.obj if type(base) is memoryview else base  # which one leads to the memory makes no difference
            parts += [str(o.dtype), repr(o.shape), see(o.tolist()) if o.dtype.hasobject else repr(o.tolist())[:200], see(base) if base is not o else ""]
        elif kind is types.MethodType:
            parts += [see(o.__func__), see(o.__self__)]
        elif kind is types.FunctionType:
            parts += [o.__qualname__, repr(o.__code__.co_names), see(o.__defaults__), see(o.__kwdefaults__), see(o.__dict__)]
            for cell in o.__closure__ or ():
                kept.append(cell)
                number = numbers.setdefault(id(cell), len(numbers))
                try:
                    parts.append("cell%d %s" % (number, see(cell.cell_contents)))
                except ValueError:
                    parts.append("empty")
        elif isinstance(o, type):
            parts += [o.__qualname__, see(o.__bases__)]
            parts += [k + "=" + see(v) for k, v in sorted(vars(o).items())
                      if k not in ("__dict__", "__weakref__", "__doc__", "__module__", "__slotnames__", "__annotations__",
                                   "__firstlineno__", "__static_attributes__", "_abc_impl", "__getstate__")]
        elif kind.__name__ in ("staticmethod", "classmethod"):
            parts.append(see(o.__func__))
        elif kind.__name__ == "partial":
            parts += [see(o.func), see(o.args), see(o.keywords)]
        if not isinstance(o, type):
            parts.append(see(kind))
            if hasattr(o, "__dict__") and kind not in (types.FunctionType,):
                parts.append(see(o.__dict__))
            for slot in getattr(kind, "__slots__", ()):
                parts.append(slot + "=" + (see(getattr(o, slot)) if hasattr(o, slot) else "unset"))
        return me + kind.__name__ + "(" + ", ".join(parts) + ")"
    hidden = ("llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS")
    names = sorted(n for n in globals() if not n.startswith("__") and n not in hidden)
    return "\\n".join(n + ": " + see(globals()[n]) for n in names)
print(__look())
"""

VARIABLES = [f"v{i}" for i in range(5)]
FUNCTIONS = ["f0", "f1", "f2"]
CLASSES = ["C0", "C1"]
name = st.sampled_from(VARIABLES)
function = st.sampled_from(FUNCTIONS)
kind = st.sampled_from(CLASSES)
anything = st.sampled_from([*VARIABLES, *FUNCTIONS, *CLASSES])
number = st.integers(0, 3)


def template(text: str, **parts: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return st.fixed_dictionaries(parts).map(lambda found: text.format(**found))


MADE = [
    template("{a} = [{x}, {n}, {y}]", a=name, x=anything, y=anything, n=number),
    template("{a} = {{'k': {x}, {n}: [{y}]}}", a=name, x=anything, y=anything, n=number),
    template("{a} = ({x}, [{y}])", a=name, x=anything, y=anything),
    template("{a} = {x}", a=name, x=anything),
    template("{a} = {n}", a=name, n=number),
    template("{a} = 't' * (1000 + 100 * {n})", a=name, n=number),
    template("{a} = {c}()", a=name, c=kind),
    template("{a} = {c}(); {a}.x = {y}", a=name, c=kind, y=anything),
    template("{a} = bytearray(b'abcd'); {b} = memoryview({a})", a=name, b=name),
    template("{a} = {b}.m", a=name, b=anything),
    template("{a} = {c}.shared", a=name, c=kind),
    template("{a} = __import__('functools').partial({f}, {x})", a=name, f=function, x=anything),
    template("{a} = {f}.__closure__[0].cell_contents", a=name, f=function),
    template("{a}, {b} = {b}, {a}", a=name, b=name),
    template("{a} = {{1, 2, 'x'}}; {b} = frozenset([{a} and 1])", a=name, b=name),
    template("import collections; {a} = collections.defaultdict(list, k={x})", a=name, x=anything),
]
CHANGED = [
    template("{a}.append({x})", a=name, x=anything),
    template("{a}['k'] = {x}", a=name, x=anything),
    template("{a}[0] = {n}", a=name, n=number),
    template("{a}.x = {y}", a=anything, y=anything),
    template("{a}.x.append({y})", a=anything, y=anything),
    template("{a}[0].append({y})", a=name, y=anything),
    template("{a}['k'].append({n})", a=name, n=number),
    template("{f}({x})", f=function, x=anything),
    template("{a}({x})", a=name, x=anything),
    template("{a} = {f}({x})", a=name, f=function, x=anything),
    template("{a}.m({x})", a=name, x=anything),
    template("{c}.shared.append({x})", c=kind, x=anything),
    template("{a}.shared = {x}", a=anything, x=anything),
    template("{a}.__class__ = {c}", a=name, c=kind),
    template("exec('{a}.append({n})')", a=name, n=number),
    template("globals()['{a}'] = {x}", a=name, x=anything),
    template("globals()['{a}'].append({n})", a=name, n=number),
    template("del {x}", x=anything),
    template("del {x}", x=anything),
    template("{a}.pop()", a=name),
    template("{f}.__defaults__ = ({x},)", f=function, x=anything),
]
DEFINED = [
    template("def {f}(x=None):\n    {a}.append(x)\n    return {a}", f=function, a=name),
    template("def {f}(x=None):\n    global {a}\n    {a} = [x]\n    return x", f=function, a=name),
    template("def {f}(x={a}):\n    x.append(1)\n    return x", f=function, a=name),
    template("def {f}(x=None): return {g}(x)", f=function, g=function),
    template(
        "def make():\n    n, held = 0, {a}\n    def one(x=None):\n        nonlocal n; n += 1; held.append(n); return held\n"
        "    def two(x=None):\n        return n, held, one\n    return one, two\n{f}, {g} = make()",
        f=function, g=function, a=name,
    ),
    template("{f} = lambda x=None, y={a}: y", f=function, a=name),
    template("{a} = {{'k': lambda x=None: {b}.append(x)}}", a=name, b=name),
    template("class {c}:\n    shared = []\n    def m(self, x=None):\n        self.x = x; return {a}", c=kind, a=name),
    template("class {c}:\n    shared = {a}\n    def m(self, x=None): {a}.append(x)", c=kind, a=name),
    template("class {c}({d}):\n    def m(self, x=None): return super().m(x), __class__", c=kind, d=kind),
    template("class {c}:\n    __slots__ = ('x', 'y')\n    def m(self, x=None): self.y = x", c=kind),
    template("class {c}:\n    held = {f}\n    class Inner: shared = {a}\n    m = held", c=kind, f=function, a=name),
    template("{a} = {c}.Inner()", c=kind, a=name),
    template("class {c}(list):\n    shared = [1]\n    def m(self, x=None): self.append(x)", c=kind),
    template("def make():\n    class {c}:\n        shared = []\n        def m(self, x=None): return __class__\n    return {c}\n"
             "{d} = make()", c=kind, d=kind),
]  # fmt: skip
VIEWS = [
    template("import numpy; {a} = numpy.arange(6); {b} = {a}[::2]", a=name, b=name),
    template("{a} = {b}[1:]", a=name, b=name),
    template("{a} = {b}.reshape(2, 3); {c} = {a}.T", a=name, b=name, c=name),
    template("{a}[0] = {n}", a=name, n=number),
    template(
        "import numpy; {a} = numpy.frombuffer({b} if type({b}) is bytearray else bytearray(2), numpy.uint8)",
        a=name,
        b=name,
    ),
    template(
        "import numpy; {a} = numpy.array([{x}, {n}, None], object); {b} = {a}[1:]", a=name, b=name, x=name, n=number
    ),
]
statement = st.one_of(MADE * 2 + CHANGED * 3 + DEFINED * 2 + (VIEWS if NUMPY else []))
cells = st.lists(st.tuples(statement, st.booleans()), min_size=2, max_size=14)
START = "v0 = []; v1 = {}; v2 = v3 = [1]; v4 = 5\ndef f0(x=None): return x\nf1 = f2 = f0\nclass C0:\n    shared = []\n    def m(self, x=None): self.x = x\nclass C1(C0): pass"


async def lives(program: list[tuple[str, bool]]) -> tuple[str, str]:
    """What the probe says of the program, restored where it says so, and of its twin."""
    async with Session() as s, Session() as twin:
        for code, restored in [(START, False), *program]:
            one, other = await s.kernel.run(code), await twin.kernel.run(code)
            assert (one.error and one.error.type) == (other.error and other.error.type), (one, other)
            await s.capture()
            if restored:
                assert await s.restore() == {}
        await s.capture(whole=True)
        assert not s.change.caught
        assert await s.restore() == {}
        return await s.run(PROBE), await twin.run(PROBE)


@settings(
    max_examples=int(os.environ.get("HEAP_PROGRAMS", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to make a failing program shorter takes minutes
    derandomize="HEAP_PROGRAMS" not in os.environ,
)
@given(cells)
def test_a_program_that_is_restored_after_any_cell_is_what_its_twin_is(program: list[tuple[str, bool]]) -> None:
    restored, twin = asyncio.run(lives(program))
    assert restored == twin
