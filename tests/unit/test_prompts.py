"""What models are told, and how much of it."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.engine import prompts
from rlm.engine.prompts import ContextInfo, Exchange
from rlm.types import Tool


def lookup_host(address: str, *, strict: bool = False, cache: object = object()) -> list[str]:
    """Names of the host at
    `address`.

    A second paragraph for people.
    """
    return [address]


def opening(
    question: str | None = "Which of them?",
    context: ContextInfo | None = None,
    conversation: list[Exchange] | None = None,
    contexts: int = 1,
    preview: str | None = None,
    notes: tuple[str, ...] = (),
    output_type: str | None = None,
) -> str:
    past = conversation or []
    return prompts.turn(
        question=question,
        context=context,
        contexts=contexts,
        histories=len(past),
        conversation=past,
        notes=notes,
        output_type=output_type,
        preview=preview,
    )


# -- the system prompt ---------------------------------------------------------------------------------------------


def test_the_system_prompt_names_everything_a_cell_can_use_in_1800_characters() -> None:
    text = prompts.system([], depth_left=True)
    names = ["context", "history", "llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS"]
    for name in [*names, "answer", "```repl", "await", "Error: ", 'answer["ready"] = True']:
        assert name in text
    assert len(text) <= 1800


def test_children_are_not_mentioned_where_there_are_none() -> None:
    assert "rlm_query" not in prompts.system([], depth_left=False)


def test_the_system_prompt_begins_the_same_with_and_without_tools() -> None:
    plain = prompts.system([], depth_left=False)
    assert prompts.system([Tool("lookup_host", lookup_host)], depth_left=False).startswith(plain)


def test_advice_can_be_left_out() -> None:
    text = prompts.system([], depth_left=True, orchestrator=False)
    assert "How to work" not in text
    assert "llm_query_batched" in text


def test_tools_are_shown_as_one_would_call_them() -> None:
    text = prompts.system([Tool("lookup_host", lookup_host), Tool("table", {}, "codes of\nairports")], depth_left=False)
    assert text.endswith(
        "Also defined for this task:\n"
        "- `lookup_host(address: str, *, strict: bool = False, cache: object = ...) -> list[str]`: "
        "Names of the host at `address`.\n"
        "- `table: dict`: codes of airports"
    )


def test_a_description_of_the_user_stands_before_the_docstring() -> None:
    assert prompts.signature(Tool("look", lookup_host, "Finds it.")).endswith("`: Finds it.")


def test_tools_without_signature_or_docstring_are_still_named() -> None:
    assert prompts.signature(Tool("high", max, "the highest")) == "- `high(...)`: the highest"
    assert prompts.signature(Tool("same", lambda value: value)) == "- `same(value)`"
    bound = functools.partial(lookup_host, "here")
    expected = "- `look(*, strict: bool = False, cache: object = ...) -> list[str]`: Names of the host at `address`."
    assert prompts.signature(Tool("look", bound)) == expected


def test_a_custom_prompt_replaces_ours_and_keeps_the_tools() -> None:
    tool = Tool("limit", 3)
    assert prompts.system([], depth_left=True, custom="Be {brief}.") == "Be {brief}."
    assert prompts.system([tool], depth_left=True, custom="Be {brief}.") == (
        "Be {brief}.\n\nAlso defined for this task:\n- `limit: int`"
    )
    placed = prompts.system([tool], depth_left=True, custom="Use {custom_tools_section}\nin {json}.")
    assert placed == "Use Also defined for this task:\n- `limit: int`\nin {json}."


# -- the message that opens a turn ---------------------------------------------------------------------------------


def test_the_first_turn_says_what_the_input_is_and_what_the_task() -> None:
    text = opening("What were the sales?", ContextInfo(0, "str", 12_345_678))
    assert text == "This turn's input: `context`: str, 12,345,678 characters.\n\nTask: What were the sales?"


def test_a_later_turn_names_its_own_input_and_all_there_are() -> None:
    past = [Exchange("What were the sales?", "3 million"), Exchange("By how much did they grow?", "20 %")]
    text = opening("Why?", ContextInfo(2, "list", 300, name="notes"), past, contexts=3)
    assert "This turn's input: `context_2`, also named `notes`: list, 300 items." in text
    assert "All inputs: `context_0` (the same as `context`) to `context_2`." in text
    assert "Messages of earlier turns: `history_0` (the same as `history`) to `history_1`." in text
    assert "0. What were the sales? → 3 million\n1. By how much did they grow?\n→ 20 %" in text
    assert text.endswith("Task: Why?")


def test_a_turn_without_new_input_says_so() -> None:
    text = opening(conversation=[Exchange(None, "42")])
    assert "No new input came with this turn.\nAll inputs: `context_0` (the same as `context`)." in text
    assert "0. (the task inside its input)\n→ 42" in text
    assert opening(contexts=0) == "Task: Which of them?"


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (ContextInfo(1, "bytes", 5), "`context_1`: bytes, 5 bytes."),
        (ContextInfo(1, "dict", 1000), "`context_1`: dict, 1,000 items."),
        (ContextInfo(1, "Connection", None), "`context_1`: Connection."),
    ],
)
def test_sizes_have_units(context: ContextInfo, said: str) -> None:
    assert said in opening(context=context, contexts=2)


def test_a_task_inside_the_input_is_shown_by_head_and_tail() -> None:
    context = ContextInfo(0, "str", 9, preview="Count the words: …")
    assert opening(None, context).endswith(
        "Task: it is written in `context` itself. Find it there, do it, and submit the answer. "
        "`context` begins and ends so:\nCount the words: …"
    )
    assert opening(None, context, preview="given").endswith("so:\ngiven")
    assert opening(None, ContextInfo(0, "dict", 9)).endswith("submit the answer.")
    assert "Count the words" not in opening("How many?", context)


def test_a_turn_with_neither_input_nor_question_goes_on() -> None:
    assert opening(None).endswith("Task: go on from where the last turn ended.")


def test_what_happened_between_turns_and_the_type_of_the_answer_are_told() -> None:
    text = opening(notes=("the user ran a cell: x = 1", "lost: rows (list)"), output_type='{"type": "integer"}')
    assert "Since the last turn:\n- the user ran a cell: x = 1\n- lost: rows (list)" in text
    assert 'json.dumps):\n{"type": "integer"}' in text


# -- the conversation stays short ----------------------------------------------------------------------------------


def follow_up(turns: int, question: str, answer: str) -> int:
    """Characters of the whole prompt that opens a turn after `turns` others."""
    past = [Exchange(question, answer) for _ in range(turns)]
    return len(prompts.system([], depth_left=False)) + len(opening(question, None, past))


@pytest.mark.parametrize("question", [30, 60, 200])
@pytest.mark.parametrize("answer", [20, 50, 400, 1500, 20_000])
def test_turn_50_costs_at_most_a_fifth_more_than_turn_2(question: int, answer: int) -> None:
    asked, answered = ("word " * 10_000)[:question], ("an answer " * 10_000)[:answer]
    assert follow_up(49, asked, answered) <= 1.2 * follow_up(1, asked, answered)


def test_the_last_answer_is_shown_up_to_1500_characters_and_older_ones_point_to_their_history() -> None:
    past = [Exchange(f"question {i}", f"answer {i} " * 20) for i in range(49)] + [Exchange("last?", "x" * 1600)]
    lines = opening(conversation=past).split("\n")
    assert lines[1] == "0 to 45. see `history_0` to `history_45`"
    for older, line in zip((46, 47, 48), lines[2:5], strict=True):
        assert line.startswith(f"{older}. question {older} → answer {older} answer")
    assert len(lines[4]) > len(lines[3])
    assert lines[5:7] == ["49. last?", f"→ {'x' * 1000}"]
    assert "[… 100 characters cut …]" in lines


@given(st.lists(st.builds(Exchange, st.none() | st.text(max_size=300), st.text(max_size=3000)), max_size=60))
def test_the_conversation_has_an_upper_bound_and_every_turn_a_place(conversation: list[Exchange]) -> None:
    text = opening("?", conversation=conversation)
    assert len(text) <= 3000
    if len(conversation) > 1:
        assert "\n0" in text


# -- within a turn -------------------------------------------------------------------------------------------------


def test_iterations_left_are_told_only_when_they_are_few() -> None:
    assert prompts.feedback(["a", "b"], left=4) == "a\n\nb"
    assert prompts.feedback(["a"], left=3) == "a\n\nIterations left: 3. Submit before they run out."
    assert prompts.feedback(["a"], left=0) == "a"


def test_the_short_messages_say_what_to_do() -> None:
    assert "```repl" in prompts.no_code()
    assert "plain text" in prompts.final()
    assert "parties.0.name: missing" in prompts.mismatch("parties.0.name: missing")
    assert prompts.skipped(1) == "The block after it was not run."
    assert prompts.skipped(3) == "The 3 blocks after it were not run."
    assert "no answer" in prompts.ended("no answer was found")
