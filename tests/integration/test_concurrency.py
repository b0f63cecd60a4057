"""Many callers, threads, loops and sessions at once: nothing is lost, nothing is mixed up, nothing waits for ever."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel
from rlm.errors import RLMError
from rlm.portal import portal
from rlm.types import Messages, Ran
from tests.turns import by_task, cell, opening, submission, submit, task, told


def echo(messages: Messages) -> str:
    """Answers `Question 3?` over `input 3` with what is found in the turn's own input."""
    index = task(messages).removeprefix("Question ").removesuffix("?")
    return submit(f"[value for name, value in list(globals().items()) if value == 'input {index}'][0]")


# -- one session, many callers -------------------------------------------------------------------------------------


def test_concurrent_completions_of_threads_on_one_persistent_rlm_are_all_kept() -> None:
    with RLM(ScriptedModel(echo), persistent=True) as rlm, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda n: rlm.completion(f"input {n}", f"Question {n}?").response, range(12)))
        session = rlm.session()
        contexts = {session.get(f"context_{n}") for n in range(12)}
        histories = [session.get(f"history_{n}") for n in range(12)]
    assert answers == [f"input {n}" for n in range(12)]
    assert contexts == set(answers)
    assert {history[-1]["content"] for history in histories} == set(answers)


def test_concurrent_completions_of_tasks_take_their_turns_in_order_of_arrival() -> None:
    async def go() -> tuple[list[int], list[Any]]:
        async with RLM(ScriptedModel(echo), persistent=True) as rlm:
            turns = [rlm.acompletion(f"input {n}", f"Question {n}?") for n in range(20)]
            order = [result.turn for result in await asyncio.gather(*turns)]
            session = rlm.session()
            return order, [await session.aget(f"context_{n}") for n in range(20)]

    order, contexts = asyncio.run(go())
    assert order == list(range(20))
    assert contexts == [f"input {n}" for n in range(20)]


def test_each_of_them_sees_the_conversation_before_it() -> None:
    model = ScriptedModel(echo)

    async def go() -> None:
        async with RLM(model, persistent=True) as rlm:
            await asyncio.gather(*(rlm.acompletion(f"input {n}", f"Question {n}?") for n in range(9)))

    asyncio.run(go())
    for n in range(1, 9):
        assert f"{n - 1}. Question {n - 1}?\n→ input {n - 1}" in opening(model.requests[n])


def test_the_first_use_from_many_threads_opens_one_session() -> None:
    for _ in range(20):
        with RLM(ScriptedModel([]), persistent=True) as rlm, ThreadPoolExecutor(8) as threads:
            barrier = threading.Barrier(8)

            def open_session(_: int, rlm: RLM = rlm, barrier: threading.Barrier = barrier) -> int:
                barrier.wait()
                return id(rlm.session())

            assert len(set(threads.map(open_session, range(8)))) == 1


def test_one_that_is_cancelled_while_it_waits_takes_no_other_along() -> None:
    async def go() -> list[str]:
        async with RLM(ScriptedModel(echo), persistent=True) as rlm:
            turns = [asyncio.create_task(rlm.acompletion(f"input {n}", f"Question {n}?")) for n in range(6)]
            await asyncio.sleep(0)
            turns[3].cancel()
            ended = await asyncio.gather(*turns, return_exceptions=True)
            assert isinstance(ended.pop(3), asyncio.CancelledError)
            return [result.response for result in ended]

    assert asyncio.run(go()) == ["input 0", "input 1", "input 2", "input 4", "input 5"]


# -- many sessions at once -----------------------------------------------------------------------------------------


def test_twenty_sessions_at_once_each_keep_their_own_output() -> None:
    def script(messages: Messages) -> str:
        number = task(messages)
        if len(messages) == 2:
            return cell(f"import time\nfor line in range(10): print('session', {number}, line)\nme = {number}")
        return submit("me")

    model = ScriptedModel(script)
    with RLM(model) as rlm, ThreadPoolExecutor(20) as threads:
        sessions = [rlm.session(str(n)) for n in range(20)]
        answers = list(threads.map(lambda session: session.ask(session.name).response, sessions))
        logs = [[event for event in session.log if isinstance(event, Ran)] for session in sessions]
    assert answers == [str(n) for n in range(20)]
    for n, ran in enumerate(logs):
        assert ran[0].result.stdout == "".join(f"session {n} {line}\n" for line in range(10))


