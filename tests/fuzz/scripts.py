"""What a lying worker may do, as data: scripts that print as they are written, and strategies that draw them.

A frame is a dictionary that may hold `"@…"`, which stand for what is only known when it is said (see `text_of`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

DATA = b"a small blob"
DIGEST = hashlib.sha256(DATA).hexdigest()
LARGE = hashlib.sha256(b"large").hexdigest()  # stands in the spool from its byte 2 on
SPOOL = b"..large."


class Trap:
    """Whoever unpickles it evaluates code."""

    def __reduce__(self) -> Any:
        return (eval, ("__import__('os').getpid()",))


TRAP = pickle.dumps(Trap())
TRAP_DIGEST = hashlib.sha256(TRAP).hexdigest()

ASKS = ("run", "run", "run", "timed", "get", "names", "load", "file", "checkpoint", "checkpoint", "restore")
ENDS = ("answer", "answer", "answer", "die", "cancel", "cancel twice", "die and cancel", "close", "silence")
ENDS += ("die, and cancelled at that moment",)


@dataclass(frozen=True)
class Say:
    """A frame. how: whole, in parts, cut off, twice, without its end, with the pieces of others between its own."""

    frame: Any
    how: str = "whole"
    cut: int = 0


@dataclass(frozen=True)
class Bytes:
    """Anything at all. Here and in what guards say, `@[:1000` stands for a thousand brackets (see `spelled`)."""

    data: bytes


@dataclass(frozen=True)
class Many:
    """The same one again and again."""

    say: Say
    times: int


@dataclass(frozen=True)
class Told:
    """A message of the guard's. descriptors: how many come along; kind: ends of pipes, files or sockets."""

    data: bytes
    descriptors: int = 0
    kind: str = "pipe"


@dataclass(frozen=True)
class Do:
    """Anything else: stop reading, close a socket, cut the spool, pass descriptors where none are expected."""

    what: str


Act = Say | Bytes | Many | Told | Do


@dataclass(frozen=True)
class Step:
    """The host asks for something; what the worker does then, and how it ends."""

    ask: str
    acts: tuple[Act, ...]
    end: str = "answer"


@dataclass(frozen=True)
class Script:
    """A worker's life. first: what it says before it is ready; plain: over a transport that can do nothing but carry
    bytes; deep: how many calls deep the host is when it asks."""

    steps: tuple[Step, ...]
    first: tuple[Act, ...] = ()
    plain: bool = False
    deep: int = 0


# -- frames ------------------------------------------------------------------------------------------------------------

READY = {"type": "ready", "python": "3.11.7", "pid": 2}
DONE = {"type": "done", "id": "@cell", "error": None, "answer": None, "names": {}, "gone": [], "streams": {}}
OUT = {"type": "out", "id": "@cell", "stream": "stdout", "text": "x"}
CALL = {"type": "call", "id": "@call", "cell": "@cell", "name": "tool", "args": ["a", 1], "kwargs": {"k": None}}
VALUE = {"type": "value", "id": "@request", "value": None}
FULL_DONE = {
    **DONE,
    "error": {"type": "ValueError", "text": "Traceback …"},
    "answer": {"content": "so far", "ready": True},
    "names": {"x": "int", "y": "list"},
    "gone": ["z"],
    "streams": {"stdout": {"text": "a", "cut": 12_345, "tail": "b"}, "stderr": {"text": "", "cut": 0, "tail": ""}},
}
RICH_CALL = {
    **CALL,
    "args": [
        {"$": "tuple", "v": [1, {"$": "bytes", "v": "AA=="}]},
        {"$": "dict", "v": [[{"$": "int", "v": "0xff"}, {"$": "set", "v": [1, 2]}]]},
        {"$": "str", "v": "7aCA"},
        {"$": "frozenset", "v": []},
    ],
}
HEAP = {
    "groups": [
        [["a", "b"], ["list", "dict"], DIGEST, len(DATA), False, False, {}],
        [["f"], ["function"], TRAP_DIGEST, len(TRAP), True, True, {"f": "def f(): pass"}],
        [["l"], ["list"], LARGE, 5, False, False, {}],
    ],
    "modules": {"os": "os"},
    "given": {"doc": "context"},
    "lost": {"g": ["generator", "TypeError: no", "<generator>"]},
    "gone": ["x"],
    "files": {"f": [DIGEST, len(DATA), 0o644, None], "l": ["0" * 64, 0, 0o777, "f"]},
    "files_gone": ["y"],
    "files_lost": {"p": "a pipe"},
    "caught": ["a"],
    "python": "3.11",
    "seconds": 0.5,
    "pause": 0,
    "whole": True,
    "blobs": {
        DIGEST: base64.b64encode(DATA).decode(),
        TRAP_DIGEST: base64.b64encode(TRAP).decode(),
        LARGE: {"at": 2, "size": 5},
    },
}
NO_SPOOL = {
    **HEAP,
    "groups": HEAP["groups"][:2],
    "blobs": {digest: blob for digest, blob in HEAP["blobs"].items() if digest != LARGE},
}
LOST = {"a": ["list", "UnpicklingError: no", "[1]"], "./f": ["file", "gone", ""]}

