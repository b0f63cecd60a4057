"""A turn as a stream of typed events, which may be left early."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import aclosing

import pytest

from rlm import RLM, Limits, ScriptedModel
from rlm.errors import BudgetExceededError, CancellationError, ModelError
from rlm.types import Answered, Calling, Event, Printed, Ran, Running, Stopped
from tests.processes import gone, named, naming, token
from tests.turns import by_task, cell, submit

BUSY = "x = 1\nprint('busy', flush=True)\nwhile True: pass"


def test_a_stream_tells_a_turn_as_it_happens_and_ends_with_the_answer() -> None:
    model = ScriptedModel([cell("print(llm_query('Why?', model='scripted'), flush=True)"), "because", submit("42")])
    with RLM(model) as rlm:
        events = list(rlm.stream("input", "What?"))
    assert [event.kind for event in events] == [
        *("asked", "context", "briefed", "asking", "replied", "running", "calling", "called", "printed", "ran"),
        *("asking", "replied", "running", "ran", "answered"),
    ]
    calling, last = events[6], events[-1]
    assert isinstance(calling, Calling)
    assert (calling.name, calling.prompt, calling.model) == ("llm_query", "Why?", "scripted")
    assert isinstance(last, Answered)
    assert last.completion.response == "42"
    assert [event.kind for event in events if event.durable] == [
        *("asked", "context", "briefed", "replied", "called", "ran", "replied", "ran", "answered")
    ]


def test_the_async_stream_tells_the_same() -> None:
    async def go() -> list[str]:
        async with RLM(ScriptedModel([submit("42")])) as rlm:
            return [event.kind async for event in rlm.astream("input", "What?")]

    assert asyncio.run(go()) == ["asked", "context", "briefed", "asking", "replied", "running", "ran", "answered"]


def test_events_come_while_the_turn_still_runs() -> None:
    release = threading.Event()
    model = ScriptedModel([cell("print('first', flush=True)\nwait()\nprint('second', flush=True)"), submit("1")])
    with RLM(model, tools={"wait": lambda: release.wait() and None}) as rlm:
        printed = []
        for event in rlm.stream("input", "What?"):
            if isinstance(event, Printed):
                printed.append(event.text)
                release.set()
    assert "".join(printed) == "first\nsecond\n"


def test_a_session_streams_turns_with_input_in_both_forms() -> None:
    async def go() -> list[Event]:
        async with RLM(ScriptedModel([submit("context"), submit("context_1")])) as rlm, rlm.session() as session:
            events = [event async for event in session.astream("one", "What?")]
            return [events[-1], *list(session.stream("two", "What?"))[-1:]]

    answers = [event.completion.response for event in asyncio.run(go()) if isinstance(event, Answered)]
    assert answers == ["one", "two"]


def test_a_stream_of_a_question_and_with_all_that_a_turn_takes() -> None:
    with RLM(ScriptedModel([submit("[1, 2]")])) as rlm, rlm.session() as session:
        last = list(session.stream_ask("What?", key="k", output_type=list[int]))[-1]
        assert isinstance(last, Answered)
        assert last.completion.output == [1, 2]
        [again] = session.stream_ask("What?", key="k", output_type=list[int])
        assert isinstance(again, Answered)
        assert again.completion == last.completion


def test_a_recorded_answer_is_a_stream_of_one_event() -> None:
    async def go() -> list[list[Event]]:
        async with RLM(ScriptedModel([submit("1"), submit("2")])) as rlm, rlm.session() as session:
            return [[event async for event in session.astream_ask(q, key=q)] for q in ("a?", "b?", "a?", "b?")]

    first, second, again, second_again = asyncio.run(go())
    for [recorded], events in ((again, first), (second_again, second)):
        assert isinstance(recorded, Answered)
        assert isinstance(events[-1], Answered)
        assert recorded.completion == events[-1].completion


def test_a_turn_that_ends_without_an_answer_raises_at_the_end_of_its_stream() -> None:
    events: list[Event] = []
    with RLM(ScriptedModel([cell("1"), cell("2")]), limits=Limits(calls=1)) as rlm:
        with pytest.raises(BudgetExceededError) as caught:
            events.extend(rlm.stream("input", "What?"))
        assert caught.value.usage.total_calls == 1
    with RLM(ScriptedModel([])) as rlm, rlm.session() as session:
        with pytest.raises(ModelError):
            events.extend(session.stream("input", "What?"))
        assert session.log[-1].kind == "failed"


def test_leaving_a_stream_early_cancels_the_turn_and_keeps_the_session() -> None:
    model = by_task({"Busy?": cell(BUSY), "Still there?": submit("x")})
    with RLM(model) as rlm, rlm.session() as session:
        for event in session.stream_ask("Busy?"):
            if isinstance(event, Printed):
                break
        stopped = session.log[-1]
        assert isinstance(stopped, Stopped)
        assert stopped.reason == "CancellationError"
        assert session.ask("Still there?").response == "1"


def test_leaving_an_async_stream_early_does_too() -> None:
    model = by_task({"Busy?": cell(BUSY), "Still there?": submit("x")})

    async def go() -> tuple[str, str]:
        async with RLM(model, persistent=True) as rlm:
            async with aclosing(rlm.astream("input", "Busy?")) as events:
                async for event in events:
                    if isinstance(event, Printed):
                        break
            session = rlm.session()
            return session.log[-1].kind, (await session.aask("Still there?")).response

    assert asyncio.run(go()) == ("stopped", "1")


def test_an_async_stream_that_is_just_dropped_lets_the_next_question_in() -> None:
    model = by_task({"Busy?": cell(BUSY), "Still there?": submit("x")})

    async def go() -> str:
        async with RLM(model) as rlm, rlm.session() as session:
            async for event in session.astream_ask("Busy?"):
                if isinstance(event, Running):
                    break
            return (await session.arun("print('there')")).stdout

    assert asyncio.run(go()) == "there\n"


def test_leaving_a_stream_of_a_completion_of_its_own_ends_its_worker() -> None:
    pids: list[int] = []
    model = ScriptedModel([cell(f"report({naming(token())})\n" + BUSY)])
    with RLM(model, tools={"report": lambda name: pids.append(named(name))}) as rlm:
        for event in rlm.stream("input", "Busy?"):
            if isinstance(event, Printed):
                break
        assert gone(pids[0])


def test_a_cancelled_reader_of_an_async_stream_cancels_the_turn() -> None:
    model = by_task({"Busy?": cell(BUSY), "Still there?": submit("x")})

    async def go() -> str:
        async with RLM(model) as rlm, rlm.session() as session:
            busy = asyncio.Event()

            async def read() -> None:
                async for event in session.astream_ask("Busy?"):
                    if isinstance(event, Printed):
                        busy.set()

            task = asyncio.create_task(read())
            await busy.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await session.aask("Still there?")).response

    assert asyncio.run(go()) == "1"


def test_ctrl_c_in_a_stream_says_how_far_the_turn_came() -> None:
    model = ScriptedModel(["I begin.\n" + cell(BUSY), submit("x")])
    with RLM(model) as rlm, rlm.session() as session:
        main = threading.main_thread().ident or 0

        def read() -> None:
            for event in session.stream_ask("Busy?"):
                if isinstance(event, Printed):
                    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()

        with pytest.raises(CancellationError) as caught:
            read()
        assert (caught.value.partial_answer or "").startswith("I begin.")
        assert session.ask("Still there?").response == "1"


def test_a_stream_tells_of_its_own_turn_only() -> None:
    model = by_task({f"{n}?": submit(f"'{n}'") for n in range(6)})

    async def go() -> list[set[str]]:
        async with RLM(model) as rlm, rlm.session() as session:

            async def read(n: int) -> set[str]:
                return {event.at.partition("/")[0] async for event in session.astream_ask(f"{n}?")}

            return await asyncio.gather(*(read(n) for n in range(6)))

    assert asyncio.run(go()) == [{f"t{n}"} for n in range(6)]


def test_a_stream_that_is_never_read_asks_nothing() -> None:
    model = ScriptedModel([])
    with RLM(model) as rlm:
        stream = rlm.stream("input", "What?")
        stream.close()
    assert model.requests == []


def test_children_are_told_of_below_their_call() -> None:
    model = by_task({"Ask.": submit("rlm_query('Task: child')"), "child": submit("'done'")})
    with RLM(model, limits=Limits(depth=2)) as rlm:
        events = list(rlm.stream("input", "Ask."))
    calling = next(event for event in events if isinstance(event, Calling))
    below = [event.kind for event in events if event.at.startswith(calling.at + "/")]
    assert below == ["asking", "replied", "running", "ran"]
    assert sum(isinstance(event, Ran) for event in events) == 2
