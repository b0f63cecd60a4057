"""Stored sessions without a model: looked at, renamed, deleted, carried to another store, written down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlm import RLM, ScriptedModel, SessionBusyError, Sessions
from rlm.errors import SessionExistsError, UnknownSessionError
from rlm.stores import get_store
from rlm.types import Answered, Asked, Event, Lost, Opened, Recorded, RLMChatCompletion
from tests.turns import by_task, cell, submit

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
LARGE = 2_000_000  # characters: a blob of its own file


@pytest.fixture
def store() -> Path:
    """The folder of the test's own store."""
    return Path(os.environ["RLM_STORE"])


def model() -> ScriptedModel:
    return by_task(
        {
            "remember": [cell("numbers = [1, 2, 3]\nalias = numbers\nprint(llm_query('hello'))"), submit("'kept'")],
            "hello": "a word",
            "sum?": submit("f'{sum(numbers)} {alias is numbers}'"),
            "fail": cell("1 / 0"),
            "what?": submit("'this'"),
        }
    )


def log(name: str, events: Sequence[Event], days_ago: float = 0.0) -> None:
    """A stored session of these events, recorded so long ago."""
    when = time.time() - days_ago * DAY

    async def write() -> None:
        lease = await get_store().lease(name)
        await lease.append([Recorded(number, when, event) for number, event in enumerate([Opened("", name), *events])])
        await lease.release()

    asyncio.run(write())


def answered(turn: int) -> Answered:
    return Answered(f"t{turn}", RLMChatCompletion("scripted", None, "an answer", turn=turn))


def names(sessions: Sessions) -> list[str]:
    return sorted(one.name for one in sessions.list())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file())


# -- looking -----------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_the_last_one_first_and_by_what_is_in_them() -> None:
    log("alpha", [Asked("t0", "Which CLAUSES are there?"), answered(0)])
    log("beta", [Asked("t0", "What failed?")])
    log("clauses", [])
    with Sessions() as sessions:
        assert [one.name for one in sessions.list()] == ["clauses", "beta", "alpha"]
        assert [one.name for one in sessions.list(limit=1)] == ["clauses"]
        assert [one.name for one in sessions.list("clauses")] == ["clauses", "alpha"]
        assert [one.name for one in sessions.list(unfinished=True)] == ["beta"]
        assert [one.name for one in sessions.list(unfinished=False)] == ["clauses", "alpha"]
        assert sessions.find("beta").question == "What failed?"
        assert asyncio.run(sessions.alist(limit=2)) == sessions.list(limit=2)


def test_where_nothing_was_stored_there_is_nothing(tmp_path: Path) -> None:
    with Sessions(tmp_path / "nowhere") as sessions:
        assert sessions.list() == []
        assert sessions.check() == []
        with pytest.raises(UnknownSessionError):
            sessions.show("a")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_shown_of_a_session_is_what_happened_in_it() -> None:
    with RLM(model(), sub_model=model()) as rlm:
        session = rlm.session("a")
        session.add_context("text", name="words")
        session.ask("remember", key="first")
        session.ask("what?")
        session.rewind(after=0)
        with pytest.raises(KeyError):
            session.ask("an unknown question")
        session.run("guess = (n for n in numbers)")
        used = session.usage()
    with Sessions() as sessions:
        shown = sessions.show("a")
        assert asyncio.run(sessions.ashow("a")) == shown
        assert len(sessions.records("a")) == shown.events
    first, dropped, failed = shown.turns
    assert (first.question, first.answer, first.state, first.key) == ("remember", "kept", "answered", "first")
    assert (first.cells, first.calls, first.usage.total_calls) == (2, 1, 3)
    assert [turn.dropped for turn in shown.turns] == [False, True, False]
    assert (dropped.number, dropped.answer) == (1, "this")
    assert (failed.state, failed.answer, failed.cells) == ("failed", None, 0)
    assert failed.reason is not None
    assert "KeyError" in failed.reason
    assert all(turn.seconds > 0 for turn in shown.turns)
    assert [(one.index, one.name, one.size) for one in shown.contexts] == [(0, "words", 4)]
    assert shown.variables == {"numbers": "list", "alias": "list", "guess": "generator"}
    assert isinstance(shown.lost["guess"], Lost)
    assert (shown.unfinished, shown.behind, shown.usage) == (None, 0, used)


