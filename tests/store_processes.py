"""Other processes that use a store: they run a piece of code, say what they did line by line, and can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PRELUDE = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from rlm.errors import *
from rlm.ports import Owned
from rlm.stores.blobs import digest_of
from rlm.stores.sqlite import SQLiteStore
from rlm.types import Called, Recorded

def event(number):
    return Recorded(number, 1000.0 + number, Called(f"t1/c0/f:{number}#0", "f", value=[number, "x" * (number % 50)]))

def say(*words):
    print(*words, flush=True)
"""


class Child:
    """A process that runs `code` after PRELUDE; `args` are its sys.argv[1:]."""

    def __init__(self, code: str, *args: object, under: Sequence[str] = ()) -> None:
        command = [*under, sys.executable, "-c", PRELUDE + code, *map(str, args)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next that it says; "" once it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def child(code: str, *args: object, under: Sequence[str] = ()) -> Iterator[Child]:
    started = Child(code, *args, under=under)
    try:
        yield started
    finally:
        started.close()


def said(code: str, *args: object, under: Sequence[str] = ()) -> list[str]:
    """What a process says up to its end, which must be a good one."""
    with child(code, *args, under=under) as started:
        output, _ = started.process.communicate(timeout=60)
        assert started.process.returncode == 0, output
        return output.splitlines()


def own_mounts() -> Sequence[str]:
    """The command prefix of a process that may mount what nobody else sees; skips the test where there is none."""
    prefix = ("unshare", "--mount")
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounting a small or read-only file system takes root and unshare(1)")
    if subprocess.run([*prefix, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return prefix
