"""A session as its user has it: asking, stepping inside, stopping it, and what the model is told of all that."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from rlm import RLM, Limits, ScriptedModel, Session
from rlm.environments.sandbox import cgroups
from rlm.errors import (
    CancellationError,
    ConfigurationError,
    ContextError,
    ModelError,
    OutputError,
    ReplError,
    SessionClosedError,
    SessionError,
)
from rlm.types import Messages, Price, RemoteValue, Reply, Stopped, Usage
from tests.processes import gone, named, naming, token
from tests.turns import by_task, cell, opening, submission, submit, told

ROOT = Path(__file__).parents[2]
BUSY = "import time\nwhile True: time.sleep(0.001)"


def until(condition: Callable[[], object]) -> None:
    """Wait until it is so; a test that waits for ever is stopped by its time limit."""
    while not condition():
        time.sleep(0.002)


def kinds(session: Session) -> list[str]:
    return [event.kind for event in session.log]


# -- asking --------------------------------------------------------------------------------------------------------


def test_opening_a_session_starts_and_spends_nothing() -> None:
    model = ScriptedModel([])
    with RLM(model) as rlm, rlm.session("a") as session:
        assert (session.name, session.turns, session.log, session.closed) == ("a", 0, (), False)
        assert session.usage().total_calls == 0
        assert session.isolation in ("namespace", "landlock")
    assert model.requests == []


def test_the_same_name_is_the_same_session_until_it_is_closed() -> None:
    with RLM(ScriptedModel([submit("1")] * 2)) as rlm:
        session = rlm.session("a")
        assert rlm.session("a") is session
        assert rlm.session("b") is not session
        session.ask("?")
        session.close()
        again = rlm.session("a")
        assert again is not session
        assert again.turns == 1


def test_a_result_says_how_the_turn_went() -> None:
    model = ScriptedModel([cell("parts = llm_query_batched(['x', 'y'])"), "X", "Y", submit("' '.join(parts)")])
    with RLM(model) as rlm, rlm.session("a") as session:
        result = session.completion("input", "What?")
    assert result.response == "X Y"
    assert (result.root_model, result.prompt, result.turn, result.output) == ("scripted", "What?", 0, None)
    assert result.cost == 0.0
    assert result.execution_time > 0
    assert result.metadata == {
        "session": "a",
        "iterations": 2,
        "cells": 2,
        "calls": 4,
        "uncertain_calls": 0,
        "isolation": session.isolation,
        "context": 0,
    }
    assert json.loads(json.dumps(result.to_dict()))["response"] == "X Y"


def test_without_a_question_the_result_names_the_input_and_the_prompt_shows_it() -> None:
    model = ScriptedModel([submit("1")])
    task = "Count to one. Here are some numbers: 1"
    assert RLM(model).completion(task).prompt == task
    assert f"begins and ends so:\n{task}" in opening(model.requests[0])


def test_every_event_is_plain_data_for_json() -> None:
    code = "print(llm_query('x'), {1: b'2'}, flush=True)\nx = object()"
    model = ScriptedModel([cell(code), "sub", submit("1")])
    events: list[Any] = []
    with RLM(model, listener=events.append) as rlm:
        rlm.completion({1: {2}, "b": b"bytes"}, "What?")
    assert {event.kind for event in events} >= {"context", "asked", "asking", "running", "printed", "ran", "answered"}
    for event in events:
        assert json.loads(json.dumps(event.to_dict()))["kind"] == event.kind


def test_the_log_is_the_record_of_a_session_and_its_usage_is_the_sum_over_its_turns() -> None:
    model = ScriptedModel([cell("llm_query('x')"), "sub", submit("1"), submit("2")])
    with RLM(model) as rlm, rlm.session() as session:
        results = [session.completion("a", "?"), session.ask("?")]
        assert kinds(session)[:8] == ["asked", "context", "briefed", "replied", "called", "ran", "replied", "ran"]
        assert kinds(session)[8:] == ["answered", "asked", "briefed", "replied", "ran", "answered"]
        total = session.usage()
    assert total == results[0].usage_summary + results[1].usage_summary
    assert total.total_calls == 4


def test_usage_goes_by_the_name_of_the_model_whatever_its_replies_say() -> None:
    reply = Reply(submit("1"), "scripted-2026-11-23", Usage(1, 10, 5, cost=0.5))
    with RLM(ScriptedModel([reply])) as rlm, rlm.session() as session:
        result = session.ask("?")
        assert dict(result.usage_summary.model_usage_summaries) == {"scripted": Usage(1, 10, 5, cost=0.5)}
        assert session.usage() == result.usage_summary


class Careless:
    """A model of a user's own that forgets what a model gives."""

    name = "careless"
    price = Price(0, 0)

    async def reply(self, messages: Messages, **settings: Any) -> Any:
        return "just a text"


