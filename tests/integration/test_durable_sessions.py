"""Named sessions outlive everything: close, the end of the process, a killed worker, a turn that was cut off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, Limits, LossError, ScriptedModel, SessionBusyError, Sessions, UnfinishedTurnError, tool
from rlm.errors import ConfigurationError, ModelError, SessionError, SessionExistsError, TimeoutExceededError
from rlm.session import Session
from rlm.types import ContextAdded, Messages, Ran, Restored
from tests.processes import gone, named, naming, token
from tests.turns import by_task, cell, opening, submission, submit, task

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.002)


def worker_of(session: Session) -> int:
    return named(session.run(f"print({naming(token())})").stdout.strip())


def reopened(model: ScriptedModel, work: Callable[[Session], Any], name: str = "s", **given: Any) -> Any:
    """What `work` makes of the session, opened by an RLM of its own and closed again."""
    with RLM(model, **given) as rlm, rlm.session(name) as session:
        return work(session)


def killed(script: str, *, expect: int = -signal.SIGKILL, **env: str) -> str:
    """Run a program that ends itself by SIGKILL; returns what it printed."""
    prelude = """
        import os, signal, sys, threading, time
        from rlm import *
        from rlm.types import *
        from tests.processes import *
        from tests.turns import *
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


# -- what is there again -------------------------------------------------------------------------------------------


def test_a_session_is_as_it_was_when_it_is_opened_again() -> None:
    model = by_task(
        {
            "One?": cell("rows = [context, 2]; alias = rows\ndef f(): return rows", submission("'one'")),
            "Two?": cell("rows.append(context_1)", submission("f()[-1]")),
            "Three?": submit("f'{alias is rows} {f() is rows} {rows} {len(history_1)} {history[-1][\"content\"]}'"),
        }
    )
    with RLM(model) as rlm, rlm.session("s") as session:
        session.completion("first input", "One?")
        session.completion(["second"], "Two?")
        histories = [session.get("history_0"), session.get("history_1")]
    with RLM(model) as rlm, rlm.session("s") as session:
        assert (session.turns, session.unfinished, session.usage().total_calls) == (2, None, 2)
        names = session.variables()
        assert (names["rows"], names["f"], names["context_1"], names["history_1"]) == (
            "list",
            "function",
            "list",
            "list",
        )
        answer = session.ask("Three?").response
        assert answer == "True True ['first input', 2, ['second']] 4 one"
        assert isinstance(session.restored, Restored)
        assert (session.restored.cells, session.restored.rerun, session.restored.lost) == (4, 0, {})
        assert [session.get("history_0"), session.get("history_1")] == histories
    assert "0. One? → one" in opening(model.requests[-1])


def test_opening_starts_no_worker_and_asks_nothing() -> None:
    reopened(by_task({"?": submit("1")}), lambda session: session.ask("?"))
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        assert (session.turns, session.log[0].kind, session.variables()["history"]) == (1, "opened", "list")
        assert "restored" not in [event.kind for event in session.log]


def test_a_name_of_the_hosts_value_stays_one_through_any_number_of_processes() -> None:
    def run(code: str) -> str:
        given: dict[str, Any] = {"tools": {"constant": {"a": [1]}}}
        return reopened(ScriptedModel([]), lambda session: session.run(code).stdout, **given).strip()

    run("t = constant")
    run("p = (t, 5)")
    assert run("print(p[0] is constant, t is constant)") == "True True"
    run("t['b'] = 2")
    assert run("print(p[0] is constant, constant)") == "True {'a': [1], 'b': 2}"


def test_tracebacks_count_cells_through_all_workers() -> None:
    def fail(session: Session) -> str:
        return session.run("1 / 0").stderr

    assert 'File "<cell 1>"' in reopened(ScriptedModel([]), fail)
    assert 'File "<cell 2>"' in reopened(ScriptedModel([]), fail)


def test_a_session_that_sleeps_lists_the_same_variables() -> None:
    def look(session: Session) -> Any:
        return dict(sorted(session.variables().items()))

    tools = {"constant": {"a": 1}, "lookup": lambda: 1}
    with RLM(ScriptedModel([]), tools=tools) as rlm, rlm.session("s") as session:
        session.add_context([1], name="doc")
        session.run("x = constant; y = context; f = lookup; import math; g = (n for n in [1]); z = [1]")
        live = look(session)
    assert reopened(ScriptedModel([]), look, tools=tools) == live


