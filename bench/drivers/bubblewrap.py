"""Python in bubblewrap, behind the same commands: the plainest sandbox of processes that one can put together.

Each line of its standard input is a cell, which it runs in one namespace, and answers with an empty line.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.drivers import processes
from bench.drivers.serve import elapsed, median_time, serve

CELL = "x = 1"
SETTLED = 1.0  # seconds after which a session is idle
LOOP = "import sys; names = {}\nfor line in sys.stdin: exec(line, names); print(flush=True)"
WRAP = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
PYTHON = os.path.realpath(sys.executable)  # an environment may lie in /tmp, which is empty in there
COMMAND = [*WRAP, PYTHON, "-I", "-S", "-c", LOOP]


class Session:
    def __init__(self) -> None:
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def send(self, cell: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(cell.encode() + b"\n")

    def receive(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != b"\n":
            raise RuntimeError(f"{' '.join(WRAP)} ended with status {self._process.wait()}")

    def run(self, cell: str) -> None:
        self.send(cell)
        self.receive()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


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


def at_once(count: int) -> dict[str, float]:
    """Seconds until so many new sessions have answered, and until all have ended."""
    sessions: list[Session] = []

    def start() -> None:
        for _ in range(count):
            sessions.append(Session())
            sessions[-1].send(CELL)
        for session in sessions:
            session.receive()

    def end() -> None:
        for session in sessions:
            session.close()

    return {"start": elapsed(start), "end": elapsed(end)}


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
    commands: dict[str, Any] = {"lives": lives, "at_once": at_once, "memory": memory, "cells": cells}
    serve(commands)