def test_a_model_that_gives_no_reply_is_told_so() -> None:
    with pytest.raises(ModelError, match=r"careless: reply\(\) gave 'just a text', not a rlm\.types\.Reply"):
        RLM(Careless()).completion("a", "?")


def test_output_is_cut_where_the_user_says() -> None:
    model = ScriptedModel([cell("print('x' * 1_000)\n1 / 0"), submit("1")])
    RLM(model, output_limit=100).completion("a", "?")
    said = told(model.requests[1])
    assert "[… 900 characters cut …]" in said
    assert "ZeroDivisionError: division by zero" in said
    with pytest.raises(ConfigurationError, match="output_limit=5: give at least 100"):
        RLM(model, output_limit=5)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_same_key_and_inputs_give_the_recorded_answer_for_free() -> None:
    model = ScriptedModel([submit("1"), submit("2"), submit("3"), submit("4")])
    with RLM(model) as rlm, rlm.session() as session:
        first = session.completion("input", "What?", key="k")
        assert session.completion("input", "What?", key="k") is first
        assert session.completion("other input", "What?", key="k").response == "2"
        assert session.completion("other input", "What else?", key="k").response == "3"
        assert session.completion("other input", "What else?", key="other").response == "4"
        assert session.usage().total_calls == len(model.requests) == 4
        assert session.turns == 4


def test_a_key_distinguishes_types_of_answers_and_turns_without_input() -> None:
    with RLM(ScriptedModel([submit("1"), submit("2"), submit("3")])) as rlm, rlm.session() as session:
        assert session.ask("What?", key="k", output_type=int).output == 1
        assert session.ask("What?", key="k", output_type=int).output == 1
        assert session.ask("What?", key="k", output_type=str).output == "2"
        assert session.completion("", "What?", key="k", output_type=str).output == "3"


def test_a_turn_that_failed_has_no_recorded_answer() -> None:
    replies: list[Any] = [submit("1")]
    model = ScriptedModel(lambda messages: replies.pop() if len(replies) == 1 and asked else fail())
    asked: list[int] = []

    def fail() -> str:
        asked.append(1)
        raise ModelError("down")

    with RLM(model) as rlm, rlm.session() as session:
        with pytest.raises(ModelError):
            session.ask("What?", key="k")
        assert session.ask("What?", key="k").response == "1"