def test_a_session_that_was_only_opened_leaves_nothing() -> None:
    with RLM(ScriptedModel([])) as rlm:
        rlm.session("s").close()
        rlm.session("t").close()
    with Sessions() as sessions:
        assert sessions.list() == []
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        assert session.log == ()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_a_name_that_no_session_can_have_is_refused(name: str) -> None:
    with RLM(ScriptedModel([])) as rlm, pytest.raises(ConfigurationError, match="give a"):
        rlm.session(name)


def test_a_recorded_answer_is_free_in_every_later_process() -> None:
    model = ScriptedModel([submit("[1, 2]")])
    first = reopened(model, lambda s: s.completion({"b": {2, "x"}}, "What?", key="k", output_type=list[int]))
    again = reopened(
        ScriptedModel([]), lambda s: s.completion({"b": {"x", 2}}, "What?", key="k", output_type=list[int])
    )
    assert (again.response, again.output, again.cost, again.turn) == (first.response, [1, 2], first.cost, 0)
    with pytest.raises(Exception, match="has no reply"):
        reopened(ScriptedModel([]), lambda s: s.completion({"b": {3}}, "What?", key="k", output_type=list[int]))


def test_limits_of_a_life_count_what_earlier_processes_spent() -> None:
    with RLM(by_task({"?": submit("1")})) as rlm, rlm.session("s", limits=Limits(calls=2)) as session:
        session.ask("?")
    with RLM(by_task({"?": submit("1")})) as rlm, rlm.session("s", limits=Limits(calls=2)) as session:
        session.ask("?")
        with pytest.raises(Exception, match=r"Limits\(calls=2\)"):
            session.ask("?")


@pytest.mark.parametrize(
    ("work", "seconds", "error"),
    [
        (lambda session: session.ask("Too long?"), 0.2, "left this turn 0.2 s"),
        (lambda session: session.ask("Fails?"), None, "no more"),
        (lambda session: session.run("import time; time.sleep(60)"), 0.2, "left this cell 0.2 s"),
        (lambda session: session.run("import time; time.sleep(0.15)"), None, None),
    ],
    ids=["stopped", "failed", "cell cut short", "cell"],
)
def test_seconds_of_a_life_count_also_what_had_no_answer(
    work: Callable[[Session], Any], seconds: float | None, error: str | None
) -> None:
    async def reply(messages: Messages) -> str:
        await asyncio.sleep(0.15 if task(messages) == "Fails?" else 60)
        raise ValueError("no more")

    with pytest.raises(Exception, match=error) if error else contextlib.nullcontext():
        reopened(ScriptedModel(reply), work, limits=Limits(seconds=seconds))
    rlm = RLM(ScriptedModel([]))
    with rlm, rlm.session("s", limits=Limits(seconds=0.14)) as s, pytest.raises(TimeoutExceededError, match="used up"):
        s.ask("?")


def test_an_input_that_a_failed_turn_left_is_not_brought_in_twice() -> None:
    model = by_task({"?": submit("sorted(context)")})
    with pytest.raises(Exception, match="has no reply"):
        reopened(ScriptedModel([]), lambda s: s.completion(["b", "a"], "?"))
    assert reopened(model, lambda s: (s.completion(["b", "a"], "?").response, sorted(s.variables())))[1][:2] == [
        "context",
        "context_0",
    ]
    assert "context_1" not in reopened(model, lambda s: s.variables())


@pytest.mark.parametrize("later", [False, True])
def test_an_input_left_unanswered_is_shown_and_recorded_as_the_task_once_it_is_given_without_a_question(
    later: bool,
) -> None:
    text = "Count the words.\n" + "word " * 10_000
    asked: list[str] = []

    def reply(messages: Messages) -> str:
        asked.append(opening(messages))
        if len(asked) == 1:
            raise ModelError("the provider is down")
        return submit("len(context)")

    def fails(session: Session) -> None:
        with pytest.raises(ModelError):
            session.completion(text, "What?")

    def succeeds(session: Session) -> None:
        session.completion(text)
        told = [event for event in session.log if isinstance(event, ContextAdded)][-1]
        assert told.index == 0
        assert told.preview is not None
        assert told.preview.startswith("Count the words.")

    if later:
        reopened(ScriptedModel(reply), fails)
        reopened(ScriptedModel(reply), succeeds)
    else:
        reopened(ScriptedModel(reply), lambda session: (fails(session), succeeds(session)))
    assert ["Count the words." in message for message in asked] == [False, True]


