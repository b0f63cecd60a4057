"""The statements of cells that made a session's functions and classes, for Pythons that cannot load their code.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. A statement counts only
where it is what bound the name last, at the top of a cell: then running it again makes the same definition.
"""

from __future__ import annotations

import linecache

from limits import MAX_LONG

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Iterable


class Sources:
    """known: name -> the statement that made it. needs: what else that statement reads when it is run: it stands for
    the definition only until one of these is bound to something else."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.needs: dict[str, frozenset[str]] = {}
        self.cells: list[tuple[str, frozenset[str]]] = []

    def ran(self, filename: str, names: Iterable[str]) -> None:
        """A cell has run, whose code has these names."""
        self.cells.append((filename, frozenset(names)))

    def update(self, names: Iterable[str]) -> set[str]:
        """Learn what made these definitions, where one of the cells since the last look did.

        Returns the names of others whose statements would make another definition now.
        """
        wanted, stale = set(names), set()
        for filename, used in self.cells:
            if not used.isdisjoint(wanted.union(*self.needs.values())):
                found = statements("".join(linecache.getlines(filename)))
                for name in [name for name, needs in self.needs.items() if not needs.isdisjoint(found)]:
                    self.forget(name)
                    stale.add(name)
                for name in wanted.intersection(found):
                    self.forget(name)
                    if 0 < len(found[name][0]) <= MAX_LONG:
                        self.learn(name, *found[name])
        self.cells.clear()
        return stale - wanted

    def learn(self, name: str, source: str, needs: frozenset[str]) -> None:
        self.known[name] = source
        if needs - {name}:
            self.needs[name] = needs - {name}

    def forget(self, name: str) -> None:
        self.known.pop(name, None)
        self.needs.pop(name, None)


def statements(source: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Names that a cell's code binds at its top -> the def or class that did so last, and the names that it reads when
    it is run; "" where it is another way."""
    import ast  # many a worker never needs it

    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    lines = source.split("\n")
    bound: dict[str, tuple[str, frozenset[str]]] = {}
    for node in tree.body:
        if isinstance(node, defines):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            at_once: list[ast.AST] = [*node.decorator_list]
            if isinstance(node, ast.ClassDef):
                at_once += [*node.bases, *(keyword.value for keyword in node.keywords)]
                at_once += [part for part in node.body if not isinstance(part, defines)]
            else:
                at_once += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            read = {inner.id for part in at_once for inner in ast.walk(part) if isinstance(inner, ast.Name)}
            bound[node.name] = "\n".join(lines[first - 1 : node.end_lineno]) + "\n", frozenset(read)
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                bound[inner.id] = "", frozenset()
            elif isinstance(inner, defines):
                bound.setdefault(inner.name, ("", frozenset()))
            elif isinstance(inner, ast.alias):
                bound[(inner.asname or inner.name).split(".")[0]] = "", frozenset()
    return bound
