"""Inputs as a store keeps them for environments that are not ours: text, bytes and plain data, which need no pickle.

A host may read these back itself; whatever else an input is, only one of our own workers can load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlm.environments import codec
from rlm.errors import BlobError, ContextError


def written(value: Any) -> tuple[str | None, str | None, Mapping[str, bytes]]:
    """Digest, format and blob of a value; nothing of all that for one that is not plain."""
    if type(value) is str:
        form, data = "text", value.encode("utf-8", "surrogatepass")
    elif type(value) is bytes:
        form, data = "bytes", value
    else:
        try:
            form, data = "json", json.dumps(codec.encode(value), separators=(",", ":")).encode("ascii")
        except (codec.CodecError, RecursionError):
            return None, None, {}
    digest = hashlib.sha256(data).hexdigest()
    return digest, form, {digest: data}


def read(content: bytes | Path, form: str | None) -> Any:
    """The value. Raises `ContextError` for a format that only a worker may load, `BlobError` for damaged content."""
    data = content.read_bytes() if isinstance(content, Path) else content
    try:
        match form:
            case "text":
                return data.decode("utf-8", "surrogatepass")
            case "bytes":
                return data
            case "json":
                return codec.decode(json.loads(data))
    except ValueError as error:
        raise BlobError(f"an input is damaged: {error}") from error
    raise ContextError(f"an input of format {form!r} can only be loaded by an environment of this package")