def test_what_the_user_did_in_an_earlier_process_is_told_to_the_model() -> None:
    def prepare(session: Session) -> None:
        session.add_context("the text", name="doc")
        session.run("n = len(doc)")

    reopened(ScriptedModel([]), prepare)
    model = by_task({"?": submit("n")})
    assert reopened(model, lambda session: session.ask("?").response) == "8"
    said = opening(model.requests[0])
    assert "the user added `context_0` (also `doc`): str, 8 long" in said
    assert "the user ran a cell: `n = len(doc)`" in said


# -- cut off -------------------------------------------------------------------------------------------------------

CRASH = """
    def reply(messages):
        if messages[0]["role"] == "user":
            return "sub"
        replies = [cell("x = [1]; a = llm_query('a')"), cell("b = llm_query('b'); maybe_die(); c = llm_query('c')")]
        said = sum(message["role"] == "assistant" for message in messages)
        return [*replies, submit("[a, b, c, x]")][said]

    model = ScriptedModel(reply)
    rlm = RLM(model, tools={"maybe_die": MAYBE})
    session = rlm.session("s")
    if session.unfinished is None:
        session.completion("input", "What?", key="k")
    else:
        again = {"resume": session.resume, "key": lambda: session.completion("input", "What?", key="k")}[HOW]()
        print(again.response, len(model.requests), session.usage().total_calls)
    rlm.close()
"""


@pytest.mark.parametrize("how", ["resume", "key"])
def test_a_turn_that_was_cut_off_goes_on_and_pays_nothing_twice(how: str) -> None:
    killed("MAYBE = die\nHOW = None\n" + textwrap.dedent(CRASH))
    said = killed(f"MAYBE = lambda: None\nHOW = {how!r}\n" + textwrap.dedent(CRASH), expect=0)
    assert said == '["sub", "sub", "sub", [1]] 2 6\n'  # the third sub-call and the last reply; six in all


def test_an_unfinished_turn_has_to_be_ended_first() -> None:
    killed("MAYBE = die\nHOW = None\n" + textwrap.dedent(CRASH))
    model = by_task({"New?": submit("x")})
    with RLM(model) as rlm, rlm.session("s") as session:
        assert session.unfinished is not None
        assert (session.unfinished.question, session.unfinished.key) == ("What?", "k")
        assert (session.unfinished.iterations, session.unfinished.cells) == (2, 1)
        with pytest.raises(UnfinishedTurnError, match=r"turn 0 of session 's' was cut off: resume\(\)"):
            session.ask("New?")
        session.discard()
        assert session.unfinished is None
        assert session.ask("New?").response == "[1]"
    assert "the turn was discarded after its process ended" in opening(model.requests[0])


def test_nothing_unfinished_is_nothing_to_resume() -> None:
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        session.discard()
        with pytest.raises(SessionError, match="no unfinished turn"):
            session.resume()


def test_a_cell_that_was_cut_off_may_be_reported_in_place_of_being_run_again() -> None:
    killed("MAYBE = die\nHOW = None\n" + textwrap.dedent(CRASH))

    def reply(messages: Messages) -> str:
        return submit("str(x)")

    model = ScriptedModel(reply)
    with RLM(model, tools={"maybe_die": lambda: None}) as rlm, rlm.session("s", rerun=False) as session:
        assert session.resume().response == "[1]"
        [cut] = [event for event in session.log if isinstance(event, Ran) and event.result.error]
        assert cut.result.error is not None
        assert cut.result.error.type == "Interrupted"
    assert "it was not run again" in model.requests[0][-1]["content"]


