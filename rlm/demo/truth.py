"""The right answers, found another way than the model goes: by Python's parser, its compiler, and package metadata.

A program of its own: it reads from standard input which files there are and what licences are declared, reads those
files itself, and prints the answers as JSON. It uses the standard library only and shares no code with the policy.
"""

from __future__ import annotations

import ast
import dis
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

CONSTANT = re.compile(rb"\b(if|while) (?:False|0):")  # the compiler would drop what stands below


def announcements(files: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """File, release, and whether the whole module goes, for each call of `_deprecated` with a release.

    Found in the syntax tree.
    """
    for name, path in files.items():
        source = Path(path).read_bytes()
        if b"_deprecated" not in source:
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        top = {id(node.value) for node in tree.body if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            release = announced(node)
            if release is not None:
                assert isinstance(node, ast.Call)
                about = node.args[0] if node.args else None
                yield name, release, id(node) in top and isinstance(about, ast.Name) and about.id == "__name__"


def announced(node: ast.AST) -> str | None:
    """ "3.15" for a call `…_deprecated(…, remove=(3, 15))`."""
    if not isinstance(node, ast.Call):
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    remove = next((keyword.value for keyword in node.keywords if keyword.arg == "remove"), None)
    if called != "_deprecated" or not isinstance(remove, ast.Tuple):
        return None
    return ".".join(str(ast.literal_eval(part)) for part in remove.elts)


def imported(source: bytes) -> set[str]:
    """The top-level modules that a source imports absolutely, found in its compiled code."""
    try:
        code = compile(CONSTANT.sub(rb"\1 __name__:", source), "source", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return set()
    return {name.partition(".")[0] for part in parts(code) for name in absolute(part)}


def parts(code: CodeType) -> Iterator[CodeType]:
    """The code of a module, and of all functions and classes in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from parts(constant)


def absolute(code: CodeType) -> Iterator[str]:
    if dis.opmap["IMPORT_NAME"] not in code.co_code[::2]:
        return
    before: list[Any] = [None, None]
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME" and before[0] == 0:  # the level: 0 is absolute, 1 a dot, 2 two dots
            yield step.argval
        if step.opname not in ("EXTENDED_ARG", "CACHE"):
            before = [before[1], step.argval]


def dotted(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def top(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def answers(library: Mapping[str, str], packages: Mapping[str, str], licences: Mapping[str, str]) -> Mapping[str, Any]:
    """The truth for all three questions. library, packages: files by name. licences: as the metadata declare them."""
    calls = list(announcements(library))
    modules = {top(name) for name in library}
    leaving = {top(name) for name, _, _ in calls}
    imports: dict[str, set[str]] = {distribution: set() for distribution in licences}
    for name, path in packages.items():
        if name.endswith(".py"):
            imports[name.partition("/")[0]] |= imported(Path(path).read_bytes())
    importers = Counter(module for used in imports.values() for module in used & leaving)
    return {
        "removals": {
            "calls": Counter(release for _, release, _ in calls),
            "modules": sorted({dotted(name) for name, _, whole in calls if whole}),
        },
        "licences": grouped(licences.items()),
        "audit": {
            "affected": importers,
            "modules_by_licence": {
                licence: len(set().union(*(imports[name] for name in names)) & modules)
                for licence, names in grouped(licences.items()).items()
            },
        },
    }


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for member, group in sorted(pairs):
        groups.setdefault(group, []).append(member)
    return groups


if __name__ == "__main__":
    json.dump(answers(**json.load(sys.stdin)), sys.stdout)
