"""Which code of a reply is run, and what the model gets to see of it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlm.engine.cells import clip, extract, render
from rlm.types import CellError, REPLResult

# -- which code is run ---------------------------------------------------------------------------------------------


def test_code_comes_from_repl_fences_in_order() -> None:
    reply = "First I look.\n```repl\nx = 1\n```\nThen I print.\n```repl\nprint(x)\n```\nDone."
    assert extract(reply) == ["x = 1", "print(x)"]


@pytest.mark.parametrize("tag", ["python", "py", "Python", "python3"])
def test_a_reply_without_repl_fences_runs_its_python_fences(tag: str) -> None:
    assert extract(f"```{tag}\nx = 1\n```\n```json\n{{}}\n```") == ["x = 1"]


def test_python_fences_beside_repl_fences_are_illustration() -> None:
    assert extract("```python\nnever\n```\n```repl\nrun\n```") == ["run"]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I know the answer: 42.",
        "```\nuntagged\n```",
        "```json\n{}\n```",
        "`repl` is inline",
        "```repl print(1) ```",
    ],
)
def test_replies_without_code_have_no_cells(reply: str) -> None:
    assert extract(reply) == []


def test_empty_blocks_are_dropped() -> None:
    assert extract("```repl\n\n  \n```\n```repl\nx\n```\n```repl\n```") == ["x"]


@pytest.mark.parametrize("info", ["repl id=1", "REPL", " repl", "repl {.numbered}", "repl:cell.py"])
def test_info_strings_may_say_more(info: str) -> None:
    assert extract(f"```{info}\nx\n```") == ["x"]


@pytest.mark.parametrize("indent", ["  ", "    ", "\t", "- ", "1. ", "  * "])
def test_code_moves_left_with_an_indented_fence(indent: str) -> None:
    blank = " " * len(indent) if indent.strip() else indent
    reply = f"{indent}```repl\n{blank}for x in y:\n{blank}    print(x)\n\n{blank}z\n{blank}```"
    assert extract(reply) == ["for x in y:\n    print(x)\n\nz"]


def test_code_indented_less_than_its_fence_loses_only_what_it_has() -> None:
    assert extract("    ```repl\n  x = 1\ny = 2\n    ```") == ["x = 1\ny = 2"]


def test_code_indented_as_a_whole_is_dedented() -> None:
    assert extract("```repl\n    if x:\n        y\n```") == ["if x:\n    y"]


def test_an_unterminated_fence_runs_to_the_end() -> None:
    assert extract("```repl\nx = 1\nprint(x)") == ["x = 1\nprint(x)"]


def test_a_block_whose_end_was_forgotten_ends_where_the_next_begins() -> None:
    assert extract("```repl\nx = 1\n```repl\ny = 2\n```") == ["x = 1", "y = 2"]
    assert extract("```\nsome output\n```repl\ny = 2\n```") == ["y = 2"]


def test_longer_fences_hold_shorter_ones() -> None:
    assert extract("````repl\nx = '''\n```\n'''\n````") == ["x = '''\n```\n'''"]
    assert extract("````markdown\n```repl\nan example\n```\n````") == []


def test_tilde_fences() -> None:
    assert extract("~~~repl\nx = 1\n```\n~~~") == ["x = 1\n```"]


def test_windows_line_ends() -> None:
    assert extract("Look:\r\n```repl\r\nx = 1\r\ny = 2\r\n```\r\n") == ["x = 1\ny = 2"]


def test_fences_inside_of_strings_belong_to_the_code() -> None:
    code = 'prompt = f"""Answer in\n```json\n{{"a": 1}}\n```\nand then\n```\nstop\n```\n"""\nprint(llm_query(prompt))'
    assert extract(f"Now:\n```repl\n{code}\n```\nand\n```repl\nnext\n```") == [code, "next"]


def test_a_whole_repl_block_inside_of_a_string_belongs_to_the_code() -> None:
    code = "example = '''\n```repl\nx = 1\n```\n'''"
    assert extract(f"```repl\n{code}\n```") == [code]


def test_quotes_in_comments_and_short_strings_open_nothing() -> None:
    code = 'a = "\'\'\'"  # """ and more\nb = \'"""\' + "\\""\nc = r"\\"'
    assert extract(f"```repl\n{code}\n```\nprose\n```repl\nnext\n```") == [code, "next"]


def test_a_string_that_is_never_closed_ends_at_the_first_fence() -> None:
    """The cell is broken; the model is to see its syntax error, and the cells after it keep their places."""
    reply = '```repl\nx = """oops\n```\nprose\n```repl\ny = """fine"""\n```'
    assert extract(reply) == ['x = """oops', 'y = """fine"""']


def test_code_that_does_not_parse_is_still_run() -> None:
    assert extract("```repl\nif x print(\n```") == ["if x print("]