def test_a_session_can_be_looked_at_while_it_is_open() -> None:
    with RLM(model()) as rlm, Sessions() as sessions:
        rlm.session("a").ask("what?")
        assert sessions.show("a").turns[0].answer == "this"


# -- names, and the end ------------------------------------------------------------------------------------------------


def test_a_renamed_session_is_the_same_one() -> None:
    log("a", [Asked("t0", "?"), answered(0)])
    log("b", [])
    with Sessions() as sessions:
        known = sessions.find("a")
        with pytest.raises(SessionExistsError):
            sessions.rename("a", "b")
        sessions.rename("a", "c")
        assert names(sessions) == ["b", "c"]
        assert sessions.find("c").id == known.id
        with pytest.raises(UnknownSessionError, match="'a'"):
            sessions.rename("a", "d")


def test_an_unknown_name_is_told_with_those_that_are_near(tmp_path: Path) -> None:
    log("acme-audit", [])
    with Sessions() as sessions:
        for use in (
            lambda: sessions.find("acme-adit"),
            lambda: sessions.show("acme-adit"),
            lambda: sessions.records("acme-adit"),
            lambda: sessions.delete("acme-adit"),
            lambda: sessions.export("acme-adit", tmp_path / "a"),
            lambda: sessions.notebook("acme-adit", tmp_path / "a"),
            lambda: sessions.trace("acme-adit", tmp_path / "a"),
        ):
            with pytest.raises(UnknownSessionError, match="near are 'acme-audit'"):
                use()
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_session_is_gone_and_collecting_frees_what_it_alone_needed(store: Path) -> None:
    with RLM(model()) as rlm:
        for name in ("a", "b"):
            session = rlm.session(name)
            session.add_context("shared " * LARGE)
            session.add_context(f"{name} alone " * LARGE)
    with Sessions() as sessions:
        before = size(store)
        sessions.delete("a")
        freed = sessions.collect()
        assert freed == len("a alone ") * LARGE
        assert size(store) == before - freed
        assert names(sessions) == ["b"]
        assert sessions.check() == []


def test_pruning_removes_what_is_old_but_not_what_is_unfinished_or_open() -> None:
    log("new", [Asked("t0", "?"), answered(0)], days_ago=1)
    log("old", [Asked("t0", "?"), answered(0)], days_ago=40)
    log("open", [Asked("t0", "?"), answered(0)], days_ago=40)
    log("cut off", [Asked("t0", "?")], days_ago=40)
    with RLM(ScriptedModel([])) as rlm, Sessions() as sessions:
        rlm.session("open")
        assert sorted(sessions.prune(30 * DAY, dry_run=True)) == ["old", "open"]
        assert names(sessions) == ["cut off", "new", "old", "open"]
        assert sessions.prune(30 * DAY) == ["old"]
        assert names(sessions) == ["cut off", "new", "open"]
        assert sessions.prune(30 * DAY, keep_unfinished=False) == ["cut off"]
        assert asyncio.run(sessions.aprune(30 * DAY)) == []


def test_what_is_open_is_neither_renamed_nor_deleted() -> None:
    with RLM(model()) as rlm, Sessions() as sessions:
        rlm.session("a").ask("what?")
        with pytest.raises(SessionBusyError):
            sessions.delete("a")
        with pytest.raises(SessionBusyError):
            sessions.rename("a", "b")
        assert rlm.session("a").ask("what?").turn == 1


# -- forks and rewinds -------------------------------------------------------------------------------------------------


def test_a_fork_shares_all_blobs_and_goes_its_own_way(store: Path) -> None:
    with RLM(model()) as rlm:
        session = rlm.session("a")
        session.completion("x" * LARGE, "remember")
        session.run(f"large = 'y' * {LARGE}")
        session.close()
        before = size(store)
        with rlm.session("a") as session, session.fork("b", after=0) as fork:
            assert size(store) == before
            fork.run("numbers.append(100)")
            assert fork.ask("sum?").response == "106 True"
            assert session.ask("sum?").response == "6 True"
            assert fork.get("context") == "x" * LARGE


def test_rewinds_go_back_and_forth() -> None:
    with RLM(model()) as rlm, rlm.session("a") as session:
        session.ask("remember")
        session.run("numbers.append(4)")
        session.ask("sum?")
        session.run("numbers.clear()")
        assert session.ask("sum?").response == "0 True"
        for turn, total in ((0, 6), (2, 0), (1, 10), (None, None), (1, 10)):
            session.rewind(after=turn)
            found = session.variables()
            assert ("numbers" in found) == (turn is not None)
            if turn is not None:
                assert sum(session.get("numbers")) == total


