"""Environments by name, path or class, and the contract that they share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import rlm.environments
from rlm.environments import (
    BaseEnv,
    IsolatedEnv,
    LocalREPL,
    NonIsolatedEnv,
    SupportsPersistence,
    environment_class,
    get_environment,
)
from rlm.environments.base_env import PERSISTENCE_METHODS, require_persistence, supports_persistence
from rlm.errors import ConfigurationError
from rlm.types import REPLResult


class Simple(BaseEnv):
    """The least that an environment can be."""

    def __init__(self, persistent: bool = False, size: int = 1) -> None:
        super().__init__(persistent, size=size)

    def setup(self) -> None:
        """Nothing to set up."""

    def load_context(self, context_payload: Any) -> None:
        """Nothing to load it into."""

    def execute_code(self, code: str) -> REPLResult:
        return REPLResult(stdout=code)


class Persistent(Simple):
    """The same with the five methods."""

    def update_handler_address(self, address: tuple[str, int]) -> None: ...

    def add_context(self, context_payload: Any, context_index: int | None = None) -> int:
        return 0

    def get_context_count(self) -> int:
        return 0

    def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
        return 0

    def get_history_count(self) -> int:
        return 0


# -- by name, by path, by class ----------------------------------------------------------------------------------------


def test_an_environment_by_its_name() -> None:
    with get_environment("local", {"cell_timeout": 5}) as repl:
        assert isinstance(repl, LocalREPL)
        assert repl.execute_code("print(1)").stdout == "1\n"


@pytest.mark.parametrize("path", [f"{__name__}:Simple", f"{__name__}.Simple"])
def test_an_environment_by_its_path(path: str) -> None:
    environment = get_environment(path, {"size": 5})
    assert type(environment).__qualname__ == "Simple"
    assert environment.kwargs == {"size": 5}


def test_an_environment_by_its_class() -> None:
    assert environment_class(Simple) is Simple
    assert isinstance(get_environment(Simple), Simple)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("locl", "unknown environment 'locl': choose one of local, or name your own as package.module:Class"),
        ("", "unknown environment ''"),
        (":Class", "unknown environment ':Class'"),
        ("module:", "unknown environment 'module:'"),
        (".relative:Class", "unknown environment '.relative:Class'"),
        ("no_such_package.module:Class", "cannot be imported: No module named 'no_such_package'"),
        ("rlm.environments:NoSuchClass", "rlm.environments has no NoSuchClass"),
        ("pathlib:Path", "is not a subclass of rlm.environments.BaseEnv"),
        ("pathlib:sys", "is not a subclass of rlm.environments.BaseEnv"),
        (Path, "is not a subclass of rlm.environments.BaseEnv"),
    ],
)
def test_what_is_no_environment_is_named(path: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        get_environment(path)
    assert told in str(refused.value)


def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_an_extra.py").write_text("import a_package_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="No module named 'a_package_nobody_has'"):
        get_environment("needs_an_extra:Env")


def test_arguments_it_does_not_take_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"environment='local': .*'colour'"):
        get_environment("local", {"colour": "red"})
    with pytest.raises(ValueError, match="cell_timeout=-1"):
        get_environment("local", {"cell_timeout": -1})


def test_the_public_names_load_on_first_use() -> None:
    assert set(rlm.environments.__all__) >= {"BaseEnv", "LocalREPL", "SupportsPersistence", "get_environment"}
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchREPL'"):
        rlm.environments.NoSuchREPL  # noqa: B018 - reading it is the test


# -- persistence -------------------------------------------------------------------------------------------------------


def test_without_support_persistence_is_refused_at_construction() -> None:
    with pytest.raises(NotImplementedError) as refused:
        Simple(persistent=True)
    assert str(refused.value) == "Persistent REPLs are currently not supported for environment: Simple"
    assert Simple(persistent=False).persistent is False
    assert Persistent(persistent=True).persistent is True


def test_the_five_methods_decide_and_nothing_else() -> None:
    assert isinstance(Persistent(), SupportsPersistence)
    assert not isinstance(Simple(), SupportsPersistence)
    assert (supports_persistence(Persistent), supports_persistence(Simple)) == (True, False)
    for name in PERSISTENCE_METHODS:
        without = type("Without", (Persistent,), {name: None})
        assert not supports_persistence(without)
        with pytest.raises(NotImplementedError):
            without(persistent=True)


def test_who_needs_persistence_is_told_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^persistent=True is not supported") as refused:
        require_persistence("Simple", Simple())
    assert "Simple" in str(refused.value)
    assert all(name in str(refused.value) for name in PERSISTENCE_METHODS)
    require_persistence("Persistent", Persistent())


def test_the_local_repl_is_the_reference() -> None:
    assert supports_persistence(LocalREPL)
    assert issubclass(LocalREPL, NonIsolatedEnv)
    assert not issubclass(LocalREPL, IsolatedEnv)
    repl = LocalREPL(persistent=True)
    assert isinstance(repl, SupportsPersistence)
    assert repl.isolation in ("namespace", "landlock")


def test_the_base_classes_are_abstract() -> None:
    for kind in (BaseEnv, NonIsolatedEnv, IsolatedEnv):
        with pytest.raises(TypeError, match="abstract"):
            kind()  # type: ignore[abstract]


def test_the_contract_teaches_who_implements_it() -> None:
    for name in PERSISTENCE_METHODS:
        assert len(inspect.getdoc(getattr(SupportsPersistence, name)) or "") > 30, name
    for name in ("setup", "load_context", "execute_code", "cleanup"):
        assert len(inspect.getdoc(getattr(BaseEnv, name)) or "") > 30, name
    for word in ("isinstance", "context_0", "history_0", "token", "lm_handler.call", *PERSISTENCE_METHODS):
        if word not in ("get_context_count", "get_history_count"):
            assert word in (SupportsPersistence.__doc__ or ""), word
