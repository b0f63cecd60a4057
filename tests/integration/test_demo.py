"""The demo, as a user runs it, and over small inputs of other content: what it says is right is right anywhere."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageMetadata
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlm import RLM, ScriptedModel, demo
from rlm.demo import conversation, corpora, policy, questions
from rlm.demo.conversation import Report, TurnReport
from rlm.demo.corpora import Corpus
from rlm.demo.questions import CONVERSATION, MAX_DIFFERENCES, Question, differences, unused
from rlm.demo.show import Show
from rlm.types import Answered, Event, Listener, Messages

WIDTH = 80

# -- as a user runs it -----------------------------------------------------------------------------------------------


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """The demo in a process of its own, without standard input and without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "rlm.demo", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(demo.__file__).parents[2]), "LC_ALL": "C.UTF-8"},
    )


@pytest.fixture(scope="module")
def watched() -> subprocess.CompletedProcess[str]:
    return command()


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = command("--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_it_succeeds_and_says_that_three_answers_match(watched: subprocess.CompletedProcess[str]) -> None:
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert watched.stdout.count("  ✓ matches ") == 3
    assert "✗" not in watched.stdout
    assert watched.stderr == ""


def test_it_ends_with_one_line_that_sums_it_up(watched: subprocess.CompletedProcess[str]) -> None:
    last = watched.stdout.rstrip().splitlines()[-1]
    assert last.startswith("✓ 3 turns, ")
    assert last.endswith(": all answers match")


def test_it_shows_questions_cells_calls_a_mended_failure_and_what_is_left(
    watched: subprocess.CompletedProcess[str],
) -> None:
    for shown in (
        "Turn 3: ",
        "  Q ",
        "  1 │ ",
        "↳ ",
        "sub-calls",
        "⚠ KeyError: ",
        "  A ",
        "removals (dict)",
        "at once",
    ):
        assert shown in watched.stdout, shown
    assert "Traceback" not in watched.stdout


def test_it_fits_80_columns(watched: subprocess.CompletedProcess[str]) -> None:
    assert max(map(len, watched.stdout.splitlines())) <= WIDTH


def test_its_inputs_are_large(told: dict[str, Any]) -> None:
    assert told["megabytes"] > 10
    assert told["largest_prompt"] * 100 < told["characters"] / 4


def test_it_says_as_json_what_was_asked_answered_and_found(told: dict[str, Any]) -> None:
    assert told["ok"] is True
    assert [turn["ok"] for turn in told["turns"]] == [True, True, True]
    assert [turn["question"] for turn in told["turns"]] == [question.text for question in CONVERSATION]
    assert told["turns"][2]["answer"]["first_question"] == questions.REMOVALS.text
    assert told["turns"][2]["input"] is None


def test_a_killed_conversation_goes_on_in_another_process_and_asks_nothing_twice(told: dict[str, Any]) -> None:
    survival = told["survival"]
    assert survival["ok"] is True
    assert (survival["resumed"], survival["from_record"]) == (True, 1)
    assert survival["answers"] == [turn["answer"] for turn in told["turns"]]
    assert sum(survival["requests"]) == told["requests"]
    assert min(survival["requests"]) > 10


def test_it_shows_that_the_kill_cost_no_request(watched: subprocess.CompletedProcess[str]) -> None:
    shown = " ".join(watched.stdout.split())
    assert re.search(r"ended by SIGKILL in the middle of turn 2, after \d+ model requests", shown)
    assert "✓ the same answers as above" in shown
    [before, after, total, twin] = map(int, re.findall(r"(\d+) \+ (\d+) = (\d+) .* there were (\d+)", shown)[0])
    assert before + after == total == twin


def test_sub_models_read_and_a_cell_fails_on_the_way(told: dict[str, Any]) -> None:
    assert all(turn["sub_calls"] > 10 for turn in told["turns"][:2])
    assert sum(turn["failed_cells"] for turn in told["turns"]) >= 1


def test_all_three_turns_share_one_namespace(told: dict[str, Any]) -> None:
    kept = {"context_0", "context_1", "history_0", "history_1", "history_2", "removals", "library", "licences"}
    assert kept <= set(told["variables"])


def test_a_model_that_answers_wrongly_is_found_out() -> None:
    output = io.StringIO()
    assert demo.run(ScriptedModel(guess), output=output) == 1
    assert output.getvalue().count("  ✗ differs from ") == 3
    assert "calls.9.99 is 1, not missing" in output.getvalue()
    assert output.getvalue().rstrip().endswith("0 of 3 answers match")


def guess(messages: Messages) -> str:
    """Answers in the right form, without having looked."""
    task = str(messages[-1]["content"]).rpartition("Task: ")[2]
    if "_deprecated" in task:
        answer: Any = {"calls": {"9.99": 1}, "modules": []}
    elif "`history`" in task:
        answer = {"first_question": "Which one?", "affected": {}, "modules_by_licence": {}}
    else:
        answer = {"MIT": ["everything"]}
    return f"```repl\nanswer['content'] = {json.dumps(answer)!r}\nanswer['ready'] = True\n```"


# -- over other inputs: nothing is known beforehand --------------------------------------------------------------------

MIT = "Permission is hereby granted, free of charge, to any person"
BSD = "Copyright\n\nRedistribution and use in source and binary forms"
LIBRARY: Mapping[str, str | bytes] = {
    "old.py": "import warnings\n\nwarnings._deprecated(__name__, remove=(3, 20))\n",
    "older/__init__.py": "from warnings import _deprecated\n_deprecated(__name__, 'go (away', remove=(3, 19))\n",
    "parts/tools.py": (
        "def f():\n    warnings._deprecated(\n        'f',\n        'no ) more',\n        remove=(3,\n20),\n    )\n"
        "def g():\n    warnings._deprecated('g', remove=SOON)\n"
    ),
    "warnings.py": "def _deprecated(name, *, remove): ...\n# call _deprecated(name, remove=(3, 1)) to warn\n",
    "latin.py": b"# -*- coding: latin-1 -*-\nname = '\xe9'\n",
    "new.py": "",
}
PACKAGES: Mapping[str, str | bytes] = {
    "one/LICENSE": MIT,
    "one/one.py": "import old, new as n\nif False:\n    import older.inner\n",
    "one/broken.py": "import (\n",
    "two/COPYING.md": BSD,
    "two/two.py": "from . import old\nfrom .new import x\ndef f():\n    from parts.tools import f\n",
    "three/LICENSE.txt": "About this software.\n" * 200 + MIT,
    "three/three.py": "'''\nimport older\n'''\nimport elsewhere\n",
}
DECLARED = {"one": "MIT", "two": "BSD", "three": "MIT"}


def corpus(folder: Path, texts: Mapping[str, str | bytes], licences: Mapping[str, str] | None = None) -> Corpus:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    files = {name: folder / name for name in texts}
    return Corpus("a small corpus", files, texts, sum(map(len, texts.values())), licences or {})


class Quiet:
    """A spectator who looks away."""

    def turn(self, number: int, question: Question, corpus: Corpus | None) -> AbstractContextManager[Listener]:
        return nullcontext(lambda event: None)

    def ended(self, turn: TurnReport) -> None: ...


def hold(folder: Path, root: ScriptedModel, spectator: conversation.Spectator) -> Report:
    library, packages = corpus(folder / "library", LIBRARY), corpus(folder / "packages", PACKAGES, DECLARED)
    with RLM(root, sub_model=ScriptedModel(policy.sub)) as rlm:
        return conversation.hold(rlm, root.name, library, packages, spectator)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return hold(tmp_path_factory.mktemp("small"), ScriptedModel(policy.root), Quiet())


def test_over_other_inputs_the_same_policy_finds_other_answers(small: Report) -> None:
    assert small.error is None
    assert [turn.differences for turn in small.turns] == [[], [], []]
    assert small.turns[0].answer == {"calls": {"3.20": 2, "3.19": 1}, "modules": ["old", "older"]}
    assert small.turns[1].answer == {"MIT": ["one", "three"], "BSD": ["two"]}
    assert small.turns[2].answer == {
        "first_question": questions.REMOVALS.text,
        "affected": {"old": 1, "older": 1, "parts": 1},
        "modules_by_licence": {"MIT": 3, "BSD": 1},
    }


def test_what_the_last_turn_needs_is_what_the_first_two_kept(tmp_path: Path) -> None:
    def forgetful(messages: Messages) -> str:
        return policy.root(messages).replace("removals.setdefault", "{}.setdefault")

    report = hold(tmp_path, ScriptedModel(forgetful), Quiet())
    assert [turn.matches for turn in report.turns] == [True, True, False]
    assert report.turns[2].differences[0] == "affected.old is missing, not 1"


def test_an_answer_that_leaves_the_variables_unread_does_not_count(small: Report, tmp_path: Path) -> None:
    def knowing(messages: Messages) -> str:
        if "Task: There is no new input" not in str(messages[1]["content"]):
            return policy.root(messages)
        content = json.dumps(small.turns[2].answer)
        return f"```repl\nanswer['content'] = {content!r}\nanswer['ready'] = True\n```"

    last = hold(tmp_path, ScriptedModel(knowing), Quiet()).turns[2]
    assert last.answer == small.turns[2].answer
    assert last.differences == [
        f"no cell read `{name}`" for name in ("removals", "library", "licences", "imports", "history")
    ]


def test_a_turn_without_an_answer_ends_the_conversation_and_is_told(tmp_path: Path) -> None:
    output = io.StringIO()
    show = Show(Console(file=output, width=WIDTH))
    report = hold(tmp_path, ScriptedModel(["no code", "still none"]), show)
    show.closing(report)
    assert not report.matches
    assert report.turns == []
    assert "✗ turn 1 ended without an answer: ModelError: " in output.getvalue()
    assert output.getvalue().rstrip().endswith("0 of 3 answers match")


class Recording:
    """A view that keeps what it is told, turn by turn."""

    def __init__(self) -> None:
        self.turns: list[list[Event]] = []

    def tell(self, event: Event) -> None:
        self.turns[-1].append(event)

    def __enter__(self) -> Self:
        self.turns.append([])
        return self

    def __exit__(self, *error: object) -> None: ...


def test_a_view_is_shown_each_turn_in_place_of_the_cells(tmp_path: Path) -> None:
    output, view = io.StringIO(), Recording()
    report = hold(tmp_path, ScriptedModel(policy.root), Show(Console(file=output, width=WIDTH), view))
    assert report.matches
    assert [type(events[-1]) for events in view.turns] == [Answered, Answered, Answered]
    assert output.getvalue().count("  ✓ matches ") == 3
    assert " │ " not in output.getvalue()


# -- the policy adapts -------------------------------------------------------------------------------------------------


def conversation_of(task: str, *outputs: str) -> Messages:
    """The messages of a turn in which the policy's cells printed these."""
    messages: list[Any] = [{"role": "system", "content": "…"}]
    messages.append({"role": "user", "content": f"This turn's input: `context_7`: dict, 3 items.\n\nTask: {task}"})
    for output in outputs:
        messages += [{"role": "assistant", "content": policy.root(messages)}, {"role": "user", "content": output}]
    return messages


def test_it_uses_the_input_that_the_prompt_names() -> None:
    assert "context_7.values()" in policy.root(conversation_of(questions.REMOVALS.text))


@pytest.mark.parametrize(("values", "decodes"), [("{'str': 3}", False), ("{'str': 2, 'bytes': 1}", True)])
def test_it_decodes_bytes_only_where_it_saw_some(values: str, decodes: bool) -> None:
    reply = policy.root(conversation_of(questions.REMOVALS.text, f"[cell 1]\nvalues: {values}"))
    assert (".decode(" in reply) is decodes


@pytest.mark.parametrize(("said", "cuts_out"), [('{"release": null}', False), ("Sure: {...}", True)])
def test_it_cuts_the_json_out_of_replies_that_say_more(said: str, cuts_out: bool) -> None:
    seen = ("values: {'str': 3}", "mentions: 5 in 2 files", f"sub-model: {said}")
    assert ("rindex" in policy.root(conversation_of(questions.REMOVALS.text, *seen))) is cuts_out


def test_it_mends_a_cell_that_failed() -> None:
    begun = ("licence files: one/LICENSE two/COPYING ...",)
    assert "/LICENSE" in policy.root(conversation_of(questions.LICENCES.text, *begun))
    failed = policy.root(conversation_of(questions.LICENCES.text, *begun, "Traceback …\nKeyError: 'two/LICENSE'"))
    assert failed.startswith("There is no 'two/LICENSE'")
    fine = policy.root(conversation_of(questions.LICENCES.text, *begun, "2 texts of 40 characters"))
    assert "There is no" not in fine


def test_it_does_not_invent_what_is_gone() -> None:
    reply = policy.root(conversation_of(questions.AUDIT.text, "removals: dict\nlibrary: set\nimports: dict"))
    assert reply == "I cannot answer: licences of the earlier turns is not there."


def test_the_sub_model_says_when_it_cannot_read_a_question() -> None:
    assert policy.sub([{"role": "user", "content": "What is love?"}]) == "I do not understand the question."


# -- the inputs --------------------------------------------------------------------------------------------------------


def test_the_library_is_that_of_this_python_without_what_is_installed_or_tested() -> None:
    library = corpora.library()
    assert library.size >= corpora.LIBRARY_SIZE
    assert {"json/__init__.py", "argparse.py"} <= set(library.texts)
    folders = {folder for name in library.texts for folder in name.split("/")[:-1]}
    assert folders.isdisjoint(corpora.FOREIGN)


def test_packages_come_with_one_licence_text_each_and_without_their_metadata() -> None:
    packages = corpora.packages()
    papers = [name for name in packages.texts if not name.endswith(".py")]
    assert sorted(name.partition("/")[0] for name in papers) == sorted(packages.licences)
    assert packages.size <= corpora.PACKAGES_SIZE
    assert not [name for name in packages.texts if "METADATA" in name]


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT")], "MIT"),
        ([("License-Expression", "MIT OR Apache-2.0")], None),
        ([("License-Expression", "BSD-3-Clause"), ("License", "MIT")], "BSD"),
        ([("License", "Apache 2.0"), ("Classifier", "License :: OSI Approved :: Apache Software License")], "Apache"),
        ([("License", "MIT"), ("Classifier", "License :: OSI Approved :: BSD License")], None),
        ([("Classifier", "License :: OSI Approved :: ISC License (ISCL)"), ("Classifier", "Typing :: Typed")], "ISC"),
        ([("License", "Mine")], None),
        ([], None),
    ],
)
def test_a_licence_counts_as_declared_where_all_statements_agree(
    fields: list[tuple[str, str]], licence: str | None
) -> None:
    assert corpora.declared(metadata(fields)) == licence


