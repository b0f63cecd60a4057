"""Whatever a worker says, the host keeps its promises; `scripts/fuzz` plays many more of these scripts."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from rlm.environments import kernel
from tests.fuzz.play import Broken, play
from tests.fuzz.scripts import (
    CALL,
    DONE,
    HEAP,
    OUT,
    TRAP,
    VALUE,
    Act,
    Bytes,
    Do,
    Many,
    Say,
    Script,
    Step,
    Told,
    scripts,
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scripts)
def test_whatever_a_worker_says_the_host_keeps_its_promises(script: Script) -> None:
    play(script)


def heap(**changes: Any) -> Act:
    return Say({**VALUE, "value": {**HEAP, **changes}})


def lines(frame: Any, times: int) -> Act:
    return Bytes((json.dumps(frame) + "\n").encode() * times)


LIES: dict[str, Script] = {
    "a checkpoint that took longer than a float can be": Script((Step("checkpoint", (heap(seconds="@big:400"),)),)),
    "a checkpoint nested too deep to be shown": Script((Step("checkpoint", (heap(modules="@deep:-60"),)),), deep=100),
    "names nested too deep to be shown": Script(
        (Step("checkpoint", (heap(groups=[[["@deep:-60"], ["list"], "", 1, True, True, {}]]),)),), deep=100
    ),
    "arguments whose hashes are the same": Script(
        (Step("run", (Say({**CALL, "args": [{"$": "set", "v": ["@same:40000"]}]}),)),)
    ),
    "keys whose hashes are the same": Script(
        (Step("get", (Say({**VALUE, "value": {"$": "dict", "v": ["@pairs:40000"]}}),)),)
    ),
    "a pickle that evaluates": Script((Step("get", (Say({**VALUE, "value": base64.b64encode(TRAP).decode()}),)),)),
    "an error without end": Script((Step("load", (Say({"type": "value", "id": "@request", "error": "@x:1000001"}),)),)),
    "files that nobody takes": Script((Step("restore", (Do("no files"),)), *[Step("restore", ())] * 3)),
    "files that cannot be handed over": Script((Step("run", (Do("hang up files"),)), Step("file", ()))),
    "a guard that hands out more than itself": Script((Step("run", (Told(b"{}", 3), Told(b"{}", 1))),)),
    "a guard that is a file": Script((Step("run", ()),), first=(Told(b"{}", 1, "file"),)),
    "a guard that is silent": Script((Step("run", ()),), first=(Told(b"{}", 1, "silent pipe"),)),
    "a guard's word nested too deep": Script((Step("run", (Told(b"@[:16000"),)),)),
    "an end in the moment of a cancellation": Script((Step("run", (), "die, and cancelled at that moment"),)),
    "rubbish while much is sent, by a worker that does not read": Script(
        (Step("timed", (Do("deaf"), Bytes(b"rubbish\n"))),)
    ),
    "more and more calls": Script((Step("run", (Many(Say({**CALL, "args": ["@x:1000001"]}), 20),)),)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_that_once_went_through_does_not(lie: str) -> None:
    play(LIES[lie])


# What would fill the host's memory if it went on: each ends the worker, long before it ends the host.
FLOODS: dict[str, tuple[str, Script]] = {
    "output without text": (
        "characters of output",
        Script(
            (Step("run", (lines({**OUT, "id": 1, "text": ""}, kernel.MAX_OUTPUT // kernel.PIECE + 1),), "silence"),)
        ),
    ),
    "names": (
        "characters of names",
        Script(
            tuple(
                Step("run", (Say({**DONE, "names": {f"@{letter}:20000000": "int"}}, "slices"),), "silence")
                for letter in "abcdefgh"
            )
        ),
    ),
    "answers left unread": (
        "left unread",
        Script((Step("run", (Do("deaf"), Many(Say({**CALL, "args": [{"$": "?"}]}), 14_000)), "silence"),)),
    ),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_what_would_fill_the_hosts_memory_ends_the_worker(flood: str) -> None:
    why, script = FLOODS[flood]
    assert why in play(script)


def test_the_promises_are_watched() -> None:
    """A host that unpickles, reads elsewhere, or calls what nobody asked for is found out."""
    with pytest.raises(Broken, match="pickle"):
        play(Script((Step("a host that unpickles", ()),)))
    with pytest.raises(Broken, match="passwd"):
        play(Script((Step("a host that reads elsewhere", ()),)))
    with pytest.raises(Broken, match="nobody asked"):
        play(Script((Step("a host that calls by itself", ()),)))
    with pytest.raises(Broken, match="does not end"):
        play(Script((Step("a host that waits for ever", ()),)))