def test_keys_hold_in_a_persistent_rlm_and_for_paths_by_what_is_in_them(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    with RLM(ScriptedModel([submit("context"), submit("context_1")]), persistent=True) as rlm:
        assert rlm.completion(file, "What?", key="k").response == "one"
        assert rlm.completion(file, "What?", key="k").response == "one"
        file.write_text("two")
        assert rlm.completion(file, "What?", key="k").response == "two"


# -- inputs and stepping inside ------------------------------------------------------------------------------------


def test_contexts_added_by_the_user_are_told_in_the_next_prompt() -> None:
    model = ScriptedModel([submit("contract + context_1"), submit("1")])
    with RLM(model) as rlm, rlm.session() as session:
        assert session.add_context("abc", name="contract") == 0
        assert session.add_context("def") == 1
        assert session.ask("What?").response == "abcdef"
        session.ask("And?")
    first, second = [opening(request) for request in model.requests]
    assert "the user added `context_0` (also `contract`): str, 3 long" in first
    assert "the user added `context_1`: str, 3 long" in first
    assert "the user added" not in second


@pytest.mark.parametrize("name", ["two words", "answer", "context_7", "llm_query", "lookup", "class"])
def test_a_context_cannot_take_a_name_that_is_taken(name: str) -> None:
    with RLM(ScriptedModel([]), tools={"lookup": lambda: 1}) as rlm, rlm.session() as session:
        with pytest.raises(ConfigurationError, match=f"add_context\\(name='{name}'\\)"):
            session.add_context("abc", name=name)
        assert session.log == ()


def test_paths_may_be_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    with RLM(ScriptedModel([submit("context['a.txt'] + context_1")])) as rlm, rlm.session() as session:
        session.add_context(tmp_path)
        assert session.completion(tmp_path / "a.txt", "What?").response == "one\r\none\r\n"


def test_a_path_that_cannot_be_read_is_no_turn_and_an_input_that_cannot_be_brought_in_a_failed_one(
    tmp_path: Path,
) -> None:
    model = ScriptedModel([submit("context")])
    with RLM(model) as rlm, rlm.session() as session:
        with pytest.raises(ContextError, match="nowhere does not exist"):
            session.completion(tmp_path / "nowhere", "What?")
        assert (session.turns, session.log) == (0, ())
        with pytest.raises(ContextError, match="generator cannot be pickled"):
            session.completion((one for one in [1]), "What?")
        assert (session.turns, kinds(session)) == (1, ["asked", "failed"])
        assert session.completion("a", "What?").response == "a"


def test_the_user_may_run_cells_and_the_model_is_told() -> None:
    model = ScriptedModel(["sub", submit("x")])
    with RLM(model) as rlm, rlm.session() as session:
        result = session.run("x = llm_query('hi')\nprint(x)")
        assert (result.stdout, result.error) == ("sub\n", None)
        assert session.run("1 / 0").error is not None
        assert session.ask("What?").response == "sub"
        assert session.usage().total_calls == 2
        assert kinds(session)[:3] == ["called", "ran", "ran"]
        assert [event.at for event in session.log[1:3]] == ["u0/c0", "u1/c0"]
    said = opening(model.requests[1])
    assert "the user ran a cell: `x = llm_query('hi') print(x)`\n" in said
    assert "the user ran a cell: `1 / 0`, which failed with ZeroDivisionError\n" in said


def test_of_a_long_cell_the_beginning_is_told() -> None:
    model = ScriptedModel([submit("1")])
    with RLM(model) as rlm, rlm.session() as session:
        session.run("x = '" + "y" * 100_000 + "'")
        session.ask("?")
    assert "yyy…`" in opening(model.requests[0])
    assert len(opening(model.requests[0])) < 1_000


def test_variables_are_listed_by_type_and_fetched_by_name() -> None:
    with RLM(ScriptedModel([])) as rlm, rlm.session() as session:
        session.run("import math\nn, t, d = 1, (1, b'x'), {1: {2}}\nclass Box: pass\nbox = Box()")
        listed = session.variables()
        assert {name: listed[name] for name in ("n", "t", "d", "math", "Box", "box")} == {
            "n": "int",
            "t": "tuple",
            "d": "dict",
            "math": "module",
            "Box": "type",
            "box": "Box",
        }
        assert (session.get("t"), session.get("d")) == ((1, b"x"), {1: {2}})
        box = session.get("box")
        assert isinstance(box, RemoteValue)
        assert box.type == "Box"
        with pytest.raises(KeyError, match="nothing"):
            session.get("nothing")


def test_the_async_forms_of_all_that() -> None:
    async def step() -> list[Any]:
        async with RLM(ScriptedModel([submit("x + 1")])) as rlm, rlm.session() as session:
            await session.arun("x = 1")
            index = await session.aadd_context("abc")
            answer = await session.aask("?")
            return [index, answer.response, (await session.avariables())["x"], await session.aget("x")]

    assert asyncio.run(step()) == [0, "2", "int", 1]


def test_setup_code_runs_in_every_worker_and_a_failing_one_is_told() -> None:
    kwargs = {"setup_code": "import re\ndef words(text): return re.findall(r'\\w+', text)"}
    model = ScriptedModel(
        [submit("len(words(context))"), cell("import os\nos._exit(1)"), submit("words('still here')")]
    )
    with RLM(model, environment_kwargs=kwargs, persistent=True) as rlm:
        assert rlm.completion("a b c", "How many words?").response == "3"
        assert rlm.completion("d", "And now?").response == '["still", "here"]'
    rlm = RLM(ScriptedModel([cell("1")]), environment_kwargs={"setup_code": "1 / 0"})
    with pytest.raises(ReplError, match=r"(?s)the setup code failed:\n.*ZeroDivisionError"):
        rlm.completion("a", "?")


@pytest.mark.parametrize("name", ["tools", "persistent", "context_payload", "lm_handler_address"])
def test_arguments_of_the_environment_that_belong_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"environment_kwargs={{'{name}': …}}: "):
        RLM(ScriptedModel([]), environment_kwargs={name: None})