def test_children_at_once_and_their_parent_keep_their_own_output() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Print.":
            return cell(
                "print('before')\nrlm_query_batched([f'Task: {n}' for n in range(8)])\nprint('after')",
                submission("'done'"),
            )
        return cell(f"for line in range(10): print('child', {task(messages)}, line)", submission("'ok'"))

    with RLM(ScriptedModel(script), limits=Limits(depth=2)) as rlm, rlm.session() as session:
        session.completion("a", "Print.")
        ran = [event for event in session.log if isinstance(event, Ran)]
    own = [event.result.stdout for event in ran if event.at == "t0/c0"]
    assert own == ["before\nafter\n"]
    outputs = sorted(event.result.stdout for event in ran if "rlm_query" in event.at and event.result.stdout)
    assert outputs == ["".join(f"child {n} {line}\n" for line in range(10)) for n in range(8)]


def test_nothing_of_the_process_is_touched() -> None:
    before = (Path.cwd(), sys.stdout, sys.stderr, dict(os.environ), list(sys.path))
    code = "import os, sys\nos.chdir('/')\nsys.stdout = None\nos.environ['X'] = '1'\nsys.path.clear()"
    captured = io.StringIO()
    with redirect_stdout(captured), RLM(ScriptedModel([cell(code), submit("1")])) as rlm:
        rlm.completion("a", "?")
    assert (Path.cwd(), sys.stdout, sys.stderr, dict(os.environ), list(sys.path)) == before
    assert captured.getvalue() == ""


