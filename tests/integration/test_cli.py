"""The command `rlm` as its users meet it: real processes, scripted models, pipes and terminals.

Run as a program, this file writes the help texts of docs/cli.md anew.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from rlm import __version__
from tests.terminal import CTRL_C, CTRL_D, ENTER, TAB, Terminal

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "cli.md"
RLM = [sys.executable, "-m", "rlm"]


def model(name: str) -> list[str]:
    return ["--model", f"scripted:policies:{name}"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An account that has configured nothing."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"RLM_|COLUMNS|LINES|.*COLOR", name)}
    home = {name: str(tmp_path / name.lower()) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    return kept | home


class Shell:
    """Runs commands to their end, from the folder that holds the scripts."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)

    def __call__(self, *arguments: str, stdin: str | bytes = "", **env: str) -> subprocess.CompletedProcess[str]:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*RLM, *arguments], input=given, capture_output=True, cwd=TESTS, env={**self.env, **env}, timeout=40
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [*RLM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=TESTS,
            env=self.env,
            encoding="utf-8",
        ) as process:
            try:
                yield process
                process.wait(20)
            finally:
                process.kill()

    def on_terminal(self, *arguments: str, **env: str) -> Terminal:
        return Terminal([*RLM, *arguments], cwd=TESTS, env={**self.env, **env})


@pytest.fixture
def rlm(env: dict[str, str]) -> Shell:
    return Shell(env)


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"}


# -- starting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["ask", "--help"]])
def test_looking_around_loads_no_provider(arguments: list[str], env: dict[str, str]) -> None:
    code = "import sys; from rlm.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == f"rlm {__version__}\n" if arguments == ["--version"] else done.stdout.startswith("Usage: rlm")
    heavy = {"pydantic_ai", "openai", "anthropic", "google", "genai_prices", "prompt_toolkit", "rich.markdown"}
    assert heavy.isdisjoint(done.stderr.split())


def test_without_a_command_it_says_what_there_is(rlm: Shell) -> None:
    done = rlm()
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage: rlm [OPTIONS] COMMAND" in done.stdout


# -- ask: what it is about -------------------------------------------------------------------------------------------


