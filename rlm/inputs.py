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
    """Hexadecimal; equal texts, bytes and pickles have the same one. Raises `ContextError` for what does not pickle."""
    if isinstance(value, str):
        kind, data = b"text", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        kind, data = b"bytes", value
    else:
        import cloudpickle

        try:
            kind, data = b"pickle", cloudpickle.dumps(value)
        except Exception as error:  # a __reduce__ of the user's may raise anything
            raise ContextError(f"an input of type {type(value).__name__} has no digest: {error}") from error
    told = hashlib.blake2b(kind, digest_size=32)
    told.update(data)
    return told.hexdigest()


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
