"""A worker as a child process, seen as a transport: bytes in, bytes out, signals, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm.environments.kernel import Kernel, WorkerGone
from rlm.environments.process import ProcessTransport, worker_environment

PATIENCE = 30.0


def over(folder: Path, script: Callable[[ProcessTransport], Awaitable[Any]]) -> Any:
    """What the script returns that is given an open transport."""

    async def main() -> Any:
        transport = ProcessTransport(folder)
        await transport.open()
        try:
            async with asyncio.timeout(PATIENCE):
                return await script(transport)
        finally:
            await transport.close()

    return asyncio.run(main())


async def heard(transport: ProcessTransport) -> list[dict[str, Any]]:
    """The frames up to the next end of a line."""
    data = b""
    while not data.endswith(b"\n"):
        data += await transport.receive()
    return [json.loads(line) for line in data.splitlines()]


def test_bytes_go_in_and_come_out(tmp_path: Path) -> None:
    async def script(transport: ProcessTransport) -> None:
        [ready] = await heard(transport)
        assert ready["type"] == "ready"
        await transport.send(b'{"type":"run","id":1,"code":"import os; x = os.ge')
        assert transport.try_send(b'tpid()"}\n{"type":"get","id":2,"name":"x"}\n') > 0
        frames = await heard(transport)
        if len(frames) == 1:
            frames += await heard(transport)
        assert [frame["type"] for frame in frames] == ["done", "value"]
        assert frames[1]["value"] == ready["pid"]
        assert await transport.put_file(tmp_path) == str(tmp_path)

    over(tmp_path, script)


def test_after_the_end_nothing_comes_and_nothing_can_be_sent(tmp_path: Path) -> None:
    async def script(transport: ProcessTransport) -> None:
        [ready] = await heard(transport)
        os.kill(ready["pid"], signal.SIGKILL)
        assert await transport.receive() == b""
        await asyncio.gather(transport.close(), transport.close())
        assert transport.ended() == "killed by SIGKILL"
        assert await transport.receive() == b""
        assert transport.try_send(b"dropped") == len(b"dropped")
        with pytest.raises(ConnectionError):
            await transport.send(b"refused")
        transport.interrupt()

    over(tmp_path, script)


def test_a_send_to_a_dead_worker_is_a_connection_error(tmp_path: Path) -> None:
    async def script(transport: ProcessTransport) -> None:
        [ready] = await heard(transport)
        os.kill(ready["pid"], signal.SIGKILL)
        assert await transport.receive() == b""
        with pytest.raises(ConnectionError):
            await transport.send(b"x")
        assert transport.try_send(b"x") == 1  # the reader tells it

    over(tmp_path, script)


def test_a_worker_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        transport = ProcessTransport(tmp_path)
        kernel = Kernel(transport)
        await kernel.start()
        try:
            async with asyncio.timeout(PATIENCE):
                await stop_and_go(kernel)
        finally:
            await kernel.close()

    async def stop_and_go(kernel: Kernel) -> None:
        await kernel.run("import os\npid = os.getpid()")
        pid = await kernel.get("pid")
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(kernel.run(f"x = len({'x' * 5_000_000!r})"))
        await asyncio.sleep(0.05)  # this loop goes on, and half of the cell is on its way
        os.kill(pid, signal.SIGCONT)
        assert (await waiting).error is None
        assert await kernel.get("x") == 5_000_000
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(kernel.run(f"x = len({'x' * 5_000_000!r})"))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerGone, match="killed by SIGKILL"):
            await waiting

    asyncio.run(main())


def test_whoever_is_cancelled_while_closing_leaves_nothing_half_closed(tmp_path: Path) -> None:
    async def script(transport: ProcessTransport) -> None:
        [ready] = await heard(transport)
        closing = asyncio.create_task(transport.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await transport.close()
        with pytest.raises(ProcessLookupError):
            os.kill(ready["pid"], 0)

    over(tmp_path, script)


def test_one_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    async def main() -> None:
        transport = ProcessTransport(tmp_path)
        await transport.close()
        assert (transport.ended(), await transport.receive()) == ("", b"")

    asyncio.run(main())


def test_the_environment_of_a_worker(tmp_path: Path) -> None:
    environment = worker_environment(tmp_path, {"MINE": "1", "HOME": "/elsewhere"})
    assert (environment["MINE"], environment["HOME"], environment["TMPDIR"]) == ("1", "/elsewhere", str(tmp_path))
    assert environment["PYTHONHASHSEED"] == "0"
    own = {"HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "MINE"}
    assert set(environment) - own <= {"PATH", "LANG", "LC_ALL", "TZ"}
