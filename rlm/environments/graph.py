"""What shares what in a namespace: which of its names have to be saved together.

Two names belong together if from both of them the same object can be reached that may change or be told apart: then
they are saved as one, so that they still share it afterwards. Functions and classes that the session has bound to a
name ("definitions") are where a way ends: what refers to one refers to it by name.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import builtins
import gc
import types

from definitions import Definitions
from edges import ATOMS, CONTAINERS, GIVEN, SIMPLE, contained, expand_definition, is_simple, rule_for
from names import code_names

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from edges import Rule


class OverBudget(BaseException):
    """There is more to look at than may be done while a cell waits. No error of any value's."""


class Walk:
    """A walk over what can be reached from names, each of which is a root with a number.

    budget: how many objects may be looked at before `OverBudget`; None for any number. given: values of the host's
    that are referred to by name, by id. group_of: what else to walk from with a name that was not among the candidates.
    After `run` the roots that share something are in one of `groups`.
    """

    def __init__(
        self, definitions: Definitions, given: Mapping[int, str], budget: int | None, group_of: Callable[[str], Any]
    ) -> None:
        self.definitions, self.group_of = definitions, group_of
        self.pinned: set[int] = set()  # ids of texts that will not be saved again
        self.namespace = definitions.namespace
        self.left = float("inf") if budget is None else float(budget)
        self.names: list[str] = []
        self.number: dict[str, int] = {}
        self.parent: list[int] = []
        self.refs: list[set[str]] = []
        self.uses: list[set[str]] = []
        self.flags: list[set[str]] = []  # hooks: pickling runs the user's code; restless: not understood; given: met
        # Of what was seen: the root that came there first; of a definition the name that stands for it, "" for what an
        # import brings back; and what is no matter at all.
        self.seen: dict[int, int | str] = dict.fromkeys((id(self.namespace), id(builtins.__dict__), id(builtins)), -1)
        self.seen.update(dict.fromkeys(given, GIVEN))
        self.inside: set[int] = set()  # parts of a class that were gone through from the class itself
        self.rules: dict[type, Rule | None] = dict.fromkeys(CONTAINERS, contained)
        self.alive: list[Any] = []  # what was made on the way, so that no other object gets its id

    def add(self, name: str) -> int:
        number = self.number.get(name)
        if number is None:
            number = self.number[name] = len(self.names)
            self.names.append(name)
            self.parent.append(number)
            for column in (self.refs, self.uses, self.flags):
                column.append(set())
        return number

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self.parent[max(one, other)] = min(one, other)

    def pull(self, number: int, name: str) -> None:
        """A definition needs another one as it is, not by name: both belong together, and so do their groups."""
        if name not in self.number:
            for member in self.group_of(name):
                self.add(member)
        self.join(number, self.add(name))

    def run(self, names: Iterable[str]) -> list[list[str]]:
        """Walk from all of the names, and from those that turn out to belong to them; returns the groups."""
        for name in names:
            self.add(name)
        done = 0
        while True:
            while done < len(self.names):
                self.reach(done, self.namespace[self.names[done]])
                done += 1
            groups: dict[int, list[str]] = {}
            for number, name in enumerate(self.names):
                groups.setdefault(self.find(number), []).append(name)
            for number, members in groups.items():
                # A group that others refer to by name refers to none itself, so that one can be loaded after another.
                if len(members) > 1 and any(name in self.definitions.objects for name in members):
                    for ref in {ref for name in members for ref in self.refs[self.number[name]]}:
                        self.pull(number, ref)
            if done == len(self.names) and len(groups) == len({self.find(n) for n in range(len(self.names))}):
                return [sorted(members) for members in groups.values()]

    def reach(self, number: int, root: Any) -> None:
        seen, rules = self.seen, self.rules
        todo: list[Any] = [root]
        mine = ""
        if self.names[number] in self.definitions.objects:
            todo = list(expand_definition(self, number, root))
            mine = self.definitions.name(root) or ""
            seen[id(root)] = mine
            self.inside.add(id(root))
            self.pull(number, mine)
        while todo:
            self.spend(len(todo))
            found: list[Any] = []
            plain: list[Any] = []
            for obj in todo:
                kind = type(obj)
                if kind in ATOMS or (kind in SIMPLE and is_simple(obj)):
                    continue
                key = id(obj)
                other = seen.get(key)
                if other is None:
                    seen[key] = number
                    rule = rules[kind] if kind in rules else self.rule(kind)
                    if rule is None:
                        plain.append(obj)
                    elif kind in CONTAINERS:
                        found.extend(rule(self, number, obj))
                    else:
                        more = rule(self, number, obj)
                        if seen[key] is number:
                            found.extend(more)
                        else:
                            found.append(obj)  # once more, by the name that stands for it
                elif other is not number and other != -1:
                    found.extend(self.meet(number, mine, obj, other))
            if plain:
                found += gc.get_referents(*plain)
            todo = found

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise OverBudget

    def rule(self, kind: type) -> Rule | None:
        found = self.rules[kind] = rule_for(kind)
        return found

    def meet(self, number: int, mine: str, obj: Any, other: int | str) -> Iterable[Any]:
        """Another root, or a name, has what this root came to."""
        if type(obj) is types.CodeType:
            self.uses[number] |= code_names(obj)
        elif type(other) is int:
            self.join(number, other)
        elif other == GIVEN:
            self.flags[number].add("given")
        elif other == mine and other and id(obj) not in self.inside:
            self.inside.add(id(obj))
            return expand_definition(self, number, obj)
        elif other:
            self.refs[number].add(str(other))
            if mine:
                self.pull(number, str(other))
        return ()
