"""`scripts/crash [--kills N | --minutes M] [--seed N] [--sessions N] [--jobs N] [--style S]`: the long run.

Jobs are processes of their own, each with every n-th seed. The run ends with its kills, its time, its sessions, or the
first violation, whose seed is printed with what led to it; and writes bench/results/crash.json and docs/crash.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rlm.environments.sandbox.sandbox import LEVELS
from tests.crash import report
from tests.crash.harness import ROOT, STYLES, Harness, Tally
from tests.crash.truth import Violation

KILLS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/crash", description="Kill sessions, resume them, and compare.")
    parser.add_argument("--kills", type=int, help=f"end after so many (default: {KILLS:,})")
    parser.add_argument("--minutes", type=float, help="end after this time")
    parser.add_argument("--sessions", type=int, help="end after so many sessions: with --seed, the same ones again")
    parser.add_argument("--seed", type=int, default=1, help="of the first session; the next ones follow")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--style", choices=list(STYLES), help="how sessions are killed, instead of a mixture")
    parser.add_argument("--isolation", choices=["auto", *LEVELS], default="auto", help="of the cells")
    parser.add_argument("--length", type=int, help="steps of a session, instead of 4 to 10")
    parser.add_argument("--out", type=Path, help="file for the result, instead of the published one and its page")
    parser.add_argument("--folder", type=Path, help="where sessions lie, and stay where one is violated")
    parser.add_argument("--trace", action="store_true", help="say how each life is to end")
    parser.add_argument("--go-on", action="store_true", help="do not stop at a violation")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="rlm-crash-"))
    if options.job is not None:
        _job(options)
        return 0
    if options.kills is None and options.minutes is None and options.sessions is None:
        options.kills = KILLS
    return _run(options, list(arguments if arguments is not None else sys.argv[1:]))


# -- a job -------------------------------------------------------------------------------------------------------------


def _job(options: argparse.Namespace) -> None:
    """Sessions one after the other, a line of JSON for each, until nobody reads them."""
    last = None if options.sessions is None else options.seed + options.sessions
    seeds = itertools.count(options.seed + options.job, options.jobs)
    trace = (lambda line: print(line, file=sys.stderr, flush=True)) if options.trace else None
    with (
        Harness(options.folder / f"job-{options.job}", trace, options.isolation) as harness,
        contextlib.suppress(BrokenPipeError),
    ):
        for seed in itertools.takewhile(lambda seed: last is None or seed < last, seeds):
            try:
                said = asdict(harness.session(seed, style=options.style, length=options.length))
            except Violation as violation:
                said = {"violation": str(violation), "seed": seed}
            print(json.dumps(said), flush=True)


# -- the run -----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    began, load = time.monotonic(), os.getloadavg()[0]
    total, violations = Tally(), 0
    command = [sys.executable, "-m", "tests.crash", *arguments, "--folder", str(options.folder)]
    command += ["--jobs", str(options.jobs)]
    jobs = [
        subprocess.Popen([*command, "--job", str(number)], cwd=ROOT, stdout=subprocess.PIPE)
        for number in range(options.jobs)
    ]
    print(f"sessions from seed {options.seed} on, {options.jobs} at a time, in {options.folder}", file=sys.stderr)
    try:
        for line in _lines(jobs):
            said = json.loads(line)
            if "violation" in said:
                violations += 1
                print(f"VIOLATION in the session of seed {said['seed']}: {said['violation']}")
                again = f"scripts/crash --seed {said['seed']} --sessions 1 --jobs 1 --trace"
                again += f" --isolation {options.isolation}" + (f" --style {options.style}" if options.style else "")
                print(f"once more: {again}", flush=True)
                if not options.go_on:
                    break
                continue
            total.add(Tally(**said))
            seconds = time.monotonic() - began
            _progress(total, seconds)
            if options.kills is not None and total.kills >= options.kills:
                break
            if options.minutes is not None and seconds >= 60 * options.minutes:
                break
    finally:
        for job in jobs:
            job.terminate()
        for job in jobs:
            job.wait()
    seconds = time.monotonic() - began
    print(f"\n{total}\n{violations} violations, {total.kills / max(seconds, 1e-9):.1f} kills a second", file=sys.stderr)
    if violations:
        return 1
    result = report.Result(
        total, violations, options.seed, options.jobs, seconds, report.about(load, options.isolation)
    )
    report.write(result, options.out or report.RESULT)
    if options.out is None:
        report.PAGE.write_text(report.page(result), encoding="utf-8")
    return 0


def _lines(jobs: Sequence[subprocess.Popen[bytes]]) -> Iterator[str]:
    """What the jobs say, line by line, as it comes; ends when all have ended. Raises where one ends badly."""
    selector = selectors.DefaultSelector()
    for job in jobs:
        assert job.stdout is not None
        selector.register(job.stdout, selectors.EVENT_READ, job)
    while selector.get_map():
        for key, _ in selector.select():
            line = key.fileobj.readline()  # type: ignore[union-attr]
            if line:
                yield line.decode()
            else:
                selector.unregister(key.fileobj)
                if key.data.wait():
                    raise SystemExit(f"a job ended with status {key.data.returncode}")


def _progress(total: Tally, seconds: float) -> None:
    line = f"{total.kills:,} kills, {total.lives:,} lives, {total.sessions:,} sessions, {seconds:.0f} s"
    print(f"\r{line} ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
