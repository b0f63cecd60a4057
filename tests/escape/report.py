"""The figures of docs/security.md, out of bench/results/escape.json. `python -m tests.escape.report` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "bench" / "results" / "escape.json"
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- escape -->", "<!-- /escape -->"


def section(result: Mapping[str, Any]) -> str:
    """A line for each host and level, and where they were taken."""
    about = result["about"]
    lines = ["| where | level | payloads that got out |", "|---|---|--:|"]
    for run in result["runs"]:
        lines.append(f"| {run['host']} | `{run['level']}` | {run['succeeded']} of {run['payloads']} |")
    lines += [
        "",
        f"<sub>Linux {about['kernel']} on {about['machine']}, {about['date']}; "
        "`python -m tests.escape` takes them again. "
        "At `none` they are to succeed, but for what needs rights that the user has not.</sub>",
    ]
    return "\n".join(lines)


def page(text: str, result: Mapping[str, Any]) -> str:
    """The page with these figures in it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{section(result)}\n{END}{after}"


def read() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def write() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")


if __name__ == "__main__":
    write()
