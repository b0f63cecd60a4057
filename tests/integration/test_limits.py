"""Limits hold over a whole tree of calls, are checked before anything is spent, and say exactly what was."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rlm import RLM, Limits, ScriptedModel, Session
from rlm.errors import (
    BudgetExceededError,
    ConfigurationError,
    ErrorThresholdExceededError,
    TimeoutExceededError,
    TokenLimitExceededError,
    TurnError,
)
from rlm.types import Called, Messages, Price, Replied, Reply, Stopped, Usage
from tests.turns import cell, opening, submission, submit, task, told

DIME = Price(1.0, 1.0)  # a price, so that money can be reserved; what a request cost comes with its reply


def paid(text: str, dollars: float, name: str = "scripted") -> Reply:
    return Reply(text, name, Usage(1, 10, 10, cost=dollars))


def priced(script: Callable[[Messages], str], dollars: float, name: str = "scripted") -> ScriptedModel:
    """A model each of whose requests costs so much."""
    return ScriptedModel(lambda messages: paid(script(messages), dollars, name), name=name, price=DIME)


def stopped_by(kind: type[TurnError], work: Callable[[], object]) -> Any:
    """The exception that ended the turn, with all that each of them carries."""
    with pytest.raises(kind) as caught:
        work()
    error = caught.value
    assert isinstance(error, TurnError)
    assert [message["role"] for message in error.transcript[:2]] == ["system", "user"]
    return error


def started(session: Session) -> Session:
    """The session with its worker running, whose start takes as long as the machine is busy."""
    session.variables()
    return session


# -- each limit ----------------------------------------------------------------------------------------------------


def test_money_ends_the_turn_with_what_there_is() -> None:
    model = priced(lambda messages: cell("answer['content'] = 'so far'"), 0.25)
    with RLM(model, limits=Limits(usd=1.0)) as rlm, rlm.session() as session:
        error = stopped_by(BudgetExceededError, lambda: session.completion("a", "?"))
        assert isinstance(session.log[-1], Stopped)
        assert session.usage() == error.usage
    assert (error.limit, error.spent, error.budget) == ("usd", 1.0, 1.0)
    assert error.usage.total_cost == 1.0
    assert error.partial_answer == "so far"
    assert len(error.transcript) == 2 + 2 * 4
    assert len(model.requests) == 4


def test_the_number_of_calls_ends_the_turn() -> None:
    model = ScriptedModel([cell("print(llm_query('x'))"), "sub", "I think of 42."])
    error = stopped_by(BudgetExceededError, lambda: RLM(model, limits=Limits(calls=3)).completion("a", "?"))
    assert (error.limit, error.spent, error.budget) == ("calls", 3, 3)
    assert error.partial_answer == "I think of 42."
    assert error.usage.total_calls == 3


def test_tokens_end_the_turn() -> None:
    script = ScriptedModel(lambda messages: Reply("thinking", "scripted", Usage(1, 400, 100)))
    error = stopped_by(TokenLimitExceededError, lambda: RLM(script, limits=Limits(tokens=2_000)).completion("a", "?"))
    assert error.token_limit == 2_000
    assert 1_000 <= error.tokens_used <= 2_500
    assert error.tokens_used == error.usage.total.tokens


def test_failing_cells_in_a_row_end_the_turn_and_a_warning_is_no_failure() -> None:
    warning = cell("import sys\nprint('careful', file=sys.stderr)")
    model = ScriptedModel([warning, warning, warning, cell("1 / 0"), warning, cell("1 / 0"), cell("nothing")])
    rlm = RLM(model, limits=Limits(errors=2))
    error = stopped_by(ErrorThresholdExceededError, lambda: rlm.completion("a", "?"))
    assert (error.error_count, error.threshold) == (2, 2)
    assert "NameError: name 'nothing' is not defined" in error.last_error
    assert len(model.requests) == 7


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time\ntime.sleep(3600)", "while True:\n try: 1 / 0\n except: 1"]
)
def test_seconds_stop_a_cell_that_never_ends_and_keep_the_session(code: str) -> None:
    replies = {"Busy?": cell("x = 1"), "And now?": submit("context")}
    model = ScriptedModel(lambda messages: cell(code) if len(messages) == 4 else replies[task(messages)])
    with RLM(model, limits=Limits(seconds=0.5)) as rlm, started(rlm.session()) as session:
        error = stopped_by(TimeoutExceededError, lambda: session.completion("input", "Busy?"))
        assert isinstance(error, TimeoutError)
        assert error.timeout == 0.5
        assert error.elapsed >= 0.5
        assert error.usage.total_calls == 2
        assert session.ask("And now?").response == "input"
        assert session.get("history_0")[-1]["content"].startswith(
            "(This turn ended without an answer: Limits(seconds=)"
        )


def test_seconds_stop_a_model_that_does_not_answer() -> None:
    async def think(messages: Messages) -> str:
        await asyncio.sleep(3600)
        return ""

    with RLM(ScriptedModel(think), limits=Limits(seconds=0.2)) as rlm, started(rlm.session()) as session:
        error = stopped_by(TimeoutExceededError, lambda: session.ask("?"))
        assert error.usage.total_calls == 0


def test_what_a_batch_was_paid_for_is_kept_when_the_time_runs_out() -> None:
    async def think(messages: Messages) -> str:
        if task(messages) == "slow":
            await asyncio.sleep(3600)
        return "fine" if len(messages) == 1 else cell("llm_query_batched(['a', 'slow', 'b', 'c'])")

    with RLM(ScriptedModel(think), limits=Limits(seconds=0.7)) as rlm, started(rlm.session()) as session:
        error = stopped_by(TimeoutExceededError, lambda: session.completion("a", "?"))
        answered = [event.prompt for event in session.log if isinstance(event, Called)]
        assert error.usage.total_calls == 4
        assert sorted(answered) == ["a", "b", "c"]
        assert session.usage() == error.usage


def test_when_iterations_run_out_the_final_request_is_charged_like_the_others() -> None:
    model = priced(lambda messages: "42" if told(messages).endswith("remains open.") else cell("1"), 0.25)
    result = RLM(model, limits=Limits(iterations=2, usd=10)).completion("a", "?")
    assert result.response == "42"
    assert (result.metadata["iterations"], result.metadata["calls"], result.cost) == (2, 3, 0.75)


def test_the_final_request_is_refused_like_the_others() -> None:
    rlm = RLM(ScriptedModel([cell("1"), cell("2")]), limits=Limits(iterations=2, calls=2))
    error = stopped_by(BudgetExceededError, lambda: rlm.completion("a", "?"))
    assert error.usage.total_calls == 2


# -- over the tree -------------------------------------------------------------------------------------------------


def children(messages: Messages) -> str:
    """A root with three children: one answers at once, two look at something first."""
    if task(messages) == "Ask them.":
        return cell("parts = rlm_query_batched(['Task: one', 'Task: two', 'Task: three'])", submission("parts"))
    looked = len(messages) > 2
    return submit("'found'") if looked or task(messages).startswith("one") else cell("print(context)")


def test_what_three_children_spent_is_in_the_turns_sum_exactly() -> None:
    root, sub = priced(children, 0.05, "root"), priced(children, 0.10, "sub")
    with RLM(root, sub_model=sub, limits=Limits(depth=2, usd=5)) as rlm, rlm.session() as session:
        result = session.completion("a", "Ask them.")
        assert session.usage() == result.usage_summary
        requests = [event for event in session.log if isinstance(event, Replied)]
        called = [event for event in session.log if isinstance(event, Called)]
    usage = result.usage_summary.model_usage_summaries
    assert usage["sub"].calls == 5
    assert usage["sub"].cost == pytest.approx(0.50)
    assert usage["root"] == Usage(1, 10, 10, cost=0.05)
    assert result.cost == pytest.approx(0.55)
    assert len(requests) == 6
    assert sorted(event.usage_summary.total_calls for event in called) == [1, 2, 2]


def test_money_holds_over_children_and_stops_the_turn() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask them.":
            return cell("answer['content'] = str(rlm_query_batched(['Task: one', 'Task: two', 'Task: three']))")
        return children(messages)

    rlm = RLM(priced(script, 0.10), limits=Limits(depth=2, usd=0.35))
    error = stopped_by(BudgetExceededError, lambda: rlm.completion("a", "Ask them."))
    assert error.usage.total_cost == pytest.approx(0.40)
    assert error.usage.total_calls == 4
    assert "Error: BudgetExceededError: Limits(usd=0.35) leaves no room" in error.partial_answer


def test_a_child_that_meets_the_limit_fails_alone_and_says_so() -> None:
    def script(messages: Messages) -> str:
        if task(messages) == "Ask.":
            return cell("a = rlm_query('Task: spend')\nprint(a, a.reason)", submission("a.reason"))
        return cell("print('spending')")

    model = priced(script, 0.10)
    with RLM(model, limits=Limits(depth=2, usd=0.5)) as rlm, rlm.session() as session:
        result = session.completion("a", "Ask.")
        [call] = [event for event in session.log if isinstance(event, Called)]
        assert session.usage() == result.usage_summary
    assert result.response == "limit"
    assert call.reason == "limit"
    assert call.error is not None
    assert call.error.startswith("BudgetExceededError: Limits(usd=0.5) leaves no room")
    assert result.usage_summary.total_calls == 5


def test_a_failing_call_of_a_batch_fails_alone() -> None:
    def script(messages: Messages) -> str:
        if len(messages) > 1:
            batch = "answers = llm_query_batched(['good', 'bad', 'good'])\nprint(answers)"
            return cell(batch, submission("[type(a).__name__ + ' ' + getattr(a, 'reason', '') for a in answers]"))
        if task(messages) == "bad":
            raise ValueError("cannot think")
        return "fine"

    model = ScriptedModel(script)
    with RLM(model) as rlm, rlm.session() as session:
        result = session.completion("a", "?")
        assert result.response == '["str ", "Failure model", "str "]'
        assert result.usage_summary.total_calls == 3
        assert result.metadata["uncertain_calls"] == 1
        ran = [event for event in session.log if event.kind == "ran"]
        assert "'Error: ValueError: cannot think'" in ran[0].result.stdout  # type: ignore[attr-defined]


def test_a_batch_that_is_cut_by_the_limit_keeps_the_answers_that_were_paid() -> None:
    def script(messages: Messages) -> str:
        if len(messages) > 1:
            batch = "answers = llm_query_batched(['x'] * 10)"
            return cell(batch, submission("sum(a == 'fine' for a in answers)"))
        return "fine"

    result = RLM(ScriptedModel(script), limits=Limits(calls=5)).completion("a", "?")
    assert result.response == "4"
    assert result.usage_summary.total_calls == 5


def test_no_more_requests_are_in_flight_than_the_limit_says() -> None:
    now, most, lock = [0], [0], threading.Lock()

    async def script(messages: Messages) -> str:
        if len(messages) > 1:
            return cell(submission("len(llm_query_batched(['x'] * 40))"))
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        await asyncio.sleep(0.001)
        now[0] -= 1
        return "fine"

    assert RLM(ScriptedModel(script), limits=Limits(concurrency=3)).completion("a", "?").response == "40"
    assert most == [3]


# -- before anything is spent --------------------------------------------------------------------------------------


def test_a_money_limit_over_a_model_without_a_price_fails_at_construction() -> None:
    unknown = ScriptedModel([], name="mystery", price=None)
    with pytest.raises(ConfigurationError, match=r"Limits\(usd=2\) cannot be held: no price is known for mystery"):
        RLM(unknown, limits=Limits(usd=2))
    with pytest.raises(ConfigurationError, match="mystery"):
        RLM(ScriptedModel([]), sub_model=unknown, limits=Limits(usd=2))
    with RLM(unknown) as rlm, pytest.raises(ConfigurationError, match="mystery"):
        rlm.session("a", limits=Limits(usd=2))


def test_the_cost_of_a_model_without_a_price_is_unknown_and_not_nothing() -> None:
    model = ScriptedModel([Reply(submit("1"), "mystery", Usage(1, 1, 1, cost=None))], name="mystery", price=None)
    result = RLM(model).completion("a", "?")
    assert result.cost is None
    assert result.usage_summary.total_calls == 1


@pytest.mark.parametrize("limits", [{"usd": 0}, {"seconds": -1}, {"iterations": 0}, {"depth": -1}, {"calls": True}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    name = next(iter(limits))
    with pytest.raises(ValueError, match=rf"Limits\({name}="):
        Limits(**limits)


# -- waiting, and the life of a session ----------------------------------------------------------------------------


def test_waiting_for_a_busy_session_does_not_count() -> None:
    async def script(messages: Messages) -> str:
        await asyncio.sleep(0.25)
        return submit(f"'{task(messages)}'")

    async def go() -> list[str]:
        async with RLM(ScriptedModel(script), limits=Limits(seconds=1.5), persistent=True) as rlm:
            await rlm.session().arun("0")
            turns = [rlm.acompletion(f"input {n}", f"Question {n}?") for n in range(7)]
            return [result.response for result in await asyncio.gather(*turns)]

    assert asyncio.run(go()) == [f"Question {n}?" for n in range(7)]


def test_execution_time_does_not_count_waiting_either() -> None:
    async def script(messages: Messages) -> str:
        await asyncio.sleep(0.1)
        return submit("1")

    async def go() -> tuple[list[float], float]:
        async with RLM(ScriptedModel(script), persistent=True) as rlm:
            began = time.perf_counter()
            turns = [rlm.acompletion(f"input {n}", "?") for n in range(4)]
            times = [result.execution_time for result in await asyncio.gather(*turns)]
            return times, time.perf_counter() - began

    times, elapsed = asyncio.run(go())
    assert min(times) >= 0.1
    assert sum(times) <= elapsed


def test_a_sessions_own_limits_hold_over_its_turns_beside_those_of_each() -> None:
    model = ScriptedModel(lambda messages: submit("1") if len(messages) > 2 else cell("0"))
    with RLM(model, limits=Limits(calls=3)) as rlm, rlm.session("a", limits=Limits(calls=5)) as session:
        for _ in range(2):
            assert session.ask("?").usage_summary.total_calls == 2
        error = stopped_by(BudgetExceededError, lambda: session.ask("?"))
        assert error.usage.total_calls == 1
        assert (error.spent, error.budget) == (5, 5)
        assert rlm.session("b").ask("?").usage_summary.total_calls == 2
        error = stopped_by(BudgetExceededError, lambda: session.ask("?"))
        assert error.usage.total_calls == 0


def test_a_sessions_money_and_tokens_hold_over_its_turns() -> None:
    model = priced(lambda messages: submit("1"), 0.40)
    with RLM(model, limits=Limits(usd=0.5)) as rlm, rlm.session("a", limits=Limits(usd=1.0)) as session:
        assert [session.ask("?").cost for _ in range(2)] == [0.40, 0.40]
        session.ask("?")  # it began within the limit; only its reply said what it cost
        stopped_by(BudgetExceededError, lambda: session.ask("?"))
    with RLM(model) as rlm, rlm.session("a", limits=Limits(tokens=1_500)) as session:
        session.ask("?")
        stopped_by(TokenLimitExceededError, lambda: [session.ask("?") for _ in range(100)])


def test_a_users_own_cell_is_charged_to_the_session() -> None:
    model = ScriptedModel(["x", "y"])
    with RLM(model) as rlm, rlm.session("a", limits=Limits(calls=1)) as session:
        assert session.run("print(llm_query('hi'))").stdout == "x\n"
        assert "Error: BudgetExceededError" in session.run("print(llm_query('hi'))").stdout
        assert session.usage().total_calls == 1


def test_a_sessions_seconds_are_those_of_its_turns() -> None:
    async def script(messages: Messages) -> str:
        await asyncio.sleep(0.3)
        return submit("1")

    with RLM(ScriptedModel(script)) as rlm, started(rlm.session("a", limits=Limits(seconds=0.7))) as session:
        session.ask("?")
        error = stopped_by(TimeoutExceededError, lambda: [session.ask("?") for _ in range(9)])
        assert error.timeout < 0.7
        with pytest.raises(TimeoutExceededError, match=r"Limits\(seconds=0\.7\) of session 'a' is used up"):
            session.ask("?")
        with pytest.raises(TimeoutExceededError, match="is used up"):
            session.run("x = 1")


@pytest.mark.parametrize("limits", [{"iterations": 5}, {"depth": 2}, {"errors": 1}, {"concurrency": 2}])
def test_limits_of_turns_are_refused_for_a_life(limits: dict[str, Any]) -> None:
    name = next(iter(limits))
    with RLM(ScriptedModel([])) as rlm, pytest.raises(ConfigurationError, match=rf"Limits\({name}=.*RLM\(limits=\)"):
        rlm.session("a", limits=Limits(**limits))


def test_a_turn_that_was_stopped_is_told_to_the_next() -> None:
    model = ScriptedModel([cell("found = 41"), submit("found + 1")])
    with RLM(model, limits=Limits(calls=1)) as rlm, rlm.session() as session:
        stopped_by(BudgetExceededError, lambda: session.ask("How much?"))
        assert session.ask("And now?").response == "42"
    said = opening(model.requests[1])
    assert "How much?\n→ (This turn ended without an answer: Limits(calls=1) leaves no room for scripted" in said
