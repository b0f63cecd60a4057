"""Every benchmark runs, small and once; what the figures are is nobody's business here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import report
from bench.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[2]


def test_a_quick_run_measures_everything_and_publishes_nothing(tmp_path: Path) -> None:
    before = report.PAGE.read_bytes()
    subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--no-peer", "--out", str(tmp_path)], cwd=ROOT, check=True
    )
    taken = report.read_all(tmp_path)
    assert set(taken) == set(BENCHMARKS)
    for benchmark in BENCHMARKS.values():
        for table in benchmark.tables:
            if table.key not in ("parts", "cores"):  # of the largest sizes only
                assert taken[benchmark.name].figures.rows(table.key), (
                    f"{benchmark.name} has no figures for {table.title}"
                )
    assert report.PAGE.read_bytes() == before
    assert "## Targets" in report.page(taken)
