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


class Spool:
    """A file of the host's for large blobs, which lie in it one after the other. `file` is a descriptor."""

    def __init__(self, file: int) -> None:
        self.file, self.end = file, 0
        self.writer: Blob | None = None

    def __del__(self) -> None:
        os.close(self.file)


class Blob:
    """Bytes on their way out: small ones in memory, others in `spool`.

    keep: False where only the digest is wanted. spend: told of the work, before it is done.
    """

    def __init__(self, spool: Spool | None, spend: Callable[[int], None], keep: bool = True) -> None:
        import hashlib

        self.hash, self.spool, self.spend, self.keep = hashlib.sha256(), spool, spend, keep
        self.parts: list[bytes] = []
        self.size, self.code, self.digest = 0, False, ""
        self.at: int | None = None  # in the spool

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.spend(size // WEIGHT)
        self.hash.update(data)
        if not self.keep:
            self.size += size
            return size
        if self.at is None and self.size + size > INLINE:
            self.begin()
        if self.at is None:
            self.parts.append(bytes(data))
        else:
            self.append(data)
        self.size += size
        return size

    def begin(self) -> None:
        """Go on in the spool, if there is one that nobody else is writing to."""
        if self.spool is None or self.spool.writer is not None:
            return
        self.spool.writer, self.at = self, self.spool.end
        kept, self.parts, self.size = self.parts, [], 0
        for part in kept:
            self.append(part)
            self.size += len(part)

    def append(self, data: Any) -> None:
        assert self.spool is not None
        assert self.at is not None
        rest, place = memoryview(data).cast("B"), self.at + self.size
        while rest:
            written = os.pwrite(self.spool.file, rest, place)
            rest, place = rest[written:], place + written

    def finish(self, code: bool) -> None:
        self.code, self.digest = code, self.hash.hexdigest()

    def take(self, room: int) -> Any:
        """How the answer, which has room for so many bytes, carries it: as text, or by its place in the spool."""
        if self.at is None and self.size > room:
            try:
                self.begin()
            except BaseException:
                self.drop()
                raise
        if self.at is None or self.spool is None:
            from base64 import b64encode

            return b64encode(b"".join(self.parts)).decode("ascii")
        self.spool.writer, self.spool.end = None, self.at + self.size
        return {"at": self.at, "size": self.size}

    def drop(self) -> None:
        if self.at is not None and self.spool is not None and self.spool.writer is self:
            self.spool.writer = None


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
