"""docs/crash.md, made from the result of the long run and nothing else, and that result on disk."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.results import about_this_run
from tests.crash.harness import ROOT, Tally
from tests.crash.life import CONCURRENCY

RESULT = ROOT / "bench" / "results" / "crash.json"
PAGE = ROOT / "docs" / "crash.md"
SHOWN = ("date", "processor", "memory", "system", "python")


@dataclass(frozen=True)
class Result:
    """What a run came to. seed: of its first session; seconds: how long it took; about: the machine, by name."""

    tally: Tally
    violations: int
    seed: int
    jobs: int
    seconds: float
    about: Mapping[str, str]


def about(load: float) -> Mapping[str, str]:
    """The machine. load: its average before the run."""
    known = about_this_run(load)
    return {name: known[name] for name in SHOWN}


def write(result: Result, path: Path) -> None:
    data = asdict(result) | {"seconds": round(result.seconds)}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path = RESULT) -> Result:
    data = json.loads(path.read_text(encoding="utf-8"))
    return Result(**data | {"tally": Tally(**data["tally"])})


def page(result: Result) -> str:
    """The page for this result."""
    tally = result.tally
    rows = {
        "kills": f"{tally.kills:,}: {tally.hosts:,} of the host, {tally.workers:,} of a worker beside it",
        "violations": f"{result.violations:,}",
        "committed turns lost": f"{result.violations:,}",
        "recorded replies asked for again": f"{result.violations:,}",
        "requests": f"{tally.requests:,}",
        "of these in flight at a kill, and made again": f"{tally.repeated:,}",
        "sessions, processes, events": f"{tally.sessions:,}, {tally.lives:,}, {tally.events:,}",
        "first seed": f"{result.seed}",
        "time": f"{result.seconds / 60:.0f} minutes, {result.jobs} sessions at a time",
        **result.about,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    return textwrap.dedent(TEXT).lstrip().replace("<figures>", table).replace("<concurrency>", str(CONCURRENCY))


TEXT = """
    # Killed at any instant

    <!-- Made by `python -m tests.crash.report` from bench/results/crash.json. A test compares them. -->

    <figures>
"""


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
