"""IPython's kernel, the process behind a notebook, behind the same commands; runs in an environment of its own.

It keeps cells away from nothing: a kernel has the rights of the user. It is driven as its documentation has it, by the
blocking client of jupyter_client, which waits for a cell's result and its output.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from typing import Any

from bench.drivers import processes
from bench.drivers.serve import elapsed, median_time, serve

CELL = "x = 1"
SETTLED = 1.0  # seconds after which a session is idle
START_SECONDS = 60.0


class Session:
    def __init__(self) -> None:
        client: Any = importlib.import_module("jupyter_client")
        self._manager, self._client = client.manager.start_new_kernel(
            startup_timeout=START_SECONDS,
            extra_arguments=["--log-level=ERROR"],  # each start would warn of the transport that it has by default
        )

    def run(self, cell: str) -> None:
        said = self._client.execute_interactive(cell, allow_stdin=False)["content"]
        if said["status"] != "ok":
            raise RuntimeError(f"a kernel answered {said}")

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel()


def lives(times: int) -> dict[str, float]:
    """Seconds for the start of a session, and for its end."""
    starts, ends = [], []
    for _ in range(times):
        started = time.perf_counter()
        session = Session()
        session.run(CELL)
        starts.append(time.perf_counter() - started)
        ends.append(elapsed(session.close))
    return {"start": statistics.median(starts), "end": statistics.median(ends)}


def memory(count: int) -> dict[str, float]:
    """Bytes that one of so many idle sessions takes in its own processes."""
    sessions = [Session() for _ in range(count)]
    for session in sessions:
        session.run(CELL)
    time.sleep(SETTLED)
    own = sum(map(processes.memory, processes.descendants(os.getpid())))
    for session in sessions:
        session.close()
    return {"processes": own / count}


def cells(variables: int, times: int) -> float:
    """Seconds for an empty cell beside so many variables."""
    session = Session()
    try:
        session.run(f"globals().update({{f'v{{i}}': i for i in range({variables})}})")
        return median_time(lambda: session.run(CELL), times, warm=5)
    finally:
        session.close()


def main() -> None:
    importlib.import_module("jupyter_client")  # no part of any start
    serve({"lives": lives, "memory": memory, "cells": cells})
