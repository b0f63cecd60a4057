"""A run's page in a real browser: what it draws, what it lets happen, and how it is to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm import trace
from rlm.types import Event
from tests import runs
from tests.browser import Browser, program

LOOKS = [(width, dark) for width in (1280, 360) for dark in (False, True)]
NAMES = [f"{width} wide, {'dark' if dark else 'light'}" for width, dark in LOOKS]
CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA), of text of any size

OPEN_ALL = """(async () => {
  for (let closed; (closed = [...document.querySelectorAll("details:not([open])")]).length; ) {
    for (const details of closed) details.open = true;
    await new Promise((done) => setTimeout(done, 20));
  }
})()"""

# Texts on their backgrounds whose colours are too near each other.
FAINT = """((least) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
      if (colour[3] !== 0) throw new Error("a background is half transparent");
    }
    throw new Error("there is no background");
  };
  const faint = new Set();
  const judge = (element, style, text) => {
    const [a, b] = [light(rgba(style.color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) faint.add(`${element.tagName}.${element.className} ${contrast.toFixed(2)}: ${text}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    seen += 1;
    judge(element, getComputedStyle(element), node.data.slice(0, 30));
  }
  const query = document.getElementById("query");
  judge(query, getComputedStyle(query, "::placeholder"), "placeholder");
  return { seen, faint: [...faint] };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program()
    if path is None:
        pytest.skip("no Chromium here; on Debian: apt-get install --no-install-recommends chromium-headless-shell")
    with Browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    logs: dict[str, list[Event]] = {
        "real": runs.real_session()[0],
        "every kind": runs.every_kind(),
        "hostile": runs.hostile(),
        "long": runs.long_run(),
        "empty": [],
    }
    paths = {name: folder / f"{name}.html" for name in logs}
    for name, events in logs.items():
        trace.write(runs.recorded(events), paths[name], runs.HOSTILE if name == "hostile" else f"The {name} run")
    return paths


def overflow(browser: Browser) -> int:
    """CSS pixels by which the page is wider than its window."""
    wider: int = browser.run("document.scrollingElement.scrollWidth - innerWidth")
    return wider


def shown(browser: Browser, selector: str) -> list[str]:
    """The texts of the elements that can be seen."""
    script = (
        f"[...document.querySelectorAll({json.dumps(selector)})].filter((one) => one.checkVisibility())"
        ".map((one) => one.innerText.trim().replace(/\\s+/g, ' '))"
    )
    texts: list[str] = browser.run(script)
    return texts


def settle(browser: Browser, condition: str) -> None:
    """Wait until this holds in the page."""
    browser.run(f"(async () => {{ while (!({condition})) await new Promise((done) => setTimeout(done, 10)); }})()")


def search(browser: Browser, said: str) -> str:
    """What the page says after a search for this."""
    browser.run("document.getElementById('found').textContent = 'waiting'")
    browser.run(
        f"(() => {{ const query = document.getElementById('query'); query.value = {json.dumps(said)};"
        " query.dispatchEvent(new Event('input')); })()"
    )
    settle(browser, "document.getElementById('found').textContent !== 'waiting'")
    found: str = browser.run("document.getElementById('found').textContent")
    return found


def focused(browser: Browser) -> str:
    at: str = browser.run("document.activeElement.parentElement.id.replace(/^at:/, '')")
    return at


def element(place: str) -> str:
    """The element of a place in the log, as an expression."""
    return f"document.getElementById({json.dumps(f'at:{place}')})"


# -- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), LOOKS, ids=NAMES)
@pytest.mark.parametrize("name", ["real", "every kind", "hostile", "long", "empty"])
def test_a_page_fits_its_window_and_can_be_read(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.look(width, dark=dark)
    browser.open(pages[name], "#t7/c3/llm_query:00000000000002b2#0" if name == "long" else "")
    assert overflow(browser) <= 0
    if name != "long":
        browser.run(OPEN_ALL)
        assert overflow(browser) <= 0
    read = browser.run(f"{FAINT}({CONTRAST})")
    assert read["faint"] == []
    assert read["seen"] > (20 if name == "empty" else 50)
    assert browser.complaints == []


def test_the_colours_follow_the_system_until_the_reader_chooses(browser: Browser, pages: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    browser.look(dark=False)
    browser.open(pages["real"])
    light = browser.run(paper)
    browser.look(dark=True)
    dark = browser.run(paper)
    assert light != dark
    colours = [browser.run(f"document.getElementById('theme').click(); {paper}") for _ in range(3)]
    assert colours == [light, dark, dark]


def test_on_paper_all_turns_are_open(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["every kind"])
    assert browser.run("document.querySelectorAll('.turn[open]').length") == 0
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert {"Answer Nothing.", "Answer Three."} <= set(shown(browser, ".turn .answer"))
    assert shown(browser, "#tools") == []
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('.turn[open]').length") == 0


def test_without_scripts_questions_and_answers_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look(360, scripts=False)
    browser.open(pages["every kind"])
    [outline] = shown(browser, ".outline")
    assert "Turn 0 Question 0? Nothing." in outline
    assert "Turn 2 (dropped)" in outline
    assert shown(browser, "#tools") == []
    assert overflow(browser) <= 0
    browser.look()


# -- what it shows ---------------------------------------------------------------------------------------------------


def test_a_turn_opens_to_iterations_cells_output_calls_and_children(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["real"], "#t0")
    rows = shown(browser, ".iteration > summary > .what")
    assert len(rows) == 5
    assert rows[0].startswith("1 rows = context.splitlines() → 12 rows")
    assert "NameError: name 'hour' is not defined" in rows[1]
    assert "llm_query × 12" in rows[2]
    browser.open(pages["real"], "#t0/c1")
    assert "NameError" in shown(browser, ".cell .error pre")[0]
    assert "Hour 03: about Say it in one word" in shown(browser, ".turn .answer pre")
    browser.run(OPEN_ALL)
    assert len(shown(browser, ".group .call > summary")) == 12
    child = ".call .iteration > summary > .what"
    assert any("print(len(context)) → 13" in one for one in shown(browser, child))
    assert "Say it in one word" in " ".join(shown(browser, ".call .call > summary > .what"))


def test_dropped_and_unfinished_turns_and_losses_are_marked(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["every kind"])
    rows = shown(browser, "#tree > .list > .node > summary > .what")
    for row in (
        "Forked What stands above is a copy of acme, up to the end of turn 0",
        "Turn 2 Question 2? dropped",
        "Rewound Back to the end of turn 1",
        "Restored 4 names live, 1 cell run again 1 lost 1 diverged",
        "Turn 3 Question 3? stopped",
        "Turn 4 Question 4? failed",
        "Turn 5 Question 5? unfinished",
    ):
        assert any(one.startswith(row) for one in rows), row
    browser.run(OPEN_ALL)
    assert "it was not saved" in " ".join(shown(browser, ".restored td"))
    assert any("Nobody knows whether it took effect" in one for one in shown(browser, ".call .meta"))


def test_variables_are_those_at_the_end_of_each_turn(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["every kind"])
    browser.run(OPEN_ALL)

    def names(turn: str) -> dict[str, str]:
        rows: dict[str, str] = browser.run(
            f"Object.fromEntries([...{element(turn)}.querySelectorAll('.variables tbody tr')]"
            ".map((row) => [row.cells[0].innerText, row.cells[1].innerText + ': ' + row.cells[3].innerText]))"
        )
        return rows

    first = names("t0")
    assert set(first) == {"rows", "view", "Rows", "np", "context", "feed"}
    assert first["rows"] == "list: new or changed · shares objects with view"
    assert first["np"] == "module: new or changed · numpy"
    assert first["feed"].startswith("generator: lost · generators cannot be saved")
    assert set(names("t1")) == {"rows", "Rows", "np", "context", "feed", "total"}
    assert "mistake" in names("t2")
    assert "mistake" not in names("t3")  # the session had been rewound
    assert names("t3")["total"] == "int: "
    label = shown(browser, "[id='at:t1'] .variables > summary")
    assert label == ["Variables after this turn: 6 names, 1 new or changed, 1 lost"]


def test_a_bar_shows_the_share_of_what_the_reader_chooses(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["long"])

    def share(measure: str) -> float:
        browser.run(f"document.querySelector('#measure [value={measure}]').click()")
        percent: float = browser.run(f"parseFloat({element('t7')}.querySelector('.bar').title)")
        return percent

    tokens, time = share("tokens"), share("time")
    assert tokens == pytest.approx(100 * 348_840 / 3_190_000, rel=0.2)
    assert time == pytest.approx(100 / 92, abs=0.1)


def test_a_link_leads_to_any_place_in_the_tree(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    call = "t7/c3/llm_query:00000000000002dd#0"
    browser.open(pages["long"], f"#{call.replace('#', '%23')}")
    assert focused(browser) == call
    assert browser.run(f"{element(call)}.open")
    top = browser.run("document.activeElement.getBoundingClientRect().top")
    assert 0 <= top < 900
    browser.run("location.hash = '#t91/a3'")
    settle(browser, "document.activeElement.parentElement.id === 'at:t91/a3'")
    browser.run("location.hash = '#t3/nowhere'")
    settle(browser, "document.activeElement.parentElement.id === 'at:t3'")
    link = browser.run(f"{element('t3')}.querySelector('.link').getAttribute('href')")
    assert link == "#t3"


def test_the_keys_lead_through_the_tree(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["every kind"])
    browser.run(f"{element('t0')}.firstElementChild.focus()")
    visited = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowDown", "End", "Home"):
        browser.press(key)
        visited.append(f"{focused(browser)} {browser.run('document.activeElement.parentElement.open')}")
    assert visited == [
        "t0 True",
        " False",  # the schema of the answer, which is no place in the log
        "t0/a0 False",
        "t0 True",
        "t0 False",
        "forked False",
        "t5 False",
        "context_0 False",
    ]
    browser.press("/")
    assert browser.run("document.activeElement.id") == "query"
    assert browser.run("document.activeElement.value") == ""


# -- a long run ------------------------------------------------------------------------------------------------------


def test_a_run_of_five_thousand_events_draws_only_what_is_open(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["long"])
    count = "document.getElementsByTagName('*').length"
    assert "5,071 events" in shown(browser, ".about")[0]
    assert browser.run(count) < 2_500
    for place in ("t7", "t7/a3", "t7/c3/llm_query"):
        settle(browser, element(place))
        browser.run(f"{element(place)}.open = true")
    group = element("t7/c3/llm_query")
    settle(browser, f"{group}.querySelector('.call')")
    calls = f"{group}.querySelectorAll('.call').length"
    assert browser.run(calls) == 100
    assert "llm_query × 1,000" in shown(browser, ".group > summary > .what")[0]
    pager = ".group .pager"
    assert "1–100 of 1,000" in shown(browser, pager)[0]
    browser.run(f"[...{group}.querySelectorAll('button')].find((one) => one.textContent === 'Next').click()")
    assert "101–200 of 1,000" in shown(browser, pager)[0]
    browser.run(f"{group}.querySelector('button').click()")
    assert browser.run(calls) == 3
    assert all("ModelError: 429" in row for row in shown(browser, ".group .call > summary"))
    assert browser.run(count) < 4_000
    assert browser.complaints == []


def test_a_long_output_shows_its_beginning_and_end_until_all_is_asked_for(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.look()
    browser.open(pages["long"], "#t7/c6")
    output = f"{element('t7/c6')}.querySelector('.output pre')"
    text = browser.run(f"{output}.textContent")
    assert text.startswith("row 0 of part 7\n")
    assert text.endswith("row 199 of part 7")
    assert "row 100 of part 7" not in text
    browser.run(f"{output}.querySelector('button').click()")
    assert browser.run(f"{output}.textContent.split('\\n').length") == 200


def test_a_search_leaves_what_matches_opens_it_and_marks_the_words(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["long"])
    assert search(browser, "PART 733 says") == "1 match"
    assert shown(browser, ".turn > summary .name") == ["Turn 7"]
    assert "part 733 says" in shown(browser, ".call mark")
    assert search(browser, "closer") == "10 matches"
    browser.run("document.getElementById('query').focus()")
    browser.press("Enter")
    browser.press("Enter")
    assert shown(browser, "#found") == ["2 of 10 matches"]
    assert browser.run("document.querySelectorAll('.here').length") == 1
    assert search(browser, "(no such [text") == "no match"
    assert shown(browser, ".turn") == []
    browser.press("Escape")
    settle(browser, "document.querySelectorAll('.turn').length === 92")
    assert browser.complaints == []


# -- what it lets happen ---------------------------------------------------------------------------------------------


def test_hostile_texts_stay_texts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["hostile"])
    browser.run(OPEN_ALL)
    assert search(browser, "onerror").endswith("matches")
    browser.run(OPEN_ALL)
    made = browser.run("[...new Set([...document.body.querySelectorAll('*')].map((one) => one.localName))].sort()")
    assert not {"img", "iframe", "object", "embed", "video", "link", "svg"} & set(made)
    assert browser.run("document.scripts.length") == 2
    assert browser.run("[...document.links].every((one) => one.getAttribute('href').startsWith('#'))")
    assert browser.run("[...document.body.querySelectorAll('*')].every((one) => !one.getAttribute('onerror'))")
    text = browser.run("document.body.textContent")
    assert "<img src=x onerror=alert(1)>" in text
    assert not {"\x1b", "\x00", "\u202e"} & set(text)
    assert browser.complaints == []


def test_the_policy_refuses_what_would_get_past_the_escapes(browser: Browser, pages: dict[str, Path]) -> None:
    browser.look()
    browser.open(pages["real"])
    attempt: Any = browser.run(
        """(async () => {
          const tried = {};
          const attempt = async (name, act) => {
            try { await act(); tried[name] = "done"; } catch (error) { tried[name] = error.name; }
          };
          await attempt("markup", () => { document.body.innerHTML = "<b>x</b>"; });
          await attempt("fetch", () => fetch("https://example.com/"));
          await attempt("script", () => { const s = document.createElement("script"); s.text = "window.ran = 1"; });
          const image = new Image();
          await attempt("image", () => new Promise((done, fail) => {
            image.onload = done;
            image.onerror = () => fail(new TypeError("refused"));
            image.src = "https://example.com/x.png";
          }));
          return { ...tried, ran: window.ran === undefined };
        })()"""
    )
    assert attempt == {
        "markup": "TypeError",
        "fetch": "TypeError",
        "script": "TypeError",
        "image": "TypeError",
        "ran": True,
    }
    refused = " ".join(browser.complaints)
    assert "policy: " in refused
    assert "request: " not in refused
