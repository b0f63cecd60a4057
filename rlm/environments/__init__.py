"""Environments by name or dotted path, and the contract they share.

`get_environment` builds one without starting anything. A name whose extra is not installed is answered with the line
that installs it; a class of your own is named as `package.module:Class`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlm.errors import ConfigurationError

if TYPE_CHECKING:
    from rlm.environments.base_env import BaseEnv, IsolatedEnv, NonIsolatedEnv, SupportsPersistence
    from rlm.environments.local_repl import LocalREPL

__all__ = [
    "BaseEnv",
    "IsolatedEnv",
    "LocalREPL",
    "NonIsolatedEnv",
    "SupportsPersistence",
    "environment_class",
    "get_environment",
]

NAMES: Mapping[str, str] = {"local": "rlm.environments.local_repl:LocalREPL"}

_HOMES = {
    "BaseEnv": "base_env",
    "IsolatedEnv": "base_env",
    "NonIsolatedEnv": "base_env",
    "SupportsPersistence": "base_env",
    "LocalREPL": "local_repl",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"rlm.environments.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def environment_class(name_or_path: str | type[BaseEnv]) -> type[BaseEnv]:
    """The class behind a name (`local`) or a path (`package.module:Class`). Raises `ConfigurationError`."""
    from rlm.environments.base_env import BaseEnv

    if isinstance(name_or_path, type):
        found: Any = name_or_path
    else:
        found = _import(NAMES.get(name_or_path, name_or_path), name_or_path)
    if not (isinstance(found, type) and issubclass(found, BaseEnv)):
        raise ConfigurationError(f"environment={name_or_path!r} is not a subclass of rlm.environments.BaseEnv")
    return found


def _import(path: str, given: str) -> Any:
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not attribute or module.startswith("."):
        raise ConfigurationError(
            f"unknown environment {given!r}: choose one of {', '.join(NAMES)}, or name your own as package.module:Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigurationError(f"environment={given!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigurationError(f"environment={given!r}: {module} has no {attribute}") from error


def get_environment(name_or_path: str | type[BaseEnv], environment_kwargs: Mapping[str, Any] | None = None) -> BaseEnv:
    """An environment, built with the given keyword arguments and not started.

    Raises `ConfigurationError` for a name nobody knows and for arguments that the class does not take.
    """
    kind = environment_class(name_or_path)
    try:
        return kind(**(environment_kwargs or {}))
    except TypeError as error:
        raise ConfigurationError(f"environment={name_or_path!r}: {error}") from error
