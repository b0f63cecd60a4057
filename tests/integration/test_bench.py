"""Every benchmark runs, small and once; what the figures are is nobody's business here."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.benchmarks import BENCHMARKS
from bench.driver import Driver, DriverError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_quick_run_measures_everything_and_publishes_nothing(name: str, tmp_path: Path) -> None:
    before = report.PAGE.read_bytes()
    subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--no-peer", "--out", str(tmp_path)], cwd=ROOT, check=True
    )
    taken = report.read_all(tmp_path)
    assert set(taken) == {name}
    for table in BENCHMARKS[name].tables:
        if table.key == "cores" or (name, table.key) == ("contexts", "parts"):  # of the largest sizes only
            continue
        assert taken[name].figures.rows(table.key), f"{name} has no figures for {table.title}"
    assert report.PAGE.read_bytes() == before
    assert f"## {BENCHMARKS[name].title}" in report.page(taken)


def test_a_driver_that_was_to_die_and_answered_is_an_error() -> None:
    with Driver("durable") as driver, pytest.raises(DriverError, match="was to end the driver"):
        driver.dies("ready")


def test_a_driver_that_fails_where_it_was_to_die_says_how(tmp_path: Path) -> None:
    with Driver("durable") as driver, pytest.raises(DriverError, match="TypeError"):
        driver.dies("ready", unknown=1)


def test_a_killed_driver_can_be_closed() -> None:
    with Driver("durable") as driver:
        driver.do("ready")
        driver.kill()
        assert driver.status == -signal.SIGKILL
