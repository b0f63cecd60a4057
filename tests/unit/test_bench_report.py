"""The page of measurements is made of the result files, and says of every target whether it is met."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report, results
from bench.benchmarks import BENCHMARKS
from bench.driver import DriverError, Drivers
from bench.figures import LIMIT, OURS, PEER, Figures, Take, Target, Values, take_all
from bench.results import Result
from bench.show import amount


def test_the_page_is_what_the_committed_results_give() -> None:
    made = report.page(report.read_all())
    assert report.PAGE.read_text(encoding="utf-8") == made, "bring it up to date with: python -m bench report"


def test_every_benchmark_has_committed_results() -> None:
    assert set(report.read_all()) == set(BENCHMARKS)


def test_a_result_of_a_time_with_fewer_peers_has_its_place_on_the_page() -> None:
    later = ("picklers", "sandboxes")
    about = {name: "as it was" for name in report.SHOWN_ABOUT if name not in later}
    result = Result("imports", 1, {**about, "date": "2026-01-01", "commit": "0", "load before": "0"}, Figures({}))
    assert "| peer | as it was |" in report.page({"imports": result})
    assert not any(f"| {name} |" in report.page({"imports": result}) for name in later)


def test_results_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    figures = Figures({("time", "1 GB", OURS): [1.25, 2.5]}, {("1 GB", PEER): ["MemoryError"]})
    result = Result("contexts", 2, {"processor": "a machine"}, figures)
    assert results.read(results.write(result, tmp_path)) == result


def test_a_ratio_is_that_of_the_rounds_so_that_a_slow_moment_meets_both_sides() -> None:
    ours, limit = ("time", "a cell", OURS), ("time", "a cell", LIMIT)
    assert Figures({ours: [2.0, 20.0, 2.0], limit: [1.0, 10.0, 1.0]}).ratio(ours, limit) == 2.0


def test_a_target_is_not_judged_where_its_figure_was_not_taken() -> None:
    target = Target("at most 2 ms", ("time", "a turn", OURS), 0.002)
    assert report.measured(target, Figures({})) is None
    assert report.measured(target, Figures({("time", "a turn", OURS): [0.003]})) == 0.003


def test_rounds_alternate_and_what_a_row_is_measured_by_stands_together() -> None:
    order: list[str] = []

    def take(who: str) -> Take:
        def measure(_: Drivers) -> Values:
            order.append(who)
            return {"time": 1.0}

        return Take(who, "row", measure)

    figures = take_all([take(LIMIT), take(OURS)], Drivers({}), 3, lambda _: None)
    assert order == [LIMIT, OURS, OURS, LIMIT, LIMIT, OURS]
    assert figures.values["time", "row", OURS] == [1.0, 1.0, 1.0]


def test_a_peer_that_fails_now_and_then_is_published_as_such_and_one_of_ours_ends_the_run() -> None:
    rounds = 0

    def fails_once(_: Drivers) -> Values:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise DriverError("Traceback …\nFileNotFoundError: no such folder")
        return {"time": 1.0}

    figures = take_all([Take(PEER, "128 children", fails_once)], Drivers({}), 3, lambda _: None)
    assert figures.failures == {("128 children", PEER): ["FileNotFoundError: no such folder"]}
    assert figures.values["time", "128 children", PEER] == [1.0, 1.0]
    rounds = 1
    with pytest.raises(DriverError):
        take_all([Take(OURS, "128 children", fails_once)], Drivers({}), 1, lambda _: None)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.00142, "s", "1.42 ms"),
        (12.34, "s", "12.3 s"),
        (0.0000211, "s", "21.1 µs"),
        (1_000_000_000, "B", "1.00 GB"),
        (3_856.4, "/s", "3,856"),
        (2.149, "×", "2.15 ×"),
        (0.0, "B", "0"),
    ],
)
def test_amounts_have_three_digits(value: float, unit: str, shown: str) -> None:
    assert amount(value, unit) == shown
