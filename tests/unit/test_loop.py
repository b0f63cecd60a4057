"""How a turn goes, told by a host that plays prepared replies and results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.engine import prompts
from rlm.engine.loop import AnswerRejected, Check, Outcome, Transcript, turn
from rlm.errors import BudgetExceededError, ErrorThresholdExceededError, OutputError
from rlm.ports import Answer
from rlm.types import CellError, Draft, Message, Messages, REPLResult, Reply


class Scripted:
    """Replies in order (an exception is raised); a cell gives the result that is named like its code."""

    def __init__(self, replies: Sequence[str | Exception], results: Mapping[str, REPLResult] | None = None) -> None:
        self.replies = list(replies)
        self.results = results or {}
        self.asked: list[tuple[list[Message], str]] = []
        self.ran: list[str] = []

    async def ask(self, messages: Messages, purpose: str = "iteration") -> Reply:
        self.asked.append((list(messages), purpose))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return Reply(reply, "scripted")

    async def run(self, code: str, answer: Answer | None = None) -> REPLResult:
        self.ran.append(code)
        return self.results.get(code, REPLResult(stdout=f"ran {code}\n"))

    async def call(self, key: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        raise AssertionError("the loop itself makes no calls")

    @property
    def purposes(self) -> list[str]:
        return [purpose for _, purpose in self.asked]

    def told(self, request: int) -> str:
        """The message of the user that the model saw last with this request."""
        last = self.asked[request][0][-1]
        assert last["role"] == "user"
        return last["content"]


def cell(*codes: str) -> str:
    return "\n".join(f"```repl\n{code}\n```" for code in codes)


def submit(content: str) -> REPLResult:
    return REPLResult(final_answer=content, draft=Draft(content, True))


def failing(kind: str = "ValueError") -> REPLResult:
    error = CellError(kind, f"Traceback …\n{kind}: no\n")
    return REPLResult(stderr=error.text, error=error)


def begin() -> Transcript:
    return Transcript([{"role": "system", "content": "You are."}, {"role": "user", "content": "Task: go"}])


def play(
    host: Scripted,
    transcript: Transcript | None = None,
    *,
    iterations: int = 30,
    errors: int | None = None,
    check: Check | None = None,
) -> Outcome:
    return asyncio.run(turn(host, transcript or begin(), iterations=iterations, errors=errors, check=check))


def assert_alternating(transcript: Transcript) -> None:
    roles = [message["role"] for message in transcript.messages]
    assert roles[0] == "system"
    assert roles[1:] == ["user", "assistant"] * (len(roles) // 2)
    assert all(message["content"].strip() for message in transcript.messages)


def number(text: str) -> int:
    """A check: the answer has to be an int."""
    try:
        value = json.loads(text)
    except ValueError:
        raise AnswerRejected("$: not JSON") from None
    if type(value) is not int:
        raise AnswerRejected("$: not an integer")
    return value


# -- the way to an answer ------------------------------------------------------------------------------------------


def test_cells_run_in_order_and_their_output_comes_back_until_an_answer_is_submitted() -> None:
    host = Scripted([f"I look.\n{cell('a', 'b')}", cell("done")], {"done": submit("42")})
    transcript = begin()
    assert play(host, transcript) == Outcome("42", None, iterations=2)
    assert host.ran == ["a", "b", "done"]
    assert host.told(0) == "Task: go"
    assert host.told(1) == "[cell 1]\nran a\n\n[cell 2]\nran b"
    assert host.purposes == ["iteration", "iteration"]
    assert (transcript.iterations, transcript.cells) == (2, 3)


def test_the_transcript_ends_with_the_answer_and_alternates() -> None:
    transcript = begin()
    play(Scripted([cell("a"), cell("done")], {"done": submit("42")}), transcript)
    assert_alternating(transcript)
    assert transcript.messages[-2:] == [
        {"role": "user", "content": "[cell 2]\n(no output)"},
        {"role": "assistant", "content": "42"},
    ]


def test_a_host_keeps_what_it_was_asked_while_the_transcript_grows() -> None:
    host = Scripted([cell("a"), cell("done")], {"done": submit("42")})
    play(host)
    assert [len(messages) for messages, _ in host.asked] == [2, 4]


def test_cells_behind_the_answer_are_not_run() -> None:
    host = Scripted([cell("done", "late")], {"done": submit("42")})
    assert play(host).response == "42"
    assert host.ran == ["done"]


def test_a_cell_that_submits_and_then_fails_has_submitted() -> None:
    result = REPLResult(final_answer="42", error=CellError("NameError", "NameError: x"))
    assert play(Scripted([cell("done")], {"done": result}), errors=1).response == "42"


def test_a_reply_without_code_is_told_so_and_counts() -> None:
    host = Scripted(["It is 42, I think.", cell("done")], {"done": submit("42")})
    assert play(host).iterations == 2
    assert host.told(1) == prompts.no_code()


def test_an_empty_reply_leaves_no_empty_message() -> None:
    host = Scripted([" \n", cell("done")], {"done": submit("42")})
    transcript = begin()
    play(host, transcript)
    assert_alternating(transcript)


def test_iterations_left_are_told_near_the_end() -> None:
    host = Scripted([cell("a")] * 5 + ["It is 42."])
    play(host, iterations=5)
    told = [host.told(request) for request in range(1, 5)]
    assert ["left: " in text for text in told] == [False, True, True, True]
    assert "left: 1." in told[-1]


# -- failing cells -------------------------------------------------------------------------------------------------


def test_a_failing_cell_ends_its_reply_and_the_model_sees_why() -> None:
    host = Scripted([cell("a", "bad", "c", "d"), cell("done")], {"bad": failing(), "done": submit("42")})
    play(host)
    assert host.ran == ["a", "bad", "done"]
    assert host.told(1).endswith("[cell 2]\nTraceback …\nValueError: no\n\nThe 2 blocks after it were not run.")


def test_too_many_failing_cells_in_a_row_end_the_turn() -> None:
    host = Scripted([cell("bad"), cell("a", "bad"), cell("bad")], {"bad": failing("KeyError")})
    transcript = begin()
    with pytest.raises(ErrorThresholdExceededError) as caught:
        play(host, transcript, errors=2)
    error = caught.value
    assert (error.error_count, error.threshold, error.last_error) == (2, 2, "Traceback …\nKeyError: no\n")
    assert error.partial_answer is None  # code is no answer
    assert host.ran == ["bad", "a", "bad", "bad"]  # the good cell between began a new row
    assert "KeyError: no" in transcript.messages[-1]["content"]


def test_without_a_threshold_cells_may_fail_until_the_iterations_run_out() -> None:
    assert play(Scripted([cell("bad")] * 4 + ["sorry"], {"bad": failing()}), iterations=4).response == "sorry"


# -- the final request ---------------------------------------------------------------------------------------------


def test_when_iterations_run_out_the_answer_is_asked_for_as_text() -> None:
    host = Scripted([cell("a"), cell("b"), "<think>Hm.</think>\n It is 42. \n"])
    transcript = begin()
    assert play(host, transcript, iterations=2) == Outcome("It is 42.", None, 2)
    assert host.purposes == ["iteration", "iteration", "final"]
    assert host.told(2) == f"[cell 2]\nran b\n\n{prompts.final()}"
    assert_alternating(transcript)
    assert transcript.messages[-1] == {"role": "assistant", "content": "It is 42."}


def test_a_final_reply_that_is_only_code_is_asked_for_again_as_text() -> None:
    host = Scripted([cell("a"), cell("b"), "It is 42."])
    assert play(host, iterations=1).response == "It is 42."
    assert host.ran == ["a"]
    assert host.told(2) == prompts.mismatch(prompts.only_text())


def test_two_final_replies_without_text_are_no_answer() -> None:
    with pytest.raises(OutputError, match="no text"):
        play(Scripted([cell("a"), cell("b"), ""]), iterations=1)


def test_a_final_reply_may_show_code_beside_its_text() -> None:
    reply = f"Use this:\n{cell('b')}"
    assert play(Scripted([cell("a"), reply]), iterations=1).response == reply


def test_the_partial_answer_is_never_code() -> None:
    transcript = begin()
    with pytest.raises(ErrorThresholdExceededError):
        play(Scripted([f"I look.\n{cell('a')}"], {"a": failing()}), transcript, errors=1)
    assert transcript.partial == "I look."


def test_an_empty_final_reply_gives_way_to_the_last_draft() -> None:
    host = Scripted([cell("a"), ""], {"a": REPLResult(draft=Draft("nearly 42"))})
    assert play(host, iterations=1).response == "nearly 42"


# -- typed answers -------------------------------------------------------------------------------------------------


def test_an_accepted_answer_comes_with_its_value() -> None:
    assert play(Scripted([cell("done")], {"done": submit("42")}), check=number) == Outcome("42", 42, 1)


def test_a_rejected_answer_goes_back_to_the_model_with_the_reason() -> None:
    host = Scripted([cell("no", "later"), cell("yes")], {"no": submit("[42]"), "yes": submit("42")})
    assert play(host, check=number) == Outcome("42", 42, 2)
    assert host.ran == ["no", "yes"]
    assert host.told(1) == (
        f"[cell 1]\n(no output)\n\n{prompts.mismatch('$: not an integer')}\n\nThe block after it was not run."
    )


def test_a_final_answer_may_be_corrected_once() -> None:
    host = Scripted([cell("no"), "about 42", "42"], {"no": submit("[42]")})
    transcript = begin()
    assert play(host, transcript, iterations=1, check=number).output == 42
    assert host.told(1).endswith(prompts.final())
    assert host.told(2) == prompts.mismatch("$: not JSON")
    assert host.purposes == ["iteration", "final", "final"]
    assert_alternating(transcript)


def test_a_final_answer_that_is_wrong_twice_ends_the_turn() -> None:
    host = Scripted(["I know.", "about 42", "42.0"])
    with pytest.raises(OutputError, match="not an integer") as caught:
        play(host, iterations=1, check=number)
    assert caught.value.partial_answer == "42.0"


# -- turns that are cut short --------------------------------------------------------------------------------------


def test_the_partial_answer_is_the_last_draft_else_the_last_reply() -> None:
    results = {"draft": REPLResult(draft=Draft("40 or so")), "empty": REPLResult(draft=Draft(" "))}
    gone = BudgetExceededError("gone")

    def partial(*replies: str) -> str | None:
        transcript = begin()
        with pytest.raises(BudgetExceededError):
            play(Scripted([*replies, gone], results), transcript)
        return transcript.partial

    assert partial() is None
    assert partial("<think>so</think> I look.", "  ") == "I look."
    assert partial(cell("draft"), cell("empty"), "Nearly there.") == "40 or so"


def test_what_a_host_raises_ends_the_turn_with_a_readable_transcript() -> None:
    transcript = begin()
    with pytest.raises(BudgetExceededError):
        play(Scripted([cell("a"), BudgetExceededError("gone")]), transcript)
    assert transcript.messages[-1] == {"role": "user", "content": "[cell 1]\nran a"}
    assert (transcript.iterations, transcript.cells) == (1, 1)


_results = {
    "ok": REPLResult(stdout="fine"),
    "bad": failing(),
    "draft": REPLResult(draft=Draft("d")),
    "end": submit("e"),
}


@given(
    st.lists(st.lists(st.sampled_from([*_results])).map(lambda codes: cell(*codes) or "no code")),
    st.integers(1, 6),
    st.none() | st.integers(1, 3),
)
def test_any_turn_alternates_keeps_to_its_iterations_and_has_the_same_outcome_again(
    replies: list[str], iterations: int, errors: int | None
) -> None:
    def once() -> tuple[Transcript, Outcome | None]:
        host = Scripted([*replies, *["plain"] * 10], _results)
        transcript = begin()
        try:
            outcome = play(host, transcript, iterations=iterations, errors=errors)
        except (ErrorThresholdExceededError, OutputError):  # two final replies may be only code
            return transcript, None
        assert outcome.iterations == transcript.iterations <= iterations
        assert len(host.asked) <= iterations + 2
        assert_alternating(transcript)
        assert transcript.messages[-1]["content"] == outcome.response
        return transcript, outcome

    assert once() == once()
