"""Writes the golden log: a session with every kind of event, as this version records it, and what it has to say later.

Three processes have a hand in it, each killed in the middle of a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from pathlib import Path

from rlm import RLM, Limits, ScriptedModel, log, tool
from rlm.errors import ModelError, RLMError
from rlm.folds import Past
from rlm.stores import get_store
from rlm.types import Messages
from tests.turns import cell, submission, submit, task

HERE = Path(__file__).parent


def reply(messages: Messages) -> str:
    if messages[0]["role"] == "user":
        return f"about {messages[0]['content']}"
    said = sum(message["role"] == "assistant" for message in messages)
    asked = task(messages)
    if "summarise" in asked:
        return submit("context[:9]")
    if asked.startswith("First"):
        return cell(
            "import math\nrows = [1, (2, b'3')]; alias = rows\ndef size(): return len(rows)\n"
            "class Point:\n    x = math.pi\np = Point(); g = (n for n in rows); doc = context",
            "found = llm_query_batched(['a', 'b'], model='scripted')\n"
            "child = rlm_query('summarise this')\nlimit = pay(3)\n" + submission("f'{size()} {found} {child}'"),
        )
    if asked.startswith("Breaks"):
        raise ModelError("the provider is gone", model="scripted")
    if asked.startswith("Fails"):
        return cell("1 / 0")
    if asked.startswith("Second"):
        return [cell("rows.append('two')"), cell("once_more = llm_query('c')\ndie()")][said]
    return submit("rows")


@tool(retry="never")
def pay(sum: int) -> dict[str, int]:
    return {"paid": sum}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def first(rlm: RLM) -> None:
    session = rlm.session("golden")
    session.add_context({"a": 1}, name="table")
    session.completion("a text", "First?", key="k")
    session.run("rows.append(0)")
    session.fork("copy")
    copy = rlm.session("copy")
    for question in ("Fails?", "Breaks?"):
        with contextlib.suppress(RLMError):
            copy.ask(question)
    copy.ask("Second?")


def second(rlm: RLM) -> None:
    rlm.session("copy").resume()


def third(rlm: RLM) -> None:
    session = rlm.session("copy")
    session.discard()
    session.rewind(after=0)
    session.ask("Second?")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for live in (first, second, third):
            child = os.fork()
            if not child:
                limits = Limits(depth=2, errors=1)
                live(RLM(ScriptedModel(reply), tools=[pay, die], limits=limits, store=folder))
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, live.__name__
        records = asyncio.run(get_store(folder).read("copy"))
    past = Past(records)
    path = HERE / f"log-v{log.VERSION}.jsonl"
    path.write_text("".join(f"{log.dump_record(record)}\n" for record in records), encoding="ascii")
    told = {
        "kinds": sorted({record.event.kind for record in records}),
        "turns": [(turn.asked.question, turn.answer) for turn in past.ended],
        "variables": dict(past.heap.types),
        "calls": past.usage.total_calls,
        "unfinished": past.unfinished.number if past.unfinished else None,
    }
    path.with_suffix(".json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(records)} events; missing kinds: {sorted(log.EVENTS.keys() - set(told['kinds']))}")


if __name__ == "__main__":
    main()
