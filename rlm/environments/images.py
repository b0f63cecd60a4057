"""What a worker says of its heap, checked; and a heap as what a worker is told of it.

A worker's answer is hostile like everything that it sends: it holds nothing but plain data of the types in
`rlm.types`, digests that are digests, and files that lie in the folder that they were to be written to. Blobs are
opaque here: nothing is ever unpickled. Whatever else comes raises `ProtocolError`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlm.environments.limits import MAX_LONG, MAX_TEXT
from rlm.errors import ProtocolError
from rlm.ports import Part
from rlm.types import HeapChange, HeapImage, Lost, Saved, SavedFile

T = TypeVar("T")

DIGEST = re.compile(r"[0-9a-f]{64}")
FILES_LIMIT = 64 * 1024 * 1024  # bytes of the files in a session's folder that a checkpoint holds


@dataclass(frozen=True, slots=True)
class Capture:
    """What changed in a namespace, and the bytes of it by digest; large ones in a file that the worker wrote."""

    change: HeapChange
    blobs: Mapping[str, bytes | Part]


def capture(value: object, spool: Path | None) -> Capture:
    """A worker's answer to `checkpoint`. spool: where its large blobs are; whoever takes them over checks the bytes.

    Raises `ProtocolError`.
    """
    data = _dict(value)
    fields = {"groups", "modules", "given", "lost", "gone", "files", "files_gone", "files_lost", "caught", "python"}
    fields |= {"seconds", "pause", "whole", "blobs"}
    if set(data) != fields:
        raise ProtocolError(f"a heap with fields {str(sorted(set(data) ^ fields))[:500]} too many or too few")
    groups = [_group(item) for item in _list(data["groups"])]
    files = _table(data["files"], _file)
    written = 0 if spool is None else _written(spool)
    spool = spool or Path()
    blobs = {_digest(d): _blob(d, content, spool, written) for d, content in _dict(data["blobs"]).items()}
    for digest, size in [(group.digest, group.size) for group in groups] + [(f.digest, f.size) for f in files.values()]:
        if digest in blobs and _size(blobs[digest]) != size:
            raise ProtocolError(f"a blob of another size than was said: {digest}")
    change = HeapChange(
        groups=groups,
        modules=_table(data["modules"], lambda imports: _text(imports, MAX_LONG)),
        given=_table(data["given"], _text),
        lost=_table(data["lost"], _lost),
        gone=_texts(data["gone"]),
        files=files,
        files_gone=_texts(data["files_gone"]),
        files_lost=_table(data["files_lost"], lambda reason: Lost("file", _text(reason))),
        caught=_texts(data["caught"]),
        python=_text(data["python"]),
        seconds=_seconds(data["seconds"]),
        pause=_seconds(data["pause"]),
        whole=_of(data["whole"], bool),
    )
    return Capture(change, blobs)


def lost(value: object) -> Mapping[str, Lost]:
    """A worker's answer to `restore`. Raises `ProtocolError`."""
    return _table(value, _lost)


def frame(image: HeapImage) -> Mapping[str, Any]:
    """The heap as a `restore` frame tells it."""
    return {
        "groups": [
            [list(g.names), list(g.types), g.digest, g.size, g.definition, g.code, dict(g.sources)]
            for g in image.groups
        ],
        "modules": dict(image.modules),
        "given": dict(image.given),
        "files": {path: [f.digest, f.size, f.mode, f.link] for path, f in image.files.items()},
        "python": image.python,
    }


# -- parts -------------------------------------------------------------------------------------------------------------


def _of(value: object, kind: type[T]) -> T:
    if type(value) is not kind:  # which is not shown: it may be nested deeper than repr can follow
        raise ProtocolError(f"a heap with {type(value).__name__} where it says {kind.__name__}")
    return value


def _dict(value: object) -> Mapping[str, Any]:
    return _of(value, dict)


def _list(value: object) -> Sequence[Any]:
    return _of(value, list)


def _text(value: object, limit: int = MAX_TEXT) -> str:
    text = _of(value, str)
    if len(text) > limit:
        raise ProtocolError(f"a heap with a text of {len(text):,} characters where a name or a reason stands")
    return text


def _texts(value: object) -> Sequence[str]:
    """For 100,000 names, while which everything else waits: no step of ours for each of them, if they are sound."""
    texts = _list(value)
    if set(map(type, texts)) <= {str} and max(map(len, texts), default=0) <= MAX_TEXT:
        return texts
    return [_text(item) for item in texts]


def _table(value: object, item: Callable[[object], T]) -> Mapping[str, T]:
    return {_text(name): item(held) for name, held in _dict(value).items()}


def _digest(value: object) -> str:
    text = _of(value, str)
    if not DIGEST.fullmatch(text):
        raise ProtocolError(f"a heap with a digest that is none: {text[:80]!r}")
    return text


def _count(value: object) -> int:
    number = _of(value, int)
    if not 0 <= number < 1 << 63:
        raise ProtocolError(f"a heap with {number} bytes or permissions")
    return number


def _seconds(value: object) -> float:
    seconds = value if type(value) is int else _of(value, float)
    if not 0 <= seconds < 1e9:
        raise ProtocolError("a heap that took longer than can be, or less than no time")
    return float(seconds)


def _lost(value: object) -> Lost:
    match value:
        case [str(), str(), str()]:
            kind, reason, shown = map(_text, value)
            return Lost(kind, reason, shown)
    raise ProtocolError("a heap with a malformed loss")


def _group(value: object) -> Saved:
    match value:
        case [list(names), list(types), str(digest), int(size), bool(definition), bool(code), dict(sources)]:
            own, kinds = _texts(names), _texts(types)
            if not own or len(own) != len(kinds) or "" in own or len(set(own)) != len(own):
                raise ProtocolError("a heap with a group whose names and types do not fit")
            told = {_text(name): _text(source, MAX_LONG) for name, source in sources.items()}
            return Saved(own, kinds, _digest(digest), _count(size), definition, code, told)
    raise ProtocolError("a heap with a malformed group")


def _file(value: object) -> SavedFile:
    match value:
        case [str(digest), int(size), int(mode), (str() | None) as link]:
            return SavedFile(_digest(digest), _count(size), _count(mode) & 0o47777, link)
    raise ProtocolError("a heap with a malformed file")


def _blob(digest: str, value: object, spool: Path, written: int) -> bytes | Part:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError(f"a blob that is no base64: {digest}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ProtocolError(f"a blob that has not its digest: {digest}")
        return data
    match value:
        case {"at": int(start), "size": int(size), **rest} if not rest and 0 <= start <= start + size <= written:
            return Part(spool, start, size)
    raise ProtocolError(f"a blob that is nowhere: {digest}")


def _written(spool: Path) -> int:
    """Bytes in a file that a worker without a sandbox may have removed."""
    try:
        return spool.lstat().st_size
    except OSError as error:
        raise ProtocolError(f"the file that was lent for large blobs is gone: {error}") from None


def _size(content: bytes | Part) -> int:
    return len(content) if isinstance(content, bytes) else content.size
