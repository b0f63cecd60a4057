"""One capture of a namespace: finds the groups of names that share objects, pickles them, and keeps what is new.

It runs in the worker between two cells while its budget lasts, and else in a forked copy; it changes nothing, and says
what the next capture must know of this one. Whatever user code does while it is pickled costs at most its own group.
Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import sys
import types

import codec
import folder as files
import pickles
from blobs import IN_ALL, Blob, Spool, with_deep_stack
from definitions import Definitions, is_definition
from graph import OverBudget, Walk
from known import Known, is_bundled
from limits import MAX_LONG, cut, is_tellable, reason
from suspects import MODULE_NAMES

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TOO_LARGE = 128 * 1024 * 1024  # bytes of blobs that still fit into an answer where there is no spool for them


class Scope:
    """What a snapshot may look at. names: the candidates, None for all but the `hidden` ones. given: id -> name of the
    host's values that never change; owned: name -> the host's values that may. imports: dotted names that cells have
    imported."""

    def __init__(self, namespace: dict[str, Any], definitions: Definitions, known: Known) -> None:
        self.namespace, self.definitions, self.known = namespace, definitions, known
        self.names: list[str] | None = None
        self.hidden: set[str] = set()
        self.given: dict[int, str] = {}
        self.owned: dict[str, Any] = {}
        self.imports: set[str] = set()
        self.pristine: dict[str, str] = {}
        self.folder, self.limit = ".", 0
        self.spool: Spool | None = None
        self.cloudpickle: str | None = None
        self.cursed: dict[str, int] = {}


class Snapshot:
    """Made, `run` once, and thrown away. budget: work that may be done before `OverBudget`; None for any amount.

    working: told which names are about to be pickled, where that may be the end of this process.
    """

    def __init__(self, scope: Scope, budget: int | None = None, working: Callable[[list[str]], None] | None = None):
        self.scope, self.known, self.budget, self.working = scope, scope.known, budget, working
        self.savers: Any = pickles.saver(pickles.cloudpickle(scope.cloudpickle))
        self.groups: list[list[Any]] = []
        self.blobs: dict[str, Any] = {}
        self.inline = 0  # bytes of those that ride in the answer
        self.saved: dict[str, tuple[str, tuple[str, ...]]] = {}  # digest of the blob, and the group that shares it
        self.shared: list[list[str]] = []
        self.lost: dict[str, list[str]] = {}
        self.modules: dict[str, str] = {}
        self.given: dict[str, str] = {}
        self.gone: list[str] = []
        self.atoms: dict[str, Any] = {}
        self.walked: list[str] = []
        self.related: dict[str, tuple[list[str], list[str], bool]] = {}
        self.pristine: dict[str, str] = {}
        self.candidates: set[str] = set()
        self.python = ".".join(map(str, sys.version_info[:2]))

    def spend(self, work: int) -> None:
        if self.budget is not None:
            self.budget -= work
            if self.budget < 0:
                raise OverBudget

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What to answer, and what the next capture must know."""
        names = self.all_names() if self.scope.names is None else self.scope.names
        self.spend(len(names) // 4)
        self.candidates = set(names)
        roots = [name for name in sorted(names) if self.is_root(name)]
        self.walk(roots)
        if self.atoms:
            names = sorted(self.atoms)
            self.keep(names, self.pickle(names, set(), False), False)
        seen, new_files, files_lost = files.changes(
            self.scope.folder, self.known.files, self.scope.limit, self.spend, self.keep_file
        )
        if any(what[0] == files.EMPTY_DIGEST for what in new_files.values()):
            self.blobs[files.EMPTY_DIGEST] = ""
        known_lost = self.known.files_lost
        gone = [path for path in self.known.files if path not in seen]
        gone += [path for path in known_lost if path not in files_lost and path not in seen and path not in gone]
        lost = {name: why for name, why in self.lost.items() if self.known.lost.get(name) != why}
        answer = {
            "groups": self.groups,
            "modules": self.modules,
            "given": self.given,
            "lost": lost,
            "gone": self.gone,
            "files": new_files,
            "files_gone": gone,
            "files_lost": {path: why for path, why in files_lost.items() if known_lost.get(path) != why},
            "python": self.python,
            "blobs": self.blobs,
        }
        learnt = {
            "blobs": self.saved,
            "lost": self.lost,
            "modules": self.modules,
            "given": self.given,
            "gone": self.gone,
            "atoms": self.atoms,
            "walked": self.walked,
            "related": self.related,
            "shared": self.shared,
            "pristine": self.pristine,
            "files": seen,
            "files_lost": files_lost,
        }
        return answer, learnt

    # -- names ---------------------------------------------------------------------------------------------------------

    def all_names(self) -> list[str]:
        namespace, left_out = self.scope.namespace, self.scope.hidden | MODULE_NAMES
        found = [name for name in list(namespace) if type(name) is str and name not in left_out]
        return found + [name for name in self.known.all() if name not in namespace and name not in left_out]

    def is_root(self, name: str) -> bool:
        """Whether the name is to be walked from; what needs no walk is dealt with."""
        known = self.known
        if name not in self.scope.namespace:
            if name in known:
                self.gone.append(name)
            return False
        value = self.scope.namespace[name]
        kind = type(value)
        if not is_tellable(name):
            self.lose(name, value, f"a name of {len(name):,} characters")
            return False
        if is_bundled(value):
            if name not in known.atoms or not same_atom(known.atoms[name], value):
                self.atoms[name] = value
            return False
        if kind is types.ModuleType:
            if sys.modules.get(value.__name__) is not value or getattr(value, "__spec__", None) is None:
                self.lose(name, value, "a module that a cell has made")
            elif len(imports := self.import_name(value)) > MAX_LONG:
                self.lose(name, value, f"a module whose names are {len(imports):,} characters")
            else:
                self.note(self.modules, known.modules, name, imports)
            return False
        if id(value) in self.scope.given:
            self.note(self.given, known.given, name, self.scope.given[id(value)])
            return False
        if self.scope.cursed.get(name) == id(value):
            self.lose(name, value, "its capture died")
            return False
        return True

    def note(self, table: dict[str, str], known: dict[str, str], name: str, what: str) -> None:
        if known.get(name) != what:
            table[name] = what

    def import_name(self, module: Any) -> str:
        """What to import for a module: itself, and those below it that cells have imported."""
        below = sorted(name for name in self.scope.imports if name.startswith(module.__name__ + "."))
        return ", ".join([module.__name__, *(name for name in below if name in sys.modules)])

    def lose(self, name: str, value: Any, why: str) -> None:
        kind = type(value)
        if self.budget is not None and is_definition(kind, self.scope.namespace):
            text = object.__repr__(value)  # its own may do anything
        else:
            text = codec.brief(value)
        self.lost[name] = [cut(kind.__name__), cut(why), cut(text)]

    # -- groups --------------------------------------------------------------------------------------------------------

    def walk(self, roots: list[str]) -> None:
        if not roots:
            return
        known, scope = self.known, self.scope
        walk = Walk(scope.definitions, scope.given, self.budget, self.more_roots)
        walk.pinned = {id(known.texts[name]) for name in roots if name in known.texts}
        groups = walk.run(roots)
        self.spend(int(self.budget - walk.left) if self.budget is not None else 0)
        self.shared = [names for names in groups if len(names) > 1]
        for names in groups:
            numbers = [walk.number[name] for name in names]
            flags = set().union(*(walk.flags[number] for number in numbers))
            if "hooks" in flags and self.budget is not None:
                raise OverBudget
            self.walked += names
            for name, number in zip(names, numbers):
                refs, restless = walk.refs[number] - set(names), "restless" in walk.flags[number]
                if refs or walk.uses[number] or restless:
                    self.related[name] = (list(refs), list(walk.uses[number]), restless)
            if not self.is_same(names):
                self.save(names, "given" in flags, "hooks" in flags)

    def more_roots(self, name: str) -> list[str]:
        """What to walk from when a definition that was no candidate turns out to belong to one."""
        members = [member for member in self.known.members.get(name, (name,)) if member not in self.candidates]
        self.candidates.update(members)
        return [member for member in members if self.is_root(member)]

    def is_same(self, names: list[str]) -> bool:
        """Whether these are large texts, the same objects as before, that shared nothing but themselves."""
        known, namespace = self.known, self.scope.namespace
        blob = known.blobs.get(names[0], ("", ()))
        return tuple(names) == blob[1] and all(
            name in known.texts and known.texts[name] is namespace[name] for name in names
        )

    def save(self, names: list[str], given: bool, hooks: bool) -> None:
        if self.working is not None and hooks:
            self.working(names)
        owned = [name for name in names if name in self.scope.owned]
        namespace = self.scope.namespace
        alone = owned and all(namespace[name] is namespace[owned[0]] for name in names)
        if alone and self.unchanged(owned, names, given):
            return
        try:
            blob = self.pickle(names, set(names), given)
        except Exception as error:  # noqa: BLE001 - a name whose value cannot be saved is named, with the error
            self.save_rest(names, given, error)
            return
        self.keep(names, blob, True)

    def save_rest(self, names: list[str], given: bool, error: BaseException) -> None:
        """Of names that cannot be saved together those that can be saved alone, together."""
        rest = []
        for name in names:
            try:
                if len(names) > 1:
                    self.pickle_values([self.scope.namespace[name]], set(names), given, False)
                    rest.append(name)
                    continue
            except Exception as own:  # noqa: BLE001 - as above
                error = own
            self.lose(name, self.scope.namespace[name], reason(error))
        if rest:
            try:
                blob = self.pickle(rest, set(rest), given)
            except Exception as again:  # noqa: BLE001 - as above
                for name in rest:
                    self.lose(name, self.scope.namespace[name], reason(again))
                return
            self.keep(rest, blob, True)

    def unchanged(self, owned: list[str], names: list[str], given: bool) -> bool:
        """Whether a value of the host's, under all of its names, is still as the host gave it."""
        if owned[0] in self.known.blobs:
            return False
        try:
            before = self.scope.pristine.get(owned[0])
            if before is None:
                before = self.pickle_values([self.scope.owned[owned[0]]()], set(), given, False).digest
                self.pristine.update(dict.fromkeys(owned, before))
            now = self.pickle_values([self.scope.namespace[owned[0]]], set(), given, False).digest
        except Exception:  # noqa: BLE001 - what cannot be compared counts as changed, and is saved
            return False
        if now != before:
            return False
        for name in names:
            if name not in self.scope.owned:
                self.note(self.given, self.known.given, name, owned[0])
        return True

    def pickle(self, names: list[str], own: set[str], given: bool) -> Blob:
        return self.pickle_values([self.scope.namespace[name] for name in names], own, given)

    def pickle_values(self, values: list[Any], own: set[str], given: bool, keep: bool = True) -> Blob:
        kind = self.savers.given if given else self.savers.plain
        try:
            return self.dump(values, kind, own, keep)
        except RecursionError:
            pass
        except Exception as error:
            if not isinstance(error.__cause__, RecursionError):
                raise
        except OverBudget:
            raise
        except BaseException as error:  # SystemExit and the like, of user code
            raise TypeError(f"{type(error).__name__} while it was pickled") from error
        if self.budget is not None:
            raise OverBudget
        blob: Blob = with_deep_stack(lambda: self.dump(values, kind, own, keep))
        return blob

    def dump(self, values: list[Any], kind: Any, own: set[str], keep: bool) -> Blob:
        blob = Blob(self.scope.spool, self.spend, keep)
        try:
            saver = kind(blob, self.scope.definitions, own, self.scope.given)
            saver.dump(values)
            blob.finish(saver.code)
        except BaseException:
            blob.drop()
            raise
        return blob

    # -- what is kept --------------------------------------------------------------------------------------------------

    def keep(self, names: list[str], blob: Blob, group: bool) -> None:
        """Answer with the blob, if it is not what was there before."""
        told = blob.digest, tuple(names) if group else ()
        if group and all(self.known.blobs.get(name) == told for name in names):
            self.saved.update(dict.fromkeys(names, told))
            blob.drop()
            return
        if self.scope.spool is None and self.inline + blob.size > TOO_LARGE:
            for name in names:
                self.lose(name, self.scope.namespace[name], f"{blob.size:,} bytes are more than the channel can carry")
            return
        self.saved.update(dict.fromkeys(names, told))
        namespace, definitions = self.scope.namespace, self.scope.definitions
        types = [cut(type(namespace[name]).__name__) for name in names]
        defined = [name for name in names if name in definitions.objects]
        self.groups.append([names, types, blob.digest, blob.size, bool(defined), blob.code, defined])
        self.send(blob)

    def keep_file(self, path: str) -> tuple[str, int]:
        blob = Blob(self.scope.spool, self.spend)
        with open(path, "rb") as file:  # noqa: PTH123 - importing pathlib is a fifth of a worker's start
            while piece := file.read(1 << 20):
                blob.write(piece)
        blob.finish(False)
        if self.scope.spool is None and self.inline + blob.size > TOO_LARGE:
            raise OSError(f"{blob.size:,} bytes are more than the channel can carry")
        self.send(blob)
        return blob.digest, blob.size

    def send(self, blob: Blob) -> None:
        if blob.digest in self.blobs:
            blob.drop()
            return
        self.blobs[blob.digest] = carried = blob.take(IN_ALL - self.inline)
        self.inline += blob.size if type(carried) is str else 0


def same_atom(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other and repr(one) == repr(other))