@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning", "THINK"])
def test_reasoning_before_the_reply_is_not_run(tag: str) -> None:
    thought = f"<{tag}>Maybe\n```repl\nbad\n```\n</{tag}>"
    assert extract(f"\n{thought}\nSo:\n```repl\ngood\n```") == ["good"]


def test_reasoning_whose_start_the_server_kept_is_not_run() -> None:
    assert extract("Maybe\n```repl\nbad\n```\n</think>\n\n```repl\ngood\n```") == ["good"]


def test_reasoning_that_never_ends_has_no_cells() -> None:
    assert extract("<think>Maybe\n```repl\nbad\n```") == []


def test_code_about_reasoning_tags_is_run() -> None:
    code = 'text.split("</think>")\nprompt = """\n<think>\nhm\n</think>\n"""'
    assert extract(f"```repl\n{code}\n```") == [code]


# Lines of text that look like anything but a fence, a reasoning tag or the start of a triple-quoted string.
_line = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=30)
_plain_line = _line.filter(lambda line: not any(mark in line for mark in ("```", "~~~", "think>", "ing>", "thought>")))
_code = st.lists(_plain_line, min_size=1).map("\n".join).filter(lambda code: code.strip() != "")


def _starts_at_the_margin(code: str) -> bool:
    return next(line for line in code.split("\n") if line.strip())[0] not in " \t"


@given(_code.filter(_starts_at_the_margin), st.sampled_from(["```", "````", "~~~", "~~~~~"]))
def test_code_without_fence_lines_round_trips_exactly(code: str, fence: str) -> None:
    assert extract(f"prose\n{fence}repl\n{code}\n{fence}\nprose") == [code]
    assert extract(f"{fence}python\n{code}") == [code]


@given(
    st.lists(_code.filter(_starts_at_the_margin)), st.sampled_from(["", "  ", "\t"]), st.sampled_from(["\n", "\r\n"])
)
def test_any_number_of_blocks_comes_back_in_order(codes: list[str], indent: str, newline: str) -> None:
    assume(not any(quote in code for code in codes for quote in ('"""', "'''")))
    lines = [f"{indent}{line}" for code in codes for line in ("prose", "```repl", *code.split("\n"), "```")]
    assert extract(newline.join(lines)) == codes


@given(st.text(alphabet=st.sampled_from("`~\"'#\\ \n\rreplpy</>think-x"), max_size=200))
def test_any_reply_at_all_can_be_read(reply: str) -> None:
    for code in extract(reply):
        assert code.strip()


# -- what the model sees -------------------------------------------------------------------------------------------


def test_output_is_shown_as_it_is() -> None:
    assert render(1, REPLResult(stdout="a\nb\n")) == "[cell 1]\na\nb"


def test_silence_is_said() -> None:
    assert render(3, REPLResult(locals={"secret": "str"})) == "[cell 3]\n(no output)"


def test_streams_are_told_apart_and_the_traceback_is_shown_once() -> None:
    error = CellError("ValueError", "Traceback …\nValueError: no\n")
    result = REPLResult(stdout="out\n", stderr=f"careful\n{error.text}", error=error)
    assert render(1, result) == "[cell 1]\nout\nstderr:\ncareful\nTraceback …\nValueError: no"


def test_a_traceback_is_whole_below_any_amount_of_output() -> None:
    error = CellError("ValueError", "Traceback …\n" + "  frame\n" * 1000 + "ValueError: no\n")
    result = REPLResult(stdout="x" * 100_000, stderr="y" * 100_000 + "\n" + error.text, error=error)
    shown = render(1, result, limit=1000)
    assert shown.endswith(error.text.strip())
    assert shown.count("[… 99,000 characters cut …]") == 2


def test_an_absurd_traceback_keeps_both_its_ends() -> None:
    error = CellError("ValueError", "Traceback …\n" + "x" * 1_000_000 + "\nValueError: no\n")
    shown = render(1, REPLResult(stderr=error.text, error=error))
    assert shown.startswith("[cell 1]\nTraceback")
    assert shown.endswith("ValueError: no")
    assert len(shown) < 21_000


def test_a_lost_worker_is_told_with_what_is_known_of_it() -> None:
    error = CellError("WorkerLost", "The cell used more than 1 GB of memory.\nLost: rows (list)")
    shown = render(2, REPLResult(stdout="so far\n", error=error, restarted=True))
    assert shown == f"[cell 2]\nso far\nThe REPL was lost in this cell and was started again.\n{error.text}"


@given(st.text(), st.integers(0, 50))
def test_clipped_text_is_head_and_tail_and_an_exact_count(text: str, limit: int) -> None:
    shown = clip(text, limit)
    if len(text) <= limit:
        assert shown == text
        return
    marker = f"\n[… {len(text) - limit:,} characters cut …]\n"
    head, tail = limit * 2 // 3, limit - limit * 2 // 3
    assert shown == text[:head] + marker + text[len(text) - tail :]
