"""The only reader of environment variables and config files: small typed functions, nothing cached, nothing changed.

The config file holds defaults for the command line: `model`, `sub_model`, `store`, `isolation` and a table `[limits]`
with the fields of `rlm.Limits`. RLM_MODEL, RLM_SUB_MODEL and RLM_STORE come before the file, RLM_CONFIG names another
file; anything else in the file is refused by name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rlm.errors import ConfigurationError
from rlm.types import Limits

EXAMPLES = {"model": "openai:gpt-5", "sub_model": "openai:gpt-5", "store": "~/sessions", "isolation": "namespace"}


@dataclass(frozen=True, slots=True)
class Config:
    """What the user has set for every run. `model` and `sub_model` as `get_model` takes them, None where not set; so is
    `store`, the folder of durable sessions, and `isolation`, the level of cells that run on this machine."""

    model: str | None = None
    sub_model: str | None = None
    limits: Limits = field(default_factory=Limits)
    store: Path | None = None
    isolation: str | None = None


def variable(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of an environment variable; None where it is not set, or empty."""
    return environ.get(name) or None


def first_set(names: Sequence[str], environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of the first of these environment variables that has one, else None."""
    return next((value for name in names if (value := variable(name, environ))), None)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the config file is, or would be: RLM_CONFIG, else `rlm/config.toml` where the platform keeps such files."""
    if named := variable("RLM_CONFIG", environ):
        return Path(named).expanduser()
    if sys.platform == "win32":
        folder = variable("APPDATA", environ)
        return Path(folder or Path.home() / "AppData" / "Roaming") / "rlm" / "config.toml"
    folder = variable("XDG_CONFIG_HOME", environ)
    return Path(folder or Path.home() / ".config") / "rlm" / "config.toml"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the command line keeps what it remembers, such as past questions; the folder need not exist."""
    if sys.platform == "win32":
        folder = variable("LOCALAPPDATA", environ)
        return Path(folder or Path.home() / "AppData" / "Local") / "rlm"
    folder = variable("XDG_STATE_HOME", environ)
    return Path(folder or Path.home() / ".local" / "state") / "rlm"


def store_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where durable sessions live unless a store is named: RLM_STORE, else `rlm` where the platform keeps such data.

    The folder need not exist.
    """
    if named := variable("RLM_STORE", environ):
        return Path(named).expanduser()
    if sys.platform == "win32":
        folder = variable("LOCALAPPDATA", environ)
        return Path(folder or Path.home() / "AppData" / "Local") / "rlm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "rlm"
    folder = variable("XDG_DATA_HOME", environ)
    return Path(folder or Path.home() / ".local" / "share") / "rlm"


def load_config(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """The user's defaults, from the file at `path` (None: where `config_path` says) and the environment.

    Without a file they are those of `Config()`, unless the file was named. Raises `ConfigurationError`, with the file's
    name, for a file that cannot be read, is no TOML, or says what nobody understands.
    """
    named = path is not None or variable("RLM_CONFIG", environ) is not None
    path = path or config_path(environ)
    table = _read(path) if named or path.exists() else {}
    known = {known.name for known in fields(Config)}
    if unknown := sorted(table.keys() - known):
        raise ConfigurationError(f"{path}: unknown name {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return Config(
        model=variable("RLM_MODEL", environ) or _text(path, table, "model"),
        sub_model=variable("RLM_SUB_MODEL", environ) or _text(path, table, "sub_model"),
        limits=_limits(path, table.get("limits", {})),
        store=_store(path, table, environ),
        isolation=_text(path, table, "isolation"),
    )


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # few have such a file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path}: is not a TOML file ({error})") from error


def _text(path: Path, table: Mapping[str, Any], name: str) -> str | None:
    value = table.get(name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(f"{path}: {name} = {value!r}: give a text such as {EXAMPLES[name]!r}")


def _store(path: Path, table: Mapping[str, Any], environ: Mapping[str, str]) -> Path | None:
    """A relative folder is one beside the file."""
    if named := variable("RLM_STORE", environ):
        return Path(named).expanduser()
    written = _text(path, table, "store")
    return None if written is None else path.parent / Path(written).expanduser()


def _limits(path: Path, table: object) -> Limits:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: limits = {table!r}: give a table [limits]")
    known = [known.name for known in fields(Limits)]
    if unknown := sorted(table.keys() - set(known)):
        raise ConfigurationError(f"{path}: unknown limit {unknown[0]!r}; known are {', '.join(known)}")
    try:
        return Limits(**table)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error
