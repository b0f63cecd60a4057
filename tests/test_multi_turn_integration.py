"""Many turns over one REPL: what stays, what the model is told of it, and what happens when the RLM is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel
from rlm.environments import BaseEnv
from rlm.errors import BudgetExceededError, ConfigurationError, ModelError, SessionClosedError
from rlm.types import REPLResult
from tests.processes import gone, named, naming, token
from tests.turns import by_task, cell, opening, submission, submit, told


def create_mock_lm(replies: Sequence[str]) -> ScriptedModel:
    """A model that gives these replies in order, and keeps what it was asked in `requests`."""
    return ScriptedModel(replies)


class Seen:
    """A reply whose cell names its process, and a tool of that cell by which the host sees which one it is."""

    def __init__(self) -> None:
        self.pid, self.name = 0, token()
        self.reply = cell(naming(self.name), submission("seen()"))

    def seen(self) -> str:
        self.pid = named(self.name)
        return "seen"


# -- the environment is reused -------------------------------------------------------------------------------------


def test_without_persistence_each_completion_gets_a_namespace_of_its_own() -> None:
    lm = create_mock_lm([cell("secret = 1", submission("'set'")), cell("print(secret)"), submit("'seen'")])
    rlm = RLM(lm)
    rlm.completion("one", "Set it.")
    rlm.completion("two", "Read it.")
    assert "NameError: name 'secret' is not defined" in told(lm.requests[2])


def test_a_persistent_rlm_reuses_one_worker() -> None:
    cells, pids = Seen(), set()
    with RLM(create_mock_lm([cells.reply] * 3), tools=[cells.seen], persistent=True) as rlm:
        for n in range(3):
            rlm.completion(f"input {n}", "Who are you?")
            pids.add(cells.pid)
    assert len(pids) == 1


def test_variables_functions_classes_and_imports_stay_for_later_turns() -> None:
    first = """
        import math
        total = 40
        def add(n): return total + n
        class Box: pass
    """
    lm = create_mock_lm([cell(first, submission("'kept'")), submit("add(2) + math.floor(0.5) + len([Box()]) - 1")])
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a", "Keep.")
        assert rlm.completion("b", "Use.").response == "42"


# -- contexts and histories accumulate -----------------------------------------------------------------------------


def test_each_completion_adds_a_context_and_context_is_always_the_first() -> None:
    lm = create_mock_lm([submit("context"), submit("context + context_0 + context_1"), submit("context + context_2")])
    with RLM(lm, persistent=True) as rlm:
        assert rlm.completion("a", "?").response == "a"
        assert rlm.completion("b", "?").response == "aab"
        assert rlm.completion("c", "?").response == "ac"


def test_each_turn_leaves_its_messages_and_the_last_one_is_its_answer() -> None:
    lm = create_mock_lm([cell("print(6 * 7)"), submit("42"), submit("43"), submit("'done'")])
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a", "First?")
        rlm.completion("b", "Second?")
        session = rlm.session()
        first, second = session.get("history_0"), session.get("history_1")
        assert session.get("history") == first
    assert [message["role"] for message in first] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert first[0]["content"].endswith("Task: First?")
    assert first[2] == {"role": "user", "content": "[cell 1]\n42"}
    assert first[-1] == {"role": "assistant", "content": "42"}
    assert second[-1] == {"role": "assistant", "content": "43"}


def test_cells_see_the_histories_of_earlier_turns() -> None:
    lm = create_mock_lm([submit("'blue'"), submit("history[-1]['content'] + ' ' + history_0[-1]['role']")])
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a", "Which colour?")
        assert rlm.completion("b", "Which was it?").response == "blue assistant"


def test_names_that_code_rebinds_are_put_back() -> None:
    lm = create_mock_lm(
        [cell("context = history = llm_query = None"), submit("context"), submit("history[-1]['content']")]
    )
    with RLM(lm, persistent=True) as rlm:
        assert rlm.completion("a", "?").response == "a"
        assert rlm.completion("b", "?").response == "a"


@pytest.mark.parametrize("value", ["text\r\n\0", b"\xff", {1: ("a", {2})}, [1, 2, 3], None, 3.5, "\ud800"])
def test_any_input_arrives_as_it_is(value: Any) -> None:
    with RLM(create_mock_lm([submit("repr(context_1)")]), persistent=True) as rlm:
        session = rlm.session()
        session.add_context("first")
        assert rlm.completion(value, "What is it?").response == repr(value)


# -- what the prompt says ------------------------------------------------------------------------------------------


def test_the_prompt_names_the_turns_own_input_and_counts_the_others() -> None:
    lm = create_mock_lm([submit("1"), submit("2"), submit("3")])
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a" * 10, "First?")
        rlm.completion(["x", "y"], "Second?")
        rlm.completion({"k": 1}, "Third?")
    first, second, third = [opening(request) for request in lm.requests]
    assert "This turn's input: `context`: str, 10 characters." in first
    assert "history" not in first
    assert "This turn's input: `context_1`: list, 2 items." in second
    assert "`context_0` (the same as `context`) to `context_1`" in second
    assert "This turn's input: `context_2`: dict, 1 items." in third
    assert "`history_0` (the same as `history`) to `history_1`" in third


def test_the_prompt_carries_the_conversation_so_that_it_can_be_referred_to() -> None:
    lm = create_mock_lm([submit("'Ada and Grace'"), submit("'Grace'")])
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a", "Who are the authors?")
        rlm.session().ask("Which of them is the younger?")
    said = opening(lm.requests[1])
    assert "Who are the authors?" in said
    assert "Ada and Grace" in said
    assert "No new input came with this turn." in said
    assert said.endswith("Task: Which of them is the younger?")


def test_the_system_prompt_stays_the_same_for_the_providers_cache() -> None:
    lm = create_mock_lm([submit("1")] * 4)
    with RLM(lm, persistent=True) as rlm:
        for n in range(4):
            rlm.completion(f"input {n}", f"Question {n}?")
    assert len({request[0]["content"] for request in lm.requests}) == 1


def test_the_opening_of_turn_50_is_hardly_longer_than_that_of_turn_2() -> None:
    lm = create_mock_lm([submit("'an answer of some length'")] * 50)
    with RLM(lm, persistent=True) as rlm:
        for n in range(50):
            rlm.completion(f"input {n}", "A question of the usual length, as people ask it?")
    second, last = len(opening(lm.requests[1])), len(opening(lm.requests[49]))
    system = len(lm.requests[0][0]["content"])
    assert last + system <= 1.2 * (second + system)


# -- turns that fail -----------------------------------------------------------------------------------------------


def test_a_turn_that_fails_leaves_its_context_and_its_history_and_a_retry_duplicates_nothing() -> None:
    lm = create_mock_lm(
        [cell("x = 1"), submit("context_0 + str(x)"), submit("len([n for n in dir() if 'context_' in n])")]
    )
    with RLM(lm, persistent=True, limits=Limits(calls=1)) as rlm:
        with pytest.raises(BudgetExceededError):
            rlm.completion("the input", "What?")
        assert rlm.completion("the input", "What?").response == "the input1"
        session = rlm.session()
        assert [name for name in session.variables() if name.startswith("context_")] == ["context_0"]
        assert session.get("history_0")[-1]["content"].startswith("(This turn ended without an answer: ")
        assert session.get("history_1")[-1]["content"] == "the input1"
    assert "This turn's input: `context`: str, 9 characters." in opening(lm.requests[1])
    assert "ended without an answer" in opening(lm.requests[1])


def test_the_same_input_after_an_answer_is_a_new_context() -> None:
    with RLM(create_mock_lm([submit("1"), submit("2")]), persistent=True) as rlm:
        rlm.completion("the input", "What?")
        rlm.completion("the input", "What else?")
        assert "context_1" in rlm.session().variables()


def test_an_input_that_was_changed_before_the_retry_is_a_new_context() -> None:
    rows = [1, 2]
    lm = create_mock_lm([])
    with RLM(lm, persistent=True) as rlm:
        with pytest.raises(ModelError):
            rlm.completion(rows, "What?")
        rows.append(3)
        with pytest.raises(ModelError):
            rlm.completion(rows, "What?")
        with pytest.raises(ModelError):
            rlm.completion(rows, "What?")
        session = rlm.session()
        assert session.get("context_0") == [1, 2]
        assert session.get("context_1") == [1, 2, 3]
        assert "context_2" not in session.variables()


# -- the end -------------------------------------------------------------------------------------------------------


def test_close_ends_the_worker_and_may_be_called_twice() -> None:
    cells = Seen()
    rlm = RLM(create_mock_lm([cells.reply]), tools=[cells.seen], persistent=True)
    assert rlm.completion("a", "Who are you?").response == "seen"
    assert not gone(cells.pid)
    rlm.close()
    assert gone(cells.pid)
    rlm.close()


def test_a_completion_that_does_not_persist_ends_its_worker_itself() -> None:
    cells = Seen()
    rlm = RLM(create_mock_lm([cells.reply]), tools=[cells.seen])
    assert rlm.completion("a", "Who are you?").response == "seen"
    assert gone(cells.pid)


def test_the_with_statement_closes_also_after_an_exception() -> None:
    cells = Seen()

    def fail() -> None:
        with RLM(create_mock_lm([cells.reply]), tools=[cells.seen], persistent=True) as rlm:
            assert rlm.completion("a", "Who are you?").response == "seen"
            assert not gone(cells.pid)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gone(cells.pid)


def test_after_close_nothing_can_be_asked() -> None:
    rlm = RLM(create_mock_lm([]), persistent=True)
    rlm.close()
    with pytest.raises(SessionClosedError, match="was closed"):
        rlm.completion("a", "?")
    with pytest.raises(SessionClosedError):
        rlm.session("other")
    with pytest.raises(SessionClosedError):
        list(rlm.stream("a", "?"))


# -- validation ----------------------------------------------------------------------------------------------------


class Forgetful(BaseEnv):
    """What an environment has at least."""

    def setup(self) -> None:
        self.namespace: dict[str, Any] = {}

    def load_context(self, context_payload: Any) -> None:
        self.namespace["context"] = context_payload

    def execute_code(self, code: str) -> REPLResult:
        exec(code, self.namespace)
        answer = self.namespace.get("answer", {})
        return REPLResult(final_answer=str(answer["content"]) if answer.get("ready") else None)


def test_persistence_is_refused_for_an_environment_that_cannot() -> None:
    with pytest.raises(ValueError, match=r"^persistent=True is not supported") as caught:
        RLM(create_mock_lm([]), environment=Forgetful, persistent=True)
    said = str(caught.value)
    assert "Forgetful" in said
    for method in ("update_handler_address", "add_context", "get_context_count", "add_history", "get_history_count"):
        assert method in said


def test_a_named_session_needs_an_environment_that_persists() -> None:
    rlm = RLM(create_mock_lm([]), environment=Forgetful)
    with pytest.raises(ConfigurationError, match=r"^persistent=True is not supported for environment Forgetful"):
        rlm.session("a")


def test_an_environment_that_cannot_persist_answers_single_completions() -> None:
    rlm = RLM(create_mock_lm([submit("context.upper()")]), environment=Forgetful)
    assert rlm.completion("a", "?").response == "A"


def test_the_base_class_refuses_persistence_by_the_name_of_the_class() -> None:
    said = "Persistent REPLs are currently not supported for environment: Forgetful"
    with pytest.raises(NotImplementedError, match=f"^{said}$"):
        Forgetful(persistent=True)


def test_an_unknown_environment_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="unknown environment 'nowhere': choose one of local"):
        RLM(create_mock_lm([]), environment="nowhere")


# -- async ---------------------------------------------------------------------------------------------------------


def test_many_turns_async() -> None:
    lm = create_mock_lm([cell("x = 40", submission("'kept'")), submit("x + 2"), submit("history_1[-1]['content']")])

    async def converse() -> list[str]:
        async with RLM(lm, persistent=True) as rlm:
            answers = [await rlm.acompletion("a", "Keep."), await rlm.acompletion("b", "Use.")]
            answers.append(await rlm.session().aask("What was it?"))
            return [answer.response for answer in answers]

    assert asyncio.run(converse()) == ["kept", "42", "42"]


def test_an_async_with_statement_ends_the_worker() -> None:
    cells = Seen()

    async def converse() -> None:
        async with RLM(create_mock_lm([cells.reply]), tools=[cells.seen], persistent=True) as rlm:
            assert (await rlm.acompletion("a", "Who are you?")).response == "seen"
            assert not gone(cells.pid)

    asyncio.run(converse())
    assert gone(cells.pid)


def test_blocking_and_async_calls_share_one_session() -> None:
    lm = by_task({"Keep.": cell("x = 40", submission("'kept'")), "Use.": submit("x + 2")})
    with RLM(lm, persistent=True) as rlm:
        rlm.completion("a", "Keep.")
        assert asyncio.run(rlm.acompletion("b", "Use.")).response == "42"
