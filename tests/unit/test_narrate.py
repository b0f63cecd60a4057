"""Events as lines for people: what models write reaches a terminal as text, never as commands."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import narrate
from rlm.types import (
    Answered,
    Asked,
    Asking,
    Called,
    Calling,
    CellError,
    ContextAdded,
    Event,
    Failed,
    Printed,
    Ran,
    Replied,
    REPLResult,
    Reply,
    RLMChatCompletion,
    Running,
    Stopped,
    Usage,
    UsageSummary,
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[H\x1b[?25lgone", "gone"),
        ("\x9b2Jgone", "gone"),
        ("a\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x07b", "alinkb"),
        ("\x1b]52;c;aGk=\x07clipboard", "clipboard"),
        ("\x1b]0;a title without an end\nthe rest", "\nthe rest"),
        ("\x1bc\x1b(Breset", "reset"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("tab\tand\nline stay, bell\x07 and backspace\x08 go", "tab\tand\nline stay, bell and backspace go"),
        ("if admin\u202e # \u2066nimda ton", "if admin # nimda ton"),
        ("\ud83d alone", "\N{REPLACEMENT CHARACTER} alone"),
        ("äöü 漢字 🎉 [bold]", "äöü 漢字 🎉 [bold]"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(text: str, printed: str) -> None:
    assert narrate.printable(text) == printed


@given(st.text(st.one_of(st.sampled_from("\x1b[]0;m\\\x07\x9b\n\r"), st.characters())))
def test_printable_text_holds_no_control_character_whatever_comes(text: str) -> None:
    printed = narrate.printable(text)
    kinds = {unicodedata.category(character) for character in printed if character not in "\n\t"}
    assert kinds.isdisjoint({"Cc", "Cs"})
    assert narrate.printable(printed) == printed
    printed.encode()


@pytest.mark.parametrize(
    "event",
    [
        Running("t0/c0", "print('\x1b[31m')"),
        Ran("t0/c0", "…", REPLResult(stdout="\x1b]0;owned\x07out")),
        Ran("t0/c0", "…", REPLResult(error=CellError("E", "Traceback\nE: \x1b[2J"))),
        Calling("t0/c0/rlm_query:1#0", "rlm_query", "\x1b[1A"),
        Failed("t0", "ModelError", "\x1b[?1049h"),
    ],
)
def test_no_line_of_an_event_holds_an_escape(event: Event) -> None:
    said = narrate.line(event)
    assert said
    assert "\x1b" not in said


SPENT = UsageSummary({"m": Usage(2, 1_000, 234, cost=0.0125)})
UNPRICED = UsageSummary({"m": Usage(1, 1, 1, cost=None)})


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (ContextAdded("context_1", 1, "str", 12_345), "context_1: str, 12,345 long"),
        (ContextAdded("context_0", 0, "int", None), "context_0: int"),
        (Asked("t0", "What?", 0, model="m"), "t0 m: What?"),
        (Asked("t0", None, 0, model="m"), "t0 m: (the task is in the input)"),
        (
            Replied("t0/a0", reply=Reply("I look.", "m", Usage(1, 1_000, 20)), seconds=1.25),
            "  reply (1,000 + 20 tokens, 1.2 s): I look.",
        ),
        (Running("t0/c0", "x = 1\nprint(x)"), "  cell: x = 1 print(x)"),
        (Ran("t0/c0", "…", REPLResult(stdout="a\nb\n", execution_time=0.5)), "  output (0.50 s): a b"),
        (Ran("t0/c0", "…", REPLResult()), "  output (0.00 s): (nothing)"),
        (Ran("t0/c0", "…", REPLResult(error=CellError("E", "Traceback\nE: no\n"))), "  failed (0.00 s): E: no"),
        (Calling("t0/c0/rlm_query:1#0", "rlm_query", "Look."), "    rlm_query: Look."),
        (Called("t0/c0/llm_query:1#0", "llm_query", "Why?", "x", seconds=2.0), "    llm_query (2.0 s): Why?"),
        (Called("t0/c0/look:1#0", "look", "[]", error="KeyError"), "    look (0.0 s): [] -> Error: KeyError"),
        (
            Answered("t0", RLMChatCompletion("m", "?", "42", SPENT, 3.0)),
            "answer (3.0 s, 1,234 tokens, cost $0.0125): 42",
        ),
        (Answered("t0", RLMChatCompletion("m", "?", "42", UNPRICED)), "answer (0.0 s, 2 tokens, cost unknown): 42"),
        (Stopped("t0", "BudgetExceededError", "no money"), "stopped by BudgetExceededError: no money"),
        (Failed("t0", "ModelError", "down"), "failed with ModelError: down"),
        (Running("t0/c0", "x" * 1_000), f"  cell: {'x' * 99}…"),
    ],
)
def test_each_event_is_a_line_indented_by_its_place(event: Event, said: str) -> None:
    assert narrate.line(event) == said


@pytest.mark.parametrize(
    "event", [Asking("t0/a0"), Printed("t0/c0", text="x"), Calling("t0/c0/llm_query:1#0", "llm_query")]
)
def test_what_another_line_says_soon_has_none(event: Event, capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate.line(event) is None
    narrate.to_stderr(event)
    assert capsys.readouterr() == ("", "")
