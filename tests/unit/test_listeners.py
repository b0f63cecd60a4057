"""Listeners hear every event in order, in a thread of their own, and cannot harm a turn."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time

import pytest

from rlm import RLM, ScriptedModel
from rlm.errors import ModelError
from rlm.listeners import Listening
from rlm.stores import get_store
from rlm.types import Asked, Event, Opened, Recorded
from tests.turns import cell, submission, submit


def tell(listening: Listening, *events: Event) -> None:
    async def go() -> None:
        told = listening.begin()
        for event in events:
            told(event)
        await listening.caught_up()

    asyncio.run(go())


def test_events_come_in_order_and_all_have_come_once_it_caught_up() -> None:
    heard: list[str] = []
    listening = Listening([lambda: lambda event: heard.append(event.at)])
    tell(listening, *(Asked(f"t{n}") for n in range(100)))
    assert heard == [f"t{n}" for n in range(100)]
    listening.close()


def test_each_session_gets_listeners_of_its_own() -> None:
    made: list[list[str]] = []

    def make() -> object:
        heard: list[str] = []
        made.append(heard)
        return lambda event: heard.append(event.at)

    listening = Listening([make])  # type: ignore[list-item]
    tell(listening, Asked("a"))
    tell(listening, Asked("b"))
    assert made == [["a"], ["b"]]
    listening.close()


def test_they_are_called_in_one_thread_that_is_not_the_loops() -> None:
    threads: set[str] = set()
    listening = Listening([lambda: lambda event: threads.add(threading.current_thread().name)])
    tell(listening, Asked("a"), Asked("b"))
    assert threads == {"rlm-listeners"}
    listening.close()


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_one_that_raises_is_logged_and_the_others_hear_on(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def fail(event: Event) -> None:
        raise kind("no ears")

    listening = Listening([lambda: fail, lambda: lambda event: heard.append(event.at)])
    with caplog.at_level(logging.ERROR, "rlm"):
        tell(listening, Asked("a"), Asked("b"))
    assert heard == ["a", "b"]
    assert caplog.text.count(f"{kind.__name__}: no ears") == 2
    listening.close()


def test_a_loop_that_closed_before_they_caught_up_stops_nobody() -> None:
    heard: list[str] = []
    may_hear = threading.Event()

    def listen(event: Event) -> None:
        may_hear.wait(30)
        heard.append(event.at)

    listening = Listening([lambda: listen])

    async def give_up() -> None:
        listening.begin()(Asked("a"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listening.caught_up(), 0.05)

    asyncio.run(give_up())
    may_hear.set()
    tell(listening, Asked("b"))
    assert heard == ["a", "b"]
    listening.close()


def test_without_listeners_no_thread_is_started() -> None:
    before = threading.enumerate()
    listening = Listening([])
    tell(listening, Asked("a"))
    assert set(threading.enumerate()) <= set(before)
    listening.close()


def test_close_ends_the_thread_and_may_be_called_twice() -> None:
    others = threading.enumerate()
    listening = Listening([lambda: lambda event: None])
    tell(listening, Asked("a"))
    [thread] = set(threading.enumerate()) - set(others)
    listening.close()
    listening.close()
    thread.join(20)
    assert not thread.is_alive()


def test_the_thread_ends_with_the_rlm_that_nobody_closed() -> None:
    threads: list[threading.Thread] = []
    rlm = RLM(ScriptedModel([submit("1")]), listener=lambda event: threads.append(threading.current_thread()))
    rlm.completion("a", "?")
    thread = threads[0]
    del rlm
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_a_completion_returns_once_its_listener_has_heard_everything() -> None:
    kinds: list[str] = []
    with RLM(ScriptedModel([submit("1")]), listener=lambda event: kinds.append(event.kind)) as rlm:
        rlm.completion("a", "?")
        assert kinds[0] == "asked"
        assert kinds[-1] == "answered"


def test_a_listener_may_itself_use_the_session() -> None:
    seen: list[object] = []

    def look(event: Event) -> None:
        if event.kind == "answered" and not seen:
            seen.append(session.variables()["x"])
            seen.append(session.ask("Again?").response)

    model = ScriptedModel([cell("x = 1", submission("'first'")), submit("'second'")])
    with RLM(model, listener=look) as rlm:
        session = rlm.session()
        assert session.ask("Once?").response == "first"
        assert seen == ["int", "second"]


def test_a_turn_that_is_resumed_in_vain_is_heard_to_its_end_before_it_raises() -> None:
    async def cut_off() -> None:
        lease = await get_store().lease("s")
        await lease.append([Recorded(0, 1.0, Opened("", "s")), Recorded(1, 1.0, Asked("t0", "What?"))])
        await lease.release()

    heard: list[str] = []

    def slow(event: Event) -> None:
        time.sleep(0.05)
        heard.append(event.kind)

    asyncio.run(cut_off())
    with RLM(ScriptedModel([]), listener=slow) as rlm, rlm.session("s") as session:
        with pytest.raises(ModelError):
            session.resume()
        assert heard[-1] == "failed"
