"""Bytes on their way out of a worker, under their digest; and room for what is nested very deep.

Standard library only, Python 3.9 and newer: this file runs in sandboxes, beside `worker.py`.
"""

from __future__ import annotations

import os
import sys
import threading

from edges import WEIGHT

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

INLINE = 256 * 1024  # bytes of a blob that ride in the answer; larger ones go to a file
IN_ALL = 32 * 1024 * 1024  # bytes of all blobs that ride in one answer; those after them go to files
DEEP = 1 << 29  # bytes of stack for what is nested very deep


class Blob:
    """Bytes on their way out: small ones in memory, others in a file of `spool`, under their digest.

    keep: False where only the digest is wanted. spend: told of the work, before it is done.
    """

    def __init__(self, spool: str | None, spend: Callable[[int], None], keep: bool = True) -> None:
        import hashlib

        self.hash, self.spool, self.spend, self.keep = hashlib.sha256(), spool, spend, keep
        self.parts: list[bytes] = []
        self.size, self.code, self.digest = 0, False, ""
        self.path: str | None = None
        self.file: Any = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.spend(size // WEIGHT)
        self.hash.update(data)
        self.size += size
        if not self.keep:
            return size
        if self.file is None and self.size > INLINE and self.spool is not None:
            self.open_file(self.spool)
        if self.file is not None:
            self.file.write(data)
        else:
            self.parts.append(bytes(data))
        return size

    def open_file(self, spool: str) -> None:
        self.path = os.path.join(spool, f"writing-{os.getpid()}-{id(self)}")
        self.file = open(self.path, "xb")  # noqa: SIM115 - closed when it is finished
        for part in self.parts:
            self.file.write(part)
        self.parts = []

    def finish(self, code: bool) -> None:
        self.code, self.digest = code, self.hash.hexdigest()
        if self.file is not None:
            self.file.close()

    def take(self, room: int) -> Any:
        """How the answer, which has room for so many bytes, carries it: as text, or by its file's name."""
        if self.path is None and self.spool is not None and self.size > room:
            try:
                self.open_file(self.spool)
                self.file.close()
            except BaseException:
                self.drop()
                raise
        if self.path is None:
            from base64 import b64encode

            return b64encode(b"".join(self.parts)).decode("ascii")
        os.rename(self.path, os.path.join(self.spool or "", self.digest))
        self.path = None
        return {"file": self.digest}

    def drop(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.path is not None:
            os.unlink(self.path)
            self.path = None


def with_deep_stack(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises, with room for a hundred times the usual nesting."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            outcome.append((None, error))

    size, limit = threading.stack_size(DEEP), sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 100_000))
    try:
        thread = threading.Thread(target=run, name="rlm-deep")
        thread.start()
        thread.join()
    finally:
        threading.stack_size(size)
        sys.setrecursionlimit(limit)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
