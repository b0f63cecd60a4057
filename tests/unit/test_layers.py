"""Which module of `rlm` may import which: arrows run downward only.

The tables are the architecture. Imports inside functions and for type checking count like any other. A new module fails
here until it has its place in the tables.
"""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rlm"

VALUES = {"types", "errors", "ports", "version"}
CAPABILITY = VALUES | {"portal", "config"}
RECORD = VALUES | {"log", "folds", "recording"}
ASSEMBLY = CAPABILITY | RECORD
ASSEMBLY |= {
    "engine",
    "environments",
    "models",
    "stores",
    "inputs",
    "outputs",
    "listeners",
    "tools",
    "plain",
    "checkpoints",
    "replay",
    "waking",
}

# A module or folder of rlm/, and which others it may import. Its own folder is always open to it.
MAY_IMPORT: Mapping[str, set[str]] = {
    "types": set(),
    "version": set(),
    "errors": {"types"},
    "ports": {"types", "errors"},
    "config": {"types", "errors"},
    "portal": {"types", "errors"},
    "files": set(),
    "inputs": VALUES,
    "plain": VALUES,
    "listeners": VALUES,
    "narrate": VALUES,
    "tools": VALUES,
    "engine": VALUES | {"portal", "inputs"},
    "environments": CAPABILITY,
    "models": CAPABILITY,
    "log": VALUES,
    "folds": VALUES | {"log", "engine"},
    "recording": VALUES | {"folds"},
    "stores": CAPABILITY | {"log"},
    "waking": CAPABILITY | RECORD | {"engine", "environments", "checkpoints", "plain"},
    "replay": RECORD | {"engine"},
    "checkpoints": CAPABILITY | RECORD | {"engine", "environments"},
    "transfer": CAPABILITY | RECORD | {"stores", "files"},
    "notebook": RECORD | {"engine", "files"},
    "trace": RECORD | {"files"},
    "sessions": ASSEMBLY | {"transfer", "notebook", "trace"},
    "outputs": VALUES | {"engine"},
    "session": ASSEMBLY,
    "compat": VALUES | {"config", "models", "narrate"},
    "rlm": ASSEMBLY | {"session", "compat"},
    "__init__": ASSEMBLY | {"session", "sessions", "rlm"},
    "testing": CAPABILITY | {"environments", "models", "stores", "log"},
    "demo": ASSEMBLY | {"narrate", "session", "rlm"},
    "cli": ASSEMBLY | {"narrate", "session", "sessions", "rlm", "demo", "__init__"},
    "__main__": {"cli"},
}

# Files that run in sandboxes, beside each other: the standard library only, Python 3.9, few lines. The host may use the
# codec and the limits; the others it only ever sends. pyproject.toml lists them, for ruff.
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
SANDBOX = {path.removesuffix(".py").replace("/", ".") for path in PROJECT["tool"]["ruff"]["per-file-target-version"]}
SENT_ONLY = SANDBOX - {"rlm.environments.codec", "rlm.environments.limits"}
SANDBOX_LINES = 400

# A value's form as JSON, which both ends of every channel and every log share: as open to all as the types are.
SHARED = {"rlm.environments.codec"}

# No I/O, no clock, no randomness: what these do depends on their arguments alone. Of ours they import only each other.
PURE = {
    "rlm.types",
    "rlm.errors",
    "rlm.ports",
    "rlm.engine.loop",
    "rlm.engine.prompts",
    "rlm.engine.cells",
    "rlm.environments.wire",
    "rlm.environments.codec",
    "rlm.environments.limits",
    "rlm.log",
    "rlm.folds",
}
IMPURE = {"os", "random", "secrets", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "uuid"}

# Who reads environment variables: the configuration, and what hands a worker its few. A sandbox's are its own affair.
READS_ENVIRONMENT = {"rlm.config", "rlm.environments.process"} | SANDBOX


