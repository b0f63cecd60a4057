"""Scripts that play models for the tests of the command line: `scripted:policies:NAME`, run from this folder.

Each is a function from the messages to a reply; how far a turn is follows from the number of the model's own replies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from rlm.errors import ModelError
from rlm.types import Messages

MAY_I = "May I go on?"
SUBMIT = 'answer["content"] = {}\nanswer["ready"] = True'


def cell(code: str, thought: str = "Let me see.") -> str:
    return f"{thought}\n```repl\n{code}\n```"


def said(messages: Messages) -> int:
    """How many replies the model has given in this turn."""
    return sum(message["role"] == "assistant" for message in messages)


def step(messages: Messages, replies: Sequence[str]) -> str:
    return replies[min(said(messages), len(replies) - 1)]


def count(messages: Messages) -> str:
    """Answers with the type and the length of what it was given."""
    return step(
        messages, [cell("print(len(context))"), cell(SUBMIT.format('f"{type(context).__name__} of {len(context)}"'))]
    )


def names(messages: Messages) -> str:
    """Answers with the context itself, as JSON where it is a mapping."""
    return cell("import json\n" + SUBMIT.format("context if isinstance(context, str) else json.dumps(context)"))


def say(messages: Messages) -> str:
    """Answers without a look at anything."""
    return cell(SUBMIT.format('"# Hello\\n\\nThis is **it**.\\nA second line."'))


def hostile(messages: Messages) -> str:
    """Everything it writes tries to take the terminal over."""
    bad = "\\x1b]0;owned\\x07\\x1b[2J[red]\\x9b31m"
    return step(
        messages,
        [
            cell("x = '\x1b[31m[bold]code[/bold]\x1b]8;;http://example.org\x07'\nprint('" + bad + "out')"),
            cell("raise ValueError('" + bad + "')"),
            cell("llm_query('" + bad + "prompt')"),
            cell(SUBMIT.format(f"'{bad}the answer [/red]\\u202e'")),
        ],
    )


def draft(messages: Messages) -> str:
    """Never done, but with something to show."""
    return cell("answer['content'] = 'half an answer'")


def failing_cells(messages: Messages) -> str:
    return cell("answer['content'] = 'half an answer'\n1 / 0")


def endless(messages: Messages) -> str:
    """Has half an answer, and then a cell that does not end."""
    return step(messages, [cell("answer['content'] = 'half an answer'"), cell("print('started')\nwhile True: pass")])


def ticking(messages: Messages) -> str:
    """A cell that does not end, and prints all the time."""
    return cell("import time\nwhile True:\n    print('tick')\n    time.sleep(0.05)")


def refused(messages: Messages) -> str:
    raise ModelError("the provider said no to sk-abcdefghijklmnop", model="policies")


def broken(messages: Messages) -> str:
    raise RuntimeError("a bug of ours, near sk-abcdefghijklmnop")


def many(messages: Messages) -> str:
    """As many sub-calls as the question says."""
    asked = next(word for word in messages[1]["content"].split() if word.isdigit())
    return cell(
        f"found = llm_query_batched([f'piece {{n}}' for n in range({asked})])\n" + SUBMIT.format("str(len(found))")
    )


async def sub(messages: Messages) -> str:
    """A sub-model that takes a moment, and fails at every seventh piece."""
    await asyncio.sleep(0.01)
    last = messages[-1]["content"].split()[-1]
    if last.isdigit() and int(last) % 7 == 6:
        raise ModelError(f"piece {last} is illegible", model="sub")
    return "fine"


def instant(messages: Messages) -> str:
    return "fine"


async def show(messages: Messages) -> str:
    """A turn with some of everything, slow enough to be watched. Children are the same script, with a text as task."""
    await asyncio.sleep(0.25)
    if messages[0]["role"] == "user":
        return "fine"
    if not any("Which service" in message["content"] for message in messages):
        return step(
            messages,
            [
                cell("import time\nlines = context.splitlines()\ntime.sleep(0.5)"),
                cell(SUBMIT.format('"nothing unusual"')),
            ],
        )
    return step(
        messages,
        [
            cell("rows = context.splitlines()\nprint(len(rows), 'rows')\nprint(rows[0])\nprint(rows[-1])"),
            cell("hour = int('03:12')", "When was that?"),
            cell(
                "import re\n\n"
                "def pieces(rows, size):\n"
                "    for start in range(0, len(rows), size):\n"
                "        yield '\\n'.join(rows[start : start + size])\n\n"
                "found = llm_query_batched([f'Which one failed first? {piece}' for piece in pieces(rows, 50)])\n"
                "print(sum(not text.startswith('Error') for text in found), 'answers')",
                "Now the pieces, all at once.",
            ),
            cell("notes = rlm_query_batched([f'Summarise the errors of hour {n}' for n in range(6)])\nprint(notes)"),
            cell(
                SUBMIT.format(
                    '"## The database\\n\\n1. It refused connections at **03:12**.\\n2. Everything else followed."'
                )
            ),
        ],
    )


def chat(messages: Messages) -> str:
    """One turn of a conversation about numbers, decided by the question."""
    question = messages[1]["content"].rpartition("Task: ")[2]
    if "remember" in question:
        return cell("numbers = [1, 2, 3]\nprint(numbers)\n" + SUBMIT.format('"kept"'))
    if "endless" in question:
        return cell("print('started')\nwhile True: pass")
    if "fail" in question:
        return refused(messages)
    if "break" in question:
        raise ValueError("the client\ndoes not know what to do")
    return cell(SUBMIT.format('f"the sum is {sum(numbers)}"'))


async def patient(messages: Messages) -> str:
    """The conversation about numbers, with what is asked written down in the folder that PATIENT names.

    A slow question has a cell that asks whether it may go on: that it did so is said there, and so is the answer.
    """
    folder = Path(os.environ["PATIENT"])
    if messages[-1]["content"] == MAY_I:
        (folder / "began").touch()
        while not (folder / "go").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        return "yes"
    question = messages[1]["content"].rpartition("Task: ")[2]
    with (folder / "requests").open("a") as file:
        file.write(f"{question.strip()} {said(messages)}\n")
    if "slow" not in question:
        return chat(messages)
    wait = f"llm_query({MAY_I!r})\nnumbers.append(4)"
    submit = SUBMIT.format('f"the sum is {sum(alias)}"')
    return step(messages, [cell("numbers = [1, 2, 3]\nalias = numbers"), cell(wait), cell(submit)])
