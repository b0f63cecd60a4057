"""A run's page as a file: what of a log is in it, that it is the same each time, and that its texts can do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import trace
from rlm.folds import Past
from rlm.trace.tree import tree, visible
from rlm.types import (
    Answered,
    Asked,
    Called,
    Checkpointed,
    Event,
    HeapChange,
    Opened,
    Ran,
    Recorded,
    Replied,
    REPLResult,
    Reply,
    Rewound,
    RLMChatCompletion,
    Saved,
    Usage,
    UsageSummary,
)
from tests import runs
from tests.turns import cell

Node = Mapping[str, Any]
LIMIT = 200_000


class Parts(HTMLParser):
    """The page as a browser without scripts reads it: its tags, and the text of each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, text: str) -> None:
        self.texts.setdefault(self.inside, []).append(text)

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


def page(events: Sequence[Event], title: str = "a run") -> str:
    return trace.page(runs.recorded(events), title=title)


def folded(events: Sequence[Event], limit: int = LIMIT) -> Any:
    return tree(runs.recorded(events), limit)


def nodes(items: Sequence[Node]) -> Iterator[Node]:
    for item in items:
        yield item
        yield from nodes(item.get("kids", ()))


def node(data: Any, place: str) -> Node:
    return next(one for one in nodes(data["items"]) if one["id"] == place)


def turn(number: int, answer: str = "yes") -> list[Event]:
    at = f"t{number}"
    return [Asked(at, f"question {number}"), Answered(at, RLMChatCompletion("m", None, answer, execution_time=1.0))]


# -- the tree --------------------------------------------------------------------------------------------------------


def test_usage_in_the_page_is_the_usage_of_the_session() -> None:
    events, used = runs.real_session()
    data = folded(events)
    total = used.total
    assert data["use"] == [total.calls, total.input_tokens, total.cached_tokens, total.output_tokens, total.cost]
    assert {name: use[0] for name, use in data["models"].items()} == {
        name: usage.calls for name, usage in used.model_usage_summaries.items()
    }
    assert data["use"][0] == sum(item["use"][0] for item in data["items"] if "use" in item)


def test_cells_stand_below_their_reply_and_children_below_their_call() -> None:
    events, _ = runs.real_session()
    data = folded(events)
    first, own, second = (item for item in data["items"])
    assert [item["id"] for item in (first, own, second)] == ["t0", "u0", "t1"]
    assert own["kind"] == "own"
    assert own["code"] == "print(worst[0])"
    iterations = [kid for kid in first["kids"] if kid["kind"] == "iteration"]
    assert [[kid["id"] for kid in one["kids"]] for one in iterations] == [[f"t0/c{n}"] for n in range(5)]
    calls = {call["prompt"]: call for call in node(data, "t0/c3")["kids"]}
    assert {prompt: call["name"] for prompt, call in calls.items()} == dict.fromkeys(
        ["Task: compare", "Task: doubt"], "rlm_query"
    )
    child = calls["Task: compare"]["id"]
    below = nodes(calls["Task: compare"]["kids"])
    places = [one["id"].removeprefix(child) for one in below if one["kind"] != "call"]
    assert places == ["/a0", "/c0", "/a1", "/c1"]
    assert data["counts"] == {"turn": 2, "iteration": 9, "cell": 10, "call": 15}


def test_a_call_that_failed_a_cell_that_failed_and_one_that_did_not_end_say_so() -> None:
    data = folded(runs.every_kind())
    assert (node(data, "t2/c0")["state"], node(data, "t2/c0")["error"]) == ("failed", "KeyError")
    assert node(data, "t5/c0")["state"] == "unfinished"
    failed = node(data, "t5/c0/llm_query:aa#0")
    assert (failed["state"], failed["error"], failed["reason"]) == ("failed", "ModelError: 503", "model")
    attempted = node(data, "t5/c0/send:bb#0")
    assert (attempted["state"], attempted["attempted"]) == ("unfinished", True)
    assert node(data, "t3/c0")["restarted"]


def test_turns_say_how_they_ended_and_which_were_dropped() -> None:
    data = folded(runs.every_kind())
    turns = {item["id"]: item for item in data["items"] if item["kind"] == "turn"}
    states = ["answered", "answered", "answered", "stopped", "failed", "unfinished"]
    assert [item["state"] for item in turns.values()] == states
    assert [name for name, item in turns.items() if item.get("dropped")] == ["t2"]
    assert (turns["t3"]["why"], turns["t3"]["partial"]) == ("TimeoutExceededError", "so far: 3")


