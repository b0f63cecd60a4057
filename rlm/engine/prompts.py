"""Every text the engine says to a model; pure.

The system prompt is the same for all turns of a session, so that providers can serve it from their cache; what changes
is in the turn's user message, which stays as short at turn 50 as at turn 2. Numbers of characters here are budgets for
what is sent again with each request, not limits on what a cell can read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlm.engine.cells import clip
from rlm.types import Tool

# Characters shown of the last turn's question and answer, and of all turns before it together. They keep the prompt of
# turn 50 within 1.2 times that of turn 2.
LAST_QUESTION, LAST_ANSWER, OLDER_TURNS = 500, 1500, 280

_TOOLS_PLACE = "{custom_tools_section}"
_INSIDE = "(the task inside its input)"

_HEAD = """\
You are a Recursive Language Model: you answer a task about an input that may be far larger than you can read, by \
writing code. The input is the variable `context` in a persistent Python REPL. You see nothing of it but what you print.

Put code into blocks marked repl:
```repl
print(type(context), len(context))
print(context[:1000])
```
Cells share one namespace, as one Python module does: variables, functions and imports stay, also for later turns. \
Top-level `await` works. Long output is cut in its middle, so keep results in variables and print little. What you \
print comes back to you after your reply.

The REPL has:
- `context` (also `context_0`), `context_1`, …: the inputs. `history` (also `history_0`), …: messages of earlier turns.
- `llm_query(prompt, model=None) -> str`: a sub-model; it sees only the prompt, about 400,000 characters at most.
- `llm_query_batched(prompts, model=None) -> list[str]`: many at once, in order, as fast as one. A call that fails \
gives a text that starts with "Error: ".
"""
_RECURSION = """\
- `rlm_query(prompt, model=None) -> str`, `rlm_query_batched(prompts, model=None)`: one like you, with its own REPL, \
and the prompt as its `context`; for parts that need many steps.
"""
_TAIL = """\
- `SHOW_VARS() -> str`: names and types of all variables.
- `answer`: to submit, set `answer["content"] = ...` and `answer["ready"] = True` in a repl block.
"""
_STRATEGY = """
How to work:
1. Look first: type, size, some of the text. Then plan.
2. Narrow down by code: search, regex, split, count.
3. What must be read goes to `llm_query_batched`: the question with each piece, all pieces in one batch.
4. Print the results, check them, and only then submit.
Never answer from memory or by guessing: only from what your code found in the input.
"""


def system(tools: Sequence[Tool], *, depth_left: bool, custom: str | None = None, orchestrator: bool = True) -> str:
    """The system prompt.

    depth_left: `rlm_query` starts a child, so it is worth knowing. custom: a text in place of ours; the tools go where
    it says `{custom_tools_section}`, else at its end. orchestrator: advise how to go about the task.
    """
    section = _tools(tools)
    if custom is not None and _TOOLS_PLACE in custom:
        return custom.replace(_TOOLS_PLACE, section)
    text = custom
    if text is None:
        text = _HEAD + (_RECURSION if depth_left else "") + _TAIL + (_STRATEGY if orchestrator else "")
    return f"{text.rstrip()}\n\n{section}".strip()


def _tools(tools: Sequence[Tool]) -> str:
    return "\n".join(["Also defined for this task:", *map(signature, tools)]) if tools else ""


def signature(tool: Tool) -> str:
    """One entry of the tools section: how a function is called, or of what type a value is, and what it is for."""
    if not tool.is_function:
        return _entry(f"{tool.name}: {type(tool.value).__name__}", tool.description)
    function = tool.value.func if isinstance(tool.value, functools.partial) else tool.value
    paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
    return _entry(f"{tool.name}{_parameters(tool.value)}", tool.description or paragraph)


def _entry(name: str, description: str) -> str:
    return f"- `{name}`: {' '.join(description.split())}" if description.strip() else f"- `{name}`"


class _Source(str):
    """Text that a signature shows without quotes."""

    __repr__ = str.__str__


def _parameters(function: Callable[..., Any]) -> str:
    """`(name: type = default) -> type`; annotations as written, and defaults only where they are literals."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return "(...)"
    parameters = [
        parameter.replace(annotation=_annotation(parameter.annotation), default=_default(parameter.default))
        for parameter in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters, return_annotation=_annotation(found.return_annotation)))


def _annotation(annotation: Any) -> Any:
    return _Source(annotation) if isinstance(annotation, str) else annotation


def _default(default: Any) -> Any:
    """A default that reads the same in every process: the repr of an object may hold its address."""
    if default is inspect.Parameter.empty or isinstance(default, (str, int, float, bytes, type(None))):
        return default
    return _Source("...")


# -- a turn --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """The input that came with a turn: `context_{index}`, its type and size (None: it has none), its name if it has
    one, and the head and tail of its text for a turn whose task is inside."""

    index: int
    type: str
    size: int | None
    name: str | None = None
    preview: str | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn of the past: what was asked (None: the task was inside its input), and what was answered."""

    question: str | None
    answer: str


