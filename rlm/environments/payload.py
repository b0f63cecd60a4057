"""Values on their way into a namespace, laid down once, as text, bytes or a pickle: small ones inline, others in files.

Text and bytes go as they are, so that a gigabyte is written once and decoded once. Everything else is pickled by value
(cloudpickle), and only ever unpickled inside a worker. A payload's file stays until the environment is closed, so that
a restarted worker gets its inputs back.
"""

from __future__ import annotations

import base64
import filecmp
import hashlib
import pickle
import pickletools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import ContextError
from rlm.portal import in_thread
from rlm.ports import Content, Lease, Owned, SupportsPlacing

INLINE = 16 * 1024  # bytes that ride in a frame: above it a file costs less than base64 and JSON do
SLICE = 1 << 24  # characters encoded at a time, so that a large text is never in memory twice


@dataclass(frozen=True, slots=True)
class Payload:
    """A value ready for a worker. `format`: text, bytes or pickle; `text` is base64; `path` a file with the bytes.

    digest: of bytes that came from somewhere else, for the worker to verify; "" where we have just laid them down.
    """

    type: str
    format: str
    text: str | None = None
    path: Path | None = None
    digest: str = ""

    @property
    def content(self) -> Content:
        """The bytes, or our file of them."""
        return Owned(self.path) if self.path else base64.b64decode(self.text or "")

    def hashed(self) -> str:
        """The SHA-256 of the bytes, hexadecimal. Reads the file, if there is one."""
        if self.path is None:
            return hashlib.sha256(base64.b64decode(self.text or "")).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    async def placed(self, lease: Lease) -> tuple[str, Content]:
        """The SHA-256, and what the append of the event that names it is to be given. A large file is on its way to its
        place then, where the lease can do that. Raises `StoreError`, `OSError`.
        """
        content = self.content
        if isinstance(content, bytes):
            return self.hashed(), content
        if isinstance(content, Owned) and isinstance(lease, SupportsPlacing):
            return await lease.place(content)
        return await in_thread(self.hashed), content

    def read(self) -> str:
        """The bytes as base64, for a transport that has nothing better than frames."""
        return self.text or base64.b64encode(self.path.read_bytes() if self.path else b"").decode("ascii")

    def equals(self, other: Payload) -> bool:
        """Whether both hold the same bytes in the same format. Reads files, where there are any."""
        if (self.type, self.format, self.text) != (other.type, other.format, other.text):
            return False
        if self.path is None or other.path is None:
            return self.path is other.path
        return filecmp.cmp(self.path, other.path, shallow=False)

    def has_code(self) -> bool:
        """Whether a pickle holds functions or classes, which only the same minor version of Python loads."""
        data = self.path.read_bytes() if self.path else base64.b64decode(self.text or "")
        by_value = "cloudpickle.cloudpickle"  # the module whose functions build them
        return by_value.encode() in data and any(found == by_value for _, found, _ in pickletools.genops(data))


def unpacked(type: str, format: str, content: bytes | Path, digest: str) -> Payload:
    """A payload that a store kept. `content`: its bytes, or a file that a worker verifies before it loads it."""
    if isinstance(content, Path):
        return Payload(type, format, path=content, digest=digest)
    return Payload(type, format, text=base64.b64encode(content).decode("ascii"), digest=digest)


def pack(value: Any, folder: Path) -> Payload:
    """Lay `value` down; large ones in a new file of `folder`. Blocks for as long as the disk takes.

    Raises `ContextError` for a value that does not pickle, with the reason.
    """
    kind = type(value).__name__
    if type(value) is str:
        return _pack_text(value, folder)
    if type(value) is bytes:
        return _laid(kind, "bytes", value, folder)
    try:
        if _is_plain_small(value):
            return _laid(kind, "pickle", pickle.dumps(value, protocol=5), folder)
        return _pack_pickle(value, folder)
    except Exception as error:  # a __reduce__ of the user's may raise anything
        raise ContextError(
            f"a context of type {kind} cannot be pickled, so it cannot be brought into the REPL "
            f"({type(error).__name__}: {error}); pass its data as str, bytes, dict or list"
        ) from error


def is_quick(value: Any) -> bool:
    """Whether to lay the value down takes less time than to hand it to a thread: texts of up to a million characters,
    the messages of an ordinary turn."""
    if type(value) is str or type(value) is bytes:
        return len(value) <= 1 << 20
    return _is_plain_small(value) and sum(len(text) for item in _items(value) for text in item.values()) <= 1 << 18


def _pack_text(value: str, folder: Path) -> Payload:
    if len(value) <= INLINE:
        return _laid("str", "text", value.encode("utf-8", "surrogatepass"), folder)
    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix="text-", delete=False) as file:
        for start in range(0, len(value), SLICE):
            file.write(value[start : start + SLICE].encode("utf-8", "surrogatepass"))
    return Payload("str", "text", path=Path(file.name))


def _pack_pickle(value: Any, folder: Path) -> Payload:
    import cloudpickle

    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix="pickle-", delete=False) as file:
        cloudpickle.dump(value, file, protocol=5)
    path = Path(file.name)
    if path.stat().st_size > INLINE:
        return Payload(type(value).__name__, "pickle", path=path)
    data = path.read_bytes()
    path.unlink()
    return _laid(type(value).__name__, "pickle", data, folder)


def _is_plain_small(value: Any) -> bool:
    """Messages, and other short lists and dicts of plain values: pickled without a file or cloudpickle."""
    items = _items(value)
    return len(items) <= 1_000 and all(
        type(item) is dict and len(item) <= 16 and all(type(x) is str for pair in item.items() for x in pair)
        for item in items
    )


def _items(value: Any) -> list[Any]:
    return value if type(value) is list else [value]


def _laid(kind: str, format: str, data: bytes, folder: Path) -> Payload:
    if len(data) <= INLINE:
        return Payload(kind, format, text=base64.b64encode(data).decode("ascii"))
    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix=f"{format}-", delete=False) as file:
        file.write(data)
    return Payload(kind, format, path=Path(file.name))
