"""PATH arguments as the input of a turn: one file is its text, a folder or several paths a mapping path -> text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlm import inputs
from rlm.cli.exits import UsageError

STANDARD_INPUT = "-"


def read(paths: Sequence[str]) -> Any:
    """The input that these paths stand for; "-" is standard input. At least one is given.

    What is not UTF-8 comes as bytes. Raises `UsageError` or `ContextError`, naming the path.
    """
    if paths.count(STANDARD_INPUT) > 1:
        raise UsageError("- is given twice: standard input can be read once")
    if len(paths) == 1:
        return _read(paths[0])
    found: dict[str, str | bytes] = {}
    for path in paths:
        value = _read(path)
        if isinstance(value, dict):
            found |= {str(Path(path, name)): text for name, text in value.items()}
        else:
            found[path] = value
    return found


def _read(path: str) -> Any:
    if path == STANDARD_INPUT:
        data = sys.stdin.buffer.read()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data
    value = inputs.read(Path(path).expanduser())
    if value == {}:
        raise UsageError(f"{path}: the folder holds no files that can be read (hidden ones are left out)")
    return value


def described(value: Any) -> str:
    """What an input is, in a few words: `str, 1,234 characters`."""
    units = {"str": "characters", "bytes": "bytes", "dict": "files"}
    return f"{type(value).__name__}, {len(value):,} {units[type(value).__name__]}"
