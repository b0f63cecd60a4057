"""`python -m tests.escape [NAME or GROUP ...]`: every payload at every level, as every user.

Prints what has succeeded, and writes bench/results/escape.json where all were run. Ends with 1 where one has succeeded
above "none", did not come to its decisive action, or did not succeed at "none" although it must.
"""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tests.escape import hosts

RESULT = hosts.ROOT / "bench" / "results" / "escape.json"


def wrong(report: Mapping[str, Any]) -> list[str]:
    """What must not be, in the report of one host: a line for each payload."""
    lines = []
    for outcome in report["outcomes"]:
        name, found = f"{outcome['group']}/{outcome['name']}", outcome["found"]
        if not outcome["ran"]:
            lines.append(f"{name} did not run: {found or outcome['said']}")
        elif report["level"] != "none" and found:
            lines.append(f"{name} succeeded: {'; '.join(found)}")
        elif report["level"] == "none" and outcome["none"] == "succeeds" and not found:
            lines.append(f"{name} did not succeed without a sandbox: {outcome['said']}")
        elif report["level"] == "none" and outcome["none"] == "fails" and found:
            lines.append(f"{name} succeeded, which nobody expected: {'; '.join(found)}")
    return lines


def summary(host: hosts.Host, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a page shows of it."""
    outcomes = report["outcomes"]
    groups = Counter(outcome["group"] for outcome in outcomes)
    through = Counter(outcome["group"] for outcome in outcomes if outcome["found"])
    return {
        "host": host.name,
        "user": host.user,
        "contained": host.contained,
        "asked": host.isolation,
        "level": report["level"],
        "payloads": len(outcomes),
        "succeeded": sum(through.values()),
        "groups": {group: {"payloads": count, "succeeded": through[group]} for group, count in groups.items()},
        "seconds": report["seconds"],
    }


def main() -> int:
    names, rows, bad = sys.argv[1:], [], 0
    possible = [host for host in (*hosts.SANDBOXED, *hosts.OPEN) if host.cannot is None]
    try:
        hosts.prepare(possible)
        with ThreadPoolExecutor(2) as pool:
            for host, report in zip(possible, pool.map(lambda host: host.run(*names), possible), strict=True):
                row = summary(host, report)
                lines = wrong(report)
                if report["level"] != host.level:
                    lines.append(f"the level is {report['level']}, not {host.level}")
                print(f"{host.name}: {row['payloads']} payloads, {row['succeeded']} succeeded", *lines, sep="\n    ")
                rows.append(row)
                bad += len(lines)
    finally:
        hosts.forget()
    if not names:
        about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "kernel": platform.release(), "machine": platform.machine()}
        RESULT.write_text(json.dumps({"about": about, "runs": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
