"""Stored sessions on the command line: chats that go on after a crash, and all that `rlm sessions` does."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm import RLM, ScriptedModel, Sessions
from rlm.cli import main
from rlm.cli.ages import seconds
from rlm.cli.exits import UsageError
from rlm.cli.shell import is_complete, shown
from tests.terminal import CTRL_C, CTRL_D, ENTER, TAB, Terminal
from tests.turns import submit

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "cli.md"
CHAT = ["--model", "scripted:policies:chat"]
PATIENT = ["--model", "scripted:policies:patient"]
WIDTH = 80


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Runner:
    """Runs commands in this process, from the folder that holds the scripts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> Done:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        ended = main(arguments)
        done = Done(ended, *self._capsys.readouterr())
        assert ended == code, done
        return done

    def chat(self, *entries: str, session: str = "a", code: int = 0) -> Done:
        return self("chat", "--session", session, *CHAT, "-q", stdin="\n".join(entries), code=code)


@pytest.fixture
def rlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.chdir(TESTS)
    monkeypatch.syspath_prepend(str(TESTS))
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "PATIENT"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "patient").mkdir()
    for name in ("RLM_MODEL", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    return Runner(monkeypatch, capsys)


@pytest.fixture
def store() -> Path:
    """The folder of the test's own store."""
    return Path(os.environ["RLM_STORE"])


@contextmanager
def process(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command as a process of its own, whose standard input stays open."""
    with subprocess.Popen(
        [sys.executable, "-m", "rlm", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=TESTS,
        env={**os.environ, **(env or {})},
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def terminal(*arguments: str) -> Terminal:
    return Terminal([sys.executable, "-m", "rlm", *arguments], cwd=TESTS, env=dict(os.environ))


def enter(running: subprocess.Popen[str], line: str) -> None:
    assert running.stdin is not None
    running.stdin.write(line + "\n")
    running.stdin.flush()


def until_there(path: Path, running: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)


def requests() -> list[str]:
    """What the patient script was asked, and at which reply of the turn it was."""
    path = Path(os.environ["PATIENT"], "requests")
    return path.read_text().splitlines() if path.exists() else []


# -- chats that are killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The store of a chat that was killed while its second cell ran, and what its model was asked up to then."""
    folder = tmp_path_factory.mktemp("cut-off")
    env = {"RLM_STORE": str(folder / "store"), "PATIENT": str(folder)}
    with process("chat", "--session", "a", *PATIENT, env=env) as chat:
        enter(chat, "a slow one")
        until_there(folder / "began", chat)
        chat.send_signal(signal.SIGKILL)
        assert chat.wait() == -signal.SIGKILL
    return folder / "store", (folder / "requests").read_text().splitlines()


@pytest.fixture
def killed(rlm: Runner, cut_off: tuple[Path, list[str]], store: Path) -> list[str]:
    """The test's store is a copy of that one, and the cell may go on."""
    Path(os.environ["PATIENT"], "go").touch()
    shutil.copytree(cut_off[0], store)
    return cut_off[1]


def test_a_killed_chat_goes_on_where_it_was_and_asks_nothing_twice(killed: list[str]) -> None:
    with process("chat", "--session", "a", *PATIENT) as chat:
        out, err = chat.communicate("what is the sum?\n", timeout=30)
    assert (chat.returncode, out) == (0, "the sum is 10\nthe sum is 10\n")
    assert err.splitlines()[:2] == ["going on with 'a': 0 turns", "turn 0 was cut off: a slow one"]
    assert [*killed, *requests()] == ["a slow one 0", "a slow one 1", "a slow one 2", "what is the sum? 0"]


def test_on_a_terminal_the_chat_asks_whether_to_resume(killed: list[str]) -> None:
    with terminal("chat", "--session", "a", *PATIENT) as screen:
        screen.wait_for("[r]esume or [d]iscard it?")
        screen.press("x" + ENTER)
        screen.wait_for("[r]esume or [d]iscard it?", 2)
        screen.press("r" + ENTER)
        screen.wait_for("the sum is 10")
        assert "a slow one" in screen.text
        screen.wait_for("rlm>")
        screen.press(CTRL_D)
        assert screen.wait_for_end() == 0
    assert [*killed, *requests()] == ["a slow one 0", "a slow one 1", "a slow one 2"]


def test_on_a_terminal_it_can_be_discarded_or_left_as_it_is(killed: list[str]) -> None:
    with terminal("chat", "--session", "a", *PATIENT) as screen:
        screen.wait_for("[r]esume or [d]iscard it?")
        screen.press(CTRL_C)
        assert screen.wait_for_end() == 0
    with Sessions() as sessions:
        assert sessions.find("a").unfinished
    with terminal("chat", "--session", "a", *PATIENT) as screen:
        screen.wait_for("[r]esume or [d]iscard it?")
        screen.press("d" + ENTER)
        screen.wait_for("turn 0 is given up")
        screen.wait_for("rlm>")
        screen.press("what is the sum?" + ENTER)
        screen.wait_for("the sum is 6")  # of the first cell, the last that had ended
    assert requests() == ["what is the sum? 0"]


def test_a_turn_that_was_cut_off_is_resumed_or_discarded_by_a_command(rlm: Runner, killed: list[str]) -> None:
    listed = rlm("sessions", "list", "--unfinished").out
    assert "unfinished: a slow one" in listed
    assert "turn 0 was cut off: rlm sessions resume a goes on with it" in rlm("sessions", "show", "a").out
    refused = rlm("ask", "what is the sum?", "--session", "a", *CHAT, "-q", code=1)
    assert "rlm sessions resume" in refused.err
    assert rlm("sessions", "resume", "a", *PATIENT, "-q") == Done(0, "the sum is 10\n", "")
    assert requests() == ["a slow one 2"]
    assert "has no unfinished turn" in rlm("sessions", "resume", "a", *PATIENT, code=1).err
    assert rlm("sessions", "discard", "a").err == "no turn is unfinished\n"


def test_discarding_needs_no_model(rlm: Runner, killed: list[str]) -> None:
    assert rlm("sessions", "discard", "a").err == "turn 0 is given up\n"
    assert rlm("sessions", "get", "a", "numbers").out == "[1, 2, 3]\n"
    assert rlm.chat("sum?").out == "the sum is 6\n"


# -- chats that end ----------------------------------------------------------------------------------------------------


def test_a_stored_chat_goes_on_and_brings_no_input_in_twice(rlm: Runner) -> None:
    given = ["chat", "policies.py", "--session", "a", *CHAT]
    rlm(*given, stdin="remember this\n/run import sqlite3\n/run base = sqlite3.connect(':memory:')\n")
    again = rlm(*given, stdin="what is the sum?\n/vars\n")
    assert again.out.splitlines()[0] == "the sum is 6"
    assert "context_1: str" not in again.out
    told = again.err.splitlines()
    assert told[0] == "going on with 'a': 1 turn; the last one: remember this"
    assert told[1].startswith("cannot be brought back: base (Connection: ")
    assert "context_0 is policies.py already" in told
    assert again.err.count("cannot be brought back: base") == 1
    other = rlm("chat", "terminal.py", "--session", "a", *CHAT, stdin="/vars\n")
    assert "context_1: str" in other.out


def test_without_a_name_nothing_is_stored(rlm: Runner, store: Path) -> None:
    assert rlm("chat", *CHAT, "-q", stdin="remember\nsum?\n").out == "kept\nthe sum is 6\n"
    assert rlm("ask", "remember", *CHAT, "-q").out == "kept\n"
    assert not store.exists()
    for command in ("/fork b", "/rewind 0"):
        wrong = rlm("chat", *CHAT, "-q", stdin=f"remember\n{command}\n", code=2)
        assert wrong.err.count("\n") == 1
        assert "rlm chat --session NAME" in wrong.err


def test_a_chat_forks_and_rewinds(rlm: Runner) -> None:
    entries = [
        *(
            "remember this",
            "/run numbers.append(4)",
            "sum?",
            "/fork b",
            "/rewind 0",
            "and now?",
            "/rewind",
            "/rewind 1",
        ),
        *("again?", "/rewind start", "/vars"),
    ]
    said = rlm.chat(*entries).out.splitlines()
    assert said == [
        *("kept", "the sum is 10", "the sum is 6"),
        *("0: remember this", "1 (dropped): sum?", "2: and now?"),
        "the sum is 10",
    ]
    assert rlm.chat("sum?", session="b").out == "the sum is 10\n"
    wrong = rlm.chat("/rewind 9", "/rewind back", "/fork b", "/fork", "/resume", "/discard", code=2)
    told = ["no ended turn 9; there are: 0, 1, 2, 3", "or start", "'b' exists", "/fork NAME", "no turn was cut off"]
    assert len(wrong.err.splitlines()) == len(told)
    for line, part in zip(wrong.err.splitlines(), told, strict=True):
        assert part in line


# -- ask ---------------------------------------------------------------------------------------------------------------


def test_questions_are_asked_within_a_stored_session_and_under_a_key_only_once(rlm: Runner) -> None:
    first = ["ask", "remember the numbers", "policies.py", "--session", "a", "--key", "numbers", *PATIENT, "-q"]
    assert rlm(*first).out == "kept\n"
    assert rlm(*first).out == "kept\n"
    assert rlm("ask", "sum?", "--session", "a", "--key", "sum", *PATIENT, "-q").out == "the sum is 6\n"
    again = rlm("ask", "sum?", "--session", "a", "--key", "sum", *PATIENT, "--json")
    assert (json.loads(again.out)["response"], json.loads(again.out)["turn"]) == ("the sum is 6", 1)
    assert requests() == ["remember the numbers 0", "sum? 0"]
    assert "--session NAME" in rlm("ask", "sum?", "--key", "sum", *PATIENT, code=2).err


# -- looking -----------------------------------------------------------------------------------------------------------


def test_what_is_listed_and_shown_fits_a_terminal_and_is_json_for_machines(rlm: Runner) -> None:
    assert rlm("sessions", "list").err == "no session is stored\n"
    rlm.chat("remember this, " + "which is a long question " * 20, "/run f = (n for n in numbers)")
    rlm.chat("remember", session="a name that is rather long for what it is, and goes on")
    rlm.chat("/run x = 1", session="empty")
    texts = [rlm("sessions", command, *name).out for command, *name in (["list"], ["show", "a"], ["usage", "a"])]
    assert max(len(line.rstrip()) for text in texts for line in text.splitlines()) <= WIDTH
    listed, about, used = texts
    assert [line.split()[0] for line in listed.splitlines()][1] == "empty"
    assert "(nothing was asked)" in listed
    assert "variables: f (generator), numbers (list)" in about
    assert "cannot be brought back: f (generator: " in about
    assert re.search(r"^scripted:policies:chat +1 ", used, re.MULTILINE)
    found = [json.loads(line) for line in rlm("sessions", "list", "LONG QUESTION", "--json").out.splitlines()]
    assert [one["name"] for one in found] == ["a"]
    one = json.loads(rlm("sessions", "show", "a", "--json").out)
    assert (one["turns"][0]["answer"], one["variables"]["numbers"]) == ("kept", "list")
    usage = json.loads(rlm("sessions", "usage", "a", "--turn", "0", "--json").out)
    assert usage["turns"]["0"]["model_usage_summaries"] == usage["model_usage_summaries"]
    assert rlm("sessions", "list", "--limit", "1", "--json").out.count("\n") == 1


def test_variables_and_values_are_printed_without_a_model(rlm: Runner) -> None:
    rlm.chat("remember", "/run text = 'as it\\nis'", "/run class Point: pass", "/run point = Point()")
    listed = rlm("sessions", "variables", "a").out.splitlines()
    assert {"numbers: list", "point: Point", "history_0: list"} <= set(listed)
    assert json.loads(rlm("sessions", "variables", "a", "--json").out)["text"] == "str"
    assert rlm("sessions", "get", "a", "text").out == "as it\nis\n"
    assert rlm("sessions", "get", "a", "numbers").out == "[1, 2, 3]\n"
    assert json.loads(rlm("sessions", "get", "a", "numbers", "--json").out) == [1, 2, 3]
    assert "Point object" in rlm("sessions", "get", "a", "point").out
    assert json.loads(rlm("sessions", "get", "a", "point", "--json").out)["type"] == "Point"
    assert "nothing" in rlm("sessions", "get", "a", "nothing", code=2).err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["show", "acme-adit"], ["usage", "acme-adit"], ["resume", "acme-adit", *CHAT], ["discard", "acme-adit"]),
        *(["fork", "acme-adit", "b"], ["rewind", "acme-adit", "--to-start"], ["variables", "acme-adit"]),
        *(["get", "acme-adit", "x"], ["shell", "acme-adit"], ["replay", "acme-adit"], ["rename", "acme-adit", "b"]),
        *(["export", "acme-adit"], ["notebook", "acme-adit"], ["delete", "acme-adit", "--yes"]),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_session_is_one_line_with_those_that_are_near_and_is_not_made(
    rlm: Runner, arguments: list[str]
) -> None:
    with RLM(ScriptedModel([submit("1")])) as engine:
        engine.session("acme-audit").ask("?")
    told = rlm("sessions", *arguments, code=2)
    assert (told.out, told.err) == ("", "rlm: there is no session 'acme-adit'; near are 'acme-audit'\n")
    assert "acme-audit" in rlm("trace", "acme-adit", code=2).err
    with Sessions() as sessions:
        assert [one.name for one in sessions.list()] == ["acme-audit"]


# -- forks, rewinds, names ---------------------------------------------------------------------------------------------


def test_forks_and_rewinds_by_command(rlm: Runner, store: Path) -> None:
    rlm(
        "chat",
        "--session",
        "a",
        *CHAT,
        "-q",
        stdin="remember\n/run large = 'x' * 3_000_000\n/run numbers.append(4)\nsum?\n",
    )
    before = sum(path.stat().st_size for path in (store / "blobs").rglob("*") if path.is_file())
    assert json.loads(rlm("sessions", "fork", "a", "b", "--after", "0", "--json").out)["source"] == "a"
    rlm("sessions", "fork", "a", "c")
    assert sum(path.stat().st_size for path in (store / "blobs").rglob("*") if path.is_file()) == before
    values = [rlm("sessions", "get", name, "numbers").out for name in "abc"]
    assert values == ["[1, 2, 3, 4]\n", "[1, 2, 3]\n", "[1, 2, 3, 4]\n"]
    for turn, value in (("0", "[1, 2, 3]\n"), ("1", "[1, 2, 3, 4]\n")):
        rlm("sessions", "rewind", "a", "--after", turn)
        assert rlm("sessions", "get", "a", "numbers").out == value
    rlm("sessions", "rewind", "a", "--to-start")
    assert rlm("sessions", "variables", "a").out == ""
    assert "dropped by a rewind" in rlm("sessions", "show", "a").out
    assert "(dropped)" in rlm("sessions", "usage", "a").out
    assert "there are: 0, 1" in rlm("sessions", "rewind", "a", "--after", "7", code=2).err
    assert "--to-start" in rlm("sessions", "rewind", "a", code=2).err
    assert "'b' exists" in rlm("sessions", "fork", "a", "b", code=2).err
    assert "there are: 0, 1" in rlm("sessions", "fork", "a", "d", "--after", "7", code=2).err


def test_names_are_changed_and_sessions_deleted(rlm: Runner, store: Path) -> None:
    for name in "abc":
        rlm.chat("remember", "/run large = 'x' * 3_000_000", session=name)
    rlm("sessions", "rename", "a", "d")
    assert "choose another name" in rlm("sessions", "rename", "b", "c", code=2).err
    assert "give --yes" in rlm("sessions", "delete", "b", code=2).err
    assert json.loads(rlm("sessions", "delete", "b", "c", "--yes", "--json").out) == {"deleted": ["b", "c"], "freed": 0}
    assert [*(store / "blobs").glob("??/*")] != []
    freed = json.loads(rlm("sessions", "delete", "d", "--yes", "--json").out)["freed"]
    assert freed > 3_000_000
    assert [*(store / "blobs").glob("??/*")] == []
    assert rlm("sessions", "list", "--json").out == ""


def test_on_a_terminal_deleting_asks_first(rlm: Runner) -> None:
    rlm.chat("remember")
    with terminal("sessions", "delete", "a") as screen:
        screen.wait_for("delete a (1 turn)? [y/N]")
        screen.press(ENTER)
        assert screen.wait_for_end() == 1
    with terminal("sessions", "delete", "a") as screen:
        screen.wait_for("delete a (1 turn)? [y/N]")
        screen.press("y" + ENTER)
        assert screen.wait_for_end() == 0
    assert rlm("sessions", "list", "--json").out == ""


def test_old_sessions_are_pruned(rlm: Runner, killed: list[str]) -> None:
    rlm.chat("remember", session="b")
    assert json.loads(rlm("sessions", "prune", "--older-than", "1d", "--dry-run", "--json").out) == {"dry_run": []}
    assert json.loads(rlm("sessions", "prune", "--older-than", "0s", "--dry-run", "--json").out) == {"dry_run": ["b"]}
    assert "give --yes" in rlm("sessions", "prune", "--older-than", "0s", code=2).err
    assert rlm("sessions", "prune", "--older-than", "0s", "--yes").err == "deleted 1 session: b\n"
    assert json.loads(rlm("sessions", "prune", "--older-than", "0s", "--unfinished", "--yes", "--json").out) == {
        "deleted": ["a"]
    }
    assert "such as 12h, 30d" in rlm("sessions", "prune", "--older-than", "yesterday", code=2).err


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("1.5h", 5400), (" 30 d ", 2_592_000), ("2w", 1_209_600)])
def test_ages_have_units(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1d2h"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        seconds(text)


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_a_session_is_carried_to_another_store_and_goes_on_there(rlm: Runner, tmp_path: Path) -> None:
    rlm.chat("remember", "/run alias = numbers")
    file, there = str(tmp_path / "a.rlm"), ["--store", str(tmp_path / "there")]
    assert json.loads(rlm("sessions", "export", "a", "-o", file, "--json").out)["bytes"] == Path(file).stat().st_size
    assert "--as NAME" in rlm("sessions", "import", file, code=2).err
    rlm("sessions", "import", file, "--as", "b")
    assert json.loads(rlm("sessions", "import", file, *there, "--json").out) == {"name": "a"}
    assert rlm("sessions", "shell", "a", *there, stdin="alias is numbers\nalias.append(4)\n").out == "True\n"
    assert rlm("ask", "sum?", "--session", "a", *CHAT, *there, "-q").out == "the sum is 10\n"
    assert rlm.chat("sum?", session="b").out == "the sum is 6\n"
    damaged = bytearray(Path(file).read_bytes())
    damaged[200] ^= 1
    Path(file).write_bytes(damaged)
    wrong = rlm("sessions", "import", file, "--as", "c", code=1)
    assert wrong.err.count("\n") == 1
    assert "damaged" in wrong.err
    assert "does not exist" in rlm("sessions", "import", "nowhere", code=2).err
    assert "'c'" in rlm("sessions", "show", "c", code=2).err


def test_files_have_the_sessions_name_and_are_written_over_only_by_name(
    rlm: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rlm.chat("remember", session="2026/audit of acme")
    monkeypatch.chdir(tmp_path)
    for command, ending in ((["sessions", "export"], "rlm"), (["sessions", "notebook"], "ipynb"), (["trace"], "html")):
        rlm(*command, "2026/audit of acme")
        file = f"2026-audit-of-acme.{ending}"
        assert Path(file).stat().st_size > 1_000
        assert f"{file} exists" in rlm(*command, "2026/audit of acme", code=2).err
        rlm(*command, "2026/audit of acme", "-o", file)
    assert json.loads(Path("2026-audit-of-acme.ipynb").read_text())["nbformat"] == 4
    assert "remember" in Path("2026-audit-of-acme.html").read_text()


def test_the_store_comes_from_the_option_else_the_environment_else_the_file(
    rlm: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "xdg_config_home" / "rlm" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('store = "beside"\nmodel = "scripted:policies:chat"\n')
    rlm("ask", "remember", "--session", "from the environment", "-q")
    rlm("ask", "remember", "--session", "from the option", "-q", "--store", str(tmp_path / "option"))
    monkeypatch.delenv("RLM_STORE")
    rlm("ask", "remember", "--session", "from the file", "-q")
    assert json.loads(rlm("sessions", "list", "--json").out)["name"] == "from the file"
    assert (config.parent / "beside" / "store.db").exists()
    config.write_text("store = 3\n")
    assert "give a text such as '~/sessions'" in rlm("sessions", "list", code=2).err


def test_a_store_is_checked(rlm: Runner, store: Path) -> None:
    rlm.chat("remember", "/run large = 'x' * 3_000_000")
    assert rlm("sessions", "check").out == "1 session: all is well\n"
    [blob] = (store / "blobs").glob("??/*")
    blob.chmod(0o600)
    blob.write_bytes(b"y")
    wrong = rlm("sessions", "check", code=1)
    assert "is damaged" in wrong.out
    assert len(json.loads(rlm("sessions", "check", "--json", code=1).out)["wrong"]) == 1


def test_a_session_is_replayed_without_a_model(rlm: Runner) -> None:
    rlm.chat("remember", "sum?")
    assert rlm("sessions", "replay", "a").out == "2 turns, 2 requests compared: no difference\n"
    assert json.loads(rlm("sessions", "replay", "a", "--json").out)["difference"] is None
    assert "differs at t0/a0" in rlm("sessions", "replay", "a", "--depth", "2", code=1).out


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_a_session_that_is_open_elsewhere_is_said_to_be_and_can_be_waited_for(rlm: Runner) -> None:
    rlm.chat("remember")
    with process("chat", "--session", "a", *CHAT) as chat:
        assert chat.stderr is not None
        assert "going on with 'a'" in chat.stderr.readline()
        busy = rlm("sessions", "get", "a", "numbers", code=1)
        assert busy.err.count("\n") == 1
        assert f"process {chat.pid} on " in busy.err
        assert busy.err.endswith(": --wait SECONDS waits for it\n")
        assert "process" in rlm("sessions", "delete", "a", "--yes", code=1).err
        assert "kept" in rlm("sessions", "show", "a").out
        assert json.loads(rlm("sessions", "prune", "--older-than", "0s", "--yes", "--json").out) == {"deleted": []}
        with process("sessions", "get", "a", "numbers", "--wait", "30") as waiting:
            chat.communicate("", timeout=20)
            assert waiting.communicate(timeout=20)[0] == "[1, 2, 3]\n"
    assert "0 or more" in rlm("sessions", "get", "a", "numbers", "--wait", "-1", code=2).err


# -- the shell ---------------------------------------------------------------------------------------------------------


def test_a_shell_runs_lines_as_pythons_prompt_does_and_the_model_is_told(rlm: Runner) -> None:
    rlm.chat("remember")
    entries = [
        *("len(numbers)", "None", "numbers, 'two'", "for number in numbers:", "    print(number * 10)", ""),
        *("await __import__('asyncio').sleep(0, 'slept')  # a remark", "numbers.append(4); numbers", "exit()", "never"),
    ]
    done = rlm("sessions", "shell", "a", stdin="\n".join(entries))
    assert (done.out, done.err) == ("3\n([1, 2, 3], 'two')\n10\n20\n30\n'slept'\n", "")
    assert rlm.chat("sum?").out == "the sum is 10\n"
    with Sessions() as sessions:
        [*_, briefed] = [record.event for record in sessions.records("a") if record.event.kind == "briefed"]
    assert any("numbers.append(4)" in note for note in briefed.notes)


def test_what_fails_in_a_shell_is_said_and_is_its_exit_code(rlm: Runner) -> None:
    rlm.chat("remember")
    done = rlm(
        "sessions", "shell", "a", stdin="1 / 0\n)\nprint(llm_query('hello'))\nlen(numbers)\nif True:\n    2", code=1
    )
    assert "ZeroDivisionError" in done.out
    assert "SyntaxError" in done.out
    assert "no model is named: give --model" in done.out
    assert done.out.splitlines()[-1] == "3"
    results = rlm("sessions", "shell", "a", "--json", stdin="1 + 1\n1 / 0\n", code=1).out.splitlines()
    assert [json.loads(line)["stdout"] for line in results] == ["2\n", ""]
    assert json.loads(results[1])["error"]["type"] == "ZeroDivisionError"
    with_model = rlm("sessions", "shell", "a", "--model", "scripted:policies:instant", stdin="llm_query('hello')\n")
    assert with_model.out == "'fine'\n"


def test_a_shell_on_a_terminal_completes_stops_and_goes_on(rlm: Runner) -> None:
    rlm.chat("remember")
    with terminal("sessions", "shell", "a") as screen:
        screen.wait_for(">>>")
        screen.press("for n in numbers:" + ENTER)
        screen.wait_for("...")
        screen.press("    print(n * 111)" + ENTER + ENTER)
        screen.wait_for("333")
        screen.press("while True: pass" + ENTER + ENTER)
        screen.wait_for("▸ while True: pass")
        screen.press(CTRL_C)
        screen.wait_for("rlm: cancelled")
        screen.press("len(numb" + TAB)
        screen.wait_for("len(numbers")
        screen.press(") * 1000" + ENTER)
        screen.wait_for("3000\n>>>")
        screen.press(CTRL_D)
        assert screen.wait_for_end() == 0
        assert "Traceback" not in screen.text


@pytest.mark.parametrize(
    "code", ["x = 1", "f(", "await f()", "async with f() as x:\n    1\n", "if x:\n    1\n", ")", ""]
)
def test_a_whole_entry_is_run_at_once(code: str) -> None:
    assert is_complete(code) == (code != "f(")


@pytest.mark.parametrize("code", ["if x:", "if x:\n    1", "async with f() as x:", "def f():", "'''", "(1,", "x = \\"])
def test_what_is_not_whole_goes_on_in_the_next_line(code: str) -> None:
    assert not is_complete(code)


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("1", "1"),
        (" 1, 2 ", "(1, 2)"),
        ("(y := 3)  # why", "3"),
        ("(1 +\n1)", "2"),
        ("None", ""),
    ],
)
def test_a_lone_expression_shows_what_it_is(code: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(shown(code), {})
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.parametrize("code", ["x = 1", "del x", "1; 2", "pass", "x: int", "if 1: 2", "(", "yield"])
def test_everything_else_is_run_as_it_is(code: str) -> None:
    assert shown(code) == code


# -- documentation -----------------------------------------------------------------------------------------------------


def test_every_command_stands_in_the_documentation_with_its_arguments(rlm: Runner) -> None:
    listed = rlm("sessions", "--help").out
    names = re.findall(r"^  ([a-z]+)  ", listed.partition("Commands:")[2], re.MULTILINE)
    assert len(names) == 18
    page = PAGE.read_text(encoding="utf-8")
    for name in names:
        usage = rlm("sessions", name, "--help").out.splitlines()[0]
        arguments = usage.removeprefix(f"Usage: rlm sessions {name} [OPTIONS]")
        assert f"| `{name}{arguments}` |" in page
    assert rlm("sessions", code=2).out == listed
