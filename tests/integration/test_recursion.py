"""Children: an `rlm_query` starts one like its parent, with a REPL of its own and what is left of the budget."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from rlm import RLM, Limits, ScriptedModel
from rlm.errors import CancellationError, ConfigurationError, OutputError
from rlm.types import Called, Event, Messages, Ran, Replied, RLMChatCompletion
from tests.turns import by_task, cell, opening, submission, submit, task, told


def test_a_child_has_a_repl_of_its_own_with_the_prompt_as_its_context() -> None:
    model = by_task(
        {
            "Ask.": cell("secret = 1\nanswers = [rlm_query('Task: look'), secret]", submission("answers")),
            "look": cell("secret = 2\nfound = [context, 'context_1' in globals(), secret]", submission("found")),
        }
    )
    result = RLM(model, limits=Limits(depth=2)).completion("the parent's", "Ask.")
    child, secret = json.loads(result.response)
    assert json.loads(child) == ["Task: look", False, 2]
    assert secret == 1


def test_a_child_is_told_its_task_and_may_get_any_plain_value() -> None:
    model = by_task({"Ask.": submit("rlm_query({'rows': [1, 2], 1: (b'x',)})")})
    child = ScriptedModel([submit("repr(context)")])
    result = RLM(model, sub_model=child, limits=Limits(depth=2)).completion("a", "Ask.")
    assert result.response == "{'rows': [1, 2], 1: (b'x',)}"
    assert "This turn's input: `context`: dict, 2 items." in opening(child.requests[0])


def test_events_of_a_child_stand_in_its_parents_log_below_the_call() -> None:
    model = by_task({"Ask.": submit("rlm_query('Task: child')"), "child": [cell("print('hi')"), submit("'done'")]})
    with RLM(model, limits=Limits(depth=2)) as rlm, rlm.session() as session:
        result = session.completion("a", "Ask.")
        [call] = [event for event in session.log if isinstance(event, Called)]
        children = [event for event in session.log if event.at.startswith(f"{call.at}/")]
        assert session.usage() == result.usage_summary
    assert call.at.startswith("t0/c0/rlm_query:")
    below = [(event.kind, event.at.removeprefix(call.at)) for event in children]
    assert below == [("replied", "/a0"), ("ran", "/c0"), ("replied", "/a1"), ("ran", "/c1")]
    assert (call.name, call.prompt, call.value, call.error) == ("rlm_query", "Task: child", "done", None)
    assert call.usage_summary.total_calls == 2
    assert result.usage_summary.total_calls == 3


def test_at_maximum_depth_an_rlm_query_is_a_plain_call_and_nobody_is_told_of_it() -> None:
    model = ScriptedModel([submit("rlm_query_batched(['x', 'y'])"), "plain x", "plain y"])
    with RLM(model) as rlm, rlm.session() as session:
        result = session.completion("a", "?")
        assert result.response == '["plain x", "plain y"]'
        assert result.usage_summary.total_calls == 3
        assert session.usage() == result.usage_summary
    assert model.requests[1] == [{"role": "user", "content": "x"}]
    assert "rlm_query" not in model.requests[0][0]["content"]


def test_children_have_children_down_to_the_limit() -> None:
    def script(messages: Messages) -> str:
        if len(messages) == 1:
            return f"plain call of {messages[0]['content']}"
        level = int(task(messages))
        return submit(f"'level {level}, ' + rlm_query('Task: {level + 1}')")

    with RLM(ScriptedModel(script), limits=Limits(depth=4)) as rlm, rlm.session() as session:
        result = session.completion("a", "0")
        deepest = max(event.at.count("/rlm_query:") for event in session.log)
        assert session.usage() == result.usage_summary
    assert result.response == "level 0, level 1, level 2, level 3, plain call of Task: 4"
    assert deepest == 4
    assert result.usage_summary.total_calls == 5


def test_children_get_the_sub_tools_and_say_so() -> None:
    def parents_only() -> str:
        """For the parent."""
        return "parent"

    async def childs_only() -> str:
        """For the child."""
        return "child"

    model = by_task(
        {
            "Ask.": submit("[parents_only(), 'childs_only' in globals(), rlm_query('Task: child')]"),
            "child": submit("[childs_only(), 'parents_only' in globals(), number]"),
        }
    )
    sub_tools: dict[str, Any] = {"childs_only": childs_only, "number": 7}
    rlm = RLM(model, tools=[parents_only], sub_tools=sub_tools, limits=Limits(depth=2))
    assert json.loads(rlm.completion("a", "Ask.").response) == ["parent", False, '["child", false, 7]']
    root, child = [request[0]["content"] for request in model.requests]
    assert "parents_only() -> str" in root
    assert "childs_only" not in root
    assert "childs_only() -> str" in child
    assert "parents_only" not in child


@pytest.mark.parametrize(("sub_tools", "there"), [(None, True), ({}, False), ((), False)])
def test_children_have_their_parents_tools_unless_told_otherwise(sub_tools: Any, there: bool) -> None:
    model = by_task({"Ask.": submit("rlm_query('Task: child')"), "child": submit("'look' in globals()")})
    rlm = RLM(model, tools={"look": lambda: 1}, sub_tools=sub_tools, limits=Limits(depth=2))
    assert rlm.completion("a", "Ask.").response == str(there)


def test_children_ask_the_sub_model_or_the_one_that_the_cell_names() -> None:
    small = ScriptedModel([submit("'from small'")], name="p:small")
    large = ScriptedModel([submit("'from large'")], name="p:large")
    root = ScriptedModel([submit("[rlm_query('Task: x'), rlm_query('Task: y', model='large')]")], name="p:root")
    result = RLM(root, sub_model=[small, large], limits=Limits(depth=2)).completion("a", "?")
    assert json.loads(result.response) == ["from small", "from large"]
    assert {name: usage.calls for name, usage in result.usage_summary.model_usage_summaries.items()} == {
        "p:root": 1,
        "p:small": 1,
        "p:large": 1,
    }


def test_a_child_that_fails_fails_its_call_alone() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask.":
            batch = "answers = rlm_query_batched(['Task: good', 'Task: bad', 'Task: dies'])"
            return cell(batch, submission("[str(a)[:20] + getattr(a, 'reason', '') for a in answers]"))
        if task(messages) == "bad":
            raise RuntimeError("no child today")
        if task(messages) == "dies" and len(messages) == 2:
            return cell("import os\nos._exit(1)")
        return submit(f"'{task(messages)} lives'")

    result = RLM(ScriptedModel(script), limits=Limits(depth=2)).completion("a", "Ask.")
    assert json.loads(result.response) == ["good lives", "Error: RuntimeError:model", "dies lives"]


def test_limits_of_iterations_and_errors_hold_for_each_child() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask.":
            return submit("rlm_query_batched(['Task: busy', 'Task: clumsy'])")
        if told(messages).endswith("what remains open."):
            return "all I know"
        return cell("1") if task(messages) == "busy" else cell("1 / 0")

    rlm = RLM(ScriptedModel(script), limits=Limits(depth=2, iterations=3, errors=2))
    busy, clumsy = json.loads(rlm.completion("a", "Ask.").response)
    assert busy == "all I know"
    assert clumsy.startswith("Error: ErrorThresholdExceededError: 2 cells in a row failed")


def test_sixty_four_children_at_once_need_no_more_than_two_requests_at_a_time() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask.":
            return submit("sum(map(int, rlm_query_batched([f'Task: {n}' for n in range(64)])))")
        return submit(task(messages))

    rlm = RLM(ScriptedModel(script), limits=Limits(depth=2, concurrency=2))
    assert rlm.completion("a", "Ask.").response == str(sum(range(64)))


def test_grandchildren_at_once_do_not_wait_for_each_other() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask.":
            return submit("sum(map(int, rlm_query_batched([f'Task: {n} of 3' for n in range(3)])))")
        if "of" in task(messages):
            return submit("sum(map(int, rlm_query_batched([f'Task: {n}' for n in range(3)])))")
        return submit(task(messages))

    rlm = RLM(ScriptedModel(script), limits=Limits(depth=3, concurrency=1))
    assert rlm.completion("a", "Ask.").response == "9"


def test_cancelling_a_turn_ends_its_children() -> None:
    async def go() -> list[str]:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        model = by_task(
            {
                "Ask.": cell("rlm_query_batched(['Task: child', 'Task: child too'])"),
                "child": cell("begun()\nwhile True: pass"),
                "child too": cell("while True: pass"),
                "And now?": submit("'fine'"),
            }
        )
        tools = {"begun": lambda: loop.call_soon_threadsafe(begun.set) and None}
        async with RLM(model, tools=tools, limits=Limits(depth=2)) as rlm, rlm.session() as session:
            task = asyncio.create_task(session.acompletion("a", "Ask."))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            kinds = [event.kind for event in session.log]
            return [kinds[-1], (await session.aask("And now?")).response]

    assert asyncio.run(go()) == ["stopped", "fine"]


# -- an RLM that is itself at the deepest level --------------------------------------------------------------------


def test_a_completion_at_maximum_depth_is_a_plain_call_with_the_same_result() -> None:
    model = ScriptedModel(["<think>hm</think>the answer"])
    result = RLM(model, depth=1, max_depth=1).completion("a long input", "What?")
    assert isinstance(result, RLMChatCompletion)
    assert (result.response, result.prompt, result.turn) == ("the answer", "What?", 0)
    assert result.usage_summary.total_calls == 1
    assert result.metadata["iterations"] == 0
    assert model.requests == [[{"role": "user", "content": "a long input"}, {"role": "user", "content": "What?"}]]


def test_a_plain_completion_reads_paths_and_takes_messages(tmp_path: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text("in the file")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    model = ScriptedModel(["1", "2"])
    with RLM(model, limits=Limits(depth=0)) as rlm:
        rlm.completion(file)
        rlm.completion(messages)
    assert model.requests == [[{"role": "user", "content": "in the file"}], messages]


def test_without_a_repl_there_is_no_session_that_could_forget_its_inputs() -> None:
    model = ScriptedModel(["Ada"])
    with RLM(model, limits=Limits(depth=0)) as rlm:
        with pytest.raises(ConfigurationError, match=r"Limits\(depth=0\) leaves no REPL.*give Limits\(depth=1\)"):
            rlm.session("a")
        assert rlm.completion("the input", "Who?").response == "Ada"
    with pytest.raises(ConfigurationError, match=r"persistent=True: .* no REPL"):
        RLM(model, depth=1, max_depth=1, persistent=True)


class Party(BaseModel):
    name: str


def test_plain_answers_are_validated_too() -> None:
    model = ScriptedModel(["Ada", '{"name": "Ada"}', "Ada", "Ada"])
    rlm = RLM(model, limits=Limits(depth=0))
    assert rlm.completion("a", "Who?", output_type=Party).output == Party(name="Ada")
    assert '"name"' in told(model.requests[0])
    assert "was not accepted" in told(model.requests[1])
    with pytest.raises(OutputError):
        rlm.completion("a", "Who?", output_type=Party)


def test_a_plain_turn_can_be_cancelled_and_counted() -> None:
    begun = threading.Event()

    async def think(messages: Messages) -> str:
        begun.set()
        await asyncio.sleep(3600)
        return ""

    async def go() -> int:
        log: list[Event] = []
        async with RLM(ScriptedModel(think), limits=Limits(depth=0), listener=log.append) as rlm:
            task = asyncio.create_task(rlm.acompletion("a", "?"))
            await asyncio.to_thread(begun.wait)
            await rlm.aclose()
            with pytest.raises(CancellationError):
                await task
        return len([event for event in log if isinstance(event, (Replied, Ran))])

    assert asyncio.run(go()) == 0
