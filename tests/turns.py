"""What scripted models say in the tests of turns, and how to read what they were told."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rlm.models import ScriptedModel
from rlm.types import Message, Messages


def cell(*codes: str) -> str:
    """A reply with these cells."""
    return "\n".join(f"```repl\n{textwrap.dedent(code).strip()}\n```" for code in codes)


def submit(expression: str) -> str:
    """A reply whose cell submits the value of the expression."""
    return cell(submission(expression))


def submission(expression: str) -> str:
    return f'answer["content"] = {expression}\nanswer["ready"] = True'


def task(messages: Messages) -> str:
    """What the turn is about, as its opening says it; of a call that opens no turn, the whole prompt."""
    opening = next(message["content"] for message in messages if message["role"] == "user")
    return opening.rpartition("Task: ")[2]


def opening(request: Sequence[Message]) -> str:
    """The user's message that opened the turn of this request."""
    return next(message["content"] for message in request if message["role"] == "user")


def told(request: Sequence[Message]) -> str:
    """The last message of this request: the output of the last cells, or the opening."""
    return request[-1]["content"]


def by_task(replies: Mapping[str, str | Sequence[str]], name: str = "scripted") -> ScriptedModel:
    """A model that knows what to say to each task: one reply, or one for each iteration."""

    def reply(messages: Messages) -> str:
        prepared = replies[task(messages)]
        if isinstance(prepared, str):
            return prepared
        return prepared[sum(message["role"] == "assistant" for message in messages)]

    return ScriptedModel(reply, name=name)