def test_a_tool_that_must_not_be_called_twice_is_not() -> None:
    script = """
        @tool(retry="never")
        def pay(): open("{log}", "a").write("paid;"); die()
        model = ScriptedModel([cell("try: pay()\\nexcept Exception as error: said = str(error)"), submit("said")])
        RLM(model, tools=[pay]).session("s").ask("?")
    """
    log = Path(os.environ["RLM_STORE"]).with_suffix(".log")
    killed(script.replace("{log}", str(log)))

    @tool(retry="never")
    def pay() -> None:
        log.write_text("again")

    with RLM(ScriptedModel([submit("said")]), tools=[pay]) as rlm, rlm.session("s") as session:
        assert "pay() was under way when the process ended" in session.resume().response
    assert log.read_text() == "paid;"


def test_requests_of_children_that_were_under_way_are_counted_once_each() -> None:
    root = [
        cell("first = rlm_query('Task: child')"),
        cell("second = rlm_query('Task: child')", submission("first + second")),
    ]
    child = cell("found = llm_query_batched(['leaf'] * 4)", submission("found[0]"))
    killed(f"""
        asked = []
        async def reply(messages):
            if messages[-1]["content"] != "leaf":
                return {child!r} if task(messages) == "child" else {root[0]!r}
            asked.append(1)
            return die() if len(asked) == 4 else await asyncio.sleep(60)
        import asyncio
        RLM(ScriptedModel(reply), limits=Limits(depth=2)).session("s").ask("Root?")
    """)

    def reply(messages: Messages) -> str:
        if messages[-1]["content"] == "leaf":
            return "l"
        return child if task(messages) == "child" else root[sum(message["role"] == "assistant" for message in messages)]

    result = reopened(ScriptedModel(reply), lambda session: session.resume(), limits=Limits(depth=2))
    assert (result.response, result.metadata["uncertain_calls"]) == ("ll", 4)


def test_cells_with_threads_time_and_random_do_not_strand_a_session() -> None:
    script = """
        import concurrent.futures
        code = '''
        import concurrent.futures, random, time
        def one(n):
            time.sleep(random.random() / 100)
            return llm_query(f"piece {n}")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(one, random.sample(range(8), 8)))
        stamp = llm_query(f"at {time.time()}")
        maybe_die()
        '''
        def reply(messages):
            if messages[0]["role"] == "user":
                return messages[0]["content"]
            said = sum(message["role"] == "assistant" for message in messages)
            return [cell(code), submit("sorted(found)")][said]
        model = ScriptedModel(reply)
        rlm = RLM(model, tools={"maybe_die": MAYBE})
        session = rlm.session("s")
        if session.unfinished:
            print(session.resume().response, len(model.requests))
        else:
            session.ask("?")
        rlm.close()
    """
    killed("MAYBE = die\n" + textwrap.dedent(script))
    said = killed("MAYBE = lambda: None\n" + textwrap.dedent(script), expect=0)
    pieces = ", ".join(f'"piece {n}"' for n in range(8))
    assert said == f"[{pieces}] 2\n"  # only what had the time in it was asked anew, and the last reply


def test_a_turn_whose_input_had_not_arrived_can_only_be_discarded() -> None:
    class Slow(list[int]):
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    script = """
        class Slow(list):
            def __reduce__(self):
                time.sleep(0.2)  # until it is on record that the turn began
                die()
        RLM(ScriptedModel([])).session("s").completion(Slow(), "?")
    """
    killed(script)
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        assert session.unfinished is not None
        assert session.unfinished.lacks_input
        with pytest.raises(SessionError, match="before its input had arrived"):
            session.resume()
        session.discard()


def test_a_typed_turn_is_resumed_with_its_type() -> None:
    killed("""
        model = ScriptedModel([cell("die()")])
        RLM(model, tools={"die": die}).session("s").ask("?", output_type=list[int])
    """)
    with RLM(ScriptedModel([submit("[1]")]), tools={"die": lambda: None}) as rlm, rlm.session("s") as session:
        assert session.unfinished is not None
        assert session.unfinished.typed
        with pytest.raises(ConfigurationError, match="output_type"):
            session.resume()
        assert session.resume(output_type=list[int]).output == [1]


# -- workers that end ----------------------------------------------------------------------------------------------


