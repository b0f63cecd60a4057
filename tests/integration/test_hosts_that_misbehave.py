"""Models, environments and callers that misbehave: the engine neither hangs nor loses what was paid for."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import Any

import pytest

from rlm import RLM, CancellationError, Limits, ModelError, ScriptedModel
from rlm.environments.base_env import NonIsolatedEnv
from rlm.types import Called, Messages, REPLResult, Reply

SUBMIT = "```repl\nanswer.update(content='done', ready=True)\n```"
ASK_A_CHILD = "```repl\ntold = rlm_query('a task')\nanswer.update(content=told, ready=True)\n```"


class Stubborn(NonIsolatedEnv):
    """An environment whose end fails."""

    def setup(self) -> None: ...

    def load_context(self, context_payload: Any) -> None: ...

    def execute_code(self, code: str) -> REPLResult:
        return REPLResult(final_answer="paid for" if "submit" in code else None)

    def cleanup(self) -> None:
        raise OSError("container already removed")


def test_an_environment_that_cannot_be_closed_takes_no_answer_away(caplog: pytest.LogCaptureFixture) -> None:
    threads = threading.active_count()
    with caplog.at_level(logging.ERROR), RLM(ScriptedModel(["```repl\nsubmit\n```"]), environment=Stubborn) as rlm:
        assert rlm.completion("text", "Well?").response == "paid for"
    assert "container already removed" in caplog.text
    assert threading.active_count() <= threads + 1  # the portal's, where this is the first test


class Closable(ScriptedModel):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


def test_a_model_that_was_given_as_an_object_is_its_owners_to_close() -> None:
    model = Closable([SUBMIT])
    with RLM(model) as rlm:
        rlm.completion("text", "Well?")
    assert not model.closed


def test_connections_of_a_model_that_was_named_the_older_way_are_closed() -> None:
    rlm = RLM(backend="openai", backend_kwargs={"model_name": "gpt-5-mini", "api_key": "none"})
    assert [model.name for model in rlm._models] == ["openai:gpt-5-mini"]
    rlm.close()


def test_a_model_that_ends_the_program_ends_its_own_turn_only() -> None:
    def leave(messages: Messages) -> str:
        sys.exit("no licence")

    with RLM(ScriptedModel(leave)) as rlm, pytest.raises(ModelError, match="no licence"):
        rlm.completion("text", "Well?")
    with RLM(ScriptedModel([SUBMIT])) as rlm:
        assert rlm.completion("text", "Well?").response == "done"


def test_a_model_whose_own_task_was_cancelled_fails_its_call() -> None:
    async def inner(messages: Messages) -> str:
        if len(messages) > 1:
            return "```repl\ntold = llm_query('x')\nanswer.update(content=told, ready=True)\n```"
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
        return "never"

    with RLM(ScriptedModel(inner)) as rlm:
        assert rlm.completion("text", "Well?").response.startswith("Error: ModelError")


def test_an_async_caller_finds_the_partial_answer_behind_its_cancellation() -> None:
    running = asyncio.Event()

    async def work() -> BaseException | None:
        loop = asyncio.get_running_loop()

        async def reply(messages: Messages) -> str:
            if len(messages) == 2:
                return "```repl\nanswer['content'] = 'half of it'\n```"
            loop.call_soon_threadsafe(running.set)
            await asyncio.sleep(60)
            return ""

        async with RLM(ScriptedModel(reply)) as rlm:
            task = asyncio.create_task(rlm.acompletion("text", "Well?"))
            await running.wait()
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as cancelled:
                return cancelled.__cause__
        return None

    told = asyncio.run(work())
    assert isinstance(told, CancellationError)
    assert told.partial_answer == "half of it"
    assert told.usage.total_calls == 1


def test_a_child_that_fails_is_recorded_with_what_it_consumed() -> None:
    def play(messages: Messages) -> str:
        return ASK_A_CHILD if "Task: Well?" in messages[1]["content"] else "```repl\n1 / 0\n```"

    with RLM(ScriptedModel(play), limits=Limits(depth=2, errors=1), persistent=True) as rlm:
        assert rlm.completion("text", "Well?").response.startswith("Error: ErrorThresholdExceededError")
        called = next(event for event in rlm.session().log if isinstance(event, Called))
        assert called.usage_summary.total_calls == 1
        assert rlm.session().usage().total_calls == 2


class Priceless:
    """A model with nothing but a name and replies."""

    name = "mine"

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        return Reply(SUBMIT, self.name)


def test_a_model_needs_no_price_while_no_money_is_limited() -> None:
    with RLM(Priceless()) as rlm:  # type: ignore[arg-type]  # it lacks `price`, which only limits of money ask for
        assert rlm.completion("text", "Well?").response == "done"
