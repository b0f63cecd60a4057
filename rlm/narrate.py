"""Events as lines of plain text, for terminals without colour, logs, and `verbose=True`.

One event gives at most a few lines; what a line shows of a text is its beginning. Nothing here knows Rich.
"""

from __future__ import annotations

import sys

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


def line(event: Event) -> str | None:
    """What to say of the event; None where there is nothing worth a line."""
    indent = "  " * event.at.count("/")
    said = _said(event)
    return None if said is None else f"{indent}{said}"


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
            tokens = completion.usage_summary.total.tokens
            return f"answer ({completion.execution_time:.1f} s, {tokens:,} tokens, cost {cost}): {head(completion.response)}"
        case Stopped(reason=reason, message=message):
            return f"stopped by {reason}: {message}"
        case Failed(error=error, message=message):
            return f"failed with {error}: {message}"
    return None


def head(text: str) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(text[: 4 * WIDTH].split())
    return flat if len(flat) <= WIDTH else flat[: WIDTH - 1] + "…"