def test_one_file_is_its_text(rlm: Shell, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_bytes(b"one\r\ntwo")
    done = rlm("ask", "What does it say?", str(tmp_path / "note.txt"), *model("names"), "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "")


def test_folders_and_files_together_are_one_mapping_from_path_to_text(rlm: Shell, tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("a")
    (tmp_path / "src" / "deep" / "b.py").write_text("b")
    (tmp_path / "src" / ".hidden").write_text("no")
    (tmp_path / "notes.md").write_text("c")
    folder, file = str(tmp_path / "src"), str(tmp_path / "notes.md")
    done = rlm("ask", "Which files are there?", folder, file, "-", *model("names"), "-q", stdin="d")
    assert json.loads(done.stdout) == {f"{folder}/a.py": "a", f"{folder}/deep/b.py": "b", file: "c", "-": "d"}
    alone = rlm("ask", "Which files are there?", folder, *model("names"), "-q")
    assert json.loads(alone.stdout) == {"a.py": "a", "deep/b.py": "b"}


@pytest.mark.parametrize(("given", "seen"), [("é€", "str of 2"), (b"\xff\xfe\x00", "bytes of 3")])
def test_standard_input_is_text_or_bytes(rlm: Shell, given: str | bytes, seen: str) -> None:
    done = rlm("ask", "How long is it?", "-", *model("count"), "-q", stdin=given)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{seen}\n", "")


def test_a_question_may_stand_alone_and_what_is_piped_in_is_not_passed_over_in_silence(rlm: Shell) -> None:
    done = rlm("ask", "Hello?", *model("say"), stdin="unread")
    assert done.returncode == 0
    assert done.stdout == "# Hello\n\nThis is **it**.\nA second line.\n"
    assert "standard input is not read" in done.stderr


def test_closed_streams_are_empty_ones(rlm: Shell) -> None:
    closed = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *RLM, "ask", "How long is it?", "-", *model("count")]
    done = subprocess.run(closed, stdout=subprocess.PIPE, text=True, cwd=TESTS, env=rlm.env, timeout=40)
    assert (done.returncode, done.stdout) == (0, "str of 0\n")


# -- ask: which model --------------------------------------------------------------------------------------------------


def test_the_model_comes_from_the_option_else_the_environment_else_the_file(rlm: Shell, tmp_path: Path) -> None:
    config = tmp_path / "xdg_config_home" / "rlm" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('model = "scripted:policies:say"\n[limits]\nerrors = 2\n')
    assert "Hello" in rlm("ask", "Hello?").stdout
    limited = rlm("ask", "Hello?", RLM_MODEL="scripted:policies:failing_cells")
    assert limited.returncode == 3
    assert "2 cells in a row failed" in limited.stderr
    assert rlm("ask", "Hello?", *model("say"), "--errors", "5", RLM_MODEL="nonsense").returncode == 0


def test_a_script_in_the_current_folder_is_found_however_python_starts(rlm: Shell) -> None:
    safe = rlm("ask", "Hello?", *model("say"), "--quiet", PYTHONSAFEPATH="1", PYTHONPATH=str(TESTS.parent))
    assert (safe.returncode, safe.stderr) == (0, "")


# -- ask: how it ends --------------------------------------------------------------------------------------------------

WRONG = {
    "no such file": (["ask", "q", "nowhere.txt", *model("say")], "nowhere.txt does not exist"),
    "question last": (["ask", "policies.py", "What is it?", *model("say")], "the question comes first"),
    "no question": (["ask", " ", *model("say")], "the question is empty"),
    "standard input twice": (["ask", "q", "-", "-", *model("say")], "given twice"),
    "no model": (["ask", "q"], "--model provider:name"),
    "no provider": (["ask", "q", "-m", "gpt-5"], "'openai:gpt-5'"),
    "no key": (["ask", "q", "-m", "openai:gpt-5"], "OPENAI_API_KEY"),
    "no script": (["ask", "q", "-m", "scripted:policies:nobody"], "nobody"),
    "no environment": (["ask", "q", *model("say"), "-e", "moon"], "unknown environment 'moon'"),
    "bad limit": (["ask", "q", *model("say"), "--usd", "-1"], "--usd -1.0: give a number above 0"),
    "bad number": (["ask", "q", *model("say"), "--tokens", "many"], "--tokens"),
    "unknown option": (["ask", "q", "--modle", "x"], "--model"),
    "unknown command": (["aks", "q"], "ask"),
    "missing question": (["ask"], "QUESTION"),
    "two formats": (["ask", "q", *model("say"), "--json", "--events"], "give one of them"),
    "chat from -": (["chat", "-", *model("say")], "rlm ask"),
    "demo": (["demo", "--model", "gpt-5"], "'openai:gpt-5'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_that_says_the_mend(rlm: Shell, case: str) -> None:
    arguments, told = WRONG[case]
    done = rlm(*arguments, RLM_DEBUG="")
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("rlm: ")
    assert told in line


def test_a_failing_provider_is_one_line_without_a_key_and_code_1(rlm: Shell) -> None:
    done = rlm("ask", "Hello?", *model("refused"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "rlm: the provider said no to [key]"
    assert "sk-" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_is_code_1_and_its_traceback_is_for_those_who_ask(rlm: Shell) -> None:
    done = rlm("ask", "Hello?", *model("broken"), "-q")
    assert done.returncode == 1
    assert done.stderr == "rlm: internal error: RuntimeError: a bug of ours, near [key] (--debug shows where)\n"
    traced = rlm("ask", "Hello?", *model("broken"), "-q", "--debug")
    assert traced.returncode == 1
    assert "Traceback" in traced.stderr
    assert "policies.py" in traced.stderr
    assert "sk-" not in traced.stderr.replace("near sk-", "")  # the script's own source line


@pytest.mark.parametrize(
    ("policy", "option", "value"),
    [
        ("failing_cells", "--errors", "2"),
        ("draft", "--calls", "2"),
        ("draft", "--tokens", "1000"),
        ("endless", "--seconds", "1"),
    ],
)
def test_a_limit_is_code_3_with_the_partial_answer_and_the_option_that_raises_it(
    rlm: Shell, policy: str, option: str, value: str
) -> None:
    done = rlm("ask", "Hello?", *model(policy), option, value)
    assert (done.returncode, done.stdout) == (3, "half an answer\n")
    assert done.stderr.splitlines()[-1].endswith(f"; {option} raises the limit")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_and_leaves_what_there_is_of_an_answer(rlm: Shell, number: int, code: int) -> None:
    with rlm.start("ask", "Hello?", *model("endless")) as process:
        assert process.stderr is not None
        wait_for_line(process.stderr, "while True")
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "half an answer\n")
    assert err == ("rlm: cancelled\n" if code == 130 else "")


def wait_for_line(lines: Iterator[str] | Any, part: str) -> None:
    for line in lines:
        if part in line:
            return
    raise AssertionError(f"no line with {part!r}")


def test_a_reader_of_events_that_goes_away_ends_the_turn(rlm: Shell) -> None:
    with rlm.start("ask", "Hello?", *model("ticking"), "-q", "--events") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "entries"),
    [
        (["ask", "Hello?", *model("say"), "-q"], ""),
        (["chat", *model("say"), "-q"], "Hello?"),
        (["chat", *model("say")], "/help"),
    ],
    ids=["ask", "chat", "a command of a chat"],
)
def test_where_nobody_reads_nothing_is_complained_about(rlm: Shell, arguments: list[str], entries: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*RLM, *arguments], input=entries, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=TESTS, env=rlm.env
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# -- ask: what is printed ----------------------------------------------------------------------------------------------


def test_json_is_the_result_alone(rlm: Shell) -> None:
    done = rlm("ask", "How long is it?", "-", *model("count"), "--json", stdin="four")
    result = json.loads(done.stdout)
    assert (result["prompt"], result["response"], result["cost"]) == ("How long is it?", "str of 4", 0.0)
    assert result["usage_summary"]["model_usage_summaries"]["scripted:policies:count"]["total_calls"] == 2
    assert "cell: print(len(context))" in done.stderr


def test_json_of_a_turn_without_an_answer_says_why_and_what_there_is(rlm: Shell) -> None:
    done = rlm("ask", "Hello?", *model("draft"), "--calls", "2", "--json", "-q")
    assert done.returncode == 3
    result = json.loads(done.stdout)
    assert (result["error"], result["partial_answer"]) == ("BudgetExceededError", "half an answer")
    assert result["usage_summary"]["model_usage_summaries"]["scripted:policies:draft"]["total_calls"] == 2


def test_events_are_lines_of_json_that_end_with_the_answer(rlm: Shell) -> None:
    done = rlm("ask", "Ask for 5 pieces", *model("many"), "--sub-model", "scripted:policies:instant", "--events")
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert [kind for kind in kinds if not kind.startswith("call")] == [
        *("asked", "briefed", "asking", "replied", "running", "ran", "answered")
    ]
    assert kinds[-2:] == ["ran", "answered"]
    assert (kinds.count("calling"), kinds.count("called")) == (5, 5)
    stopped = rlm("ask", "Hello?", *model("draft"), "--calls", "1", "--events", "-q")
    last = json.loads(stopped.stdout.splitlines()[-1])
    assert (last["kind"], last["partial_answer"]) == ("stopped", "half an answer")


def test_many_calls_are_a_few_plain_lines(rlm: Shell) -> None:
    done = rlm("ask", "Ask for 2000 pieces", *model("many"), "--sub-model", "scripted:policies:sub")
    assert (done.returncode, done.stdout) == (0, "2000\n")
    lines = done.stderr.splitlines()
    assert len(lines) < 20
    assert "    2,000 of 2,000 calls done, 285 failed" in lines
    assert max(map(len, lines)) <= 80


def test_what_a_model_writes_is_text_and_nothing_else(rlm: Shell) -> None:
    done = rlm("ask", "Take over", *model("hostile"))
    assert done.returncode == 0
    assert controls(done.stdout + done.stderr) == set()
    assert done.stdout == "[red]the answer [/red]\n"
    assert "[bold]code[/bold]" in done.stderr


# -- the live tree -----------------------------------------------------------------------------------------------------


def test_a_terminal_of_80_columns_shows_the_turn_as_a_tree(rlm: Shell) -> None:
    children = ["--sub-model", "scripted:policies:show", "--depth", "2"]
    with rlm.on_terminal("ask", "Which service failed first?", "policies.py", *model("show"), *children) as terminal:
        assert terminal.wait_for_end() == 0
        lines = terminal.text.splitlines()
    assert max(map(cell_len, lines)) <= 80
    for shown in (
        r"Which service failed first\? .*scripted:policies:show",  # the turn
        "├─ 1 .*tokens in, .* out",  # an iteration
        "✓ rows = context.splitlines",  # a cell
        "→ .* rows",  # its output
        "→ ValueError: invalid literal for int",  # its error
        r"llm_query × \d+",  # its sub-calls
        r"rlm_query [━─]+ \d/6",  # those of a running cell, with their progress
        "├─ rlm_query Summarise the errors of hour 0 .*1 iteration",  # a child
        "└─ ▸ lines = context.splitlines",  # and its cell
        r"✓ answered · .* s · 5 iterations · [\d,]+ calls · [\d,]+ tokens · \$0",
        "1 It refused connections at 03:12.",  # Markdown, drawn
    ):
        assert any(re.search(shown, line) for line in lines), f"{shown}\n{terminal.text}"


def test_the_tree_of_thousands_of_calls_stays_small(rlm: Shell) -> None:
    with rlm.on_terminal(
        "ask", "Ask for 3000 pieces", *model("many"), "--sub-model", "scripted:policies:sub"
    ) as terminal:
        assert terminal.wait_for_end() == 0
    assert re.search(r"llm_query [━─]{20} [\d,]+/3,000 · \d+ failed: ModelError: pi", terminal.text)
    assert "llm_query × 3,000 (428 failed)" in terminal.text
    assert len(terminal.raw) < 30_000


def test_what_a_model_writes_does_not_reach_a_terminal_as_commands_and_colours_are_optional(rlm: Shell) -> None:
    with rlm.on_terminal("ask", "Take over", *model("hostile"), NO_COLOR="1") as terminal:
        assert terminal.wait_for_end() == 0
    assert "[red]the answer [/red]" in terminal.text
    assert "[bold]code[/bold]" in terminal.text
    sequences = set(re.findall(r"\x1b.[^A-Za-z]*[A-Za-z]", terminal.raw))
    ours = {"\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[1;2m"}
    assert sequences <= ours
    assert not controls(re.sub(r"\x1b.[^A-Za-z]*[A-Za-z]", "", terminal.raw).replace("\r", ""))


# -- chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_without_a_terminal_takes_its_lines_from_standard_input(rlm: Shell, tmp_path: Path) -> None:
    (tmp_path / "two words.txt").write_text("some text")
    entries = [
        "remember this",
        "what is the sum?",
        f"/add '{tmp_path / 'two words.txt'}' as words",
        "/run print(words.upper())",
        "/run",
        "for n in numbers:",
        "    print(n * 100)",
        "",
        "numbers.append(4)",
        "/end",
        "and now?",
        "/cells",
        "/vars",
        "/usage",
        "/quit",
        "never asked",
    ]
    done = rlm("chat", "policies.py", *model("chat"), "-q", stdin="\n".join(entries))
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[:7] == ["kept", "the sum is 6", "SOME TEXT", "100", "200", "300", "the sum is 10"]
    assert said[7].startswith("[1] ")
    assert 'answer["content"] = f"the sum is {sum(numbers)}"' in said
    assert {"context_0: str", "context_1: str", "words: str", "numbers: list", "history_2: list"} <= set(said)
    assert re.fullmatch(r"scripted:policies:chat +3 +[\d,]+ +0 +[\d,]+ +\$0", said[-1].rstrip())


def test_what_fails_in_a_chat_is_said_and_the_chat_goes_on(rlm: Shell) -> None:
    entries = ["/vras", "fail", "/add nowhere.txt", "/add policies.py as 2nd", "/run 1 / 0", "remember this", "sum?"]
    done = rlm("chat", *model("chat"), "-q", stdin="\n".join(entries))
    assert done.returncode == 2  # of the first that failed
    assert done.stdout.splitlines()[-2:] == ["kept", "the sum is 6"]
    assert "ZeroDivisionError" in done.stdout
    wrong = done.stderr.splitlines()
    assert len(wrong) == 4
    assert "did you mean /vars?" in wrong[0]
    assert wrong[1] == "rlm: the provider said no to [key]"


def test_what_nobody_foresaw_in_a_model_is_said_in_one_line_and_the_chat_goes_on(rlm: Shell) -> None:
    done = rlm("chat", *model("chat"), "-q", stdin="remember this\nbreak\nsum?\n")
    assert (done.returncode, done.stdout.splitlines()) == (1, ["kept", "the sum is 6"])
    [wrong] = done.stderr.splitlines()
    assert "ValueError: the client does not know what to do" in wrong


def test_a_chat_in_json_has_a_line_for_each_turn_and_nothing_else(rlm: Shell) -> None:
    done = rlm("chat", *model("chat"), "--json", "-q", stdin="remember this\n/vars\nsum?\nfail\n")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result.get("response", result.get("error")) for result in results] == ["kept", "the sum is 6", "ModelError"]
    assert "numbers: list" in done.stderr


def test_a_chat_on_a_terminal_outlives_ctrl_c_and_completes_and_remembers(rlm: Shell, tmp_path: Path) -> None:
    with rlm.on_terminal("chat", "policies.py", *model("chat")) as terminal:
        terminal.wait_for("rlm>")
        terminal.press("remember this" + ENTER)
        terminal.wait_for("kept")
        terminal.wait_for("rlm>", terminal.text.count("rlm>"))
        terminal.press("endless" + ENTER)
        terminal.wait_for("▸ print('started')")
        terminal.press(CTRL_C)
        terminal.wait_for("rlm: cancelled")
        terminal.press("what is the sum?" + ENTER)
        terminal.wait_for("the sum is 6")
        terminal.press("/run print('n' + str(len(numb" + TAB)
        terminal.wait_for("len(numbers")
        terminal.press(")))" + ENTER)
        terminal.wait_for("n3")
        terminal.press("/run while True: pass" + ENTER)
        terminal.wait_for("▸ while True: pass")
        terminal.press(CTRL_C)
        terminal.wait_for("rlm: cancelled", 2)
        terminal.press("/ad" + TAB)
        terminal.wait_for("/add")
        terminal.press(" polic" + TAB)
        terminal.wait_for("policies.py")
        terminal.press(" as source" + ENTER)
        terminal.wait_for("context_1 (source): str")
        terminal.press("dropped" + CTRL_C + CTRL_C)
        terminal.wait_for("Ctrl-C again, or Ctrl-D, leaves")
        terminal.press(CTRL_C)
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.text
    history = tmp_path / "xdg_state_home" / "rlm" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+what is the sum?" in history.read_text()
    assert "dropped" not in history.read_text()


def test_ctrl_d_leaves_a_chat(rlm: Shell) -> None:
    with rlm.on_terminal("chat", *model("chat"), "--quiet") as terminal:
        terminal.wait_for("rlm>")
        terminal.press(CTRL_D)
        assert terminal.wait_for_end() == 0


# -- documentation -----------------------------------------------------------------------------------------------------

HELP = re.compile(r"<!-- (?P<command>rlm[ \w]*) -->\n```\n(?P<text>.*?)```\n", re.DOTALL)


def help_of(command: str) -> str:
    env = {**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    asked = [*RLM, *command.split()[1:], "--help"]
    return subprocess.run(asked, capture_output=True, text=True, env=env, check=True).stdout


def with_help(page: str) -> str:
    return HELP.sub(lambda found: f"<!-- {found['command']} -->\n```\n{help_of(found['command'])}```\n", page)


def test_the_documentation_shows_the_help_texts_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [found["command"] for found in HELP.finditer(page)] == [
        *("rlm", "rlm ask", "rlm chat", "rlm sessions", "rlm trace", "rlm demo")
    ]
    assert with_help(page) == page, f"write them anew with: python {Path(__file__).relative_to(TESTS.parent)}"


def test_the_documentation_lists_the_commands_of_a_chat(rlm: Shell) -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = rlm("chat", *model("chat"), "-q", stdin="/help\n").stdout.splitlines()
    assert len(listed) == 11
    for line in listed:
        assert f"| `{re.split('  +', line)[0]}` |" in page


if __name__ == "__main__":
    PAGE.write_text(with_help(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