VALUES = (None, {"x": "int"}, {"$": "remote", "v": ["type", "<class 'object'>"]}, HEAP, NO_SPOOL, LOST)
ERROR = {"type": "value", "id": "@request", "error": "UnpicklingError: no"}
ANSWERS = tuple({**VALUE, "value": value} for value in VALUES)
OTHERS: tuple[Mapping[str, Any], ...] = (
    READY,
    {"type": "part", "id": 1, "last": False, "data": '{"type":"value",'},
    {"type": "part", "id": 1, "last": True, "data": '"id":1}'},
    {"type": "run", "id": 1, "code": "pass", "fresh": False},
    {"type": "reply", "id": 1, "value": 1},
    {"type": "interrupt"},
)
OF_CELLS: tuple[Mapping[str, Any], ...] = (DONE, FULL_DONE, OUT, CALL, RICH_CALL, CALL, RICH_CALL)

# What answers each question, were it true.
FITTING: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "run": OF_CELLS,
    "timed": OF_CELLS,
    "get": ({**VALUE, "value": RICH_CALL["args"]}, ANSWERS[2], ERROR),
    "names": (ANSWERS[1],),
    "load": (VALUE, ERROR),
    "file": (VALUE, ERROR),
    "checkpoint": (ANSWERS[3], ANSWERS[3], ANSWERS[4], ERROR),
    "restore": (ANSWERS[5], ANSWERS[5], ERROR),
}
FRAMES = (*OF_CELLS, *ANSWERS, ERROR, *OTHERS)

