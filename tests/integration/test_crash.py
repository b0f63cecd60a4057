"""Sessions whose processes are killed at any instant: a short run of what `scripts/crash` does for long.

The last tests take what a run found and spoil it: a check that finds nothing wrong with that would be none.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlm import LocalREPL
from rlm.types import Answered, Called, Ran, Recorded, Replied
from tests.crash import report
from tests.crash.doom import family
from tests.crash.harness import Harness
from tests.crash.life import SESSION
from tests.crash.provider import Billed
from tests.crash.script import draw
from tests.crash.truth import Life, Truth, Violation


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with Harness(tmp_path_factory.mktemp("crash")) as harness:
        yield harness


def test_sessions_that_are_killed_anywhere_are_those_that_nobody_killed(harness: Harness) -> None:
    tallies = [harness.session(seed, style="storm", length=5, lives=15) for seed in (2, 7, 19, 24, 30, 31)]
    assert sum(tally.kills for tally in tallies) >= 3  # which of them is hit before its end is a matter of chance


def test_so_are_those_that_are_killed_at_one_event_after_the_other(harness: Harness) -> None:
    tallies = [harness.session(seed, style="sweep", length=3, lives=20) for seed in (3, 105, 112)]
    assert sum(tally.kills for tally in tallies) >= 3


def test_a_zygote_that_is_killed_while_it_starts_does_not_lower_the_level() -> None:
    with LocalREPL() as repl:
        usual = repl.isolation
    for delay in (0.005, 0.02, 0.04, 0.06, 0.08):
        before = family(os.getpid())["zygote"]
        killer = threading.Timer(delay, lambda before=before: kill(set(family(os.getpid())["zygote"]) - set(before)))
        killer.start()
        with LocalREPL(env={"DELAY": str(delay)}) as repl:
            assert repl.isolation == usual
            killer.join()
            assert repl.execute_code("print(1)").stdout == "1\n"


def kill(pids: Collection[int]) -> None:
    for pid in sorted(pids)[-1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_script_is_drawn_from_its_seed_alone() -> None:
    for seed in range(20):
        assert draw(seed) == draw(seed)
    assert draw(1) != draw(2)


def test_the_scripts_have_some_of_everything() -> None:
    scripts = [draw(seed) for seed in range(300)]
    steps = [step for script in scripts for step in script.steps]
    wanted = {"ask", "completion", "run", "add", "rewind", "fork", "carry", "variables", "given", "reopen", "pause"}
    assert {step.what for step in steps} >= wanted
    spoken = "\n".join(one.text for script in scripts for plan in script.plans.values() for one in plan or ())
    for part in ("llm_query(", "llm_query_batched(", "rlm_query_batched(", "ThreadPoolExecutor", "effect(", "lookup("):
        assert part in spoken
    for part in (
        "class ",
        "nonlocal",
        "global ",
        "exec(",
        "1 / 0",
        "os._exit",
        "write_text",
        "iter(",
        "del ",
        "context_",
    ):
        assert part in spoken
    assert {script.accidents for script in scripts} == {script.wild for script in scripts} == {True, False}


# -- what the checks find ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Found:
    """What is known of a session that nobody killed, to be spoilt."""

    truth: Truth
    twin: Truth
    life: Life
    log: Sequence[Recorded]
    bill: list[Billed]

    def check(self) -> None:
        self.truth.lived(self.life, {SESSION: self.log}, self.bill)
        self.truth.ended()

    def change(self, kind: type, change: Callable[[list[Recorded], int], None]) -> None:
        log = list(self.log)
        change(log, next(n for n, record in enumerate(log) if isinstance(record.event, kind)))
        self.log = [dataclasses.replace(record, number=n) for n, record in enumerate(log)]


@pytest.fixture(scope="module")
def whole(harness: Harness) -> tuple[Truth, Life, Sequence[Recorded], list[Billed]]:
    seed = next(
        seed
        for seed in range(1000)
        if not (draw(seed).wild or draw(seed).accidents)
        and {"ask", "run", "add"} <= {step.what for step in draw(seed).steps}
        and not {"fork", "carry", "rewind"} & {step.what for step in draw(seed).steps}
        and any("llm_query(" in one.text for plan in draw(seed).plans.values() for one in plan or ())
    )
    return harness.alone(seed)


@pytest.fixture
def found(whole: tuple[Truth, Life, Sequence[Recorded], list[Billed]]) -> Found:
    twin, life, log, bill = whole
    mine = [dataclasses.replace(one, run="mine") for one in bill]
    return Found(Truth(twin.script, "mine", twin), twin, dataclasses.replace(life, done=dict(life.done)), log, mine)


def test_what_is_whole_passes(found: Found) -> None:
    found.check()


def test_a_lost_turn_is_found(found: Found) -> None:
    found.change(Answered, lambda log, n: log.pop(n))
    with pytest.raises(Violation, match="a committed turn is lost"):
        found.check()


def test_a_lost_cell_of_the_users_is_found(found: Found) -> None:
    place = next(
        n for n, record in enumerate(found.log) if record.event.at.startswith("u") and record.event.kind == "ran"
    )
    found.log = [*found.log[:place], *found.log[place + 1 :]]
    with pytest.raises(Violation, match="a cell of the user's is lost"):
        found.check()


@pytest.mark.parametrize("kind", [Replied, Called, Ran])
def test_what_is_on_record_twice_is_found(found: Found, kind: type) -> None:
    found.change(kind, lambda log, n: log.insert(n, log[n]))
    with pytest.raises(Violation, match="on record twice"):
        found.check()


def test_a_log_that_changes_is_found(found: Found) -> None:
    found.check()
    found.change(Replied, lambda log, n: log.pop(n))
    with pytest.raises(Violation, match="no longer what it was"):
        found.check()


def test_a_request_that_is_on_no_record_is_found(found: Found) -> None:
    found.bill.append(dataclasses.replace(found.bill[-1], number=found.bill[-1].number + 1))
    with pytest.raises(Violation, match="1 requests of life 0 are on no record, of which 0 may have been in flight"):
        found.check()


def test_a_recorded_reply_that_is_asked_for_again_is_found(found: Found) -> None:
    found.bill.append(dataclasses.replace(found.bill[-1], number=found.bill[-1].number + 1))
    found.life.strikes = 1
    with pytest.raises(Violation, match="was made although its reply was on record"):
        found.check()


@pytest.mark.parametrize("what", ["ask", "run", "add", "variables", "given"])
def test_another_result_than_the_twins_is_found(found: Found, what: str) -> None:
    number = next(n for n, step in enumerate(found.twin.script.steps) if step.what == what)
    other: dict[str, Any] = {
        "ask": {"answer": "another one"},
        "run": {"printed": "another text", "error": None},
        "given": {"contexts": ["'another input'"], "histories": []},
    }
    found.truth.twin = copy.copy(found.twin)
    found.truth.twin.results = {**found.twin.results, number: other.get(what, "another value")}
    with pytest.raises(Violation, match="came out differently from its twin"):
        found.check()


def test_a_bill_that_is_not_the_usage_is_found(found: Found) -> None:
    assert found.life.usage is not None
    found.life.usage = [found.life.usage[0], found.life.usage[1] + 1, *found.life.usage[2:]]
    with pytest.raises(Violation, match="the session's usage is"):
        found.check()


def test_the_page_is_what_the_committed_result_gives() -> None:
    made = report.page(report.read())
    assert report.PAGE.read_text(encoding="utf-8") == made, "bring it up to date with: python -m tests.crash.report"


def test_a_result_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    result = dataclasses.replace(report.read(), seconds=12.0)
    report.write(result, tmp_path / "crash.json")
    assert report.read(tmp_path / "crash.json") == result