def test_arguments_that_the_environment_does_not_take_are_refused_at_construction() -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        RLM(ScriptedModel([]), environment_kwargs={"colour": "red"})


# -- the worker dies -----------------------------------------------------------------------------------------------


def test_the_model_is_told_when_a_cell_took_the_worker_along() -> None:
    model = ScriptedModel([cell("x = 1"), cell("import os\nos._exit(7)"), submit("context")])
    with RLM(model) as rlm:
        assert rlm.completion("kept", "?").response == "kept"
    said = told(model.requests[2])
    assert "The REPL was lost in this cell and was started again." in said
    assert "Back: context, context_0." in said
    assert "x (int)" in said


def test_the_model_is_told_in_the_next_prompt_when_the_worker_died_between_turns() -> None:
    model = ScriptedModel([submit(naming(token())), cell("x = 1", submission("'x'")), submit("f'{context} {x}'")])
    with RLM(model, persistent=True) as rlm:
        pid = named(rlm.completion("kept", "?").response)
        rlm.completion("b", "?")
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        time.sleep(0.1)  # in which its host has heard of it
        assert rlm.session().ask("?").response == "kept 1"
    assert "The REPL was restarted: the worker died (killed by SIGKILL)." in opening(model.requests[2])


# -- typed answers -------------------------------------------------------------------------------------------------


class Party(BaseModel):
    name: str
    share: float


def test_a_typed_answer_is_validated_and_a_mismatch_goes_back_with_its_path() -> None:
    model = ScriptedModel([submit("[{'name': 'Ada', 'share': 'much'}]"), submit("[{'name': 'Ada', 'share': 0.5}]")])
    result = RLM(model).completion("input", "Who?", output_type=list[Party])
    assert result.output == [Party(name="Ada", share=0.5)]
    assert '"share"' in opening(model.requests[0])
    assert "The answer was not accepted: 0.share: Input should be a valid number" in told(model.requests[1])


@pytest.mark.parametrize(("kind", "expression", "value"), [(int, "42", 42), (Literal["a", "b"], "'b'", "b")])
def test_scalars_may_be_submitted_as_they_are(kind: Any, expression: str, value: Any) -> None:
    assert RLM(ScriptedModel([submit(expression)])).completion("a", "?", output_type=kind).output == value


def test_two_final_answers_of_another_type_raise_with_the_best_there_is() -> None:
    model = ScriptedModel([cell("1"), "about forty", "forty-two"])
    with pytest.raises(OutputError, match="Invalid JSON") as caught:
        RLM(model, limits=Limits(iterations=1)).completion("a", "?", output_type=int)
    assert caught.value.partial_answer == "forty-two"
    assert caught.value.usage.total_calls == 3


def test_a_type_that_cannot_be_validated_is_refused_before_anything_is_spent() -> None:
    model = ScriptedModel([])
    with RLM(model) as rlm, rlm.session() as session:
        with pytest.raises(ConfigurationError, match="output_type="):
            session.completion("a", "?", output_type=object())
        assert session.log == ()


# -- stopping ------------------------------------------------------------------------------------------------------


def run_in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_close_during_a_turn_gives_its_caller_a_cancellation() -> None:
    rlm = RLM(ScriptedModel(["I begin.\n" + cell(f"print({naming(token())}, end='', flush=True)\n" + BUSY)]))
    session = rlm.session()
    printed: list[str] = []
    stream = session.stream_ask("What?")

    def read() -> None:
        for event in stream:
            if event.kind == "printed":
                printed.append(event.text)  # type: ignore[attr-defined]

    thread, raised = run_in_thread(read)
    until(lambda: printed)
    pid = named(printed[0])
    session.close()
    session.close()
    thread.join()
    [error] = raised
    assert isinstance(error, CancellationError)
    assert str(error) == "the session was closed during this turn"
    assert error.partial_answer is not None
    assert error.partial_answer.startswith("I begin.")
    assert error.usage.total_calls == 1
    assert error.transcript[-1]["role"] == "assistant"
    assert gone(pid)
    assert isinstance(session.log[-1], Stopped)
    for use in (lambda: session.ask("?"), lambda: session.run("1"), session.variables, lambda: session.get("x")):
        with pytest.raises(SessionClosedError, match="session 'session' was closed"):
            use()
    with pytest.raises(SessionClosedError):
        session.add_context("abc")
    rlm.close()