numbers = st.one_of(
    st.sampled_from([0, 1, 2, -1, 1 << 62, 1 << 63, 1.5, -0.0, float("nan"), float("inf"), 1e308, True, False]),
    st.sampled_from(
        ["@cell", "@next", "@call", "@last", "@request", "@big:400", "@big:4300", "@big:4301", "@minus:400"]
    ),
    st.integers(-3, 12),
)
texts = st.one_of(
    st.sampled_from(["", "x", "tool", "stdout", "stderr", "\x00", "\ud800", "ä😀", "a\nb", "../../../etc/passwd"]),
    st.sampled_from(["@x:10001", "@x:1000001", "@x:2000001", "@ä:300000", "__class__", "/etc/passwd"]),
    st.sampled_from([DIGEST, LARGE, DIGEST.upper(), "0" * 64, base64.b64encode(TRAP).decode()]),
    st.text(st.characters(codec=None, exclude_categories=()), max_size=4),
)
deep = st.one_of(
    st.integers(1, 130).map("@deep:{}".format),  # about as deep as the codec goes
    st.integers(-150, -1).map("@deep:{}".format),  # about as deep as JSON can be read
    st.integers(-150, -1).map("@objects:{}".format),
)
tagged = st.sampled_from(
    [
        *({"$": "pickle", "v": base64.b64encode(TRAP).decode()}, {"$": "remote", "v": ["a", "b"]}, {"$": 1}),
        *({"$": "int", "v": "@x:9"}, {"$": "int", "v": "@1:9000"}, {"$": "int", "v": "__import__('os')"}),
        *({"$": "set", "v": [[]]}, {"$": "dict", "v": [[[], 1]]}, {"$": "dict", "v": [1]}, {"$": "eval", "v": "1"}),
        *({"$": "bytes", "v": "A"}, {"$": "str", "v": "/w=="}, {"$": "tuple", "v": "ab"}, {"$": ["set"], "v": []}),
        *({"$": "set", "v": ["@same:30000"]}, {"$": "dict", "v": ["@pairs:30000"]}, {"$": "set", "v": [1, 1]}),
        *({"$": "remote", "v": ["@deep:-40", 1]}, {"$": "remote", "v": [{"$": "int", "v": "@1:9000"}, 1]}),
    ]
)
containers = st.sampled_from(
    [
        *([], {}, [[]], [None], {"": ""}, [["a"], ["b"]], {"text": "a", "cut": 0}, {"at": 2, "size": 5}),
        *({"at": 0, "size": 1 << 62}, {"at": -1, "size": 1}, {"at": True, "size": True}, {"path": "/etc/passwd"}),
        *({"at": 2, "size": 5, "path": "/etc/passwd"}, {"at": 0, "size": 0}),
    ]
)
anything = st.one_of(st.none(), numbers, texts, deep, tagged, containers)


# What may stand where something of a kind did: mostly of that kind.
INSTEAD = tuple(
    (kind, st.one_of(alike, alike, alike, anything))
    for kind, alike in (
        (bool, anything),
        ((int, float), numbers),
        (str, texts),
        ((list, dict), st.one_of(deep, tagged, containers)),
        (object, anything),
    )
)
some = [st.integers(0, most) for most in range(40)]


@st.composite
def places(draw: st.DrawFn, data: Any) -> tuple[Any, ...]:
    """A place in the data, as steps from its top: deep ones as often as high ones, and those in large parts oftener."""
    place: list[Any] = []
    while inside := list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()):
        if not draw(some[7]):
            break
        largest = max(range(len(inside)), key=lambda number: len(str(inside[number][1])))
        step, data = inside[largest if draw(some[1]) else draw(some[len(inside) - 1])]
        place.append(step)
    return tuple(place)


def changed(data: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    """A copy in which what stands at `place` is another value, gone, twice, or under another key."""
    if not place:
        return [data, value] if how == "twice" else value if how == "other" else data
    step, *rest = place
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    if rest:
        copy[step] = changed(data[step], tuple(rest), how, value)
    elif how == "gone":
        del copy[step]
    elif how == "other":
        copy[step] = value
    elif isinstance(copy, dict):
        copy[value if isinstance(value, str) else "more"] = copy.pop(step) if how == "key" else data[step]
    else:
        copy.insert(step, data[step] if how == "twice" else value)
    return copy


@st.composite
def frames(draw: st.DrawFn, ask: str) -> Any:
    """A frame as workers send it, or nearly so."""
    fitting = draw(st.sampled_from([True, True, True, False]))
    frame: Any = draw(st.sampled_from(FITTING[ask] if fitting else FRAMES))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 1, 2, 3]))):
        place = draw(places(frame))
        standing = frame
        for step in place:
            standing = standing[step]
        strategy = next(strategy for kind, strategy in INSTEAD if isinstance(standing, kind))
        how = draw(st.sampled_from(["other", "other", "other", "other", "gone", "twice", "key"]))
        frame = changed(frame, place, how, draw(texts if how == "key" else strategy))
    return frame


