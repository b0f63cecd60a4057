"""Events as lines of plain text, for terminals without colour, logs, and `verbose=True`.

One event gives at most a few lines; what a line shows of a text is its beginning. Models write these texts, so nothing
in them reaches a terminal as a command (`printable`). Nothing here knows Rich.
"""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import Protocol, Self

from rlm.types import (
    Answered,
    Asked,
    Called,
    Calling,
    ContextAdded,
    Event,
    Failed,
    Ran,
    Replied,
    Running,
    Stopped,
)

WIDTH = 100

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor, clearing
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\n\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]"
    r"|\r(?=\n)"
)
_UNSEEN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F])
_REORDERING = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # what is read would not be what runs
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")  # they have no UTF-8
_PRINTED: dict[int, str | None] = {**_UNSEEN, **_REORDERING, **_SURROGATES, ord("\r"): "\n"}


class View(Protocol):
    """Shows turns one after the other: entered for each, and told of its events, in another thread."""

    def tell(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def printable(text: str) -> str:
    """The text without anything that a terminal would obey or hide: of control characters only newline and tab stay."""
    return _SEQUENCE.sub("", text).translate(_PRINTED)


def line(event: Event) -> str | None:
    """What to say of the event; None where there is nothing worth a line."""
    indent = "  " * event.at.count("/")
    said = _said(event)
    return None if said is None else f"{indent}{printable(said)}"


def to_stderr(event: Event) -> None:
    """Print the event's line."""
    said = line(event)
    if said is not None:
        print(said, file=sys.stderr, flush=True)


def _said(event: Event) -> str | None:
    match event:
        case ContextAdded(index=index, type=kind, size=size):
            return f"context_{index}: {kind}" + (f", {size:,} long" if size is not None else "")
        case Asked(question=question, model=model):
            return f"{event.at} {model}: {head(question or '(the task is in the input)')}"
        case Replied(reply=reply, seconds=seconds):
            usage = reply.usage
            return (
                f"reply ({usage.input_tokens:,} + {usage.output_tokens:,} tokens, {seconds:.1f} s): {head(reply.text)}"
            )
        case Running(code=code):
            return f"cell: {head(code)}"
        case Ran(result=result):
            told = result.error.text.rstrip().rpartition("\n")[2] if result.error else result.stdout
            return (
                f"{'failed' if result.error else 'output'} ({result.execution_time:.2f} s): {head(told) or '(nothing)'}"
            )
        case Calling(name=name, prompt=prompt) if name == "rlm_query":
            return f"{name}: {head(prompt)}"
        case Called(name=name, prompt=prompt, seconds=seconds, error=error):
            return f"{name} ({seconds:.1f} s): {head(prompt)}" + (f" -> Error: {head(error)}" if error else "")
        case Answered(completion=completion):
            cost = "unknown" if completion.cost is None else f"${completion.cost:.4f}"
            told = f"{completion.execution_time:.1f} s, {completion.usage_summary.total.tokens:,} tokens, cost {cost}"
            return f"answer ({told}): {head(completion.response)}"
        case Stopped(reason=reason, message=message):
            return f"stopped by {reason}: {message}"
        case Failed(error=error, message=message):
            return f"failed with {error}: {message}"
    return None


def head(text: str) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(text[: 4 * WIDTH].split())
    return flat if len(flat) <= WIDTH else flat[: WIDTH - 1] + "…"