def test_sub_calls_of_a_cells_own_threads_are_answered_at_once() -> None:
    arrived = threading.Barrier(4)

    def meet() -> str:
        arrived.wait()
        return "met"

    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as threads:
            met = list(threads.map(lambda _: meet(), range(4)))
    """
    model = ScriptedModel([cell(code, submission("met"))])
    assert RLM(model, tools={"meet": meet}).completion("a", "?").response == '["met", "met", "met", "met"]'


# -- event loops ---------------------------------------------------------------------------------------------------


def test_a_blocking_call_works_within_a_running_loop() -> None:
    async def notebook() -> str:
        with RLM(ScriptedModel([submit("context")]), persistent=True) as rlm:
            return rlm.completion("as in a notebook", "?").response

    assert asyncio.run(notebook()) == "as in a notebook"


def test_one_rlm_serves_several_loops_one_after_the_other_and_at_once() -> None:
    model = ScriptedModel(echo)
    with RLM(model, persistent=True) as rlm, ThreadPoolExecutor(4) as threads:

        def in_its_own_loop(n: int) -> str:
            return asyncio.run(rlm.acompletion(f"input {n}", f"Question {n}?")).response

        assert list(threads.map(in_its_own_loop, range(8))) == [f"input {n}" for n in range(8)]


def test_a_users_loop_goes_on_while_a_turn_runs() -> None:
    async def go() -> int:
        model = ScriptedModel([cell("import time\ntime.sleep(0.3)"), submit("1")])
        async with RLM(model) as rlm:
            task = asyncio.create_task(rlm.acompletion("a", "?"))
            beats = 0
            while not task.done():
                await asyncio.sleep(0.01)
                beats += 1
            return beats

    assert asyncio.run(go()) > 3


def test_a_model_is_asked_on_one_loop_whoever_asks() -> None:
    loops = set()

    async def remember(messages: Messages) -> str:
        loops.add(id(asyncio.get_running_loop()))
        return "x" if len(messages) == 1 else submit("len(llm_query_batched(['x'] * 8))")

    with RLM(ScriptedModel(remember)) as rlm, ThreadPoolExecutor(4) as threads:
        answers = [rlm.completion("a", "?").response, asyncio.run(rlm.acompletion("a", "?")).response]
        answers += threads.map(lambda _: rlm.completion("a", "?").response, range(4))
    assert answers == ["8"] * 6
    assert len(loops) == 1


def test_a_blocking_call_on_rlms_own_loop_is_refused_instead_of_hanging() -> None:
    async def ask(rlm: RLM) -> str:
        return rlm.completion("a", "?").response

    with RLM(ScriptedModel([submit("1")])) as rlm, pytest.raises(RLMError, match="await the async form"):
        portal().run(ask(rlm))


# -- tools ---------------------------------------------------------------------------------------------------------


def test_sync_and_async_tools_are_called_with_what_the_cell_gave() -> None:
    def add(a: int, b: int = 1) -> int:
        """Adds."""
        return a + b

    async def fetch(url: str, *, times: int) -> list[str]:
        """Fetches."""
        await asyncio.sleep(0)
        return [url] * times

    model = ScriptedModel([submit("[add(1), add(1, b=2), fetch('x', times=2), add.__doc__]")])
    assert RLM(model, tools=[add, fetch]).completion("a", "?").response == '[2, 3, ["x", "x"], "Adds."]'
    said = model.requests[0][0]["content"]
    assert "- `add(a: int, b: int = 1) -> int`: Adds." in said
    assert "- `fetch(url: str, *, times: int) -> list[str]`: Fetches." in said


def test_values_are_there_as_they_are_and_are_put_back() -> None:
    table = {"a": (1, 2.5), b"k": {3}}
    model = ScriptedModel(
        [cell("table, limit = 1, 2"), submit("str(table == {'a': (1, 2.5), b'k': {3}}) + str(limit)")]
    )
    rlm = RLM(model, tools={"table": table, "limit": {"tool": 7, "description": "The most."}})
    assert rlm.completion("a", "?").response == "True7"
    assert "- `limit: int`: The most." in model.requests[0][0]["content"]


def test_a_tool_that_raises_raises_in_the_cell_which_may_handle_it() -> None:
    errors = {"key": KeyError("missing"), "exit": SystemExit(3), "stop": StopIteration(), "odd": OSError("No file")}

    def fail(kind: str) -> None:
        raise errors[kind]

    code = """
        said = []
        for kind in ("key", "exit", "stop", "odd"):
            try:
                fail(kind)
            except RuntimeError as error:
                said.append(str(error))
    """
    model = ScriptedModel([cell(code), cell("fail('key')"), submit("said")])
    result = RLM(model, tools={"fail": fail}).completion("a", "?")
    assert json.loads(result.response) == ["KeyError: 'missing'", "SystemExit: 3", "StopIteration", "OSError: No file"]
    assert "KeyError: 'missing'" in told(model.requests[2])


def test_an_async_tool_that_raises_or_cancels_itself_ends_nothing_but_the_call() -> None:
    async def fail() -> None:
        raise asyncio.CancelledError

    async def leave() -> None:
        raise SystemExit(1)

    code = """
        said = []
        for function in (fail, leave):
            try:
                function()
            except RuntimeError as error:
                said.append(str(error))
    """
    model = ScriptedModel([cell(code, submission("said"))])
    result = RLM(model, tools={"fail": fail, "leave": leave}).completion("a", "?")
    assert result.response == '["CancelledError", "SystemExit: 1"]'


def test_a_tool_that_returns_what_cannot_be_sent_is_a_clear_error() -> None:
    model = ScriptedModel([cell("find()"), submit("1")])
    RLM(model, tools={"find": lambda: [1, object()]}).completion("a", "?")
    assert re.search(r"ToolError: find\(\): value.* object, which has no exact JSON form", told(model.requests[1]))


def test_what_cannot_be_sent_to_a_tool_or_a_model_is_a_clear_error() -> None:
    class_like_numpys = "class ndarray: pass\n"
    calls = ["llm_query(ndarray())", "llm_query_batched(['x', ndarray()])", "look([ndarray()])"]
    handled = "try: llm_query(ndarray())\nexcept TypeError: print('a TypeError')"
    model = ScriptedModel([*(cell(class_like_numpys + call) for call in calls), cell(handled), submit("1")])
    RLM(model, tools={"look": lambda value: 1}).completion("a", "?")
    assert told(model.requests[4]) == "[cell 4]\na TypeError"
    for request in model.requests[1:4]:
        assert re.search(r"value.* ndarray, which has no exact JSON form: pass plain data", told(request))


@pytest.mark.parametrize(
    ("expression", "prompt"),
    [
        ("'lone \\ud800 surrogate'", "lone \ud800 surrogate"),
        ("b'by\\xfftes'", "by\ufffdtes"),
        ("42", "42"),
        ("['a']", "['a']"),
    ],
)
def test_any_plain_prompt_reaches_the_sub_model_as_text(expression: str, prompt: str) -> None:
    sub = ScriptedModel(["sub"])
    model = ScriptedModel([submit(f"llm_query({expression})")])
    assert RLM(model, sub_model=sub).completion("a", "?").response == "sub"
    assert sub.requests == [[{"role": "user", "content": prompt}]]


@pytest.mark.parametrize("arguments", ["None", "'x', 5", "'x', model=['a']"])
def test_a_call_that_makes_no_sense_fails_and_says_why(arguments: str) -> None:
    model = ScriptedModel([submit(f"llm_query({arguments})")])
    said = "Error: llm_query(prompt, model=None) takes a prompt and the name of a model"
    assert RLM(model).completion("a", "?").response == said


def test_messages_reach_the_sub_model_as_messages() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    sub = ScriptedModel(["sub"])
    RLM(ScriptedModel([submit(f"llm_query({messages})")]), sub_model=sub).completion("a", "?")
    assert sub.requests == [messages]


def test_a_sub_call_may_name_one_of_the_configured_models_and_no_other() -> None:
    small, large = ScriptedModel(["small"], name="p:small"), ScriptedModel(["large", "l2"], name="p:large")
    code = "[llm_query('x'), llm_query('x', model='p:large'), llm_query('x', 'large'), llm_query('x', model='p:huge')]"
    root = ScriptedModel([submit(code)], name="p:root")
    answer = RLM(root, sub_model=[small, large]).completion("a", "?").response
    assert answer == (
        '["small", "large", "l2", '
        "\"Error: model='p:huge' is not one of this session's models: p:small, p:large, p:root\"]"
    )


def test_a_blocking_tool_does_not_stop_another_sessions_turn() -> None:
    release, begun = threading.Event(), threading.Event()

    def block() -> str:
        begun.set()
        release.wait()
        return "released"

    model = by_task({"Block.": submit("block()"), "Quick?": submit("'quick'")})
    with RLM(model, tools=[block]) as rlm, ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(rlm.session("a").ask, "Block.")
        begun.wait()
        assert rlm.session("b").ask("Quick?").response == "quick"
        release.set()
        assert blocked.result().response == "released"


def test_no_more_tools_run_at_once_than_the_limit_says() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= 1

    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(lambda _: work(), range(24)))
    """
    RLM(ScriptedModel([cell(code, submission("1"))]), tools=[work], limits=Limits(concurrency=3)).completion("a", "?")
    assert most[0] <= 3