HOW = (
    "whole",
    "whole",
    "whole",
    "whole",
    "whole",
    "whole",
    "whole",
    "whole",
    "parts",
    "parts",
    "between",
    "open",
    "cut",
    "twice",
    "endless",
)
rubbish = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\n", b"\n\n\n", b"{", b"\xff\xfe{\n", b"\xef\xbb\xbf{}\n", b"\x00\n", b"null\n", b"@x:70000"]),
    st.sampled_from([b"@[:100000\n", b"@{:50000\n", b"@x:1100000", b'"\\ud800"\n']),
)
words = st.sampled_from(
    [
        *(
            b"",
            b"{}",
            b"[]",
            b"null",
            b"{",
            b"\xff",
            b"@[:16000",
            b"@x:20000",
            b'{"failed": {}}',
            b'{"failed": "no"}',
        ),
        *(b'{"status": -9, "over": "memory"}', b'{"status": "x"}', b'{"status": 1e999}', b'{"status": true}'),
        *(b'{"status": -@9:4000}', b'{"status": @9:5000}', b'{"status": NaN}'),
        *(b'{"over": ["memory"], "status": -9}', b'{"over": {}, "status": null}'),
    ]
)
WHAT = ("deaf", "no files", "hang up files", "hang up control", "cut spool", "pass descriptors")


def acts(ask: str) -> st.SearchStrategy[Act]:
    says = st.builds(Say, frames(ask), st.sampled_from(HOW), st.integers(0, 200))
    others = (
        st.builds(Bytes, rubbish),
        st.builds(Many, says, st.sampled_from([3, 70, 300])),
        st.builds(Told, words, st.integers(0, 3), st.sampled_from(["pipe", "silent pipe", "file", "socket"])),
        st.builds(Do, st.sampled_from(WHAT)),
    )
    return st.one_of(*[says] * 9, *others)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    ask = draw(st.sampled_from(ASKS))
    return Step(ask, tuple(draw(st.lists(acts(ask), min_size=1, max_size=2))), draw(st.sampled_from(ENDS)))


scripts = st.builds(
    Script,
    st.lists(steps(), min_size=1, max_size=4).map(tuple),
    st.one_of(st.just(()), st.just(()), st.just(()), st.lists(acts("load"), max_size=2).map(tuple)),
    st.sampled_from([False, False, True]),
    st.sampled_from([0, 0, 20, 100]),
)


def spelled(data: bytes) -> bytes:
    """The bytes in full; a script that prints as it is written should fit a screen."""
    return re.sub(rb"@(.):(\d{1,7})", lambda found: found[1].replace(b"{", b'{"a":') * int(found[2]), data)


# -- frames as text ----------------------------------------------------------------------------------------------------

_STANDS_FOR = re.compile(r'"@([^":\\]+|\\u00e4)(?::(-?\d+))?"')


def text_of(frame: Any, known: Mapping[str, int], room: int) -> str:
    """The frame's JSON. known: what `@cell` and the like stand for; room: how deep JSON may be nested at most here."""

    def meant(found: re.Match[str]) -> str:
        name, number = found[1], int(found[2] or 0)
        if name in known:
            return str(known[name])
        depth = number if number > 0 else max(1, room + number)
        match name:
            case "big":
                return "9" * number
            case "minus":
                return "-" + "9" * number
            case "deep":
                return "[" * depth + "]" * depth
            case "objects":
                return '{"a":' * depth + "1" + "}" * depth
            case "same":  # whose hashes are the same
                return ",".join(f'{{"$":"int","v":"{hex((n + 1) * ((1 << 61) - 1))}"}}' for n in range(number))
            case "pairs":
                return ",".join(f'[{{"$":"int","v":"{hex((n + 1) * ((1 << 61) - 1))}"}},1]' for n in range(number))
        return f'"{name * number}"'

    return _STANDS_FOR.sub(meant, json.dumps(frame))
