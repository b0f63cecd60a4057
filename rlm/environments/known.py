"""What captures have found so far, for the next ones to know: of every name where it stands and what it depends on.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

from itertools import chain

from edges import LARGE, TEXTS

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from folder import Seen

BUNDLED = frozenset((int, float, complex, bool, str, bytes, type(None), type(...)))


class Known:
    """What a capture left for the next ones to know: of every name where it stands and what it depends on."""

    def __init__(self) -> None:
        self.blobs: dict[str, tuple[str, tuple[str, ...]]] = {}  # digest of the one that holds it, and all its names
        self.members: dict[str, tuple[str, ...]] = {}  # the names that it shares objects with, lost ones included
        self.refs: dict[str, frozenset[str]] = {}  # definitions that its blob refers to by name
        self.uses: dict[str, frozenset[str]] = {}  # names in the code that can be reached from it
        self.referers: dict[str, set[str]] = {}  # the other way round from refs
        self.restless: set[str] = set()
        self.restored: set[str] = set()  # not saved here yet: equal values may have other bytes than they had elsewhere
        self.atoms: dict[str, Any] = {}
        self.texts: dict[str, Any] = {}  # large texts as they were: the same object is the same text
        self.modules: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.lost: dict[str, list[str]] = {}
        self.files: Seen = {}
        self.files_lost: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.blobs or name in self.modules or name in self.given or name in self.lost

    def all(self) -> Iterator[str]:
        return chain(self.blobs, self.modules, self.given, self.lost)

    def forget(self, name: str) -> None:
        self.relate(name, (), ())
        self.restless.discard(name)
        self.restored.discard(name)
        for table in (self.blobs, self.members, self.atoms, self.texts, self.modules, self.given, self.lost):
            table.pop(name, None)

    def learn(self, learnt: dict[str, Any]) -> None:
        """What a capture has found. Cells run meanwhile, and want the interpreter: many names are learnt at once."""
        for name in learnt["gone"]:
            self.forget(name)
        for table in ("modules", "given", "lost"):
            for name, what in learnt[table].items():
                self.forget(name)
                getattr(self, table)[name] = what
        blobs, atoms, related = learnt["blobs"], learnt["atoms"], learnt["related"]
        saved = set(blobs)
        self.restored -= saved
        for old in (self.members, self.texts, self.modules, self.given, self.lost):
            for name in old.keys() & saved:
                old.pop(name, None)
        for name in self.atoms.keys() & (saved - atoms.keys()):
            self.atoms.pop(name, None)
        for name in (self.refs.keys() | self.uses.keys() | self.restless) & saved.union(learnt["walked"]):
            self.relate(name, (), ())
            self.restless.discard(name)
        for name, (refs, uses, restless) in related.items():
            self.relate(name, refs, uses)
            if restless:
                self.restless.add(name)
        self.blobs.update(blobs)
        self.atoms.update(atoms)
        for names in learnt["shared"]:
            self.members.update(dict.fromkeys(names, tuple(names)))
        self.files, self.files_lost = learnt["files"], learnt["files_lost"]

    def relate(self, name: str, refs: Iterable[str], uses: Iterable[str]) -> None:
        for ref in self.refs.pop(name, ()):
            self.referers[ref].discard(name)
        self.uses.pop(name, None)
        if refs:
            self.refs[name] = frozenset(refs)
            for ref in refs:
                self.referers.setdefault(ref, set()).add(name)
        if uses:
            self.uses[name] = frozenset(uses)


def is_bundled(value: Any) -> bool:
    """Whether the value is so simple that any number of them is saved as one."""
    return type(value) in BUNDLED and not is_large_text(value)


def is_large_text(value: Any) -> bool:
    return type(value) in TEXTS and len(value) > LARGE
