"""The benchmark of the sandbox: what a machine does not have is left out and said, and the page does without it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from bench import report
from bench.benchmarks import isolation
from bench.benchmarks.isolation import BENCHMARK, EMPTY, LEVELS, NAMESPACE, OWN, cell, takes
from bench.driver import Drivers
from bench.drivers import bubblewrap, processes, sandboxes
from bench.figures import BUBBLEWRAP, LIMIT, SANDBOXES, Figures, take_all
from bench.results import Result

ABOUT = dict.fromkeys(report.SHOWN_ABOUT, "as it was") | {"date": "2026-01-01", "commit": "0", "load before": "0"}


class Scripted:
    """A driver that answers what it is told to, and remembers what it was asked."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def do(self, command: str, **arguments: Any) -> Any:
        self.asked.append(command)
        return self._answers[command]


def test_a_level_that_a_machine_does_not_have_is_skipped_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    driver = Scripted({"why_not": "no Landlock here"})
    landlock = [take for take in takes(quick=True) if take.who == "rlm, landlock"]
    figures = take_all(landlock, cast(Drivers, {SANDBOXES: driver}), 1, lambda _: None)
    assert not figures.values
    assert not figures.failures
    assert set(driver.asked) == {"why_not"}
    assert "skipped: rlm, landlock: no Landlock here" in capsys.readouterr().err


def test_without_bubblewrap_it_is_skipped_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wrapped = [take for take in takes(quick=True) if take.who == BUBBLEWRAP]
    driver = Scripted({})
    figures = take_all(wrapped, cast(Drivers, {BUBBLEWRAP: driver}), 1, lambda _: None)
    assert not driver.asked
    assert not figures.values
    assert not figures.failures
    assert f"skipped: {BUBBLEWRAP}: there is no bwrap on this machine" in capsys.readouterr().err


def test_the_page_does_without_what_was_skipped() -> None:
    figures = Figures({("time", EMPTY, NAMESPACE): [0.005], ("memory", OWN, NAMESPACE): [5e6]})
    page = report.page({"isolation": Result("isolation", 1, ABOUT, figures)})
    assert "| The first result of a new isolated session: at most 6 ms | 5.00 ms | met |" in page
    assert "at most 4 MB | 5.00 MB | **missed** |" in page
    assert "Python in bubblewrap starts in an unknown time" in page


def test_a_cell_of_each_level_is_judged_by_the_bare_round_trip_of_its_own_row() -> None:
    judged = [target for target in BENCHMARK.targets if target.by is not None]
    assert len(judged) == len(LEVELS) * 2 * len(isolation.VARIABLES)
    for target in judged:
        table, row, _ = target.at
        assert target.by == (table, row, LIMIT)
    row = cell(isolation.LOOP, 0)
    order = [take.who for take in takes(quick=True) if take.row == row]
    assert order == [LIMIT, *LEVELS]


def test_a_target_is_about_what_is_measured() -> None:
    rows = {take.row for take in takes(quick=False)}
    assert {target.at[1] for target in BENCHMARK.targets} <= rows
    assert {target.at[2] for target in BENCHMARK.targets} <= {take.who for take in takes(quick=False)}


def test_memory_of_a_process_counts_what_it_shares_in_parts() -> None:
    assert 0 < processes.private_memory(os.getpid()) < processes.memory(os.getpid())
    assert processes.parent(os.getpid()) == os.getppid()


def test_a_session_is_found_as_its_worker_and_its_guard() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as guard:
        try:
            assert guard.stdout is not None
            worker = int(guard.stdout.readline())
            assert (worker, guard.pid) in sandboxes.sessions(os.getpid())
            assert (worker, guard.pid) not in sandboxes.sessions(os.getpid(), beside=[worker])
        finally:
            os.killpg(guard.pid, signal.SIGKILL)


def test_the_loop_in_bubblewrap_keeps_names_from_cell_to_cell_and_answers_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = (
        tmp_path / "bwrap"
    )  # as if it were bubblewrap, with the same arguments: whether that runs here is its own matter
    options = len(bubblewrap.WRAP) - 1
    plain.write_text(f'#!/bin/sh\nshift {options}\nexec "$@"\n')
    plain.chmod(plain.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    session = bubblewrap.Session()
    try:
        session.run("x = 6")
        session.run("assert x == 6")
        with pytest.raises(RuntimeError, match="ended with status 1"):
            session.run("raise SystemExit(1)")
    finally:
        session.close()
