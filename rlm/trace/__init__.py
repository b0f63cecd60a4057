"""A run as a page: one HTML file that shows a log as a tree, with nothing to serve and nothing to fetch.

`page` makes the text, the same for the same records; `write` puts it into a file. The page's own style and script are
the only ones its policy lets run, and all that models, cells and users wrote reaches it as text.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from rlm import files
from rlm.trace.tree import tree, visible
from rlm.types import Recorded

LIMITS = (200_000, 50_000, 10_000, 2_000)
"""Characters of one text in a page: the most with which the page stays below `SIZE`, else the last."""

SIZE = 32_000_000
"""Characters of a page's data that a browser still opens at once."""

OUTLINE = 20_000  # characters of a question or an answer in the outline

_FOR_SCRIPTS = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}
ENDS = frozenset({"stopped", "failed", "unfinished"})
"""States of turns without an answer."""


def page(records: Sequence[Recorded], *, title: str) -> str:
    """The HTML of a run, whole: `records` are a session's log, oldest first; `title` is what the page is called."""
    data, written = _within(records)
    own = {
        name: (resources.files(__name__) / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")
    }
    policy = (
        f"default-src 'none'; style-src {_hash(own['css'])}; script-src {_hash(own['js'])}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {
        "policy": policy,
        "title": _escaped(title),
        "about": _escaped(_about(data)),
        "totals": "".join(_total(*total) for total in _totals(data)),
        "models": _models(data["models"]),
        "outline": _outline(data["items"]),
        "data": written,
        "style": own["css"],
        "script": own["js"],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], own["html"])


def write(records: Sequence[Recorded], path: Path, title: str) -> None:
    """Write the page of a run to `path`, in place of what stands there. Raises `OSError`."""
    files.write(path, page(records, title=title))


def _within(records: Sequence[Recorded]) -> tuple[dict[str, Any], str]:
    """The run as data and as JSON, with as much of its long texts as a page can hold."""
    data: dict[str, Any] = {}
    written = ""
    for limit in LIMITS:
        data = tree(records, limit)
        written = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_FOR_SCRIPTS)
        if len(written) <= SIZE:
            break
    return data, written


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return html.escape(visible(text))


# -- what stands in the page without its script ----------------------------------------------------------------------


def _about(data: Mapping[str, Any]) -> str:
    opened = data["opened"]
    said = [opened.get("model"), opened.get("environment"), opened.get("version") and f"rlm {opened['version']}"]
    if data["began"] is not None:
        said.append(data["began"])
    return " · ".join([*filter(None, said), _counted(data["events"], "event")])


def _totals(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, figure, and what is said below it."""
    requests, sent, cached, received, cost = data["use"]
    counts = data["counts"]
    known = sum(use[4] for use in data["models"].values() if use[4] is not None)
    paid = _dollars(cost) if cost is not None else f"≥ {_dollars(known)}" if known else "unknown"
    dropped = sum(bool(item.get("dropped")) for item in data["items"] if item["kind"] == "turn")
    return [
        ("Turns", f"{counts['turn']:,}", f"{dropped:,} dropped" if dropped else ""),
        ("Iterations", f"{counts['iteration']:,}", ""),
        ("Cells", f"{counts['cell']:,}", ""),
        ("Calls", f"{counts['call']:,}", ""),
        ("Model requests", f"{requests:,}", ""),
        ("Tokens in", _compact(sent), f"{_compact(cached)} cached" if cached else ""),
        ("Tokens out", _compact(received), ""),
        ("Cost", paid, "a price is unknown" if cost is None and known else ""),
        ("Time", _clock(data["s"]), ""),
    ]


def _total(label: str, figure: str, below: str) -> str:
    small = f"<small>{_escaped(below)}</small>" if below else ""
    return f"<div><dt>{_escaped(label)}</dt><dd>{_escaped(figure)}{small}</dd></div>"


def _models(models: Mapping[str, Sequence[float | None]]) -> str:
    """A table of what each model consumed; nothing where there is only one."""
    if len(models) < 2:
        return ""
    heads = ("Requests", "Tokens in", "Cached", "Out", "Cost")
    head = "<th>Model</th>" + "".join(f'<th class="number">{name}</th>' for name in heads)
    rows = []
    for name, (requests, sent, cached, received, cost) in models.items():
        figures = [f"{figure:,}" for figure in (requests, sent, cached, received)]
        figures.append("unknown" if cost is None else _dollars(cost))
        cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    table = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f'<details class="fold models"><summary>{_counted(len(models), "model")}</summary>{table}</details>'


def _outline(items: Sequence[Mapping[str, Any]]) -> str:
    """Questions and answers alone, for a reader whose browser runs no scripts."""
    turns = []
    for item in items:
        if item["kind"] == "turn":
            question = item.get("question") or item.get("about") or "The task is in the input."
            said = [item.get(name) for name in ("answer", "message", "partial")]
            ends = [item["state"]] if item.get("state") in ENDS else []
            ends += ["dropped"] if item.get("dropped") else []
            label = " ".join([f"Turn {item.get('n', '')}", *(f"({end})" for end in ends)])
            texts = "".join(f"<pre>{_head(text)}</pre>" for text in (question, *said) if text)
            turns.append(f"<li><strong>{html.escape(label)}</strong>{texts}</li>")
    return f'<ol class="outline">{"".join(turns)}</ol>'


def _head(text: str) -> str:
    return html.escape(text if len(text) <= OUTLINE else f"{text[:OUTLINE]}\n…")


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _compact(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.2f}M"


def _dollars(cost: float) -> str:
    return "$0" if cost == 0 else f"${cost:.4f}" if cost < 10 else f"${cost:,.2f}"


def _clock(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
