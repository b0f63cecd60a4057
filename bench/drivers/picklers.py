"""Packages that save a whole namespace to a file, behind the same commands; runs in an environment of their own.

A namespace is safe once its file is synced, and nothing else runs meanwhile.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.drivers.heaps import HEAPS
from bench.drivers.serve import elapsed, serve

FILE = Path("namespace.pickle")
main_module: Any = sys.modules["__main__"]  # dill saves this one, and cloudpickle takes what is defined here by value


class Dill:
    """By `dump_module`, which its documentation has for this."""

    def __init__(self) -> None:
        self._dill: Any = importlib.import_module("dill")

    def save(self, path: Path, names: list[str]) -> None:
        self._dill.dump_module(str(path))

    def load(self, path: Path) -> None:
        self._dill.load_module(str(path))


class Cloudpickle:
    """A dict of all names, by `dump`."""

    def __init__(self) -> None:
        self._cloudpickle: Any = importlib.import_module("cloudpickle")

    def save(self, path: Path, names: list[str]) -> None:
        with path.open("wb") as file:
            self._cloudpickle.dump({name: vars(main_module)[name] for name in names}, file)

    def load(self, path: Path) -> None:
        with path.open("rb") as file:
            vars(main_module).update(self._cloudpickle.load(file))


def saved(saver: Dill | Cloudpickle, heap: str) -> dict[str, float]:
    """Seconds until a namespace with this heap is safe in a file, and until it is loaded again; the file's bytes."""
    namespace, before = vars(main_module), set(vars(main_module))
    exec(HEAPS[heap].make.replace("#", "0"), namespace)
    names = [name for name in namespace if name not in before]

    def save() -> None:
        saver.save(FILE, names)
        with FILE.open("rb") as file:
            os.fsync(file.fileno())

    try:
        seconds, size = elapsed(save), FILE.stat().st_size
        for name in names:
            del namespace[name]
        started = time.perf_counter()
        saver.load(FILE)
        loaded = time.perf_counter() - started
        if (got := repr(eval(HEAPS[heap].check, namespace))) != HEAPS[heap].value:
            raise RuntimeError(f"not what was saved: {got}")
    finally:
        FILE.unlink(missing_ok=True)
        for name in names:
            namespace.pop(name, None)
    return {"safe": seconds, "written": size, "loaded": loaded}


def main(package: str) -> None:
    saver = Dill() if package == "dill" else Cloudpickle()
    serve({"saved": lambda heap: saved(saver, heap)})
