"""Random cells over one namespace: aliases, mutation, closures, classes, files, calls, failures.

A `World` knows which names of which kinds there are, so that what is drawn runs. Drawing is pure: the same generator of
random numbers gives the same cells. Every cell is deterministic, but for those of `wild`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random


@dataclass
class World:
    """What there is. names: by kind; contexts: the type of each. numbers only ever grow, so that names are new.

    Cells may use three things of the host's: `lookup(word)` gives the same text each time, `effect(word)` must not be
    called twice, and `constant` is a dictionary.
    """

    seed: int
    number: int = 0
    names: dict[str, list[str]] = field(default_factory=lambda: {"table": ["constant"]})
    contexts: list[str] = field(default_factory=list)
    children: bool = True
    calls: bool = True

    def snapshot(self) -> World:
        return copy.deepcopy(self)

    def back_to(self, then: World) -> None:
        """As it was then, but for the numbers."""
        self.names, self.contexts = copy.deepcopy(then.names), list(then.contexts)

    def new(self, kind: str) -> str:
        """A new name of this kind."""
        self.number += 1
        name = f"{kind}_{self.number}"
        self.names.setdefault(kind, []).append(name)
        return name

    def have(self, *kinds: str) -> list[str]:
        return [name for kind in kinds for name in self.names.get(kind, [])]


def some(rng: Random, world: World) -> str:
    """An expression: a number, or any of the objects there are, so that they come to share."""
    known = world.have("items", "table", "thing", "pair", "raw", "words", "ring")
    return rng.choice(known) if known and rng.random() < 0.7 else str(rng.randrange(1000))


def items(rng: Random, world: World) -> str:
    numbers = ", ".join(str(rng.randrange(100)) for _ in range(rng.randrange(1, 6)))
    return f"{world.new('items')} = [{numbers}]"


def table(rng: Random, world: World) -> str:
    one, other = some(rng, world), some(rng, world)
    return f"{world.new('table')} = {{'a': {one}, 'b': [{other}, {one}], 'n': {rng.randrange(9)}}}"


def pair(rng: Random, world: World) -> str:
    parts = ", ".join(some(rng, world) for _ in range(3))
    return f"{world.new('pair')} = ({parts})"


def alias(rng: Random, world: World) -> str | None:
    kind = rng.choice(["items", "table", "thing", "raw", "add", "count", "ring"])
    if not (known := world.have(kind)):
        return None
    of = rng.choice(known)
    return f"{world.new(kind)} = {of}"


def append(rng: Random, world: World) -> str | None:
    if not (known := world.have("items")):
        return None
    into = rng.choice(known)
    return rng.choice(
        [
            f"{into}.append({some(rng, world)})",
            f"{into} += [{some(rng, world)}]",
            f"{into}[:] = {into}[-4:]",
            f"{into}.insert(0, {some(rng, world)})",
            f"exec('{into}.append({rng.randrange(99)})')",
            f"globals()['{into}'].append({rng.randrange(99)})",
            f"for each in list({into}): last = each",
        ]
    )


def put(rng: Random, world: World) -> str | None:
    if not (known := world.have("table")):
        return None
    into = rng.choice(known)
    world.number += 1
    return rng.choice(
        [
            f"{into}['k{world.number}'] = {some(rng, world)}",
            f"{into}.setdefault('b', []).append({some(rng, world)})",
            f"{into}.update(a={some(rng, world)})",
            f"{into}.pop('n', None)",
        ]
    )


def swap(rng: Random, world: World) -> str | None:
    if len(known := world.have("items")) < 2:
        return None
    one, other = rng.sample(known, 2)
    return f"{one}, {other} = {other}, {one}"


def function(rng: Random, world: World) -> str | None:
    if not (known := world.have("items")):
        return None
    seen, kept = rng.choice(known), rng.choice(known)
    name = world.new("add")
    return rng.choice(
        [
            f"def {name}(x, kept={kept}):\n    kept.append(x)\n    return len({seen}) + x",
            f"def {name}(x):\n    global {seen}\n    {seen} = [*{seen}, x]\n    return len({seen})",
            f"{name} = lambda x, kept={kept}: (kept.append(x), len({seen}))[1]",
        ]
    )


def closure(rng: Random, world: World) -> str:
    number = world.number + 1
    count, ring = world.new("count"), world.new("ring")
    return (
        f"def make_{number}():\n    kept, n = [], 0\n    def count():\n        nonlocal n\n        n += 1\n"
        f"        kept.append(n)\n        return n\n    return count, kept\n{count}, {ring} = make_{number}()"
    )


def use(rng: Random, world: World) -> str | None:
    if not (known := world.have("add", "count")):
        return None
    name = rng.choice(known)
    called = f"{name}()" if name.startswith("count") else f"{name}({rng.randrange(50)})"
    return f"{world.new('n')} = {called}"


def kind(rng: Random, world: World) -> str:
    old = world.have("Kind")
    if old and rng.random() < 0.3:
        name = rng.choice(old)  # instances of the one before keep it
    elif old and rng.random() < 0.3:
        base = rng.choice(old)
        name = world.new("Kind")
        return f"class {name}({base}):\n    def touch(self, x):\n        self.seen = x\n        return super().touch(x)"
    else:
        name = world.new("Kind")
    shared = rng.choice(["", "    made = []\n"])
    slots = rng.choice(["", "", "    __slots__ = ('v', 'seen')\n"]) if name not in old else ""
    head = rng.choice(["", "import dataclasses\n@dataclasses.dataclass(eq=False)\n"]) if not slots else ""
    init = "    v: object\n" if head else "    def __init__(self, v):\n        self.v = v\n"
    return (
        f"{head}class {name}:\n{shared if not head else ''}{slots}{init}"
        f"    def touch(self, x):\n        self.v = [self.v, x, {rng.randrange(99)}]\n        return x"
    )


def thing(rng: Random, world: World) -> str | None:
    if not (known := world.have("Kind")):
        return None
    of, value = rng.choice(known), some(rng, world)
    return f"{world.new('thing')} = {of}({value})"


def touch(rng: Random, world: World) -> str | None:
    if not (known := world.have("thing")):
        return None
    name = rng.choice(known)
    options = [f"{name}.touch({some(rng, world)})", f"{name}.v = {some(rng, world)}"]
    if rng.random() < 0.3:
        options = [f"{world.new('add')} = {name}.touch"]
    return rng.choice(options)


def raw(rng: Random, world: World) -> str:
    if (known := world.have("raw")) and rng.random() < 0.5:
        return f"{rng.choice(known)}.extend(b'{world.number}')"
    return f"{world.new('raw')} = bytearray(b'{world.number}' * {rng.randrange(1, 40)})"


def words(rng: Random, world: World) -> str:
    return f"{world.new('words')} = 'word {world.number} ' * {rng.randrange(1, 30)}"


def ring(rng: Random, world: World) -> str:
    value = some(rng, world)
    head = "import collections"
    name = world.new("ring")
    return rng.choice(
        [
            f"{head}\n{name} = collections.deque([{value}], maxlen=5)\n{name}.append({name})",
            f"{head}\n{name} = collections.defaultdict(list, a=[{value}])",
            f"{head}\n{name} = collections.Counter('abca')",
            f"{name} = {{1, 'two', 3.5}}",
            f"{name} = frozenset([1, 2])",
        ]
    )


def large(rng: Random, world: World) -> str:
    name = world.new("items")
    return rng.choice(
        [
            f"{name} = [{{'i': i, 'of': {world.number}}} for i in range({rng.choice([3000, 30000])})]",
            f"{name} = ['{world.number}' * {rng.choice([100_000, 1_500_000])}]",
        ]
    )


def iterator(rng: Random, world: World) -> str | None:
    if (known := world.have("walk")) and rng.random() < 0.6:
        return f"{world.new('n')} = next({rng.choice(known)}, None)"
    if not (of := world.have("items")):
        return None
    over = rng.choice(of)
    return f"{world.new('walk')} = iter({over})"


def forget(rng: Random, world: World) -> str | None:
    known = world.have("n", "words", "pair", "walk")
    if not known:
        return None
    name = rng.choice(known)
    world.names[name.partition("_")[0]].remove(name)
    return f"del {name}"


def from_context(rng: Random, world: World) -> str | None:
    if not world.contexts:
        return None
    index = rng.randrange(len(world.contexts))
    if world.contexts[index] == "list" and rng.random() < 0.5:
        return f"{world.new('items')} = context_{index}"
    return rng.choice(
        [
            f"{world.new('n')} = len(context_{index})",
            f"{world.new('pair')} = (context_{index}, len(context))",
        ]
    )


def file(rng: Random, world: World) -> str:
    world.number += 1
    head = "import pathlib\n"
    return head + rng.choice(
        [
            f"pathlib.Path('file_{world.number % 5}.txt').write_text('{world.number}' * 3)",
            f"pathlib.Path('file_{world.number % 5}.txt').unlink(missing_ok=True)",
            f"pathlib.Path('deep_{world.number % 3}').mkdir(exist_ok=True)\n"
            f"pathlib.Path('deep_{world.number % 3}/inner.bin').write_bytes(bytes(range({world.number % 200})))",
        ]
    )


def unsaved(rng: Random, world: World) -> str:
    """What no checkpoint can hold; told by name, wherever it is not there again."""
    world.number += 1
    name = f"lost_{world.number}"
    return rng.choice(
        [
            f"{name} = (each for each in range(9))",
            f"import threading\n{name} = threading.Lock()",
            f"{name} = open('/dev/null')",
        ]
    )


def query(rng: Random, world: World) -> str | None:
    if not world.calls:
        return None
    number = f"{world.number} of {world.seed}"
    name = world.new("words")
    return rng.choice(
        [
            f"{name} = llm_query('one {number}')",
            f"{name} = ' '.join(llm_query_batched([f'piece {{i}} {number}' for i in range({rng.randrange(2, 6)})]))",
            f"{name} = ' '.join(llm_query_batched(['equal {number}', 'equal {number}', 'other {number}']))",
            f"{name} = llm_query('first {number}')\n{name} = llm_query({name} + ' then {number}')",
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(3) as pool:\n"
            f"    {name} = ' '.join(pool.map(llm_query, [f'thread {{i}} {number}' for i in range(4)]))\n"
            "del pool",
            f"{name} = lookup('{number}')",
            f"try:\n    effect('{number}')\nexcept Exception:\n    pass\n{name} = 'x'",
        ]
    )


def child(rng: Random, world: World) -> str | None:
    if not (world.calls and world.children):
        return None
    world.number += 1
    ids = [f"{world.seed}-child-{world.number}-{i}" for i in range(rng.choice([1, 1, 2]))]
    prompts = ", ".join(f"'[plan {one}] do it'" for one in ids)
    name = world.new("words")
    return f"{name} = ' '.join(rlm_query_batched([{prompts}]))"


def fails(rng: Random, world: World) -> str:
    """Ends a cell; what it did before stays done."""
    return rng.choice(
        ["1 / 0", "raise ValueError('on purpose')", "nothing_of_this_name", "int('x')", "import sys\nsys.exit(3)"]
    )


def prints(rng: Random, world: World) -> str:
    known = world.have("items", "table", "ring")
    return f"print('shown', {', '.join(f'len({name})' for name in known[-4:]) or 0})"


Fragment = Callable[[Random, World], str | None]

FRAGMENTS: Sequence[tuple[Fragment, float]] = (
    (items, 3),
    (table, 2),
    (pair, 1.5),
    (alias, 3),
    (append, 4),
    (put, 2),
    (swap, 1),
    (function, 2),
    (closure, 1),
    (use, 2.5),
    (kind, 1.5),
    (thing, 2),
    (touch, 2),
    (raw, 1),
    (words, 1),
    (ring, 1),
    (large, 0.25),
    (iterator, 0.7),
    (forget, 0.7),
    (from_context, 1),
    (file, 0.8),
    (unsaved, 0.3),
    (prints, 1),
    (query, 2),
    (child, 0.25),
)


def cell(rng: Random, world: World, *, most: int = 4, failing: float = 0.08) -> str:
    """A cell of some fragments."""
    parts: list[str] = []
    wanted = rng.randint(1, most)
    while len(parts) < wanted:
        [(draw, _)] = rng.choices(FRAGMENTS, [weight for _, weight in FRAGMENTS])
        if (part := draw(rng, world)) is not None:
            parts.append(part)
    if rng.random() < failing:
        parts.append(fails(rng, world))
    return "\n".join(parts)


def wild(rng: Random, world: World) -> str:
    """A cell that does something else each time it runs."""
    number = f"{world.number} of {world.seed}"
    name = world.new("words")
    return rng.choice(
        [
            f"import random\n{name} = llm_query(f'dice {{random.random()}} {number}')",
            f"import time\n{name} = llm_query(f'at {{time.time_ns()}} {number}')",
            f"import uuid\n{name} = ' '.join(llm_query_batched([str(uuid.uuid4()) for _ in range(4)]))",
            "import random, threading, time\nfound = []\n"
            "def ask(i):\n    time.sleep(random.random() / 500)\n"
            f"    found.append(llm_query(f'late {{i}} {number}'))\n"
            "threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]\n"
            "[each.start() for each in threads]\n[each.join() for each in threads]\ndel threads\n"
            f"{name} = ' '.join(found)",
            f"import random\n{name} = [llm_query(f'some {{i}} {number}') for i in range(random.randint(1, 4))]",
            f"import random\nif random.random() < 0.5:\n    {name} = llm_query('heads {number}')\nelse:\n    1 / 0",
        ]
    )