def test_closing_the_rlm_ends_turns_cells_and_completions_alike() -> None:
    begun: list[int] = []
    code = f"begun(1)\n{BUSY}"
    rlm = RLM(ScriptedModel(lambda messages: cell(code)), tools={"begun": begun.append})
    busy = [
        run_in_thread(lambda: rlm.completion("a", "?")),
        run_in_thread(lambda: rlm.session("s").ask("?")),
        run_in_thread(lambda: rlm.session("r").run(code)),
        run_in_thread(lambda: asyncio.run(rlm.acompletion("b", "?"))),
    ]
    until(lambda: len(begun) == 4)
    rlm.close()
    for thread, raised in busy:
        thread.join()
        assert [type(error) for error in raised] == [CancellationError]


def test_a_turn_that_waits_when_the_session_is_closed_never_begins() -> None:
    model = ScriptedModel(lambda messages: cell(BUSY))

    async def go() -> list[type]:
        async with RLM(model) as rlm, rlm.session() as session:
            turns = [asyncio.create_task(session.aask(question)) for question in ("first?", "second?")]
            await asyncio.sleep(0)  # both are on their way to the session, in this order
            await session.aclose()
            return [type(ended) for ended in await asyncio.gather(*turns, return_exceptions=True)]

    assert asyncio.run(go()) == [CancellationError, SessionClosedError]
    assert all("second?" not in opening(request) for request in model.requests)


def test_a_cancelled_task_stops_its_cell_and_leaves_a_usable_session() -> None:
    model = by_task({"Busy?": cell("x = 1\nbegun()\n" + BUSY), "Still there?": submit("x")})

    async def go() -> tuple[str, list[str], list[Any]]:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        tools = {"begun": lambda: loop.call_soon_threadsafe(begun.set) and None}
        async with RLM(model, tools=tools) as rlm, rlm.session() as session:
            task = asyncio.create_task(session.acompletion("input", "Busy?"))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            history = await session.aget("history")
            return (await session.aask("Still there?")).response, kinds(session), history

    answer, events, history = asyncio.run(go())
    assert answer == "1"
    assert "stopped" in events
    assert history[-1]["content"] == "(This turn ended without an answer: the turn was cancelled)"


def test_a_timeout_of_the_callers_own_does_the_same() -> None:
    model = by_task({"Busy?": cell(BUSY), "Still there?": submit("context")})

    async def go() -> str:
        async with RLM(model) as rlm, rlm.session() as session:
            await session.aadd_context("input")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await session.aask("Busy?")
            return (await session.aask("Still there?")).response

    assert asyncio.run(go()) == "input"


def test_a_cancelled_completion_of_its_own_leaves_no_worker() -> None:
    pids: list[int] = []
    model = ScriptedModel([cell(f"report({naming(token())})\n" + BUSY)])

    async def go() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def report(name: str) -> None:
            pids.append(named(name))
            loop.call_soon_threadsafe(begun.set)

        async with RLM(model, tools=[report]) as rlm:
            task = asyncio.create_task(rlm.acompletion("input", "Busy?"))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert gone(pids[0])

    asyncio.run(go())


def test_the_model_hears_that_the_turn_before_was_cancelled() -> None:
    model = by_task({"Busy?": cell(BUSY), "What happened?": submit("len(history)")})
    with RLM(model) as rlm, rlm.session() as session:
        with pytest.raises(CancellationError):
            interrupt_after_request(session, model, "Busy?")
        assert session.ask("What happened?").response == "3"
    assert "(This turn ended without an answer: the turn was cancelled)" in opening(model.requests[-1])


def interrupt_after_request(session: Session, model: ScriptedModel, question: str) -> None:
    """Ask, and press Ctrl-C once the model has been asked: a real signal to the main thread, which waits here."""

    def press() -> None:
        until(lambda: model.requests)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        session.ask(question)
    finally:
        thread.join()


