"""What a session may be called: any text that can be shown to a person on one line; and which names are near."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rlm.errors import StoreError, UnknownSessionError

LONGEST = 200  # characters: what a listing can show, and a file system take in any form


def check_name(name: str) -> None:
    """Raises `StoreError` for what is no name."""
    if not isinstance(name, str) or not name.strip():
        raise StoreError(f"a session named {name!r}: give a text that is not empty")
    if len(name) > LONGEST:
        raise StoreError(f"a session named {name[:40]!r}…: give a name of up to {LONGEST} characters")
    if not name.isprintable():
        raise StoreError(f"a session named {name!r}: give a name of printable characters, on one line")


def unknown(name: str, names: Sequence[str]) -> UnknownSessionError:
    """The error for a name that no session has, which tells those of `names` that are near."""
    near = difflib.get_close_matches(name, names)
    hint = f"; near are {', '.join(map(repr, near))}" if near else ""
    return UnknownSessionError(f"there is no session {name!r}{hint}")
