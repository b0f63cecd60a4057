"""A worker's protocol without I/O: bytes in, frames out; frames in, bytes out.

One JSON object a line, ASCII, which survives text-mode pipes, PTYs and log-like streams alike. A frame whose line would
be longer than `CHUNK` travels as numbered parts. Everything that comes from a worker is hostile: whatever no worker
sends raises `ProtocolError`, before any of it reaches a caller.

    host to worker                                      worker to host
    setup   tools, captured                             ready   python, pid
    run     id, code, fresh                             out     id, stream, text
    load    id, names, format, data | path, digest      call    id, cell, name, args, kwargs
    get     id, name                                    done    id, error, answer, names, gone, streams
    names   id                                          value   id, value | error
    checkpoint  id, spool, whole, limit                 part    id, last, data
    restore id, image, contents, seconds
    reply   id, value | error, reason
    interrupt
    part    id, last, data

Frames are answered in their order, but for `checkpoint`, whose value comes when it is there, also while a cell runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlm.errors import ProtocolError

Frame = dict[str, Any]


class Heard(dict[str, Any]):
    """A frame of a worker's. size: characters of its JSON."""

    __slots__ = ("size",)

    def __init__(self, frame: Frame, size: int) -> None:
        super().__init__(frame)
        self.size = size


CHUNK = 256 * 1024  # characters of a frame's JSON that ride in one line
MAX_LINE = 4 * CHUNK  # escaping can double a chunk; ensure_ascii has already been applied to it
MAX_FRAME = 256 * 1024 * 1024  # characters of a frame put together from parts
MAX_OPEN = 64  # frames whose parts have begun and not ended
PART = 100  # characters that a part counts for beside its data, so that a flood of tiny ones is held to the same cap


@dataclass(frozen=True, slots=True)
class Field:
    """What a frame's field may hold: one of the types, and whether it may be missing."""

    types: tuple[type, ...]
    optional: bool = False


_ID = Field((int,))
_TEXT = Field((str,))

# What a worker may send. Fields that are not listed are refused, like missing ones and those of another type.
FROM_WORKER: Mapping[str, Mapping[str, Field]] = {
    "ready": {"python": _TEXT, "pid": _ID},
    "out": {"id": _ID, "stream": _TEXT, "text": _TEXT},
    "call": {"id": _ID, "cell": _ID, "name": _TEXT, "args": Field((list,)), "kwargs": Field((dict,))},
    "done": {
        "id": _ID,
        "error": Field((dict, type(None))),
        "answer": Field((dict, type(None))),
        "names": Field((dict,)),
        "gone": Field((list,)),
        "streams": Field((dict,)),
    },
    "value": {"id": _ID, "value": Field((object,), optional=True), "error": Field((str,), optional=True)},
    "part": {"id": _ID, "last": Field((bool,)), "data": _TEXT},
}


def encode(frame: Mapping[str, Any], number: int = 0) -> bytes:
    """The line (or the lines, for a large frame) that carry `frame`. `number` tells the parts of one frame apart."""
    text = _dumps(frame)
    if len(text) <= CHUNK:
        return text.encode("ascii") + b"\n"
    starts = range(0, len(text), CHUNK)
    lines = (
        {"type": "part", "id": number, "last": start + CHUNK >= len(text), "data": text[start : start + CHUNK]}
        for start in starts
    )
    return b"".join(_dumps(line).encode("ascii") + b"\n" for line in lines)


_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(slots=True)
class Wire:
    """Turns the bytes of a worker into frames. Feed it pieces of any size; the frames do not depend on the split."""

    max_line: int = MAX_LINE
    max_frame: int = MAX_FRAME
    _rest: bytearray = field(default_factory=bytearray)
    _parts: dict[int, list[str]] = field(default_factory=dict)
    _held: int = 0
    _broken: bool = False

    def feed(self, data: bytes) -> list[Heard]:
        """The frames that `data` completes. Raises `ProtocolError`, then and ever after, for what no worker sends."""
        if self._broken:
            raise ProtocolError("this worker has broken the protocol before")
        try:
            return self._feed(data)
        except ProtocolError:
            self._broken = True
            raise

    def _feed(self, data: bytes) -> list[Heard]:
        if self._rest or not data.endswith(b"\n"):
            self._rest += data
            if b"\n" not in data:
                self._check_line(len(self._rest))
                return []
            data = bytes(self._rest)
        *lines, rest = data.split(b"\n")
        self._rest = bytearray(rest)
        self._check_line(len(rest))
        frames = []
        for line in lines:
            self._check_line(len(line))
            if line:
                frame = parse(line)
                whole = self._join(frame) if frame["type"] == "part" else frame
                if whole is not None:
                    frames.append(whole)
        return frames

    def _check_line(self, length: int) -> None:
        if length > self.max_line:
            raise ProtocolError(f"a line of over {self.max_line:,} bytes")

    def _join(self, part: Frame) -> Heard | None:
        number = part["id"]
        if not part["data"].isascii():  # of other text a character may take four bytes
            raise ProtocolError("a part that is no piece of a frame")
        pieces = self._parts.setdefault(number, [])
        pieces.append(part["data"])
        self._held += len(part["data"]) + PART
        if self._held > self.max_frame or len(self._parts) > MAX_OPEN:
            raise ProtocolError(f"frames in parts of over {self.max_frame:,} characters, or over {MAX_OPEN} at once")
        if not part["last"]:
            return None
        text = "".join(self._parts.pop(number))
        self._held -= len(text) + PART * len(pieces)
        frame = parse(text.encode("ascii"))
        if frame["type"] == "part":
            raise ProtocolError("a part within parts")
        return frame


def parse(line: bytes) -> Heard:
    """One frame of a worker, checked against `FROM_WORKER`. Raises `ProtocolError` with the beginning of the line."""
    try:
        frame = json.loads(line.decode("ascii"))  # of bytes json would also take UTF-16
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a frame ({type(error).__name__}): {_head(line)}") from None
    if not isinstance(frame, dict):
        raise ProtocolError(f"not a frame: {_head(line)}")
    kind = frame.get("type")
    fields = FROM_WORKER.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ProtocolError(f"a frame of unknown type: {_head(line)}")
    for name, rule in fields.items():
        if name not in frame:
            if not rule.optional:
                raise ProtocolError(f"a {kind} frame without {name!r}: {_head(line)}")
        elif not isinstance(frame[name], rule.types) or (rule.types == (int,) and isinstance(frame[name], bool)):
            raise ProtocolError(f"a {kind} frame whose {name!r} is of the wrong type: {_head(line)}")
    if len(frame) - 1 > sum(name in frame for name in fields):
        raise ProtocolError(f"a {kind} frame with unknown fields: {_head(line)}")
    return Heard(frame, len(line))


def _head(line: bytes) -> str:
    return repr(line[:120])