def test_a_tool_may_use_another_session_and_not_the_one_that_waits_for_it() -> None:
    def nested(name: str) -> str:
        return rlm.session(name).ask("Inner?").response

    async def anested(name: str) -> str:
        return (await rlm.session(name).aask("Inner?")).response

    code = """
        said = [nested("other"), anested("other")]
        for function in (nested, anested):
            try:
                function("outer")
            except RuntimeError as error:
                said.append(str(error))
    """
    model = by_task({"Outer?": cell(code, submission("said")), "Inner?": submit("'inner'")})
    with RLM(model, tools=[nested, anested]) as rlm:
        answer = rlm.session("outer").ask("Outer?").response
    refused = "SessionError: session 'outer' runs the cell that called this function: the two would wait for each other"
    assert answer == f'["inner", "inner", "{refused}", "{refused}"]'


def test_sessions_whose_tools_use_each_other_do_not_wait_for_ever() -> None:
    def ask(name: str) -> str:
        return rlm.session(name).ask(f"{name}?").response

    handle = "try: said = ask('{}')\nexcept RuntimeError as error: said = str(error)"
    model = by_task(
        {"a?": cell(handle.format("b"), submission("said")), "b?": cell(handle.format("a"), submission("said"))}
    )
    with RLM(model, tools=[ask]) as rlm:
        assert "session 'a' runs the cell that called this function" in rlm.session("a").ask("a?").response


def test_a_closed_session_waits_for_no_tool() -> None:
    begun, release = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        release.wait()

    rlm = RLM(ScriptedModel([submit("block()")]), tools=[block])
    raised: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(RLMError) as caught:
            rlm.session().ask("?")
        raised.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    rlm.close()
    thread.join()
    release.set()
    assert len(raised) == 1


@pytest.mark.parametrize("given", [{"context": print}, [print, print], {"no name": 1}])
def test_tools_that_cannot_be_are_refused_at_construction(given: Any) -> None:
    with pytest.raises(ValueError, match="tool '"):
        RLM(ScriptedModel([]), tools=given)


def test_a_value_that_cannot_be_brought_in_is_told_before_anything_is_spent() -> None:
    model = ScriptedModel([])
    values: dict[str, Callable[[], Any] | Any] = {"lock": threading.Lock()}
    with RLM(model, tools=values) as rlm, pytest.raises(RLMError, match="lock"):
        rlm.completion("a", "?")
    assert model.requests == []