def test_a_fork_of_a_rewound_session_gives_no_number_twice() -> None:
    with RLM(model()) as rlm, rlm.session("a") as session:
        session.ask("remember")
        session.run("numbers.append(4)")
        session.ask("what?")
        session.rewind(after=0)
        session.run("numbers.append(5)")
        session.ask("what?")
        with session.fork("b") as fork:
            fork.run("numbers.append(6)")
            assert fork.ask("sum?").turn == 3
            at = [event.at for event in fork.log if event.kind in ("asked", "ran") and event.at[0] in "tu"]
            assert len(set(at)) == len(at)
            assert fork.get("numbers") == [1, 2, 3, 5, 6]


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_an_imported_session_goes_on_with_values_identity_and_conversation(tmp_path: Path) -> None:
    with RLM(model()) as rlm:
        session = rlm.session("a")
        session.completion("x" * LARGE, "remember")
        session.run("class Point:\n    at = numbers\ndef total():\n    return sum(numbers)\npoint = Point()")
    with Sessions() as here, Sessions(tmp_path / "there") as there:
        assert here.export("a", tmp_path / "a.rlm") > 0
        assert there.import_session(tmp_path / "a.rlm", "b") == "b"
        assert there.show("b").turns[0].answer == "kept"
        assert there.check() == []
    asked = model()
    with RLM(asked, store=tmp_path / "there") as rlm:
        session = rlm.session("b")
        session.run("numbers.append(4)")
        assert session.ask("sum?").response == "10 True"
        assert session.run("print(total(), point.at is alias, type(point) is Point, len(context))").stdout == (
            f"10 True True {LARGE}\n"
        )
    [request] = asked.requests
    assert "kept" in request[1]["content"]


CUT_OFF = """
import time
from rlm import RLM, ScriptedModel
from tests.turns import cell, submit

def wait():
    print("began", flush=True)
    time.sleep(3600)

slow = "wait()\\nnumbers.append(llm_query('four'))"
with RLM(ScriptedModel([cell("numbers = [1, 2, 3]\\nalias = numbers"), cell(slow)]), tools=[wait]) as rlm:
    rlm.session("a").completion("text", "what is the sum?", key="sum")
"""


def test_a_turn_that_was_cut_off_here_is_finished_elsewhere(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", CUT_OFF], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "began\n"
        finally:
            process.kill()
    with Sessions() as here, Sessions(tmp_path / "there") as there:
        shown = here.show("a")
        assert (shown.unfinished, shown.turns[0].state, shown.turns[0].cells) == (0, "unfinished", 1)
        here.export("a", tmp_path / "a.rlm")
        there.import_session(tmp_path / "a.rlm")
        assert [one.name for one in there.list(unfinished=True)] == ["a"]
    asked = ScriptedModel(["4", submit("f'{alias} {alias is numbers} {context}'")])
    with RLM(asked, store=tmp_path / "there", tools={"wait": lambda: None}) as rlm:
        session = rlm.session("a")
        assert session.unfinished is not None
        assert session.resume().response == "[1, 2, 3, '4'] True text"
    assert len(asked.requests) == 2


# -- written down ------------------------------------------------------------------------------------------------------


def test_notebooks_and_pages_are_written(tmp_path: Path) -> None:
    with RLM(model()) as rlm:
        rlm.session("a").ask("remember")
    with Sessions() as sessions:
        sessions.notebook("a", tmp_path / "a.ipynb")
        sessions.trace("a", tmp_path / "a.html")
    book = json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8"))
    assert next("".join(one["source"]) for one in book["cells"] if one["cell_type"] == "code").startswith("numbers =")
    assert "remember" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_what_is_wrong_with_a_store_is_said(store: Path) -> None:
    with RLM(model()) as rlm:
        rlm.session("a").add_context("x" * LARGE)
    [blob] = (store / "blobs").glob("??/*")
    blob.chmod(0o600)
    blob.write_bytes(b"y" * LARGE)
    with Sessions() as sessions:
        [wrong] = sessions.check()
        assert blob.name in wrong
        assert asyncio.run(sessions.acheck()) == [wrong]