def metadata(fields: list[tuple[str, str]]) -> PackageMetadata:
    from importlib.metadata import Distribution

    class Declaring(Distribution):
        def read_text(self, filename: str) -> str | None:
            lines = "".join(f"{name}: {value}\n" for name, value in [("Name", "x"), *fields])
            return lines if filename == "METADATA" else None

        def locate_file(self, path: Any) -> Any:
            return Path(path)

    return Declaring().metadata


# -- comparing ---------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    max_leaves=8,
)


@given(values)
def test_the_truth_differs_from_nothing(truth: Any) -> None:
    assert differences(truth, truth) == []
    assert differences(json.loads(json.dumps(truth)), truth) == []


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=4), st.integers(min_value=1))
def test_a_wrong_number_is_named(truth: dict[str, int], by: int) -> None:
    key = sorted(truth)[0]
    [found] = differences({**truth, key: truth[key] + by}, truth)
    assert found == f"{key} is {truth[key] + by}, not {truth[key]}"


def test_order_of_lists_and_space_in_texts_do_not_count() -> None:
    assert differences({"MIT": ["b", "a"], "text": "one  two\n"}, {"MIT": ["a", "b"], "text": "one two"}) == []


def test_what_is_missing_and_what_is_too_much_is_said() -> None:
    assert differences({"MIT": ["a", "x"]}, {"MIT": ["a", "b"], "BSD": ["c"]}) == [
        "BSD is missing, not ['c']",
        "MIT lacks 'b'",
        "MIT has 'x', wrongly",
    ]


def test_many_differences_are_counted() -> None:
    found = differences({}, {str(number): number for number in range(MAX_DIFFERENCES + 3)})
    assert len(found) == MAX_DIFFERENCES + 1
    assert found[-1] == "and 3 more"


def test_a_variable_counts_as_used_where_a_cell_reads_it() -> None:
    cells = ["x = removals['a']", "library = 1", "print(history_0)", "not python ("]
    assert unused(cells, ["removals", "library", "history", "imports"]) == ["library", "imports"]


def test_an_answer_of_any_form_can_be_shown() -> None:
    output = io.StringIO()
    turn = TurnReport("?", None, "\x1b[31mtext", "the truth", ["it is wrong"], 1, 1, 0, 10, 0.5, 1.0)
    Show(Console(file=output, width=WIDTH)).ended(turn)
    assert "  A text" in output.getvalue()
    assert "✗ differs from the truth:" in output.getvalue()
    assert "1 cell (1 failed), 0 sub-calls, 10 tokens, $0.5000, 1.0 s" in output.getvalue()
