"""A worker in a sandbox on this machine: a session forked from a zygote, reached over three sockets.

The channel carries frames, as everywhere; a second one files, as descriptors; the third one belongs to the guard, the
session's first process, which takes interrupts, says how the worker ended, and ends everything once it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlm.environments.process import SocketTransport, how_it_ended
from rlm.environments.sandbox import cgroups
from rlm.environments.sandbox.cgroups import MemoryGroup
from rlm.environments.sandbox.zygotes import START_SECONDS, Session
from rlm.errors import SandboxError
from rlm.portal import in_thread

LAST_WORDS = 1.0  # seconds in which a guard has told how its worker ended
END = 5.0  # seconds in which the kernel has ended a session; a large memory takes its time to be given back
INTERRUPT = b"i"


class SandboxTransport(SocketTransport):
    """over: called when the session is. limits: what to say of each that a guard ends sessions for. memory: bytes that
    the kernel lets it have, where it can be asked to count them."""

    def __init__(
        self, session: Session, over: Callable[[], None], limits: Mapping[str, str], memory: int | None = None
    ) -> None:
        super().__init__()
        self._session, self._over, self._limits, self._memory = session, over, limits, memory
        self._numbers = itertools.count()
        self._guard: int | None = None  # a descriptor of its process
        self._told: dict[str, Any] = {}
        self._group: asyncio.Future[MemoryGroup | None] | None = None

    async def open(self) -> None:
        self._socket = self._session.channel
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._listen()
        except TimeoutError:
            pass  # the worker will not answer either, and whoever waits for it says so
        except OSError as error:
            raise SandboxError(f"the sandbox has gone: {error}") from error
        if self._memory is not None and self._guard is not None:
            self._group = asyncio.ensure_future(in_thread(self._in_a_group))

    def _in_a_group(self) -> MemoryGroup | None:
        place, guard = cgroups.home(), None if self._guard is None else cgroups.pid_of(self._guard)
        if place is None or guard is None or self._memory is None:
            return None
        try:
            group = MemoryGroup(place, self._memory + cgroups.OVERHEAD)
            group.add(guard)
        except OSError:  # no more of them can be made; the guard watches in any case
            return None
        return group

    def interrupt(self) -> None:
        """Interrupt the running cell and the programs that it started."""
        with contextlib.suppress(OSError):
            self._session.control.send(INTERRUPT)

    async def put_file(self, path: Path) -> str:
        """Hand over a descriptor of the file, which is read-only; the worker gets its bytes without a copy."""
        return await self._hand_over(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    async def lend_file(self, path: Path) -> str:
        """The same for a file that the worker is to write to, within its limit for the size of one."""
        return await self._hand_over(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    async def _hand_over(self, descriptor: int) -> str:
        name = f"fd:{next(self._numbers)}"
        try:
            while True:
                try:
                    socket.send_fds(self._session.files, [name.encode()], [descriptor])
                    return name
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        except OSError as error:
            raise ConnectionError(str(error)) from error
        finally:
            os.close(descriptor)

    async def _close(self) -> None:
        try:
            await self._last_words()
        finally:
            self._hang_up()
            self._session.close()
            self._over()
            if self._guard is not None:
                await _until_dead(self._guard)
            group = None if self._group is None else await self._group
            self._end = self._how(group is not None and group.has_killed)
            if group is not None:
                group.remove()

    async def _last_words(self) -> None:
        """Hear what the guard says of the worker's end. A worker that lives is ended."""
        with contextlib.suppress(OSError):
            if not self._channel_is_closed():
                self._session.control.shutdown(socket.SHUT_WR)  # as if the host were gone
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while await self._listen():
                    pass

    async def _listen(self) -> bool:
        """Hear the guard's next message; False once it is gone."""
        control = self._session.control
        await asyncio.sleep(0)  # messages without end must not keep whoever waits for a time limit from its end
        if not _readable(control):
            await _wait_readable(asyncio.get_running_loop(), control)
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 14, 1)
        for descriptor in descriptors:
            if self._guard is None:
                self._guard = descriptor
            else:
                os.close(descriptor)
        self._told.update(_message(message))
        return bool(message)

    def _channel_is_closed(self) -> bool:
        try:
            return self._session.channel.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _how(self, out_of_memory: bool) -> str:
        if failed := self._told.get("failed"):
            return f"its sandbox could not be set up: {str(failed)[:500]}"
        status = self._told.get("status")
        over = self._told.get("over") or ("memory" if out_of_memory and status == -signal.SIGKILL else "")
        if limit := self._limits.get(str(over)):
            return f"killed, because {limit}"
        return how_it_ended(status) if isinstance(status, int) else "killed with its sandbox"

    def disown(self) -> None:
        """In a forked child: close this process's copies, which would keep the session alive when the parent dies."""
        self._session.close()


def _message(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(data)
        if isinstance(said, dict):
            return said
    return {}


def _readable(control: socket.socket) -> bool:
    try:
        control.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


async def _wait_readable(loop: asyncio.AbstractEventLoop, readable: socket.socket | int) -> None:
    arrived = loop.create_future()
    loop.add_reader(readable, _arrive, arrived)
    try:
        await arrived
    finally:
        loop.remove_reader(readable)


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


async def _until_dead(process: int) -> None:
    """Until the first process of a session, and with it every other one, has ended."""
    try:
        with contextlib.suppress(TimeoutError, OSError):  # of a descriptor that nobody can wait for
            async with asyncio.timeout(END):
                await _wait_readable(asyncio.get_running_loop(), process)
    finally:
        os.close(process)
