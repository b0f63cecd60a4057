"""The machine's limits: the same work done in the plainest way that the operating system has.

Each command answers what one of the other drivers' commands measures, without an engine in between.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.drivers.serve import PROMPT, elapsed, median_time, on_one_core, rate, serve, text_of

ECHO = """
import socket
other = socket.socket(fileno=0)
answer = b'x' * %d
while other.recv(65536):
    other.send(answer)
"""
QUESTION, ANSWER = 90, 190  # bytes of the frames of an empty cell, there and back
PAIRS = 5


class Echo:
    """Another process that answers each message over a socket pair."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self._process = subprocess.Popen([sys.executable, "-S", "-c", ECHO % ANSWER], stdin=theirs.fileno())
        theirs.close()

    def round_trip(self) -> None:
        self.socket.send(b"x" * QUESTION)
        self.socket.recv(65536)

    def close(self) -> None:
        self.socket.close()
        self._process.wait()


def round_trips(times: int) -> float:
    """Seconds for one round trip between two blocking processes.

    The system keeps some pairs on one core and others on two, which differ by more than half: the mean of several.
    """
    return statistics.mean(_of_a_pair(times // PAIRS) for _ in range(PAIRS))


def _of_a_pair(times: int) -> float:
    echo = Echo()
    try:
        return median_time(echo.round_trip, times, warm=50)
    finally:
        echo.close()


def awaited_round_trips(times: int) -> float:
    """The same with an asyncio event loop at this end, which is the least that an engine with one can do."""
    return statistics.mean(asyncio.run(_awaited_by_a_pair(times // PAIRS + 50)) for _ in range(PAIRS))


async def _awaited_by_a_pair(times: int) -> float:
    loop, echo, taken = asyncio.get_running_loop(), Echo(), []
    echo.socket.setblocking(False)
    arrived: asyncio.Future[bytes]
    loop.add_reader(echo.socket, lambda: arrived.set_result(echo.socket.recv(65536)))
    try:
        for _ in range(times):
            started, arrived = time.perf_counter(), loop.create_future()
            echo.socket.send(b"x" * QUESTION)
            await arrived
            taken.append(time.perf_counter() - started)
    finally:
        loop.remove_reader(echo.socket)
        echo.close()
    return statistics.median(taken[50:])


def interpreters(count: int, at_once: int) -> float:
    """Seconds for `count` Python processes that do nothing, `at_once` of them at a time."""

    def run(_: int) -> None:
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)

    with ThreadPoolExecutor(at_once) as pool:
        started = time.perf_counter()
        list(pool.map(run, range(count)))
        return time.perf_counter() - started


def context(size: int, sample: str = "a") -> dict[str, Any]:
    """Seconds for one write of a text's bytes to a file, and one decode of them in another, plain process."""
    data = text_of(size, sample).encode()
    reader = (
        "import mmap, sys, time\n"
        "started = time.perf_counter()\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    text = str(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 'utf-8')\n"
        "print(time.perf_counter() - started)\n"
        "started = time.perf_counter()\n"
        "text.count('zebra')\n"
        "print(time.perf_counter() - started)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input")
        written = elapsed(lambda: path.write_bytes(data))
        said = subprocess.run([sys.executable, "-c", reader, str(path)], check=True, capture_output=True, text=True)
    decoded, counted = map(float, said.stdout.split())
    return {"time": written + decoded, "parts": {"write": written, "decode": decoded}, "touch": counted}


def commits(data: str, times: int, rows: int = 1) -> float:
    """Seconds a row takes where so many go into one commit, in an SQLite database with the pragmas of our store."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        connection = sqlite3.connect(Path(folder, "bare.db"), isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, time REAL NOT NULL, data TEXT NOT NULL)")

        def commit() -> None:
            connection.execute("BEGIN IMMEDIATE")
            entries = [(time.time(), data)] * rows
            connection.executemany("INSERT INTO events (time, data) VALUES (?, ?)", entries)
            connection.execute("COMMIT")

        try:
            return median_time(commit, times, warm=2) / rows
        finally:
            connection.close()


def synced(size: int, times: int) -> float:
    """Seconds to append so many bytes to a file, and to have them on the disk."""
    with tempfile.TemporaryFile(dir=".", buffering=0) as file:

        def append() -> None:
            file.write(bytes(size))
            os.fdatasync(file.fileno())

        return median_time(append, times, warm=2)


def loaded(size: int) -> float:
    """Seconds to read a file of text, to verify its SHA-256 and to decode it, in one process."""
    data = text_of(size, "a").encode()
    digest = hashlib.sha256(data).digest()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, "text")
        path.write_bytes(data)
        del data
        started = time.perf_counter()
        read = path.read_bytes()
        if hashlib.sha256(read).digest() != digest:
            raise RuntimeError("it was read otherwise than written")
        read.decode()
        return time.perf_counter() - started


def imported(statement: str, python: str = sys.executable) -> float:
    """Seconds that an import takes in a new interpreter, by that interpreter's own clock."""
    code = f"import time; s = time.perf_counter(); {statement}; print(time.perf_counter() - s)"
    said = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    return float(said.stdout)


def requests(url: str, count: int, at_once: int, client: str) -> float:
    """Requests a second of an HTTP client or an SDK, used directly."""
    clients = {
        "aiohttp": _aiohttp,
        "OpenAI SDK": _sdk,
        "OpenAI SDK over aiohttp": _sdk_over_aiohttp,
        "pydantic-ai over aiohttp": _pydantic_ai,
    }
    with on_one_core():
        return asyncio.run(clients[client](url, count, at_once))


async def _aiohttp(url: str, count: int, at_once: int) -> float:
    import aiohttp

    body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": PROMPT}]}).encode()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            headers = {"content-type": "application/json"}
            async with session.post(url + "/v1/chat/completions", data=body, headers=headers) as response:
                json.loads(await response.read())["choices"][0]["message"]["content"]

        return await rate(ask, count, at_once)


async def _pydantic_ai(url: str, count: int, at_once: int) -> float:
    import openai
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with openai.DefaultAioHttpClient() as http:
        provider = OpenAIProvider(base_url=url + "/v1", api_key="none", http_client=http)
        model = OpenAIChatModel("gpt-4o-mini", provider=provider)
        return await rate(lambda: model_request(model, [ModelRequest.user_text_prompt(PROMPT)]), count, at_once)


async def _sdk(url: str, count: int, at_once: int, http: Any = None) -> float:
    import openai

    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", http_client=http) as sdk:

        def ask() -> Awaitable[object]:
            return sdk.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": PROMPT}])

        return await rate(ask, count, at_once)


async def _sdk_over_aiohttp(url: str, count: int, at_once: int) -> float:
    import openai

    return await _sdk(url, count, at_once, openai.DefaultAioHttpClient())


def main() -> None:
    commands: dict[str, Any] = {
        "round_trips": round_trips,
        "awaited_round_trips": awaited_round_trips,
        "interpreters": interpreters,
        "context": context,
        "commits": commits,
        "synced": synced,
        "loaded": loaded,
        "imported": imported,
        "requests": requests,
    }
    serve(commands)
