"""A worker as a child process of this one, reached over a socket pair that is its standard input and output.

The process gets an environment of its own, which holds no variable of the host's but the few named here, a process
group of its own, and a folder of its own as working directory. It is not a sandbox: cells have the rights of the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from rlm.errors import SandboxError

WORKER_FOLDER = Path(__file__).parent
PIECE = 1 << 16  # bytes read at once; a buffer of over 128 KiB costs malloc a system call to get, and two to give back
BUFFER = 1 << 20  # bytes the socket may hold, so that large frames need few switches between the processes

_spec = importlib.util.find_spec("cloudpickle")
CLOUDPICKLE = Path(_spec.origin).with_name("cloudpickle.py") if _spec and _spec.origin else Path("cloudpickle.py")

# The program that an interpreter is started with; its arguments are WORKER_FOLDER and, where interrupts must come as
# frames, "listen". The worker's files are found in their folder for as long as it takes to import them; afterwards the
# working directory is searched for modules, last, so that a file there hides none.
RUN = f"""
import sys
_, sys.path[0], *options = sys.argv
import worker
sys.path[:], sys.argv[:] = [*sys.path[1:], ""], [""]
worker.main("listen" in options, {str(CLOUDPICKLE)!r})
"""


def worker_environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of a worker: none of the host's, which hold keys, but where programs and locales are.

    The hash seed is fixed, so that code that is run again iterates over sets in the same order.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    own = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
    return {**kept, **own, **(extra or {})}


class SocketTransport:
    """What transports over a socket pair on this machine have in common. Subclasses open it, and end the worker."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._end = ""
        self._closing: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[bytes], None] | None = None

    def _pair(self) -> socket.socket:
        """Keep one end of a new pair; the other one is the worker's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._socket = ours
        return theirs

    def try_send(self, data: bytes) -> int:
        if self._socket is None:
            return len(data)
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the worker is gone, which the reader finds out

    async def send(self, data: bytes) -> None:
        if self._socket is None:
            raise ConnectionError("the worker is gone")
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise ConnectionError(str(error)) from error

    def deliver_to(self, receive: Callable[[bytes], None]) -> None:
        if self._socket is not None:
            self._loop, self._receive = asyncio.get_running_loop(), receive
            self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        if self._socket is None or self._receive is None:
            return
        try:
            piece = self._socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._stop_reading()
        self._receive(piece)

    def _stop_reading(self) -> None:
        if self._loop is not None and self._socket is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._socket)
            self._loop = None

    async def receive(self) -> bytes:
        """What arrived, for whoever prefers to ask."""
        if self._socket is None:
            return b""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, PIECE)
        except OSError:
            return b""

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # whoever is cancelled here leaves nothing half closed

    async def _close(self) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._stop_reading()
            closing, self._socket = self._socket, None
            closing.close()

    def ended(self) -> str:
        return self._end


class ProcessTransport(SocketTransport):
    """Starts `python` with the worker, in `folder`."""

    def __init__(self, folder: Path, *, python: str = sys.executable, env: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._python = python
        self._env = worker_environment(folder, env)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    async def open(self) -> None:
        theirs = self._pair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns once the child runs, in milliseconds
                [self._python, "-c", RUN, str(WORKER_FOLDER)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._said,
                cwd=self._folder,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            await self.close()
            raise SandboxError(f"{self._python} cannot be started: {error}") from error
        finally:
            theirs.close()

    def interrupt(self) -> None:
        """Interrupt the running cell and the programs that it started."""
        self._signal(signal.SIGINT)

    async def put_file(self, path: Path) -> str:
        return str(path)

    async def lend_file(self, path: Path) -> str:
        return str(path)

    async def _close(self) -> None:
        self._signal(signal.SIGKILL)
        process, self._process = self._process, None
        if process is not None:
            for pause in (0.0, 0.001, 0.002, 0.005, *[0.01] * 500):  # a large memory takes its time to be given back
                if process.poll() is not None:
                    break
                await asyncio.sleep(pause)
            self._end = how_it_ended(process.returncode, self._words())
        self._hang_up()
        if self._said is not None:
            self._said.close()
            self._said = None

    def disown(self) -> None:
        """Close this process's copy of the channel: it would keep the worker alive when the parent dies."""
        if self._process is not None:
            self._process.returncode = 0  # it is not this process's child, and not its to wait for
        if self._socket is not None:
            self._socket.close()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _words(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read(2_000).decode("utf-8", "replace").strip()


def how_it_ended(status: int | None, said: str = "") -> str:
    """A worker's end in words. status: as `subprocess` tells it."""
    if status is not None and status < 0:
        names = {known.value: known.name for known in signal.Signals}
        how = f"killed by {names.get(-status, f'signal {-status}')}"
    else:
        how = f"exited with status {status}"
    return f"{how}: {said}" if said else how
