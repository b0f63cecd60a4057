"""What a turn that ended without an answer leaves: in its exception, in the log, in the namespace, for the next one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel, Session
from rlm.environments.process import ProcessTransport
from rlm.environments.repl import Namespace
from rlm.environments.sandbox.sandbox import Sandbox, Settings
from rlm.errors import ModelError, SandboxError, TimeoutExceededError
from rlm.ports import Transport
from rlm.types import Answered, Asked, ContextAdded, Event, Failed, Messages
from tests.processes import named, naming, token
from tests.turns import cell, opening, submit

DRAFT = cell("answer['content'] = 'half an answer'")


def down() -> str:
    raise ModelError("the provider is down")


def kinds(session: Session) -> list[str]:
    return [event.kind for event in session.log]


def contexts(session: Session) -> list[int]:
    return [event.index for event in session.log if isinstance(event, ContextAdded)]


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.002)


def replying(*replies: str | Callable[[], str]) -> ScriptedModel:
    left = list(replies)

    def reply(messages: Messages) -> str:
        said = left.pop(0)
        return said if isinstance(said, str) else said()

    return ScriptedModel(reply)


# -- what the exception carries ------------------------------------------------------------------------------------


def test_a_failing_provider_leaves_what_was_paid_for() -> None:
    with RLM(replying(DRAFT, down)) as rlm, rlm.session() as session, pytest.raises(ModelError) as caught:
        session.completion("a", "What?")
    error = caught.value
    assert (error.partial_answer, error.usage.total_calls) == ("half an answer", 1)
    assert error.usage == session.usage()
    assert [message["role"] for message in error.transcript] == ["system", "user", "assistant", "user"]


POLICY = """
    from rlm.errors import ModelError

    def down(messages):
        if len(messages) > 2:
            raise ModelError("the provider is down")
        return "```repl\\nanswer['content'] = 'half an answer'\\n```"
