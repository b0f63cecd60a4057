"""Files that a user asks for: there as a whole or not at all, and their owner's alone to read, as stores are."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, to be written: it takes the place of what stands there, unless something is raised.

    What is no file (a pipe, /dev/stdout) is written itself. Raises `OSError`.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()  # a link stays one
    part = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Have `path` hold this text, as UTF-8, in place of what stands there. Raises `OSError`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
