"""Python values as JSON and back, exactly, on both ends of a worker's channel.

None, bool, int, float, str, bytes, list, tuple, dict, set and frozenset come back equal and of the same type, whatever
they hold of each other. Anything else is refused (`encode`) or stands as type name and repr (`describe=True`).
Standard library only, Python 3.9 and newer: this file also travels into sandboxes. It never pickles.
"""

from __future__ import annotations

import base64

TYPE_CHECKING = False  # importing typing takes a tenth of a worker's start
if TYPE_CHECKING:
    from typing import Any

TAG = "$"  # a JSON object with this key is a tagged value; a dict that has it as a key is sent as pairs
MAX_DEPTH = 100  # json itself recurses; far below every interpreter's limit, with room for the caller's own frames
MAX_REPR = 1_000
MAX_SAME = 100  # items of one set or dict with the same hash: each of them is compared with all the others
SMALL = 1 << 63  # ints beyond it ride as hexadecimal: json refuses decimal text of more than 4,300 digits


class CodecError(TypeError):
    """A value that has no exact JSON form, or JSON that no codec wrote. The message names the value."""


def encode(value: Any, describe: bool = False) -> Any:
    """`value` as data for `json.dumps`. `describe`: what has no exact form becomes its type's name and repr.

    Raises `CodecError` for such a value otherwise, naming where in `value` it stands.
    """
    try:
        return _encode(value, describe, ())
    except _NoForm as found:
        where = "".join(reversed(found.steps))
        raise CodecError(f"value{where} {found.reason}") from None


class _NoForm(Exception):
    """What `encode` met: why it has no form, and the steps that lead to it, the last one first."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str] = []


def _encode(value: Any, describe: bool, above: tuple[int, ...]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else {TAG: "int", "v": hex(value)}
    if kind is str:
        # json merges two lone surrogates into one character, so text with surrogates rides as bytes.
        return value if value.isascii() or _plain_text(value) else {TAG: "str", "v": _base64(_utf8(value))}
    if kind is bytes:
        return {TAG: "bytes", "v": _base64(value)}
    if kind in _CONTAINERS:
        if id(value) not in above and len(above) < MAX_DEPTH:
            return _encode_container(value, kind, describe, (*above, id(value)))
        if not describe:
            raise _NoForm(f"contains itself or is nested over {MAX_DEPTH} deep: pass a flatter value")
    elif not describe:
        raise _NoForm(f"is of type {kind.__name__}, which has no exact JSON form: pass plain data (str, int, list, …)")
    return {TAG: "remote", "v": [kind.__name__, brief(value)]}


def _encode_container(value: Any, kind: type, describe: bool, above: tuple[int, ...]) -> Any:
    step: Any = "…"
    try:
        if kind is not dict:
            items = [_encode(item, describe, above) for item in value]
            return items if kind is list else {TAG: kind.__name__, "v": items}
        if all(type(key) is str and key != TAG and (key.isascii() or _plain_text(key)) for key in value):
            data = {}
            for key, item in value.items():
                step = key
                data[key] = _encode(item, describe, above)
            return data
        pairs = []
        for key, item in value.items():
            step = key
            pairs.append([_encode(key, describe, above), _encode(item, describe, above)])
    except _NoForm as found:
        found.steps.append("[…]" if kind is not dict else f"[{brief(step)[:50]}]")
        raise
    return {TAG: "dict", "v": pairs}


def decode(data: Any, remote: Any = None) -> Any:
    """The value that `encode` made `data` of. `remote(type_name, repr)` builds the stand-in for what stayed behind.

    Raises `CodecError` for JSON that no codec wrote, however deep; the data may come from a hostile worker.
    """
    try:
        return _decode(data, remote, MAX_DEPTH + 1)  # what `encode` could not describe any deeper counts as one more
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"not a value of this codec: {str(data)[:200]}") from error


def _decode(data: Any, remote: Any, left: int) -> Any:
    if not isinstance(data, (list, dict)):
        return data
    if not left:
        raise CodecError(f"a value nested over {MAX_DEPTH} deep")
    left -= 1
    if isinstance(data, list):
        return [_decode(item, remote, left) for item in data]
    if TAG not in data:
        return {key: _decode(item, remote, left) for key, item in data.items()}
    if len(data) != 2:
        raise CodecError(f"a tagged value has two fields, not {len(data)}")
    tag, data = data[TAG], data["v"]
    if type(tag) is str and tag in _FROM_TEXT and type(data) is str:
        return _FROM_TEXT[tag](data)
    if type(tag) is str and type(data) is list:
        if tag == "dict":
            pairs = [(_decode(key, remote, left), _decode(item, remote, left)) for key, item in map(_pair, data)]
            _check_hashes([key for key, _ in pairs])
            return dict(pairs)
        if tag in _FROM_LIST:
            items = [_decode(item, remote, left) for item in data]
            if tag != "tuple":
                _check_hashes(items)
            return _FROM_LIST[tag](items)
        if tag == "remote" and remote is not None:
            name, text = _pair(data)
            return remote(str(name), str(text))
    raise CodecError(f"unknown kind of value {str(tag)[:50]!r}")


def _pair(data: Any) -> Any:
    if type(data) is not list or len(data) != 2:
        raise CodecError(f"not a pair: {str(data)[:50]!r}")
    return data


def _check_hashes(items: Any) -> None:
    """Refuse what was chosen so that to put it in a set takes hours: hashes of numbers are no secret."""
    if len(items) <= MAX_SAME:
        return
    counts: dict[int, int] = {}
    for item in items:
        found = hash(item)
        counts[found] = counts.get(found, 0) + 1
    if max(counts.values()) > MAX_SAME:
        raise CodecError(f"a set or dict with over {MAX_SAME} items of the same hash")


def brief(value: Any) -> str:
    """repr, at most 1,000 characters; a failing `__repr__` is answered with the type's name."""
    if type(value) in (str, bytes) and len(value) > MAX_REPR:
        value = value[: MAX_REPR + 1]  # of hundreds of megabytes nobody shows more
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a repr is user code, and a listing must not fail with it
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= MAX_REPR else text[:MAX_REPR] + "…"


def _plain_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
_FROM_LIST = {"tuple": tuple, "set": set, "frozenset": frozenset}
_FROM_TEXT: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "str": lambda text: base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass"),
    "bytes": lambda text: base64.b64decode(text, validate=True),
}
