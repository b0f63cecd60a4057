"""A random session as its user would write it down: steps in their order, and what the model says to each question.

Drawn from a seed, and pure. The model's plans go by names that stand in the questions, so that a provider that knows
the script answers from the messages alone; how far a turn is follows from what the model was told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rlm.types import Messages
from tests.crash import cells, probe
from tests.crash.cells import World

DEAD = "WorkerDied: "  # how the model is told that a cell took its worker along
CELL = re.compile(r"<cell \d+>")
PLAN = re.compile(r"\[plan ([\w-]+)\]")


@dataclass(frozen=True)
class Spoken:
    """One reply of a plan. dies: its cell ends its worker, which is no accident."""

    text: str
    dies: bool = False


@dataclass(frozen=True)
class Step:
    """Something that the user does. what: see `life.Driver`; name: unique in the script. value: an input, a piece of
    code, or the name of the turn that is gone back to. within: what is done in a fork."""

    what: str
    name: str
    value: Any = None
    question: str | None = None
    keyed: bool = False
    dies: bool = False
    within: Sequence[Step] = ()


@dataclass(frozen=True)
class Script:
    """steps: of the user. plans: the model's replies by the names of the plans; None where it refuses to answer.

    accidents: workers may be killed, so that answers do not depend on how often a cell was tried. wild: its cells do
    something else each time, so that no other run can be compared with it. idle: seconds until an unused worker is
    released.
    """

    seed: int
    steps: Sequence[Step]
    plans: Mapping[str, Sequence[Spoken] | None]
    accidents: bool
    wild: bool
    idle: float | None

    def reply(self, messages: Messages) -> str | None:
        """What the model says; None for a request that it refuses. A function of the messages alone."""
        if messages[0]["role"] != "system":
            return f"re {_digest(messages[-1]['content'])}"
        plan = self.plans[_plan(messages)]
        if plan is None:
            return None
        spoken = plan[min(self._place(messages), len(plan) - 1)]
        seen = "-" if self.accidents else _digest("\n".join(_told(messages)))
        return spoken.text.replace("<told>", seen)

    def signature(self, messages: Messages) -> str:
        """What makes a request the same as another one. Of an opening the name of the plan counts, and where accidents
        happen, how far the plan is; of all else the text."""
        if messages[0]["role"] != "system":
            return _digest("\0".join(message["content"] for message in messages))
        if self.accidents:
            return f"{_plan(messages)} {self._place(messages)}"
        return _digest("\0".join([_plan(messages), *_told(messages)]))

    def _place(self, messages: Messages) -> int:
        """How far the plan is: a cell whose worker was killed is tried again."""
        plan, place = self.plans[_plan(messages)] or (), 0
        for said in _told(messages):
            if DEAD not in said or plan[min(place, len(plan) - 1)].dies:
                place += 1
        return place


def _plan(messages: Messages) -> str:
    """The plan of a turn, or a child: its opening names it last."""
    name: str = PLAN.findall(messages[1]["content"])[-1]
    return name


def _told(messages: Messages) -> list[str]:
    """What the model was told since the opening. A new worker counts its cells anew in tracebacks."""
    return [CELL.sub("<cell>", message["content"]) for message in messages[2:] if message["role"] == "user"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def fenced(*codes: str) -> str:
    return "\n".join(f"```repl\n{code}\n```" for code in codes)


def draw(seed: int, *, length: int | None = None) -> Script:
    """The script of this seed. length: about how many steps."""
    return _Drawing(seed, length).script()


class _Drawing:
    def __init__(self, seed: int, length: int | None) -> None:
        self.rng = Random(f"script {seed}")
        self.seed = seed
        self.accidents = self.rng.random() < 0.4
        self.wild = self.rng.random() < 0.1
        self.length = length or self.rng.randint(4, 10)
        self.world = World(seed, children=self.rng.random() < 0.5)
        self.plans: dict[str, Sequence[Spoken] | None] = {}
        self.ends: dict[str, World] = {}
        self.began = self.world.snapshot()
        self.count = 0

    def script(self) -> Script:
        steps: list[Step] = []
        while len(steps) < self.length:
            steps.append(self.step(steps))
        steps += [Step("variables", self.name()), self.probe(), Step("given", self.name())]
        idle = self.rng.choice([None, None, 0.02])
        return Script(self.seed, steps, self.plans, self.accidents, self.wild, idle)

    def name(self) -> str:
        self.count += 1
        return f"{self.seed}-{self.count}"

    def step(self, before: Sequence[Step]) -> Step:
        draws = {
            self.turn: 6,
            self.run: 4,
            self.add: 1.5,
            self.probe: 0.6,
            self.reopen: 0.7,
            self.pause: 0.5,
            self.collect: 0.3,
            self.variables: 0.4,
            self.rewind: 0.5 if self.ends else 0,
            self.fork: 0.5 if self.ends else 0,
            self.carry: 0.3 if before else 0,
        }
        [one] = self.rng.choices(list(draws), list(draws.values()))
        return one()

    def turn(self) -> Step:
        name, rng = self.name(), self.rng
        question: str | None = f"[plan {name}] go on"
        value, what = None, "ask"
        if rng.random() < 0.4:
            what, value = "completion", self.value(name)
            if isinstance(value, str) and rng.random() < 0.3:
                value, question = f"[plan {name}] go on with {value}", None
            self.world.contexts.append(type(value).__name__)
        if rng.random() < 0.06 and question is not None:
            self.plans[name] = None
        else:
            self.plans[name] = self.plan(rng.choice([0, 1, 1, 2, 2, 3]))
        self.ends[name] = self.world.snapshot()
        keyed = question is None or rng.random() < 0.2
        if self.plans[name] is None:
            keyed = False  # a turn that failed has no recorded answer: with a key, it would be asked again
        return Step(what, name, value, question, keyed=keyed)

    def plan(self, replies: int) -> Sequence[Spoken]:
        spoken = []
        for _ in range(replies):
            if self.rng.random() < 0.03:
                spoken.append(Spoken(fenced("import os\nos._exit(3)"), dies=True))
            elif self.rng.random() < 0.03:
                spoken.append(Spoken("I think about it first."))
            elif self.accidents or self.rng.random() < 0.8:
                spoken.append(Spoken(fenced(self.cell())))
            else:
                spoken.append(Spoken(fenced(self.cell(), self.cell())))
        known = self.world.have("items", "table", "ring")[-3:]
        shown = ", ".join(f"len({each})" for each in known)
        code = (
            f"try:\n    shown = [{shown}]\nexcept NameError as error:\n    shown = str(error)\n"
            "answer['content'] = '<told> ' + repr(shown)\nanswer['ready'] = True"
        )
        return [*spoken, Spoken(fenced(code))]

    def cell(self) -> str:
        if self.wild and self.rng.random() < 0.5:
            return cells.wild(self.rng, self.world)
        code = cells.cell(self.rng, self.world)
        for child in PLAN.findall(code):
            inner = World(self.seed, number=1000 * len(self.plans), names={}, children=False)
            plan = [
                Spoken(fenced(cells.cell(self.rng, inner, most=2, failing=0))) for _ in range(self.rng.choice([0, 1]))
            ]
            self.plans[child] = [*plan, Spoken(fenced("answer['content'] = '<told>'\nanswer['ready'] = True"))]
        return code

    def value(self, name: str) -> Any:
        rng = self.rng
        return rng.choice(
            [
                f"text {name} " * rng.randint(1, 50),
                f"text {name} " * rng.randint(1, 50),
                f"a large text {name} " * 40_000,
                {"name": name, "rows": [rng.randrange(9) for _ in range(4)]},
                [name, 1, 2],
                name.encode() * 20,
            ]
        )

    def run(self) -> Step:
        name = self.name()
        if self.rng.random() < 0.03:
            return Step("run", name, f"# {name}\nimport os\nos._exit(4)", dies=True)
        return Step("run", name, f"# {name}\n{self.cell()}")

    def add(self) -> Step:
        name = self.name()
        value = self.value(name)
        self.world.contexts.append(type(value).__name__)
        return Step("add", name, value)

    def probe(self) -> Step:
        name = self.name()
        return Step("run", name, f"# {name}{probe.SOURCE}")

    def reopen(self) -> Step:
        return Step("reopen", self.name())

    def pause(self) -> Step:
        return Step("pause", self.name())

    def collect(self) -> Step:
        return Step("collect", self.name())

    def variables(self) -> Step:
        return Step("variables", self.name())

    def rewind(self) -> Step:
        to = self.rng.choice([*list(self.ends)[-3:], None] if self.rng.random() < 0.9 else [None])
        self.world.back_to(self.began if to is None else self.ends[to])
        return Step("rewind", self.name(), to)

    def carry(self) -> Step:
        return Step("carry", self.name(), within=[self.probe()])

    def fork(self) -> Step:
        name, after = self.name(), self.rng.choice([*list(self.ends)[-2:], None])
        here = self.world.snapshot()
        if after is not None:
            self.world.back_to(self.ends[after])
        ends, self.ends = self.ends, {}
        within = [self.rng.choice([self.turn, self.run])(), self.probe()]
        self.world.back_to(here)
        self.ends = ends
        return Step("fork", name, after, within=within)
