"""Results on disk: one JSON file a benchmark, with the machine and the versions it was taken with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.driver import KERNELS, PEER, PICKLERS, ROOT
from bench.figures import Figures

FOLDER = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Result:
    """What one run of a benchmark gave. about: the machine, the versions and the circumstances, by name."""

    benchmark: str
    rounds: int
    about: Mapping[str, str]
    figures: Figures


def write(result: Result, folder: Path) -> Path:
    figures = [
        {"table": table, "row": row, "who": who, "values": [float(f"{value:.6g}") for value in values]}
        for (table, row, who), values in result.figures.values.items()
    ]
    failures = [{"row": row, "who": who, "errors": why} for (row, who), why in result.figures.failures.items()]
    data = {"benchmark": result.benchmark, "rounds": result.rounds, "about": result.about}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.benchmark}.json"
    lines = ",\n".join(f"  {json.dumps(figure, ensure_ascii=False)}" for figure in figures)
    head = json.dumps({**data, "failures": failures}, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{head},\n "figures": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return path


def read(path: Path) -> Result:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    values: dict[tuple[str, str, str], Sequence[float]] = {
        (figure["table"], figure["row"], figure["who"]): figure["values"] for figure in data["figures"]
    }
    failures = {(failure["row"], failure["who"]): failure["errors"] for failure in data["failures"]}
    return Result(data["benchmark"], data["rounds"], data["about"], Figures(values, failures))


def about_this_run(load: float) -> Mapping[str, str]:
    """The machine and the versions; `load` is its load average before the run began."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "peer": PEER,
        "picklers": ", ".join(PICKLERS),
        "sandboxes": ", ".join([*_bubblewrap(), *KERNELS]),
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pydantic-ai-slim", "openai")),
        "load before": f"{load:.2f}",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _bubblewrap() -> list[str]:
    if shutil.which("bwrap") is None:
        return []
    return [subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout.strip()]


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "rlm")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")
