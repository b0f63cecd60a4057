"""What the command line shows of a turn: whatever happens in it, lines that fit, text that is only text, right sums."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from rlm.cli import tree
from rlm.cli.plain import PlainView
from rlm.cli.progress import Progress
from rlm.types import (
    Answered,
    Asked,
    Asking,
    Called,
    Calling,
    CellError,
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

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "rows = context.splitlines()\nprint(len(rows))",
            "\x1b]0;owned\x07\x1b[2J[red]markup[/red] [/",
            "漢字 " * 40,
            "long " * 100,
            "\n".join(f"line {number}\twith a tab" for number in range(30)),
        ]
    ),
    st.text(max_size=30),
)
USAGES = st.builds(
    Usage, st.just(1), st.integers(0, 10**9), st.integers(0, 10**6), cost=st.sampled_from([None, 0.0, 12.5])
)


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """The events of a turn: any iterations, cells, calls and children, cut off anywhere."""
    events = [Asked("t0", draw(st.none() | TEXTS), model="scripted:model"), *_level(draw, "t0", 0)]
    end = st.sampled_from(
        [
            Answered("t0", RLMChatCompletion("m", "q", "r", usage_of(events))),
            Stopped("t0", "CancellationError", "cancelled"),
            Stopped("t0", "BudgetExceededError", "too much"),
            Failed("t0", "ModelError", "no"),
        ]
    )
    events.append(draw(end))
    return events[: draw(st.integers(0, len(events)))] if draw(st.booleans()) else events


def usage_of(events: Sequence[Event]) -> UsageSummary:
    """What the events say was consumed: replies at all levels, and calls that have none below them."""
    summary = UsageSummary()
    children = {event.at.rpartition("/")[0] for event in events if isinstance(event, Replied)}
    for event in events:
        if isinstance(event, Replied):
            summary = summary.add(event.reply.model, event.reply.usage)
        elif isinstance(event, Called) and event.at not in children:
            summary = summary + event.usage_summary
    return summary


def _level(draw: st.DrawFn, path: str, depth: int) -> Iterator[Event]:
    cells = 0
    for number in range(draw(st.integers(0, 4 - depth))):
        yield Asking(f"{path}/a{number}", draw(st.sampled_from(["iteration", "final"])))
        yield Replied(f"{path}/a{number}", reply=Reply(draw(TEXTS), "m", draw(USAGES)), seconds=0.5)
        for _ in range(draw(st.integers(0, 2))):
            yield from _cell(draw, f"{path}/c{cells}", depth)
            cells += 1


def _cell(draw: st.DrawFn, at: str, depth: int) -> Iterator[Event]:
    code = draw(TEXTS)
    yield Running(at, code)
    if draw(st.booleans()):
        yield Printed(at, "stdout", draw(TEXTS))
    for number in range(draw(st.integers(0, 3))):
        key, prompt = f"{at}/llm_query:ab#{number}", draw(TEXTS)
        yield Calling(key, "llm_query", prompt)
        error = draw(st.none() | TEXTS)
        usage = UsageSummary() if error is not None else UsageSummary({"m": draw(USAGES)})
        yield Called(key, "llm_query", prompt, None, error, usage_summary=usage)
    for number in range(draw(st.integers(0, 2)) if depth < 2 else 0):
        key = f"{at}/rlm_query:cd#{number}"
        yield Calling(key, "rlm_query", draw(TEXTS))
        inner = list(_level(draw, key, depth + 1))
        yield from inner
        if draw(st.booleans()):
            yield Called(key, "rlm_query", "", "", usage_summary=usage_of(inner))
    failure = CellError("E", draw(TEXTS)) if draw(st.booleans()) else None
    yield Ran(at, code, REPLResult(stdout=draw(TEXTS), error=failure))


def progress_of(events: list[Event]) -> Progress:
    progress = Progress(clock=iter(range(10**9)).__next__)
    for event in events:
        progress.tell(event)
    return progress


def has_controls(text: str) -> bool:
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


@settings(max_examples=25)
@given(turns(), st.integers(30, 120), st.integers(6, 60))
def test_the_tree_fits_the_terminal_at_every_moment(events: list[Event], width: int, height: int) -> None:
    progress = progress_of(events)
    lines = tree.running(progress, width, height)
    assert len(lines) <= height
    for line in [*lines, *tree.finished(progress, width)]:
        assert cell_len(line.plain) <= width
        assert not has_controls(line.plain)


@settings(max_examples=25)
@given(turns())
def test_totals_are_those_of_the_events(events: list[Event]) -> None:
    assert progress_of(events).usage == usage_of(events).total


@settings(max_examples=25)
@given(turns())
def test_plain_lines_are_short_and_hold_no_control_characters(events: list[Event]) -> None:
    shown = io.StringIO()
    with PlainView(shown) as view:
        for event in events:
            view.tell(event)
    for line in shown.getvalue().split("\n"):
        assert len(line) <= 80
        assert not has_controls(line)


def test_markup_is_shown_as_it_is_written() -> None:
    progress = progress_of(
        [Asked("t0", "[bold]what[/bold]?"), Asking("t0/a0"), Replied("t0/a0"), Running("t0/c0", "[/]")]
    )
    shown = [line.plain for line in tree.running(progress, 80, 24)]
    assert shown[0].startswith("[bold]what[/bold]?")
    assert any("[/]" in line for line in shown)


def many_calls(number: int) -> list[Event]:
    keys = [f"t0/c0/llm_query:ab#{n}" for n in range(number)]
    answered = [Called(key, "llm_query", "q", error="illegible" if n % 10 == 9 else None) for n, key in enumerate(keys)]
    return [
        Asked("t0", "What?", model="m"),
        Asking("t0/a0"),
        Replied("t0/a0"),
        Running("t0/c0", "llm_query_batched(prompts)"),
        *(Calling(key, "llm_query", "q") for key in keys),
        *answered,
    ]


def test_many_calls_are_one_line_that_says_how_far_they_are() -> None:
    progress = progress_of(many_calls(10_000)[: 4 + 10_000 + 5_000])
    [line] = [line.plain for line in tree.running(progress, 80, 24) if "llm_query ━" in line.plain]
    assert line.endswith("llm_query ━━━━━━━━━━────────── 5,000/10,000 · 500 failed: illegible")


def test_older_iterations_fold_so_that_the_last_cells_are_in_full() -> None:
    events: list[Event] = [Asked("t0", "What?", model="m")]
    for number in range(40):
        events += [Asking(f"t0/a{number}"), Replied(f"t0/a{number}", reply=Reply("", "m"))]
        code = "\n".join(f"step_{number}_{line}()" for line in range(4))
        events += [Running(f"t0/c{number}", code), Ran(f"t0/c{number}", code, REPLResult(stdout=f"done {number}"))]
    shown = [line.plain for line in tree.running(progress_of(events), 80, 24)]
    assert len(shown) <= 24
    assert "⋮ 32 earlier iterations" in shown[1]
    assert any("33 ✓ step_32_0() → done 32" in line for line in shown)
    assert all(any(f"step_39_{line}()" in one for one in shown) for line in range(4))


def test_children_at_work_are_shown_under_their_cell_and_go_when_they_have_answered() -> None:
    child = "t0/c0/rlm_query:ab#0"
    events: list[Event] = [
        Asked("t0", "What?", model="m"),
        Asking("t0/a0"),
        Replied("t0/a0"),
        Running("t0/c0", "rlm_query('part')"),
        Calling(child, "rlm_query", "part"),
        Asking(f"{child}/a0"),
        Replied(f"{child}/a0", reply=Reply("", "m", Usage(1, 5, 5))),
        Running(f"{child}/c0", "inside()"),
    ]
    shown = "\n".join(line.plain for line in tree.running(progress_of(events), 80, 24))
    assert "└─ rlm_query part" in shown
    assert "   └─ ▸ inside()" in shown
    events += [Ran(f"{child}/c0", "inside()"), Called(child, "rlm_query", "part", "x", usage_summary=usage_of(events))]
    progress = progress_of(events)
    assert "inside()" not in "\n".join(line.plain for line in tree.running(progress, 80, 24))
    assert progress.usage.calls == 2


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (Answered("t0", RLMChatCompletion("m", "q", "r")), "✓ answered"),
        (Stopped("t0", "CancellationError", ""), "✗ cancelled"),
        (Stopped("t0", "TimeoutExceededError", ""), "✗ stopped by a limit"),
        (Failed("t0", "ModelError", ""), "✗ failed"),
    ],
)
def test_what_stays_on_the_screen_says_how_the_turn_ended(end: Event, shown: str) -> None:
    lines = tree.finished(progress_of([Asked("t0", "What?", model="m"), end]), 80)
    assert lines[-1].plain.startswith(shown)


def test_plain_lines_tell_of_a_few_calls_one_by_one_and_of_many_how_far_they_are() -> None:
    now = 0.0
    shown = io.StringIO()
    view = PlainView(shown, clock=lambda: now)
    with view:
        for number, event in enumerate(many_calls(1_000)):
            now = number / 100
            view.tell(event)
        view.tell(Ran("t0/c0", "", REPLResult(stdout="done")))
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    told = [line for line in lines if "calls done" in line]
    assert told[0] == "1 of 1,000 calls done"
    assert told[-1] == "1,000 of 1,000 calls done, 100 failed"
    assert len(told) < 10
    assert lines[-1] == "output (0.00 s): done"