def test_a_killed_cell_leaves_the_namespace_as_it_was_before_it() -> None:
    model = ScriptedModel(
        [
            cell("rows = [1]; alias = rows; g = (n for n in rows)", submission("'kept'")),
            cell("rows.append(2)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
            submit("f'{rows} {alias is rows}'"),
        ]
    )
    with RLM(model) as rlm, rlm.session("s") as session:
        session.ask("Keep?")
        assert session.ask("Die?").response == "[1] True"
    said = model.requests[2][-1]["content"]
    assert "The namespace is as it was before this cell." in said
    assert "g (generator: " in said


def test_a_session_in_memory_gets_its_namespace_back_too() -> None:
    model = ScriptedModel(
        [cell("x = [llm_query('q')]"), "sub", cell("import os; os._exit(1)"), submit("x"), submit("'next'")]
    )
    with RLM(model, persistent=True) as rlm:
        assert rlm.completion("a", "?").response == '["sub"]'
        assert len(model.requests) == 4  # the sub-call's answer came from the record


def test_a_cell_that_ran_in_a_new_worker_is_as_good_as_any_other() -> None:
    killed("""
        rlm = RLM(ScriptedModel([]), tools=[die])
        session = rlm.session("s")
        os.kill(named(session.run(f"first = [1]; print({naming(token())}, end='')").stdout), signal.SIGKILL)
        time.sleep(0.1)
        result = session.run("second = first; die()")
    """)
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        assert session.get("first") == [1]
    killed("""
        rlm = RLM(ScriptedModel([]))
        session = rlm.session("t")
        os.kill(named(session.run(f"first = [1]; print({naming(token())}, end='')").stdout), signal.SIGKILL)
        time.sleep(0.1)
        assert session.run("second = first").error is None
        die()
    """)
    with RLM(ScriptedModel([])) as rlm, rlm.session("t") as session:
        assert session.run("print(second is first)").stdout == "True\n"


def test_losses_are_named_and_strict_refuses_them() -> None:
    model = ScriptedModel([cell("g = (n for n in [1]); kept = 1", submission("'a'")), submit("kept")])
    reopened(model, lambda session: session.ask("?"))
    with RLM(ScriptedModel([])) as rlm, rlm.session("s", strict=True) as session:
        with pytest.raises(LossError, match="g: generator") as caught:
            session.ask("?")
        assert caught.value.lost["g"].type == "generator"
    with RLM(model) as rlm, rlm.session("s") as session:
        assert session.ask("?").response == "1"
        assert session.restored is not None
        assert list(session.restored.lost) == ["g"]
    assert "could not be brought back: g (generator: " in opening(model.requests[-1])


def test_strict_refuses_also_what_would_need_a_cell_that_is_not_run_again() -> None:
    killed("""
        session = RLM(ScriptedModel([])).session("t")
        session.run("rows = [{'n': n} for n in range(300_000)]")  # its checkpoint takes longer than the process lives
        die()
    """)
    refused = pytest.raises(LossError, match=r"\(cells\): cell, 1 of the last cells could not be run again")
    with RLM(ScriptedModel([])) as rlm, rlm.session("t", strict=True, rerun=False) as session, refused:
        session.get("rows")
    with RLM(ScriptedModel([])) as rlm, rlm.session("t", strict=True) as session:
        assert session.run("print(len(rows))").stdout == "300000\n"


def test_an_idle_worker_is_released_and_the_next_turn_brings_it_back() -> None:
    model = by_task({"One?": cell("x = [1]; y = x", submission("'a'")), "Two?": submit("x is y")})
    with RLM(model, idle=0.05) as rlm, rlm.session("s") as session:
        session.ask("One?")
        pid = worker_of(session)
        until(lambda: gone(pid))
        assert session.ask("Two?").response == "True"
        assert "restored" not in opening(model.requests[-1])


# -- one writer ----------------------------------------------------------------------------------------------------


def test_another_process_cannot_open_a_session_that_is_open() -> None:
    script = """
        try: RLM(ScriptedModel([])).session("s")
        except SessionBusyError as error: print(error.pid, str(os.getppid()) in str(error))
    """
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        session.run("x = 1")
        assert killed(script, expect=0) == f"{os.getpid()} True\n"


def test_two_rlms_of_one_process_do_not_write_to_one_session() -> None:
    with RLM(ScriptedModel([])) as one, RLM(ScriptedModel([])) as other:
        session = one.session("s")
        with pytest.raises(SessionBusyError):
            other.session("s")
        session.close()
        assert other.session("s").log == ()


def test_a_session_can_be_waited_for() -> None:
    async def go() -> str:
        async with RLM(ScriptedModel([])) as one, RLM(ScriptedModel([])) as other:
            session = await one.asession("s")
            waiting = asyncio.create_task(other.asession("s", wait=30))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await session.aclose()
            return (await waiting).name

    assert asyncio.run(go()) == "s"


def test_a_forked_child_leaves_its_parents_sessions_alone() -> None:
    script = """
        from rlm.errors import SessionError
        rlm = RLM(ScriptedModel([submit("1"), submit("2"), submit("3")]), listener=lambda event: None)
        session = rlm.session("s")
        session.ask("One?")
        session.run("x = list(range(300_000))")  # its checkpoint is under way
        busy = threading.Thread(target=session.run, args=["import time; time.sleep(0.5)"])
        busy.start()
        time.sleep(0.1)
        if (child := os.fork()) == 0:
            signal.alarm(10)
            try:
                session.get("x")
            except SessionError as error:
                print(error, flush=True)
            session.close()
            print(rlm.completion("", "Two?").response, flush=True)
            rlm.close()
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
        busy.join()
        print(session.run("print(len(x))").stdout)
        rlm.close()
    """
    said = "session 's' belongs to the process that forked this one"
    first, *others = killed(script, expect=0).split("\n")
    assert first.startswith(said)
    assert others[:3] == ["2", "0", "300000"]


# -- back, and aside -----------------------------------------------------------------------------------------------


def three_turns(extra: Sequence[str] = ()) -> ScriptedModel:
    replies = {
        "One?": cell("rows = ['one']; alias = rows", submission("'1'")),
        "Two?": cell("rows.append('two')", submission("'2'")),
        "Three?": cell("rows.append('three'); del alias", submission("'3'")),
        "Now?": submit('f\'{rows} {"alias" in globals()} {len(history_1) if "history_1" in globals() else 0}\''),
    }
    return ScriptedModel(lambda messages: replies[task(messages)])


def test_rewinding_moves_heap_inputs_and_conversation_and_can_be_undone() -> None:
    model = three_turns()
    with RLM(model) as rlm, rlm.session("s") as session:
        one = session.completion("first", "One?")
        session.completion("second", "Two?")
        three = session.ask("Three?")
        session.rewind(after=one.turn)
        assert "context_1" not in session.variables()
        assert session.ask("Now?").response == "['one'] True 0"
        assert "Two?" not in opening(model.requests[-1])
        session.rewind(after=three.turn)
        assert session.ask("Now?").response == "['one', 'two', 'three'] False 4"
        assert "Two?" in opening(model.requests[-1])
        assert session.usage().total_calls == 5
        session.rewind()
        assert session.variables() == {}
        with pytest.raises(KeyError, match="no ended turn 99; there are: 0, 1, 2, 3, 4"):
            session.rewind(after=99)
    with RLM(model) as rlm, rlm.session("s") as session:
        session.rewind(after=one.turn)
        assert session.ask("Now?").response == "['one'] True 0"


def test_files_go_back_with_the_heap() -> None:
    with RLM(three_turns()) as rlm, rlm.session("s") as session:
        session.run("open('kept.txt', 'w').write('1')")
        one = session.ask("One?")
        session.run("open('later.txt', 'w').write('2'); open('kept.txt', 'w').write('3')")
        session.ask("Two?")
        session.rewind(after=one.turn)
        look = "import os; print(sorted(os.listdir()), open('kept.txt').read())"
        assert session.run(look).stdout == "['kept.txt'] 1\n"
        died = session.run("open('half.txt', 'w').write('4'); os.kill(os.getpid(), 9)")
        assert died.restarted
        assert session.run(look).stdout == "['kept.txt'] 1\n"


def test_a_fork_is_a_session_of_its_own_with_the_same_heap() -> None:
    model = three_turns()
    with RLM(model) as rlm, rlm.session("s") as session:
        one = session.completion("first", "One?")
        session.ask("Two?")
        fork = session.fork("what-if", after=one.turn)
        assert fork.ask("Now?").response == "['one'] True 0"
        fork.run("rows.clear()")
        assert session.ask("Now?").response == "['one', 'two'] True 4"
        with pytest.raises(SessionExistsError, match="'what-if' exists"):
            session.fork("what-if")
        now = session.fork("now")
        assert now.get("rows") == ["one", "two"]
        assert now.get("context") == "first"
    with RLM(model) as rlm, rlm.session("what-if") as fork:
        assert fork.get("rows") == []


def test_a_session_in_memory_has_no_forks() -> None:
    with RLM(three_turns()) as rlm, rlm.session() as session:
        session.ask("One?")
        with pytest.raises(SessionError, match="lives in memory"):
            session.fork("f")


# -- replay --------------------------------------------------------------------------------------------------------


def test_a_session_replays_without_a_model_and_a_changed_prompt_is_found() -> None:
    def reply(messages: Messages) -> str:
        if messages[0]["role"] == "user":
            return "sub"
        said = sum(message["role"] == "assistant" for message in messages)
        return [cell("x = llm_query('q')\nprint(x)"), cell("1/0"), "No code here.", submit("x")][min(said, 3)]

    with RLM(ScriptedModel(reply), limits=Limits(depth=2)) as rlm, rlm.session("s") as session:
        session.completion("text", "What?")
        session.run("y = 1")
        session.ask("And?")
        replayed = session.replay()
        assert (replayed.turns, replayed.requests, replayed.difference) == (2, 8, None)
    with RLM(ScriptedModel([]), limits=Limits(depth=2), system_prompt="Another.") as rlm, rlm.session("s") as session:
        difference = session.replay().difference
        assert difference is not None
        assert (difference.at, difference.message) == ("t0/a0", 0)
        assert "now 'system: Another." in str(difference)


def test_children_replay_too() -> None:
    def reply(messages: Messages) -> str:
        if "summarise" in messages[1]["content"]:
            said = sum(message["role"] == "assistant" for message in messages)
            return [cell("print(context)"), submit("'child'")][said]
        return cell("x = rlm_query('summarise this')", submission("x"))

    with RLM(ScriptedModel(reply), limits=Limits(depth=2)) as rlm, rlm.session("s") as session:
        assert session.ask("?").response == "child"
        replayed = session.replay()
        assert (replayed.requests, replayed.difference) == (3, None)


def test_a_cell_of_the_users_own_that_was_cut_off_pays_nothing_twice_when_it_is_run_again() -> None:
    code = "a = llm_query('a'); maybe_die(); b = llm_query('b')"
    script = f"""
        model = ScriptedModel(lambda messages: messages[0]["content"].upper())
        with RLM(model, tools={{"maybe_die": MAYBE}}) as rlm, rlm.session("s") as session:
            session.run({code!r})
            print(session.get("a"), session.get("b"), len(model.requests))
    """
    killed("MAYBE = die\n" + textwrap.dedent(script))
    assert killed("MAYBE = lambda: None\n" + textwrap.dedent(script), expect=0) == "A B 1\n"


# -- corners -------------------------------------------------------------------------------------------------------


def test_closing_again_what_was_only_opened_deletes_nobodys_session() -> None:
    with RLM(ScriptedModel([])) as one, RLM(ScriptedModel([])) as other:
        opened = one.session("s")
        opened.close()
        with other.session("s") as session:
            session.run("x = 1")
        opened.close()
    assert reopened(ScriptedModel([]), lambda session: session.get("x")) == 1


def test_a_value_that_ends_the_process_that_saves_it_takes_no_other_along() -> None:
    code = "important = [1, 2]\nclass Bad:\n    def __reduce__(self):\n        import os; os._exit(3)\nbad = Bad()"
    reopened(ScriptedModel([]), lambda session: session.run(code))
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        assert session.run("print(important)").stdout == "[1, 2]\n"
        assert session.restored is not None
        assert list(session.restored.lost) == ["bad"] or session.restored.rerun == 1


def test_a_worker_that_lies_about_its_heap_is_asked_no_more_after_the_second_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lie = "import sys; sys.modules['_rlm_heap'].Heap.completed = lambda *_: {}"

    def told() -> list[str]:
        return [text for record in caplog.records if "worker was stopped" in (text := record.getMessage())]

    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session:
        session.run("kept = [1]")
        session.run(lie)
        until(lambda: len(told()) == 1)
        session.run("kept.append(2)")
        until(lambda: len(told()) == 2)
        worker = worker_of(session)
        assert session.run("print(kept)").stdout == "[1, 2]\n"
        assert worker_of(session) == worker
    assert [text.endswith("none is tried any more") for text in told()] == [False, True]


def test_an_input_that_is_added_while_a_turn_is_unfinished_would_be_taken_for_its_own() -> None:
    killed("MAYBE = die\nHOW = None\n" + textwrap.dedent(CRASH))
    with RLM(ScriptedModel([])) as rlm, rlm.session("s") as session, pytest.raises(UnfinishedTurnError):
        session.add_context("for the next question")


def test_a_script_with_keys_is_run_again_also_where_its_input_had_not_arrived() -> None:
    killed("""
        value = {"big": "x" * 80_000_000}
        def die_soon():
            while not os.path.exists(os.environ["RLM_STORE"] + "/store.db"): time.sleep(0.001)
            time.sleep(0.12)
            die()
        threading.Thread(target=die_soon, daemon=True).start()
        RLM(ScriptedModel([])).session("s").completion(value, "What?", key="k")
        time.sleep(30)
    """)
    model = ScriptedModel([submit("len(context['big'])")])
    answer = reopened(model, lambda s: s.completion({"big": "x" * 80_000_000}, "What?", key="k").response)
    assert answer == "80000000"


def test_a_cell_that_is_run_again_calls_no_tool_that_must_not_be_called_twice() -> None:
    orders: list[str] = []

    @tool(retry="never")
    def order(part: str) -> str:
        orders.append(part)
        return f"{part} ordered"

    killed("""
        @tool(retry="never")
        def order(part): return f"{part} ordered"
        session = RLM(ScriptedModel([]), tools=[order]).session("s")
        session.run("import time; rows = list(range(3_000_000)); got = order(f'bolt {time.time()}')")
        die()
    """)
    with RLM(ScriptedModel([]), tools=[order]) as rlm, rlm.session("s") as session:
        session.variables()
        assert session.run("print(len(rows), got.split()[::2])").stdout == "3000000 ['bolt', 'ordered']\n"
    assert orders == []


def test_a_cell_that_never_began_is_not_counted() -> None:
    async def go() -> None:
        async with RLM(ScriptedModel([])) as rlm:
            session = await rlm.asession("s")
            await session.arun("n = 0")
            first = asyncio.create_task(session.arun("import time; time.sleep(0.3); n += 1"))
            second = asyncio.create_task(session.arun("n += 100"))
            await asyncio.sleep(0.1)
            second.cancel()
            await asyncio.wait([first, second])
            await session.arun("n += 1")

    asyncio.run(go())
    assert reopened(ScriptedModel([]), lambda session: (session.get("n"), session.restored.rerun)) == (2, 0)


def test_a_session_in_memory_does_not_go_back() -> None:
    with RLM(three_turns(), persistent=True) as rlm:
        rlm.completion("text", "One?")
        with pytest.raises(SessionError, match="lives in memory"):
            rlm.session().rewind()


def test_a_session_that_nobody_holds_lets_others_have_it() -> None:
    rlm = RLM(ScriptedModel([]), idle=900)
    rlm.session("s").run("x = 1")
    del rlm
    gc.collect()

    def there() -> bool:
        try:
            return bool(reopened(ScriptedModel([]), lambda session: session.get("x")) == 1)
        except SessionBusyError:
            return False

    until(there)


def test_an_older_checkpoint_that_stands_in_for_a_damaged_one_is_what_later_ones_build_on() -> None:
    def first(session: Session) -> None:
        session.run("v = [0]")
        session.run(
            "data = 'x' * 3_000_000\nif not globals().get('seen'): v.append(len(SHOW_VARS()) * 0 + 1)\nseen = True"
        )

    def look(session: Session) -> Any:
        return session.get("v"), session.run("print(len(data))").stdout

    reopened(ScriptedModel([]), first)
    for blob in Path(os.environ["RLM_STORE"], "blobs").rglob("*"):
        if blob.is_file() and blob.stat().st_size > 2_000_000:
            blob.unlink()
    assert reopened(ScriptedModel([]), look) == ([0, 1], "3000000\n")
    with RLM(ScriptedModel([])) as rlm, rlm.session("s", strict=True) as session:
        assert look(session) == ([0, 1], "3000000\n")
        assert any(event.kind == "checkpoint" and event.base for event in session.log)  # type: ignore[attr-defined]
