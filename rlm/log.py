"""Events as JSON and back: what a log holds, whichever store keeps it. `docs/log.md` describes it for readers.

Each event carries the version of the schema it was written in. Fields that have their default are left out. What an
older version wrote is brought up to date while it is read; what a newer one wrote is refused, never guessed at.
"""

from __future__ import annotations

import dataclasses
import functools
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
    for name, (write, _), default in _shape(type(value)):
        item = getattr(value, name)
        if type(item) is not type(default):
            data[name] = write(item)
        elif dataclasses.is_dataclass(item):  # compared by what is written: the rest may be large
            if (written := write(item)) != write(default):
                data[name] = written
        elif item != default:
            data[name] = write(item)
    return data


def _build(kind: Any, data: Mapping[str, Any]) -> Any:
    return kind(**{name: read(data[name]) for name, (_, read), _ in _shape(kind) if name in data})


Form = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""How values of one type are written, and how they are read."""

_shapes: dict[type, Sequence[tuple[str, Form, Any]]] = {}


def _shape(kind: Any) -> Sequence[tuple[str, Form, Any]]:
    """Name, form and default of each field that is written."""
    if kind not in _shapes:
        hints = typing.get_type_hints(kind)
        shape: list[tuple[str, Form, Any]] = []
        _shapes[kind] = shape
        for field in dataclasses.fields(kind):
            if (kind, field.name) not in LEFT_OUT:
                factory = field.default_factory
                default = field.default if factory is dataclasses.MISSING else factory()
                shape.append((field.name, _form(hints[field.name]), default))
    return _shapes[kind]


def _form(hint: Any) -> Form:
    """The form of the values of fields that are annotated so."""
    if isinstance(hint, python.UnionType) or typing.get_origin(hint) is typing.Union:
        write, read = _form(next(one for one in typing.get_args(hint) if one is not type(None)))
        return lambda value: None if value is None else write(value), lambda data: None if data is None else read(data)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _fields, functools.partial(_build_checked, hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        write, read = _form(typing.get_args(hint)[1])
        return (
            lambda value: {str(key): write(item) for key, item in value.items()},
            lambda data: {key: read(item) for key, item in data.items()},
        )
    if isinstance(origin, type) and issubclass(origin, Sequence) and typing.get_args(hint) != (types.Message,):
        write, read = _form(typing.get_args(hint)[0])
        return (
            lambda value: [write(item) for item in value],
            lambda data: tuple(map(read, data)),
        )
    if hint is str:
        return _write_text, _read_text
    if origin is not None:
        return codec.encode, lambda data: tuple(codec.decode(data))
    return functools.partial(codec.encode, describe=True), lambda data: codec.decode(data, types.RemoteValue)


def _build_checked(kind: Any, data: Any) -> Any:
    if not isinstance(data, dict):
        raise TypeError(f"{str(data)[:50]!r} is no {kind.__name__}")
    return _build(kind, data)


def _write_text(value: str) -> Any:
    return value if value.isascii() else codec.encode(value)


def _read_text(data: Any) -> Any:
    return data if isinstance(data, str) else codec.decode(data)