@given(st.lists(st.one_of(st.none(), st.integers(0, 6)), max_size=8))
def test_what_is_dropped_is_what_the_session_no_longer_stands_on(moves: list[int | None]) -> None:
    events: list[Event] = [Opened(""), *turn(0)]
    begun = 1
    for move in moves:
        back = Rewound("", None if move is None else min(move, begun - 1))
        events += [back, *turn(begun), Ran(f"u{begun}/c0", "1")]
        begun += 1
    past = Past(runs.recorded(events))
    kept = [item["n"] for item in folded(events)["items"] if item["kind"] == "turn" and not item.get("dropped")]
    assert kept == [one.number for one in past.turns]


def test_the_heap_of_the_last_item_is_that_of_the_session() -> None:
    events = runs.every_kind()
    data = folded(events)
    chain, at = [], data["items"][-1]["heap"]
    while at is not None:
        chain.append(data["heaps"][at])
        at = data["heaps"][at]["on"]
    names: dict[str, str] = {}
    for change in reversed(chain):
        for gone in change.get("gone", ()):
            names.pop(gone)
        for group in change.get("saved", ()):
            names |= dict(zip(group["names"], group["types"], strict=True))
        names |= dict.fromkeys(change.get("modules", ()), "module")
        names |= {name: kind for name, (kind, _, _) in change.get("lost", {}).items()}
    assert names == Past(runs.recorded(events)).heap.types


def test_a_checkpoint_stands_with_the_last_cell_that_it_holds_also_when_it_comes_late() -> None:
    change = HeapChange([Saved(["x"], ["int"], "d", 5)])
    late = Checkpointed("t1", 1, change, base=True)
    events = [Asked("t0", "?"), Ran("t0/c0", "x = 1"), *turn(0)[1:], Asked("t1", "?"), Ran("t1/c0", "y = 2"), late]
    data = folded(events)
    assert [kid["kind"] for kid in node(data, "t0/c0")["kids"]] == ["checkpoint"]
    assert "kids" not in node(data, "t1/c0")
    assert [item["heap"] for item in data["items"]] == [0, 0]


def test_a_checkpoint_of_nothing_new_takes_no_row() -> None:
    only_answer = HeapChange([Saved(["answer"], ["dict"], "d", 5)], seconds=0.1)
    events = [Asked("t0", "?"), Ran("t0/c0", "x"), Checkpointed("", 1, only_answer), Checkpointed("", 1, HeapChange())]
    data = folded(events)
    assert "kids" not in node(data, "t0/c0")
    assert data["items"][0]["heap"] == 1


def test_what_did_not_follow_the_record_stands_beside_it() -> None:
    usage = Usage(1, 10, 10)
    events: list[Event] = [
        Asked("t0", "?"),
        Replied("t0/a0", "iteration", Reply(cell("x"), "m", usage)),
        Called("t0/c0/look:1#0", "look", "a", 1),
        Ran("t0/c0", "x", REPLResult(stdout="one")),
        Ran("t0/c0", "y", REPLResult(stdout="two")),
    ]
    cells = [one for one in nodes(folded(events)["items"]) if one["kind"] == "cell"]
    assert [(one["id"], one["out"]) for one in cells] == [("t0/c0", "one"), ("t0/c0~2", "two")]


def test_a_cost_that_is_not_known_is_not_taken_for_nothing() -> None:
    events = [Asked("t0", "?"), Replied("t0/a0", "iteration", Reply("x", "m", Usage(1, 10, 10, 0, None)))]
    assert folded(events)["use"] == [1, 10, 0, 10, None]
    assert "<dt>Cost</dt><dd>unknown</dd>" in page(events)


def test_no_events_and_foreign_events_make_a_page_too() -> None:
    class Later(Event):
        kind = "later"

    assert page([]).endswith("</html>\n")
    assert [item["kind"] for item in folded([Later("elsewhere")])["items"]] == ["later"]


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_same_records_make_the_same_page() -> None:
    assert page(runs.every_kind()) == page(runs.every_kind())


