"""Events as JSON and back: what a log holds, whichever store keeps it. `docs/log.md` describes it for readers.

Each event carries the version of the schema it was written in. Fields that have their default are left out. What an
older version wrote is brought up to date while it is read; what a newer one wrote is refused, never guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import types as python
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlm import types
from rlm.environments import codec
from rlm.errors import LogError
from rlm.types import Event, Recorded

VERSION = 1

EVENTS: Mapping[str, type[Event]] = {
    kind.kind: kind
    for kind in vars(types).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event and kind.durable
}

# Not in a log: a namespace's names stand in its checkpoints, a cell's calls under the cell, and a validated answer is
# made again from its text.
LEFT_OUT = frozenset(
    {(types.REPLResult, "locals"), (types.REPLResult, "rlm_calls"), (types.RLMChatCompletion, "output")}
)

MENDS: Sequence[Callable[[dict[str, Any]], dict[str, Any]]] = ()
"""From the data of version i + 1 to that of version i + 2."""


def dump(event: Event) -> str:
    """The event as one line of ASCII JSON."""
    return _dumps({"v": VERSION, "kind": event.kind, **_fields(event)})


def load(text: str) -> Event:
    """The event that a line of a log stands for. Raises `LogError`."""
    try:
        data = json.loads(text)
        version, kind = data.pop("v"), data.pop("kind")
        if version > VERSION:
            raise LogError(
                f"an event of schema {version}, and this version of rlm reads up to {VERSION}: update rlm to go on"
            )
        for mend in MENDS[version - 1 :]:
            data = mend(data)
        event: Event = _build(EVENTS[kind], data)
        return event
    except LogError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LogError(f"not an event ({type(error).__name__}: {error}): {text[:120]!r}") from error


def dump_record(record: Recorded) -> str:
    """A record as one line of ASCII JSON, as exports hold it."""
    return _dumps({"n": record.number, "t": record.time, "event": json.loads(dump(record.event))})


def load_record(line: str) -> Recorded:
    """The record that such a line stands for. Raises `LogError`."""
    try:
        data = json.loads(line)
        number, time, event = int(data["n"]), float(data["t"]), json.dumps(data["event"])
    except (ValueError, KeyError, TypeError) as error:
        raise LogError(f"not a record ({type(error).__name__}: {error}): {line[:120]!r}") from error
    return Recorded(number, time, load(event))


_dumps = json.JSONEncoder(separators=(",", ":")).encode


def _fields(value: Any) -> dict[str, Any]:
    data = {}
    for name, hint, default in _shape(type(value)):
        item = getattr(value, name)
        if not (type(item) is type(default) and item == default):
            data[name] = _write(item, hint)
    return data


def _shape(kind: Any) -> Sequence[tuple[str, Any, Any]]:
    """Name, type and default of each field that is written."""
    if kind not in _shapes:
        _shapes[kind] = _look_at(kind)
    return _shapes[kind]


_shapes: dict[type, Sequence[tuple[str, Any, Any]]] = {}


def _look_at(kind: Any) -> Sequence[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(kind)
    shape = []
    for field in dataclasses.fields(kind):
        if (kind, field.name) not in LEFT_OUT:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            shape.append((field.name, hints[field.name], default))
    return shape


def _write(value: Any, hint: Any) -> Any:
    kind, items = _kind(hint, value)
    if kind == "dataclass":
        return _fields(value)
    if kind == "mapping":
        return {str(key): _write(item, items) for key, item in value.items()}
    if kind == "sequence":
        return [_write(item, items) for item in value]
    return codec.encode(value, describe=True)


def _build(kind: type, data: Mapping[str, Any]) -> Any:
    given = {}
    for name, hint, _ in _shape(kind):
        if name in data:
            given[name] = _read(data[name], hint)
    return kind(**given)


def _read(data: Any, hint: Any) -> Any:
    kind, items = _kind(hint, data)
    if kind == "dataclass":
        if not isinstance(data, dict):
            raise TypeError(f"{str(data)[:50]!r} is no {items.__name__}")
        return _build(items, data)
    if kind == "mapping":
        return {key: _read(item, items) for key, item in data.items()}
    if kind == "sequence":
        return tuple(_read(item, items) for item in data)
    return codec.decode(data, types.RemoteValue)


def _kind(hint: Any, value: Any) -> tuple[str, Any]:
    """How a value of a field of this type is written; with it the type of a container's items, or the dataclass."""
    if isinstance(hint, python.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return "plain", None
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return "dataclass", hint
    if hint is types.Message:
        return "plain", None
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping", typing.get_args(hint)[1]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "sequence", typing.get_args(hint)[0]
    return "plain", None
