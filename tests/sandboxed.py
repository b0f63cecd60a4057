"""The files that run in sandboxes, imported as they find each other there: side by side, by their bare names.

`inside` runs a worker in this process, over a socket pair, which shows its lines to a debugger and to coverage;
`program` starts one as every environment does.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlm.environments import wire
from rlm.environments.process import RUN, WORKER_FOLDER

sys.path.insert(0, str(WORKER_FOLDER))
capture, channel, codec, names, worker = map(
    importlib.import_module, ("capture", "channel", "codec", "names", "worker")
)
sys.path.remove(str(WORKER_FOLDER))

PATIENCE = 30.0  # seconds until a test that waits for a frame gives up


class Host:
    """The other end of a worker's channel: sends any frame, receives what `wire` lets through."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._wire = wire.Wire()
        self._arrived: list[wire.Frame] = []
        self._number = 0
        connection.settimeout(PATIENCE)

    def send(self, type: str, **frame: Any) -> None:
        self._number += 1
        self.connection.sendall(wire.encode({"type": type, **frame}, self._number))

    def receive(self) -> wire.Frame | None:
        """The next frame; None once the worker is gone."""
        while not self._arrived:
            data = self.connection.recv(1 << 16)
            if not data:
                return None
            self._arrived += self._wire.feed(data)
        return self._arrived.pop(0)

    def expect(self, type: str) -> wire.Frame:
        """The next frame, which must be of this type."""
        frame = self.receive()
        assert frame is not None, "the worker is gone"
        assert frame["type"] == type, frame
        return frame

    def run(
        self, code: str, id: int = 1, fresh: bool = False, answer: Callable[..., Any] | None = None
    ) -> dict[str, Any]:
        """A cell to its end, its calls answered by `answer`."""
        self.send("run", id=id, code=code, fresh=fresh)
        return self.finish(answer)

    def finish(self, answer: Callable[..., Any] | None = None) -> dict[str, Any]:
        """The end of the running cell; what it printed up to there stands in `printed`."""
        printed = {"stdout": "", "stderr": ""}
        while (frame := self.receive()) is not None and frame["type"] != "done":
            if frame["type"] == "out":
                printed[frame["stream"]] += frame["text"]
            else:
                assert answer is not None, frame
                self.send("reply", id=frame["id"], value=answer(*frame["args"], **frame["kwargs"]))
        assert frame is not None, "the worker is gone"
        for stream, rest in frame["streams"].items():
            printed[stream] += rest["text"] + rest["tail"]
        return {**frame, "printed": printed}


def inside(script: Callable[[Host], Any], *, listen: bool = False, **given: Any) -> Any:
    """Serve as a worker in this thread while `script` plays the host in another one; returns what it returns.

    Cells find `given` in their namespace, and the pipes that child processes of a real worker print into as
    `child_stdout` and `child_stderr`.
    """
    ours, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    before = signal.getsignal(signal.SIGINT)
    program = worker.Worker(theirs.fileno(), theirs.fileno(), [reading for reading, _ in pipes], listen)
    program.names.update(given, child_stdout=pipes[0][1], child_stderr=pipes[1][1])
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def play() -> None:
        try:
            outcome.put((script(Host(ours)), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            outcome.put((None, error))
        finally:
            ours.close()

    host = threading.Thread(target=play, name="host", daemon=True)
    stdout, stderr = program.output.streams()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            host.start()
            program.serve()
        value, error = outcome.get(timeout=PATIENCE)
    finally:
        signal.signal(signal.SIGINT, before)
        host.join(PATIENCE)
        for thread in threading.enumerate():
            if thread.name == "rlm-watch":
                thread.join(PATIENCE)
        if program.loop is not None:
            program.loop.close()
        theirs.close()
        for end in (*pipes[0], *pipes[1]):
            with contextlib.suppress(OSError):  # a cell may have closed it
                os.close(end)
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def program(folder: Path, *options: str, python: str = sys.executable) -> Iterator[Host]:
    """A worker as a process of its own, of this process's group and with its environment; it must end by itself."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [python, "-c", RUN, str(WORKER_FOLDER), *options], stdin=theirs, stdout=theirs, cwd=folder, env=os.environ
        )
        try:
            theirs.close()
            yield Host(ours)
            ours.close()
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


def python_of(version: str) -> str | None:
    """A Python of this minor version, on the PATH or from pyenv, that runs."""
    name = f"python{version}"
    candidates = [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}"))]
    for path in filter(None, candidates):  # pyenv puts shims on the PATH that only say that they are not chosen
        if subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return path
    return None
