"""How long what a worker says of its heap may be: the worker says nothing longer, the host believes nothing longer.

A name that cannot be told is a loss, told under what it begins with. No I/O; the standard library only, Python 3.9 and
newer: this file also travels into sandboxes.
"""

from __future__ import annotations

MAX_TEXT = 10_000  # characters of a name, a type, a path or a reason
MAX_LONG = 1_000_000  # characters of the statement that made a definition, or of the imports that a name stands for
SHOWN = 200  # characters of a type, a reason or a repr that are told


def is_tellable(name: str) -> bool:
    """Whether a name can be told as it is."""
    return 0 < len(name) <= MAX_TEXT


def told(name: str) -> str:
    """A name as it is told."""
    if is_tellable(name):
        return name
    return f"{name[:SHOWN]}… ({len(name):,} characters)" if name else "''"


def cut(text: object, limit: int = SHOWN) -> str:
    """The beginning of a text, with nothing in it that is no UTF-8."""
    return str(text)[:limit].encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def reason(error: BaseException) -> str:
    """Why something is lost; of an error of the user's, whose text may be anything, or not be had."""
    try:
        text = str(error)
    except BaseException as broken:  # noqa: BLE001 - code of the user's; that it failed is told
        text = f"its text cannot be had: {type(broken).__name__}"
    return cut(f"{cut(type(error).__name__)}: {cut(text)}")
