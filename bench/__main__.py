"""`python -m bench [NAME…] [--rounds N] [--quick] [--no-peer] [--out FOLDER]`, and `python -m bench report`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report, results
from bench.benchmarks import BENCHMARKS
from bench.driver import Drivers
from bench.figures import DRIVERS, PEERS, Benchmark, take_all
from bench.results import Result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and write docs/benchmarks.md.")
    known = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to take: {known} (default: all), or report")
    parser.add_argument("--rounds", type=int, help="rounds, instead of each benchmark's own number")
    parser.add_argument("--quick", action="store_true", help="small and once: shows that it works, says nothing")
    parser.add_argument("--no-peer", action="store_true", help="leave the other engine out")
    parser.add_argument("--out", type=Path, help="folder for the results, instead of bench/results and the page")
    options = parser.parse_args(arguments)
    names = options.names or list(BENCHMARKS)
    if names != ["report"]:
        if unknown := [name for name in names if name not in BENCHMARKS]:
            parser.error(f"no benchmark {', '.join(unknown)}; there are {known}, and report")
        if options.quick and options.out is None:
            parser.error("--quick needs --out FOLDER: its figures are not to be published")
        drivers = Drivers(DRIVERS)
        try:
            for name in names:
                run(BENCHMARKS[name], drivers, options)
        finally:
            drivers.close()
    if options.out is None:
        report.PAGE.parent.mkdir(exist_ok=True)
        report.PAGE.write_text(report.page(report.read_all()), encoding="utf-8")


def run(benchmark: Benchmark, drivers: Drivers, options: argparse.Namespace) -> None:
    """Take one benchmark and write its file."""
    load, started = os.getloadavg()[0], time.monotonic()
    takes = [take for take in benchmark.takes(options.quick) if not (options.no_peer and take.needs in PEERS)]
    rounds = 1 if options.quick else options.rounds or benchmark.rounds
    figures = take_all(takes, drivers, rounds, lambda line: print(f"{benchmark.name}: {line}", file=sys.stderr))
    result = Result(benchmark.name, rounds, results.about_this_run(load), figures)
    path = results.write(result, options.out or results.FOLDER)
    print(f"{path} ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
