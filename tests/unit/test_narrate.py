"""Events as lines for people: what models write reaches a terminal as text, never as commands."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import narrate
from rlm.types import Calling, CellError, Event, Failed, Ran, REPLResult, Running


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
