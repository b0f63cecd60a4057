"""Requests to a provider over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.driver import ROOT, Drivers
from bench.figures import LIMIT, OURS, PEER, Benchmark, Figures, Table, Take, Values

AT_ONCE = 32
ROW = f"{AT_ONCE} in flight"
SDK, SDK_AIOHTTP, PYDANTIC_AI = "OpenAI SDK", "OpenAI SDK over aiohttp", "pydantic-ai over aiohttp"


@contextmanager
def provider() -> Iterator[str]:
    """A provider that answers at once, in a process on the last core; its URL."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "provider_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    os.sched_setaffinity(server.pid, {max(os.sched_getaffinity(0))})
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate()


def takes(quick: bool) -> Sequence[Take]:
    count = 64 if quick else 3_200

    def take(who: str, driver: str, **arguments: str) -> Take:
        def measure(drivers: Drivers) -> Values:
            with provider() as url:
                return {"rate": drivers[driver].do("requests", url=url, count=count, at_once=AT_ONCE, **arguments)}

        return Take(who, ROW, measure, driver)

    def account(drivers: Drivers) -> Values:
        with provider() as url:
            value: Values = drivers[OURS].do("request_account", url=url, count=count, at_once=AT_ONCE)
            return value

    return [
        take(LIMIT, LIMIT, client="aiohttp"),
        take(OURS, OURS),
        *(take(sdk, LIMIT, client=sdk) for sdk in (SDK, SDK_AIOHTTP, PYDANTIC_AI)),
        take(PEER, PEER),
        Take(OURS, "", account),
    ]


def means(figures: Figures) -> str:
    return (
        f"One core carries {figures.says('rate', ROW, unit='/s')} requests a second through `ProviderModel`, usage "
        f"and cost counted: {figures.compared('rate', ROW, OURS, SDK)} the OpenAI SDK as it comes, "
        f"{figures.compared('rate', ROW, OURS, SDK_AIOHTTP)} the same over aiohttp, "
        f"{figures.compared('rate', ROW, OURS, PEER)} the peer's client. What lies between it and bare aiohttp is the "
        "Python of the SDK and of pydantic-ai, as the table says."
    )


BENCHMARK = Benchmark(
    name="requests",
    title="Requests to a provider",
    how=(
        f"Chat completions over HTTP against a loopback server that answers at once, {AT_ONCE} in flight; the client "
        "on one core, the server on another. The limit is bare aiohttp that parses the answer. The peer is its OpenAI "
        "client."
    ),
    tables=[
        Table(
            "rate",
            "Requests a second (more is better)",
            "/s",
            ratios=[(OURS, LIMIT), (OURS, PYDANTIC_AI), (OURS, PEER)],
        ),
        Table("account", "Where the core's time goes, a request, by package"),
    ],
    takes=takes,
    means=means,
)
