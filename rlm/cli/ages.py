"""Times as people write and read them: `30d` as seconds, and when something was changed."""

from __future__ import annotations

import re
import time

from rlm.cli.exits import UsageError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str) -> float:
    """Of `90s`, `30m`, `12h`, `30d`, `2w`. Raises `UsageError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    if found is None:
        raise UsageError(f"{text!r} is no age: give a number and a unit, such as 12h, 30d or 8w")
    return float(found[1]) * UNITS[found[2]]


def when(since: float) -> str:
    """A time in seconds since 1970, by this machine's clock on the wall."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
    except (ValueError, OverflowError, OSError):  # a clock that was wrong, or a log that is
        return "unknown"
