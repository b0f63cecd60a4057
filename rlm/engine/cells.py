"""Code out of a model's replies, and a cell's output into the model's messages.

Both directions are pure text. Code is found by fences alone and never compiled here: the worker's Python may be another
version than ours, and a cell that does not parse must reach it all the same, so that the model sees why.
"""

from __future__ import annotations

import re
import textwrap

from rlm.types import REPLResult

TRACEBACK_LIMIT = 20_000
"""Characters of a traceback that are shown: far above any that a person would read to the end."""

_PYTHON = frozenset({"python", "py", "python3"})
_CODE = _PYTHON | {"repl"}
_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)"  # the fence may be the first thing of a list item
    r"(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)(?P<rest>[^`]*)$"
)
_REASONING = r"(?:think|thinking|thought|reasoning)"
_THOUGHT = re.compile(rf"\s*<(?P<tag>{_REASONING})>.*?(?:</(?P=tag)>|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_END = re.compile(rf"^[ \t]*</{_REASONING}>[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_THOUGHT_START = re.compile(rf"<{_REASONING}>", re.IGNORECASE)

# What can hold a quote mark on a line of Python: the start of a triple-quoted string, a comment, a one-line string.
_PIECE = re.compile(r"""("{3}|'{3})|#.*|"(?:[^"\\]|\\.)*(?:"|\\?$)|'(?:[^'\\]|\\.)*(?:'|\\?$)""")
_UNTIL = {quote: re.compile(rf"(?:\\.|[^\\])*?{quote}") for quote in ('"""', "'''")}


def extract(reply: str) -> list[str]:
    """The cells of a reply, in order: its ```repl blocks, or where it has none its ```python and ```py blocks.

    Fences may be indented (the code is dedented with them), longer than three marks, of tildes, or missing at the end.
    A line that looks like a fence but stands in a triple-quoted string of the code belongs to the code. Blocks without
    code, blocks of other languages and a leading reasoning block (`<think>…</think>`) are left out.
    """
    blocks = _blocks(spoken(reply).split("\n"))
    repl = [code for language, code in blocks if language == "repl"]
    return repl or [code for language, code in blocks if language in _PYTHON]


def spoken(reply: str) -> str:
    """The reply without a leading reasoning block; some servers send only the end tag of it."""
    if thought := _THOUGHT.match(reply):
        return reply[thought.end() :]
    end = _THOUGHT_END.search(reply)
    if end and not _THOUGHT_START.search(reply, 0, end.start()):
        return reply[end.end() :]
    return reply


def prose(reply: str) -> str:
    """What the reply says beside its cells: the text without reasoning and without fenced Python."""
    lines, kept, at = spoken(reply).split("\n"), [], 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence and fence["language"].lower() in _CODE:
            _, at = _end(lines, at + 1, fence)
        else:
            kept.append(lines[at])
            at += 1
    return "\n".join(kept).strip()


def _blocks(lines: list[str]) -> list[tuple[str, str]]:
    """Language and code of each fenced block that has any code."""
    blocks = []
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        at += 1
        if fence is None:
            continue
        end, after = _end(lines, at, fence)
        code = _dedented(lines[at:end], fence)
        if code.strip():
            blocks.append((fence["language"].lower(), code))
        at = after
    return blocks


def _end(lines: list[str], start: int, fence: re.Match[str]) -> tuple[int, int]:
    """Where the block's code ends, and where the text after the block begins.

    Inside a string that is closed again before a later fence, fences are text. Where the string never is, the first
    fence counts. A line that opens another block of code ends this one too: outside of strings it is not Python.
    """
    python = fence["language"].lower() in _CODE
    fallback: tuple[int, int] | None = None
    quote: str | None = None
    for at in range(start, len(lines)):
        after = _boundary(lines[at], at, fence["marks"])
        if after is not None and quote is None:
            return at, after
        if after is not None and fallback is None:
            fallback = at, after
        if python:
            quote = _quote_after(lines[at], quote)
    return fallback or (len(lines), len(lines))


def _boundary(line: str, at: int, marks: str) -> int | None:
    """Where to go on if this line ends a block that `marks` opened: behind a closing fence, at an opening one."""
    found = _FENCE.match(line)
    if found is None or found["marks"][0] != marks[0] or len(found["marks"]) < len(marks):
        return None
    if not found["language"] and not found["rest"].strip() and not found["indent"].strip():
        return at + 1
    return at if found["language"].lower() in _CODE else None


def _quote_after(line: str, quote: str | None) -> str | None:
    """The triple quote that is open at the end of the line, given the one that is open at its start."""
    at = 0
    while True:
        if quote is None:
            piece = _PIECE.search(line, at)
            if piece is None:
                return None
            quote, at = piece[1], piece.end()
        else:
            closed = _UNTIL[quote].match(line, at)
            if closed is None:
                return quote
            quote, at = None, closed.end()


def _dedented(lines: list[str], fence: re.Match[str]) -> str:
    """The code of a block, moved left with its fence, with the line ends of Python."""
    if fence.string.endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    width = len(fence["indent"])
    code = "\n".join(line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in lines)
    first = next((line for line in code.split("\n") if line.strip()), "")
    return textwrap.dedent(code) if first[:1] in (" ", "\t") else code


# -- output --------------------------------------------------------------------------------------------------------


def render(number: int, result: REPLResult, limit: int = 10_000) -> str:
    """What the model sees of cell `number`: its output, each stream cut to `limit` characters, and all of its error."""
    error = result.error.text.strip("\n") if result.error else ""
    stderr = result.stderr.rstrip("\n").removesuffix(error).rstrip("\n")
    parts = [clip(result.stdout.rstrip("\n"), limit)]
    if stderr:
        parts += ["stderr:", clip(stderr, limit)]
    if result.restarted:
        parts += ["The REPL was lost in this cell and was started again."]
    parts += [clip(error, TRACEBACK_LIMIT)]
    shown = "\n".join(part for part in parts if part)
    return f"[cell {number}]\n{shown or '(no output)'}"


def clip(text: str, limit: int) -> str:
    """`text` where it has at most `limit` characters, else its first two thirds and last third of `limit` and the
    number of characters cut between."""
    cut = len(text) - limit
    if cut <= 0:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[… {cut:,} characters cut …]\n{text[head + cut :]}"