def test_the_same_records_make_the_same_page_whatever_the_hash_seed(tmp_path: Path) -> None:
    script = (
        "from rlm import trace; from rlm.types import *; from pathlib import Path; import sys\n"
        "event = Called('t0/c0/look:1#0', 'look', 'a', {'names': {'b', 'c', 'd', 'e'}, 'raw': b'x'})\n"
        "trace.write([Recorded(0, 1.0, event)], Path(sys.argv[1]), 'run')\n"
    )
    pages = []
    for seed in "12":
        path = tmp_path / f"{seed}.html"
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(trace.__file__).parents[2])}
        subprocess.run([sys.executable, "-c", script, path], env=env, check=True)
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_the_policy_lets_nothing_in_but_the_pages_own_style_and_script() -> None:
    parts = Parts(page(runs.real_session()[0]))
    policy = next(value for _, value in parts.attributes if value and value.startswith("default-src"))

    def allowed(text: str) -> str:
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    [style], [_, script] = parts.texts["style"], parts.texts["script"]
    assert rules == {
        "default-src": "'none'",
        "style-src": allowed(style),
        "script-src": allowed(script),
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert not [name for name, _ in parts.attributes if name in ("src", "href", "style") or name.startswith("on")]


def test_hostile_texts_make_no_element_and_no_attribute() -> None:
    plain = Parts(page([Asked("t0", "?"), Asked("t1", "?")], "title"))
    hostile = Parts(page(runs.hostile(), runs.HOSTILE))
    known = set(plain.tags) | {"table", "thead", "tbody", "tr", "th", "td", "details", "summary", "small"}
    assert set(hostile.tags) <= known
    assert len(hostile.texts["script"]) == 2
    assert {name for name, _ in hostile.attributes} == {name for name, _ in plain.attributes}


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=60))
def test_every_text_comes_back_from_the_page_as_it_is_to_be_seen(text: str) -> None:
    html = page([Asked("t0", f"?{text}"), *turn(0, text)[1:]], text)
    parts = Parts(html)
    assert parts.data["items"][0]["question"] == visible(f"?{text}")
    assert len(parts.texts["script"]) == 2
    html.encode()  # no surrogates are left
    assert not set("<>&\u2028\u2029") & set(parts.texts["script"][0])


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_no_character_that_is_seen_steers_a_reader_or_a_terminal(text: str) -> None:
    shown = visible(text)
    unseen = {
        *range(9),
        *range(11, 32),
        *range(127, 160),
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    }
    assert not {ord(one) for one in shown} & (unseen | set(range(0xD800, 0xE000)))
    assert visible(shown) == shown


def test_colours_of_terminals_are_left_out_and_other_controls_can_be_seen() -> None:
    assert visible("\x1b[1;31mred\x1b[0m\r\nnext\x00\u202e\tx") == "red\nnext␀⟨U+202E⟩\tx"


def test_a_long_text_keeps_head_and_tail_and_says_what_is_missing() -> None:
    text = "a" * 300_000 + "the end"
    shown = folded([Asked("t0", text)])["items"][0]["question"]
    assert shown.startswith("aaa")
    assert shown.endswith("the end")
    assert "… 100,008 characters are not in this page …" in shown


def test_a_page_that_would_not_open_holds_less_of_each_text() -> None:
    events = [Ran(f"u{n}/c0", "print(x)", REPLResult(stdout="o" * 190_000 + "end")) for n in range(200)]
    html = page(events)
    assert len(html) < trace.SIZE
    assert html.count("characters are not in this page") == 200


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("as it is", "as it is"),
        ({"a": [1, None]}, '{\n "a": [\n  1,\n  null\n ]\n}'),
        ({(1, 2): b"x"}, "{(1, 2): b'x'}"),
        (10**5000, "<int that cannot be shown"),
    ],
    ids=["text", "data", "no JSON", "no text"],
)
def test_what_a_tool_returned_is_shown_as_text(value: Any, shown: str) -> None:
    call = node(folded([Called("t0/c0/look:1#0", "look", "a", value)]), "t0/c0/look:1#0")
    assert call["value"].startswith(shown)


def test_without_scripts_there_are_the_totals_and_all_questions_and_answers() -> None:
    html = page(runs.every_kind(), "<b>")
    outline = html[html.index("<noscript>") : html.index("</noscript>")]
    for text in ("Question 0?", "Nothing.", "Turn 2 (dropped)", "so far: 3", "Turn 5 (unfinished)", "m:big: 503"):
        assert text in outline
    assert "<title>&lt;b&gt;</title>" in html
    assert "<dt>Turns</dt><dd>6<small>1 dropped</small></dd>" in html


def test_write_replaces_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_text("older and longer" * 1_000_000)
    records = runs.recorded(runs.every_kind())
    trace.write(records, path, "audit")
    assert path.read_bytes() == trace.page(records, title="audit").encode()


def test_times_that_no_clock_can_show_do_no_harm() -> None:
    assert "at no known time" in trace.page([Recorded(0, 1e300, Asked("t0", "?"))], title="run")


def test_the_wheel_holds_the_pages_parts(tmp_path: Path) -> None:
    root = Path(trace.__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"rlm/trace/page.{kind}" for kind in ("html", "css", "js")} <= set(names)


def test_usage_of_a_failed_child_without_requests_is_its_calls() -> None:
    used = UsageSummary({"m": Usage(2, 10, 5)})
    events = [Asked("t0", "?"), Called("t0/c0/rlm_query:1#0", "rlm_query", "a", None, "E: x", "model", used, 1.0)]
    assert folded(events)["use"][:2] == [2, 10]
