"""The statements of cells that made a session's functions and classes, for Pythons that cannot load their code.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`. A statement counts only
where it is what bound the name last, at the top of a cell: then running it again makes the same definition.
"""

from __future__ import annotations

import linecache

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Iterable


class Sources:
    """name -> the statement that made it. cells: file names of those that ran since the last look, oldest first."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.cells: list[tuple[str, frozenset[str]]] = []

    def ran(self, filename: str, names: Iterable[str]) -> None:
        self.cells.append((filename, frozenset(names)))

    def update(self, names: Iterable[str]) -> None:
        """Learn what made these definitions, where one of the cells since the last look did."""
        wanted = set(names)
        for filename, used in self.cells:
            here = used & wanted
            if here:
                found = statements("".join(linecache.getlines(filename)))
                for name in here & set(found):
                    if found[name]:
                        self.known[name] = found[name]
                    else:
                        self.known.pop(name, None)
        self.cells.clear()


def statements(source: str) -> dict[str, str]:
    """Names that a cell's code binds at its top -> the def or class that did so last; "" where it is another way."""
    import ast  # many a worker never needs it

    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    lines = source.split("\n")
    bound: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, defines):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            bound[node.name] = "\n".join(lines[first - 1 : node.end_lineno]) + "\n"
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    bound[inner.id] = ""
                elif isinstance(inner, defines):
                    bound.setdefault(inner.name, "")
                elif isinstance(inner, ast.alias):
                    bound[(inner.asname or inner.name).split(".")[0]] = ""
    return bound
