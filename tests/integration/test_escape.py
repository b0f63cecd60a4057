"""Code that tries to get out: none of it succeeds at any level of isolation, for any user. See tests/escape.

The same code runs without a sandbox, where a known part of it must succeed: an oracle that sees nothing proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.escape import hosts, report
from tests.escape.__main__ import wrong
from tests.escape.payloads import GROUPS

HOSTS = {host.name: host for host in (*hosts.SANDBOXED, *hosts.OPEN)}
QUICK = tuple(group for group in GROUPS if group != "resources")  # whose payloads hold what they took for seconds
WHOLE = ("root, namespace", "user, landlock", "root, none")  # where those run too

Reports = Mapping[str, Future[Mapping[str, Any]]]


@pytest.fixture(scope="module")
def reports() -> Iterator[Reports]:
    possible = [host for host in HOSTS.values() if host.cannot is None]
    hosts.prepare(possible)
    try:
        with ThreadPoolExecutor(4) as pool:
            ordered = sorted(possible, key=lambda host: host.name not in WHOLE)
            yield {host.name: pool.submit(host.run, *(() if host.name in WHOLE else QUICK)) for host in ordered}
    finally:
        hosts.forget()


@pytest.mark.parametrize("name", HOSTS)
def test_nothing_gets_out(reports: Reports, name: str) -> None:
    if reason := HOSTS[name].cannot:
        pytest.skip(reason)
    report = reports[name].result()
    assert report["level"] == HOSTS[name].level
    found = wrong(report)
    assert not found, "\n".join(found)


def test_the_oracle_sees_what_happens_without_a_sandbox(reports: Reports) -> None:
    report = next(reports[host.name].result() for host in hosts.OPEN if host.cannot is None)
    seen = {reason.split(":")[0] for outcome in report["outcomes"] for reason in outcome["found"]}
    for canary in ("files changed", "the other process", "the file came back", "the folder came back"):
        assert canary in seen
    for way in ("tcp", "udp", "unix", "unix_datagram", "unix_packets", "abstract", "abstract_datagram"):
        assert f"reached by {way}" in seen


def test_names_are_told_apart() -> None:
    names = [payload.name for payloads in GROUPS.values() for payload in payloads]
    assert len(names) >= 110
    for group, payloads in GROUPS.items():
        assert len({payload.name for payload in payloads}) == len(payloads), group


def test_the_page_says_what_came_out() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert text == report.page(text, report.read()), "bring it up to date with: python -m tests.escape.report"