def test_ctrl_c_stops_a_users_own_cell_and_the_model_is_told() -> None:
    model = ScriptedModel([submit("x")])
    with RLM(model, tools={"begun": lambda: begun.append(1)}) as rlm, rlm.session() as session:
        begun: list[int] = []

        def press() -> None:
            until(lambda: begun)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        threading.Thread(target=press).start()
        with pytest.raises(CancellationError, match="the cell was cancelled"):
            session.run("x = 5\nbegun()\n" + BUSY)
        assert session.ask("?").response == "5"
    assert ", which was cancelled" in opening(model.requests[0])


SCRIPT = """
    import sys
    from rlm import RLM, ScriptedModel
    from rlm.errors import CancellationError
    from tests.turns import cell, submit

    replies = ["I start.\\n" + cell("x = 41\\nprint('busy', flush=True)\\nwhile True: pass"), submit("x + 1")]
    def busy(event):
        if event.kind == "printed":
            print("busy", flush=True)
    with RLM(ScriptedModel(replies), persistent=True, listener=busy) as rlm:
        try:
            rlm.completion("input", "What?")
        except CancellationError as error:
            print("partial:", error.partial_answer.splitlines()[0], error.usage.total_calls, flush=True)
        print("answer:", rlm.session().ask("And now?").response, flush=True)
"""


def test_ctrl_c_in_a_program_stops_the_cell_and_the_next_question_is_answered() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "busy\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.read() == "partial: I start. 1\nanswer: 42\n"
    assert program.returncode == 0


def test_ctrl_c_while_the_model_thinks_does_the_same() -> None:
    async def think(messages: Messages) -> str:
        if len(model.requests) == 1:
            await asyncio.sleep(3600)
        return submit("'back'")

    model = ScriptedModel(think)
    with RLM(model) as rlm, rlm.session() as session:
        with pytest.raises(CancellationError) as caught:
            interrupt_after_request(session, model, "Slow?")
        assert caught.value.partial_answer is None
        assert session.ask("And now?").response == "back"
        assert [event.reason for event in session.log if isinstance(event, Stopped)] == ["CancellationError"]


# -- life ----------------------------------------------------------------------------------------------------------


def test_a_session_that_nobody_holds_ends_its_worker() -> None:
    rlm = RLM(ScriptedModel([submit(naming(token()))]))
    pid = named(rlm.session().ask("?").response)
    del rlm
    gc.collect()
    until(lambda: gone(pid))


def test_a_program_that_ends_without_closing_leaves_no_worker() -> None:
    script = """
        from rlm import RLM, ScriptedModel
        from tests.processes import named, naming, token
        from tests.turns import submit
        rlm = RLM(ScriptedModel([submit(naming(token()))]), persistent=True)
        print(named(rlm.completion("a", "?").response))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ended.stderr == ""
    assert gone(int(ended.stdout))


@pytest.mark.skipif(cgroups.home() is None, reason="no groups can be made here")
def test_the_groups_of_a_host_that_was_killed_are_removed_by_the_next_one() -> None:
    script = """
        import os, sys, time
        from rlm import RLM, ScriptedModel
        from rlm.environments.sandbox import cgroups
        rlm = RLM(ScriptedModel([]), persistent=True)
        rlm.session().run("x = 1")
        folder = cgroups.home().folder
        while not list(folder.glob(f"rlm-{os.getpid()}-*")):
            time.sleep(0.002)
        print(len(list(folder.glob(f"rlm-{sys.argv[1]}-*"))), flush=True)
        os.kill(os.getpid(), 9)
    """

    def run(other: int) -> tuple[int, int]:
        command = [sys.executable, "-c", textwrap.dedent(script), str(other)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            return process.pid, int(process.stdout.read())

    first, _ = run(0)
    home = cgroups.home()
    assert home is not None
    [left] = home.folder.glob(f"rlm-{first}-*")
    until(lambda: not (left / "cgroup.procs").read_text())
    assert run(first)[1] == 0


def test_what_is_missing_for_a_session_is_said_when_it_is_opened() -> None:
    with RLM(ScriptedModel([])) as rlm:
        rlm.session("a")
        with pytest.raises(SessionError, match="'a' is open: limits are given when it is opened"):
            rlm.session("a", limits=Limits(calls=1))
