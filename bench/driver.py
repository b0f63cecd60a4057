"""The harness's end of a driver: starts it with the right interpreter and asks it for measurements.

The peers get environments of their own, `.venv-rlms`, `.venv-picklers` and `.venv-kernels`, made on first use with
exactly the versions named here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.drivers import processes

ROOT = Path(__file__).parents[1]
PEER = "rlms==0.1.3"
PEER_VENV = ROOT / ".venv-rlms"
PICKLERS = ("dill==0.4.1", "cloudpickle==3.1.2", "numpy==2.4.6")
PICKLERS_VENV = ROOT / ".venv-picklers"
KERNELS = ("ipykernel==7.4.0", "jupyter_client==8.10.0")
KERNELS_VENV = ROOT / ".venv-kernels"

# This checkout comes last on the path: what is called `rlm` is what the driver's own environment has under that name.
BOOT = f"import sys; sys.path.append({str(ROOT)!r}); from bench.drivers.{{module}} import main; main(*sys.argv[1:])"


class DriverError(RuntimeError):
    """A driver could not do what it was asked; the message is its own traceback."""


class Driver:
    """A running driver. Values are what its commands return."""

    def __init__(self, module: str, *args: str, python: Path = Path(sys.executable)) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rlm-bench-")
        self._process = subprocess.Popen(
            [str(python), "-P", "-c", BOOT.format(module=module), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env={"PATH": os.environ["PATH"], "HOME": self._folder.name, "LANG": "C.UTF-8"},
        )

    def do(self, command: str, **arguments: Any) -> Any:
        """Raises `DriverError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise DriverError(f"the driver ended with status {self._process.wait()} in {command}({arguments})")
        answer = json.loads(line)
        if "error" in answer:
            raise DriverError(answer["error"])
        return answer["value"]

    def peak_memory(self, command: str, **arguments: Any) -> float:
        """Bytes by which anonymous and shared memory of the driver and its processes grow at most meanwhile."""
        with _Watch(self._process.pid) as watch:
            self.do(command, **arguments)
        return watch.peak

    def dies(self, command: str, **arguments: Any) -> float:
        """Seconds until it is gone, which the command ends with. Raises `DriverError` where it answers instead."""
        started = time.perf_counter()
        try:
            answer = self.do(command, **arguments)
        except DriverError:
            if self._process.returncode != -signal.SIGKILL:
                raise
            return time.perf_counter() - started
        raise DriverError(f"{command}({arguments}) was to end the driver, and answered {answer}")

    @property
    def status(self) -> int | None:
        """Of its end, as `subprocess` has it; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; to be followed by `close`."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Watch:
    """Looks at the memory of a tree of processes every few milliseconds."""

    def __init__(self, pid: int, every: float = 0.005) -> None:
        self.peak = 0.0
        self._pid = pid
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _memory(self) -> int:
        tree = [self._pid, *processes.descendants(self._pid)]
        return sum(map(processes.private_memory, tree)) + processes.shared_memory()

    def _look(self) -> None:
        while not self._done.wait(self._every):
            self.peak = max(self.peak, self._memory() - self._before)

    def __enter__(self) -> Self:
        self._before = self._memory()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


class Drivers(Mapping[str, Driver]):
    """The drivers by name, each started when it is first asked for something."""

    def __init__(self, commands: Mapping[str, tuple[str, ...]]) -> None:
        self._commands = commands
        self._running: dict[str, Driver] = {}

    def new(self, name: str) -> Driver:
        """One that has done nothing yet; the caller closes it."""
        module, *args = self._commands[name]
        python = PYTHONS[module]() if module in PYTHONS else Path(sys.executable)
        return Driver(module, *args, python=python)

    def __getitem__(self, name: str) -> Driver:
        if name not in self._running:
            self._running[name] = self.new(name)
        return self._running[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)

    def forget(self, name: str) -> None:
        """Close a driver that broke; the next use starts another."""
        if name in self._running:
            self._running.pop(name).close()

    def close(self) -> None:
        for name in list(self._running):
            self.forget(name)


def peer_python() -> Path:
    """The peer's interpreter; makes its environment on first use."""
    return _python_with(PEER_VENV, PEER)


def picklers_python() -> Path:
    """The interpreter that has dill, cloudpickle and numpy; makes its environment on first use."""
    return _python_with(PICKLERS_VENV, *PICKLERS)


def kernels_python() -> Path:
    """The interpreter that has IPython's kernel and a client; makes its environment on first use."""
    return _python_with(KERNELS_VENV, *KERNELS)


def _python_with(venv: Path, *packages: str) -> Path:
    python, complete = venv / "bin" / "python", venv / "complete"
    wanted = " ".join(packages)
    if not complete.exists() or complete.read_text() != wanted:
        print(f"installing {wanted} into {venv.name} (once)", file=sys.stderr)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *packages], check=True)
        complete.write_text(wanted)
        print(f"done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return python


PYTHONS = {"peer": peer_python, "picklers": picklers_python, "kernels": kernels_python}
"""Whose drivers run in an environment of their own, by module."""
