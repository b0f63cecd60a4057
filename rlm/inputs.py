"""What users pass as input, made into the value that cells get: paths are read, everything else goes as it is.

A file is its text, a folder a mapping from path to text; what is not UTF-8 comes as bytes, and `.gz` is opened. Line
ends stay as they are. This module also says when an input is probably not what was meant.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlm.errors import ContextError

SHORT = 300  # characters below which a text may be a question, or a path, that was meant otherwise
DEEP = 20  # levels of containers below which a value counts by its pickle: it may hold itself
PREVIEW = (1_500, 500)  # characters of head and tail shown to the model where the task stands in the input itself


def read(value: Any) -> Any:
    """The value that `context` will be. Reads files; raises `ContextError` naming the path that cannot be read."""
    if not isinstance(value, os.PathLike):
        return value
    path = Path(value)
    if path.is_dir():
        return {str(file.relative_to(path)): read_file(file) for file in _files(path)}
    return read_file(path)


def read_file(path: Path) -> str | bytes:
    """A file's text; its bytes where they are not UTF-8."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise ContextError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ContextError(f"{path} cannot be read: {error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _files(folder: Path) -> Iterator[Path]:
    """All regular files below the folder, in the order of their names, without hidden ones and caches."""
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            file = Path(root, name)
            if not name.startswith(".") and file.is_file():
                yield file


def _refuse(error: OSError) -> None:
    raise ContextError(f"{error.filename} cannot be read: {error}") from error


def size(value: Any) -> int | None:
    """Characters of a text, bytes, or items of a container; None where there is no length."""
    try:
        return len(value)
    except TypeError:
        return None


def digest(value: Any) -> str:
    """Hexadecimal, 64 digits: the same for equal plain values in every process, sets included.

    Plain are text, bytes, numbers, None, and lists, tuples, dicts and sets of plain values; what else there is counts
    by its pickle. Raises `ContextError` for what does not pickle.
    """
    told = hashlib.blake2b(digest_size=32)
    for piece in _pieces(value, 0):
        told.update(piece)
    return told.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    """What stands for a value, in pieces of which none is the beginning of another."""
    kind = type(value)
    name = kind.__name__.encode()
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        data = value
    elif kind in (bool, int, float, type(None)):
        data = repr(value).encode() if kind is not int else hex(value).encode()
    elif kind in (set, frozenset) and depth < DEEP:
        parts = sorted(b"".join(_pieces(item, depth + 1)) for item in value)
        yield b"%s %d\n" % (name, len(parts))
        yield from parts
        return
    elif kind in (list, tuple, dict) and depth < DEEP:
        items = [part for pair in value.items() for part in pair] if kind is dict else value
        yield b"%s %d\n" % (name, len(items))
        for item in items:
            yield from _pieces(item, depth + 1)
        return
    else:
        name, data = b"pickle", _pickled(value)
    yield b"%s %d\n" % (name, len(data))
    yield data


def _pickled(value: Any) -> bytes:
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:  # a __reduce__ of the user's may raise anything
        raise ContextError(f"an input of type {type(value).__name__} has no digest: {error}") from error
    return data


def preview(value: Any) -> str | None:
    """Head and tail of a text, for a turn whose task stands in it; None for anything else."""
    if not isinstance(value, str):
        return None
    head, tail = PREVIEW
    if len(value) <= head + tail:
        return value
    return f"{value[:head]}\n… [{len(value) - head - tail:,} characters between] …\n{value[-tail:]}"


def warn_if_unlikely(value: Any, question: str | None, stacklevel: int) -> None:
    """Warn where an input looks like something else: the name of a file, or the question.

    stacklevel: how many frames up from here the user's line stands, as `warnings.warn` counts.
    """
    if not isinstance(value, str) or len(value) > SHORT or "\n" in value:
        return
    if _names_a_file(value):
        message = (
            f"the input is the text {value!r}, which is also the name of a file or folder; "
            f"to read it pass Path({value!r})"
        )
    elif value.rstrip().endswith("?") and question is None:
        message = (
            f"the input is {value!r}, which reads like a question; the input comes first, the question second: "
            "completion(input, question), or session.ask(question) for a question without input"
        )
    elif value.rstrip().endswith("?") and question is not None and len(question) > SHORT:
        message = (
            "the input reads like a question and the question like an input; the order is completion(input, question)"
        )
    else:
        return
    warnings.warn(message, UserWarning, stacklevel=stacklevel)


def _names_a_file(text: str) -> bool:
    if not text.strip() or "\0" in text:
        return False
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