"""


def test_the_command_prints_what_a_failing_provider_left(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(POLICY.replace("\n    ", "\n"))

    def ask(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlm", "ask", "What?", "--model", "scripted:failing:down", *options]
        env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=40)

    plain = ask()
    assert (plain.returncode, plain.stdout) == (1, "half an answer\n")
    done = ask("--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["error"], told["partial_answer"]) == (1, "ModelError", "half an answer")
    assert told["usage_summary"]["model_usage_summaries"]["scripted:failing:down"]["total_calls"] == 1


# -- while the input is brought in ---------------------------------------------------------------------------------


class Slow:
    """An input that arrives when the test says so; in the namespace it is a list."""

    def __init__(self) -> None:
        self.pickled, self.go, self.times = threading.Event(), threading.Event(), 0

    def __reduce__(self) -> Any:
        self.times += 1
        self.pickled.set()
        self.go.wait()
        return (list, ((1, 2),))


def test_a_limit_while_the_input_is_brought_in_is_on_record_and_told_to_the_next_turn() -> None:
    slow, model = Slow(), ScriptedModel([submit("history[0]['content']")])
    with RLM(model, limits=Limits(seconds=2)) as rlm, rlm.session() as session:
        session.variables()
        with pytest.raises(TimeoutExceededError) as caught:
            session.completion(slow, "What is in it?")
        slow.go.set()
        assert (kinds(session), session.turns) == (["asked", "stopped"], 1)
        assert (caught.value.transcript, caught.value.usage.total_calls) == ((), 0)
        assert session.ask("What happened?").response == "What is in it?"
    assert "What is in it?\n→ (This turn ended without an answer: Limits(seconds=)" in opening(model.requests[0])


def test_a_cancelled_turn_whose_input_is_on_its_way_is_on_record() -> None:
    slow = Slow()

    async def go() -> list[str]:
        async with RLM(ScriptedModel([submit("1")])) as rlm, rlm.session() as session:
            task = asyncio.create_task(session.acompletion(slow, "What?"))
            await asyncio.to_thread(slow.pickled.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            slow.go.set()
            return kinds(session)

    assert asyncio.run(go()) == ["asked", "stopped"]


def test_a_worker_that_cannot_start_fails_a_turn_that_is_on_record() -> None:
    with RLM(ScriptedModel([]), environment_kwargs={"python": "/nowhere/python"}) as rlm, rlm.session() as session:
        with pytest.raises(SandboxError):
            session.completion("a", "What?")
        asked, failed = session.log
        assert isinstance(asked, Asked)
        assert isinstance(failed, Failed)
        assert (asked.question, asked.context, failed.error, session.turns) == ("What?", None, "SandboxError", 1)


# -- the same input again ------------------------------------------------------------------------------------------


def test_an_input_is_looked_at_again_only_when_the_turn_is_asked_again() -> None:
    slow = Slow()
    slow.go.set()
    with RLM(replying(down, submit("context"))) as rlm, rlm.session() as session:
        with pytest.raises(ModelError):
            session.completion(slow, "What?")
        assert slow.times == 1
        assert session.completion(slow, "What?").response == "[1, 2]"
        assert contexts(session) == [0, 0]


@pytest.mark.parametrize("value", ["a text", b"bytes", "long" * 9_000, [1, 2], {"a": "b" * 30_000}])
def test_an_equal_input_asked_again_is_not_brought_in_twice(value: Any) -> None:
    again = json.loads(json.dumps(value)) if not isinstance(value, bytes) else bytes(bytearray(value))
    with RLM(replying(down, down, submit("len(context)"))) as rlm, rlm.session() as session:
        for same in (value, value):
            with pytest.raises(ModelError):
                session.completion(same, "What?")
        assert session.completion(again, "What?").response == str(len(value))
        assert set(contexts(session)) == {0}
        assert "context_1" not in session.variables()


def test_a_list_that_changed_since_is_another_input() -> None:
    value = [1, 2]
    with RLM(replying(down, submit("context_1"))) as rlm, rlm.session() as session:
        with pytest.raises(ModelError):
            session.completion(value, "What?")
        value[0] = 7
        assert session.completion(value, "What?").response == "[7, 2]"


def test_a_history_starts_no_worker_and_the_next_worker_has_it() -> None:
    workers: list[Path] = []

    async def connect(folder: Path) -> Transport:
        workers.append(folder)
        return await Sandbox(Settings()).connect(folder)

    async def go() -> None:
        namespace = Namespace(connect)
        try:
            await namespace.put_context("input")
            name = (await namespace.run(f"import os\nx = 1\nprint({naming(token())}, end='')")).stdout
            os.kill(named(name), signal.SIGKILL)
            await asyncio.to_thread(until, lambda: namespace._kernel is None or namespace._kernel.dead)
            assert await namespace.put_history([{"role": "user", "content": "What?"}]) == 0
            assert (len(workers), namespace.histories) == (1, 1)
            assert await namespace.get("history_0") == [{"role": "user", "content": "What?"}]
            assert len(workers) == 2
            [note] = namespace.take_notes()
            assert "Back: context, context_0, history, history_0. Lost: os (module), x (int)." in note
        finally:
            await namespace.close()

    asyncio.run(go())


def test_a_worker_that_dies_before_it_is_handed_a_file_is_replaced() -> None:
    workers: list[Path] = []

    class Dying(ProcessTransport):
        async def put_file(self, path: Path) -> str:
            if len(workers) == 1:
                raise ConnectionError("nobody is there")
            return await super().put_file(path)

    def connect(folder: Path) -> ProcessTransport:
        workers.append(folder)
        return Dying(folder)

    async def go() -> None:
        namespace = Namespace(connect)
        try:
            assert await namespace.put_context("a" * 1_000_000) == 0
            assert (await namespace.run("print(len(context))")).stdout == "1000000\n"
        finally:
            await namespace.close()

    asyncio.run(go())
    assert len(workers) == 2


# -- what stays in the log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "short"), [("a" * 30_000, 2_100), (["a" * 30_000], 20)])
def test_no_event_holds_a_whole_input_and_the_caller_gets_it_back(value: Any, short: int) -> None:
    heard: list[Event] = []
    with RLM(ScriptedModel([submit("1")] * 2), listener=heard.append) as rlm, rlm.session() as session:
        assert session.completion(value, key="k").prompt is value
        assert session.completion(value, key="k").prompt is value
        *_, streamed = session.stream(value)
        *_, recorded = session.stream(value, key="k")
    for event in [*session.log, *heard, streamed, recorded]:
        if isinstance(event, Answered):
            assert len(event.completion.prompt) <= short
    assert isinstance(streamed, Answered)
    assert streamed.completion.prompt.startswith("aaa" if isinstance(value, str) else "list, 1 long")


# -- cells of the user's own ---------------------------------------------------------------------------------------


def test_seconds_bound_a_users_own_cell_too() -> None:
    model = ScriptedModel([submit("x")])
    with RLM(model, limits=Limits(seconds=2)) as rlm, rlm.session() as session:
        session.variables()
        with pytest.raises(TimeoutExceededError, match=r"left this cell 2 s") as caught:
            session.run("x = 5\nimport time\nwhile True: time.sleep(0.01)")
        assert caught.value.timeout == 2
        assert session.ask("?").response == "5"
    assert ", which was stopped by the limit on seconds" in opening(model.requests[0])


def test_a_users_own_cells_count_into_a_sessions_seconds() -> None:
    with RLM(ScriptedModel([])) as rlm, rlm.session("a", limits=Limits(seconds=1)) as session:
        with pytest.raises(TimeoutExceededError):
            session.run("import time\nwhile True: time.sleep(0.01)")
        with pytest.raises(TimeoutExceededError, match="session 'a' is used up"):
            session.ask("?")