def turn(
    *,
    question: str | None,
    context: ContextInfo | None,
    contexts: int,
    histories: int,
    conversation: Sequence[Exchange],
    notes: Sequence[str] = (),
    output_type: str | None = None,
    preview: str | None = None,
) -> str:
    """The user message that opens a turn.

    context: the input that came with this turn. contexts, histories: how many there are, that input included.
    conversation: all earlier turns, oldest first; the messages of the i-th are `history_{i}`. notes: what happened to
    the namespace since the last turn. output_type: the JSON schema of the answer. preview: head and tail of the input,
    in place of `context.preview`, shown where there is no question.
    """
    parts = [_conversation(conversation), _inputs(context, contexts, histories)]
    if notes:
        parts.append("\n".join(["Since the last turn:", *(f"- {note}" for note in notes)]))
    if output_type:
        parts.append(
            'The answer must be JSON that fits this schema (for `answer["content"]`: json.dumps):\n' + output_type
        )
    parts.append(_task(question, context, preview or (context.preview if context else None)))
    return "\n\n".join(part for part in parts if part)


def _task(question: str | None, context: ContextInfo | None, preview: str | None) -> str:
    if question is not None:
        return f"Task: {question}"
    if context is None:
        return "Task: go on from where the last turn ended."
    place = f"`{_variable('context', context.index)}`"
    task = f"Task: it is written in {place} itself. Find it there, do it, and submit the answer."
    return f"{task} {place} begins and ends so:\n{preview}" if preview else task


def _inputs(context: ContextInfo | None, contexts: int, histories: int) -> str:
    lines = []
    if context is not None:
        name = f", also named `{context.name}`" if context.name else ""
        lines.append(f"This turn's input: `{_variable('context', context.index)}`{name}: {_size(context)}.")
    elif contexts:
        lines.append("No new input came with this turn.")
    if contexts > 1 or (contexts and context is None):
        lines.append(f"All inputs: {_range('context', contexts)}.")
    if histories:
        lines.append(f"Messages of earlier turns: {_range('history', histories)}. Their variables are still there.")
    return "\n".join(lines)


def _size(context: ContextInfo) -> str:
    if context.size is None:
        return context.type
    unit = {"str": "characters", "bytes": "bytes", "bytearray": "bytes"}.get(context.type, "items")
    return f"{context.type}, {context.size:,} {unit}"


def _variable(kind: str, index: int) -> str:
    return kind if index == 0 else f"{kind}_{index}"


def _range(kind: str, count: int) -> str:
    first = f"`{kind}_0` (the same as `{kind}`)"
    return first if count == 1 else f"{first} to `{kind}_{count - 1}`"


def _conversation(conversation: Sequence[Exchange]) -> str:
    if not conversation:
        return ""
    *older, last = conversation
    asked, answered = clip(last.question or _INSIDE, LAST_QUESTION), clip(last.answer, LAST_ANSWER)
    lines = [
        "The conversation so far (turn. question → answer):",
        *_older(older),
        f"{len(older)}. {asked}\n→ {answered}",
    ]
    return "\n".join(lines)


def _older(older: Sequence[Exchange]) -> list[str]:
    """One line a turn, the newest widest; a reference in place of those that do not fit into `OLDER_TURNS`."""
    lines: list[str] = []
    left = OLDER_TURNS
    for index in range(len(older) - 1, -1, -1):
        width = max(left // 2, 70)
        if width > left:
            first = "0. see `history_0`" if index == 0 else f"0 to {index}. see `history_0` to `history_{index}`"
            return [first, *lines]
        asked = _short(older[index].question or _INSIDE, width // 2)
        lines.insert(0, _short(f"{index}. {asked} → {older[index].answer}", width))
        left -= len(lines[0])
    return lines


def _short(text: str, width: int) -> str:
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


# -- within a turn -------------------------------------------------------------------------------------------------


def no_code() -> str:
    """For a reply that has no code."""
    return (
        "Nothing ran: your reply has no ```repl block. Go on with code in one, "
        'or submit in one: `answer["content"] = ...; answer["ready"] = True`.'
    )


def feedback(parts: Sequence[str], *, left: int) -> str:
    """What came of a reply. left: iterations after this one; told only when there are few."""
    if left > 3:
        return "\n\n".join(parts)
    warning = f"Iterations left: {left}. Submit before they run out." if left else ""
    return "\n\n".join([*parts, warning]).strip()


def skipped(count: int) -> str:
    """For the cells of a reply behind the one that failed."""
    return f"The {count} blocks after it were not run." if count > 1 else "The block after it was not run."


def final() -> str:
    """Asks for the answer when the iterations have run out."""
    return (
        "No iterations are left, and no more code will run. Give your final answer to the task now, as plain text, "
        "from what you found; say what remains open."
    )


def only_text() -> str:
    """Why a final answer that is empty, or nothing but code, is none."""
    return "it has no text; no more code will run."


def mismatch(error: str) -> str:
    """For an answer that is not of the type asked for; `error` says where it differs."""
    return f"The answer was not accepted: {error}\nCorrect it and give it again."


def ended(reason: str) -> str:
    """The last message in the history of a turn that ended without an answer."""
    return f"(This turn ended without an answer: {reason})"