# -- reading the source ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """`module` imports `target`; `eager` if that happens while `module` is itself being imported."""

    module: str
    target: str
    line: int
    eager: bool

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: imports {self.target}"


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, its file, and what it imports."""

    name: str
    path: Path
    tree: ast.Module
    imports: Sequence[Import]

    @property
    def part(self) -> str:
        return part(self.name)


def part(module: str) -> str:
    """The row of MAY_IMPORT that a module belongs to: rlm.engine.loop -> engine, rlm -> __init__."""
    return [*module.split("."), "__init__"][1]


def read(package: Path) -> Sequence[Source]:
    """All modules of `package`, with their imports resolved to modules rather than to the names taken from them."""
    files = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return [_source(name, path, set(files)) for name, path in files.items()]


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _source(name: str, path: Path, modules: set[str]) -> Source:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = [
        Import(name, target, node.lineno, eager)
        for node, eager in _statements(tree)
        for target in dict.fromkeys(_targets(node, package, modules))
    ]
    return Source(name, path, tree, imports)


def _statements(node: ast.AST, eager: bool = True) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom, ast.Call)):
            yield child, eager
        later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        only_types = isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        yield from _statements(child, eager and not later and not only_types)


def _targets(node: ast.stmt | ast.Call, package: str, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
        named = node.args[0] if node.args else None
        if isinstance(named, ast.Constant) and isinstance(named.value, str):
            yield named.value if not named.value.startswith(".") else package + named.value


# -- the rules -------------------------------------------------------------------------------------------------------


def ours(package: Path, target: str) -> bool:
    return target.split(".")[0] == package.name


def without_place(package: Path) -> list[str]:
    return [f"{source.path} has no row in MAY_IMPORT" for source in read(package) if source.part not in MAY_IMPORT]


def upward(package: Path) -> list[str]:
    return [
        f"{arrow}, which {source.part} may not"
        for source in read(package)
        for arrow in source.imports
        if ours(package, arrow.target)
        and part(arrow.target) != source.part
        and arrow.target not in SHARED
        and part(arrow.target) not in MAY_IMPORT.get(source.part, set())
    ]


def cycle(package: Path) -> list[str]:
    """The modules of one cycle of imports that happen at import time; empty where there is none."""
    graph = {
        source.name: {arrow.target for arrow in source.imports if arrow.eager and ours(package, arrow.target)}
        for source in read(package)
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def not_standard(package: Path) -> list[str]:
    beside = {name.rpartition(".")[2] for name in SANDBOX}
    return [
        f"{arrow}, which is neither standard nor a file that goes to sandboxes (pyproject.toml lists them)"
        for source in read(package)
        if source.name in SANDBOX
        for arrow in source.imports
        if arrow.target not in beside and arrow.target.split(".")[0] not in sys.stdlib_module_names
    ]


def imported_though_only_sent(package: Path) -> list[str]:
    return [str(arrow) for source in read(package) for arrow in source.imports if arrow.target in SENT_ONLY]


def impure(package: Path) -> list[str]:
    return [
        f"{arrow}, though it is listed as pure"
        for source in read(package)
        if source.name in PURE
        for arrow in source.imports
        if arrow.target.split(".")[0] in IMPURE or (ours(package, arrow.target) and arrow.target not in PURE)
    ]


def reads_environment(package: Path) -> list[str]:
    readers = ("os.environ", "os.environb", "os.getenv", "environ", "getenv")
    return [
        f"{source.name}, line {node.lineno}: reads the environment, which is for rlm.config alone"
        for source in read(package)
        if source.name not in READS_ENVIRONMENT
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node) in readers
    ]


def imports_pytest(package: Path) -> list[str]:
    return [
        str(arrow) for source in read(package) for arrow in source.imports if arrow.target.split(".")[0] == "pytest"
    ]


RULES = [
    without_place,
    upward,
    cycle,
    not_standard,
    imported_though_only_sent,
    impure,
    reads_environment,
    imports_pytest,
]


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule) -> None:
    broken = rule(PACKAGE)
    assert not broken, "\n".join(broken)


# -- files that run in sandboxes -------------------------------------------------------------------------------------

SANDBOX_FILES = sorted(source.path for source in read(PACKAGE) if source.name in SANDBOX)


@pytest.mark.parametrize("path", SANDBOX_FILES, ids=lambda path: path.name)
def test_sandbox_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= SANDBOX_LINES


@pytest.mark.parametrize("path", SANDBOX_FILES, ids=lambda path: path.name)
def test_sandbox_file_is_written_in_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def python_3_9() -> str | None:
    candidates = [shutil.which("python3.9"), *Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9")]
    # pyenv puts a python3.9 on the PATH that only says that it is not the chosen version.
    runs = [
        str(path)
        for path in candidates
        if path and subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    ]
    return runs[0] if runs else None


@pytest.mark.parametrize("path", SANDBOX_FILES, ids=lambda path: path.name)
def test_sandbox_file_loads_in_python_3_9(path: Path) -> None:
    python = python_3_9()
    if python is None:
        pytest.skip("no python3.9 here, neither on the PATH nor from pyenv")
    load = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='loaded')"
    done = subprocess.run(
        [python, "-I", "-B", "-c", load, path.parent, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- the rules themselves --------------------------------------------------------------------------------------------


def tree(tmp_path: Path, **files: str) -> Path:
    """A package named rlm of these modules; two underscores in a name stand for a folder."""
    for name, text in files.items():
        path = tmp_path / "rlm" / f"{name.replace('__', '/') if not name.startswith('__') else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "rlm"


def test_downward_imports_pass_every_rule(tmp_path: Path) -> None:
    package = tree(
        tmp_path,
        types="import dataclasses",
        ports="from rlm.types import Message",
        engine__loop="from rlm.ports import Host\nfrom rlm.engine.cells import code",
        engine__cells="import re",
        environments__codec="import json",
        environments__worker="import json, codec",
        environments__repl="from rlm.environments import codec\nfrom .. import errors",
        errors="",
        rlm="def start():\n    from rlm.engine import loop",
        __init__="from rlm.rlm import RLM",
    )
    assert [rule(package) for rule in RULES] == [[]] * len(RULES)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("types", "import rlm.errors"),
        ("engine__loop", "from rlm.session import Session"),
        ("engine__loop", "from rlm import session"),
        ("engine__loop", "from rlm import Session"),
        ("engine__loop", "from ..environments import kernel"),
        ("engine__loop", "from ..environments.kernel import Kernel"),
        ("engine__loop", "def turn():\n    import rlm.cli"),
        ("engine__loop", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlm.models import Scripted"),
        ("engine__loop", "import importlib\nimportlib.import_module('rlm.stores')"),
        ("environments__kernel", "try:\n    from rlm.engine import host\nexcept ImportError:\n    pass"),
        ("models__scripted", "import rlm.environments.repl as repl"),
        ("stores__memory", "from rlm import models"),
        ("session", "from .rlm import RLM"),
    ],
)
def test_upward_or_sideways_import_is_found(tmp_path: Path, module: str, text: str) -> None:
    package = tree(tmp_path, session="", environments__kernel="")
    assert upward(package) == []
    tree(tmp_path, **{module: text})
    [found] = upward(package)
    assert found.startswith(f"rlm.{module.replace('__', '.')}, line ")


def test_new_module_needs_a_place(tmp_path: Path) -> None:
    [found] = without_place(tree(tmp_path, utils="", types=""))
    assert "utils.py" in found


def test_cycle_is_found_only_among_imports_that_happen_at_import(tmp_path: Path) -> None:
    package = tree(tmp_path, engine__host="from rlm.engine import loop", engine__loop="import rlm.engine.host")
    assert {"rlm.engine.host", "rlm.engine.loop"} <= set(cycle(package))
    tree(tmp_path, engine__loop="def turn():\n    import rlm.engine.host")
    assert cycle(package) == []


def test_sandbox_file_with_a_foreign_import_is_found(tmp_path: Path) -> None:
    package = tree(tmp_path, environments__worker="import json\nimport cloudpickle\nfrom rlm.errors import RLMError")
    assert len(not_standard(package)) == 2


def test_import_of_the_worker_is_found(tmp_path: Path) -> None:
    package = tree(tmp_path, environments__worker="", environments__repl="from rlm.environments import worker, codec")
    assert len(imported_though_only_sent(package)) == 1


def test_clock_in_the_loop_is_found(tmp_path: Path) -> None:
    assert len(impure(tree(tmp_path, engine__loop="from time import monotonic", engine__host="import time"))) == 1


def test_environment_variable_read_outside_config_is_found(tmp_path: Path) -> None:
    read_one = "import os\nkey = os.environ['KEY']"
    assert len(reads_environment(tree(tmp_path, config=read_one, environments__worker=read_one, session=read_one))) == 1


def test_pytest_in_the_package_is_found(tmp_path: Path) -> None:
    assert len(imports_pytest(tree(tmp_path, testing__environments="import pytest"))) == 1
