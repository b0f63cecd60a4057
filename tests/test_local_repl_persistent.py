"""LocalREPL(persistent=True): the five methods that let one namespace serve turn after turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from rlm.environments import LocalREPL, SupportsPersistence
from rlm.environments.lm_handler import HandlerAddress, LMHandler
from rlm.portal import portal
from rlm.types import CallRecord

PATIENCE = 30.0


@pytest.fixture
def repl() -> Iterator[LocalREPL]:
    with LocalREPL(persistent=True) as repl:
        yield repl


def printed(repl: LocalREPL, code: str) -> str:
    result = repl.execute_code(code)
    assert result.error is None, result.stderr
    return result.stdout


def test_it_supports_persistence(repl: LocalREPL) -> None:
    assert repl.persistent
    assert isinstance(repl, SupportsPersistence)


# -- contexts ----------------------------------------------------------------------------------------------------------


def test_contexts_accumulate(repl: LocalREPL) -> None:
    assert repl.get_context_count() == 0
    assert [repl.add_context(value) for value in ("first", {"n": 2}, [3])] == [0, 1, 2]
    assert repl.get_context_count() == 3
    assert printed(repl, "print(context, context_0, context_1['n'], context_2)") == "first first 2 [3]\n"


def test_context_is_always_the_first(repl: LocalREPL) -> None:
    repl.add_context("first")
    repl.add_context("second")
    assert printed(repl, "print(context is context_0, context)") == "True first\n"
    repl.load_context("another first")
    assert printed(repl, "print(context, context_1)") == "another first second\n"
    assert repl.get_context_count() == 2


def test_contexts_are_put_back(repl: LocalREPL) -> None:
    repl.add_context("first")
    repl.add_context("second")
    printed(repl, "context = context_0 = None\ndel context_1")
    assert printed(repl, "print(context, context_0, context_1)") == "first first second\n"


def test_an_index_may_be_given(repl: LocalREPL) -> None:
    assert repl.add_context("x", 3) == 3
    assert (repl.get_context_count(), repl.add_context("y")) == (4, 4)
    assert repl.add_context("z", context_index=3) == 3
    assert printed(repl, "print(context_3, context_4, 'context' in globals())") == "z y False\n"


# -- histories ---------------------------------------------------------------------------------------------------------

HISTORY = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


def test_histories_accumulate(repl: LocalREPL) -> None:
    assert repl.get_history_count() == 0
    assert [repl.add_history(HISTORY), repl.add_history(HISTORY[:1]), repl.add_history([])] == [0, 1, 2]
    assert repl.get_history_count() == 3
    assert printed(repl, "print(history is history_0, history[-1]['content'], len(history_1), history_2)") == (
        "True That. 1 []\n"
    )
    assert repl.add_history(HISTORY[1:], 1) == 1
    assert repl.locals["history_1"] == HISTORY[1:]


def test_a_history_is_a_copy(repl: LocalREPL) -> None:
    messages = [dict(message) for message in HISTORY]
    repl.add_history(messages)
    messages[0]["content"] = "changed"
    messages.clear()
    assert repl.locals["history"] == HISTORY


# -- variables ---------------------------------------------------------------------------------------------------------


def test_variables_stay_through_turns_and_contexts(repl: LocalREPL) -> None:
    repl.add_context([1, 2, 3])
    printed(repl, "total = sum(context)\ndef more(n):\n    return total + n")
    repl.add_history(HISTORY)
    repl.add_context([10])
    assert printed(repl, "total = more(context_1[0])\nprint(total, more(1))") == "16 17\n"
    assert repl.locals["total"] == 16


def test_a_restart_brings_back_what_was_given_and_names_what_is_lost(repl: LocalREPL) -> None:
    repl.add_context("first")
    repl.add_context("x" * 1_000_000)
    repl.add_history(HISTORY)
    printed(repl, "mine = 1")
    result = repl.execute_code("import os; os._exit(1)")
    assert result.restarted
    assert "Back: context, context_0, context_1, history, history_0. Lost: mine (int)" in result.stderr
    assert (
        printed(repl, "print(context, len(context_1), len(history), 'mine' in globals())") == "first 1000000 2 False\n"
    )
    assert (repl.get_context_count(), repl.get_history_count()) == (2, 1)


def test_many_threads_may_use_one(repl: LocalREPL) -> None:
    def use(n: int) -> None:
        repl.execute_code(f"v{n} = {n}")
        repl.add_context(f"c{n}")
        repl.add_history(HISTORY)

    threads = [threading.Thread(target=use, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (repl.get_context_count(), repl.get_history_count()) == (8, 8)
    assert sorted(repl.locals[f"context_{n}"] for n in range(8)) == [f"c{n}" for n in range(8)]
    assert [repl.locals[f"v{n}"] for n in range(8)] == list(range(8))


# -- the handler -------------------------------------------------------------------------------------------------------


def with_handler(answer: Any, script: Callable[[HandlerAddress], Any]) -> Any:
    """What the script returns that is given the address of a handler which answers so."""

    async def start() -> tuple[LMHandler, HandlerAddress]:
        handler = LMHandler()
        handler.answer = answer
        return handler, await handler.start()

    handler, address = portal().run(start())
    try:
        return script(address)
    finally:
        portal().run(handler.close())


def answering(text: str) -> Callable[..., Awaitable[Any]]:
    async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if name.endswith("batched"):
            return [{"value": f"{text} {prompt}"} for prompt in args[0]]
        return f"{text} {args[0]} {kwargs}"

    return answer


def test_calls_go_to_the_handler_of_the_moment(repl: LocalREPL) -> None:
    def first(address: HandlerAddress) -> None:
        repl.update_handler_address(address)
        assert printed(repl, "print(llm_query('a', model='m'))\nprint(llm_query_batched(['b', 'c']))") == (
            "one a {'model': 'm'}\n['one b', 'one c']\n"
        )

    def second(address: HandlerAddress) -> None:
        repl.update_handler_address(address)
        result = repl.execute_code("print(rlm_query('d'))")
        assert result.stdout == "two d {}\n"
        [call] = result.rlm_calls
        assert isinstance(call, CallRecord)
        assert (call.name, call.prompt, call.response, call.error) == ("rlm_query", "d", "two d {}", None)

    with_handler(answering("one"), first)
    assert "cannot be reached" in printed(repl, "print(llm_query('e'))")
    with_handler(answering("two"), second)


def test_the_handler_may_be_given_at_construction() -> None:
    def script(address: HandlerAddress) -> str:
        with LocalREPL(address, "input", persistent=True) as repl:
            return printed(repl, "print(llm_query(context))")

    assert with_handler(answering("got"), script) == "got input {}\n"


def test_calls_of_many_threads_are_answered_at_once(repl: LocalREPL) -> None:
    barrier = asyncio.Barrier(10)

    async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        await barrier.wait()
        return args[0]

    def script(address: HandlerAddress) -> str:
        repl.update_handler_address(address)
        code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(10) as pool:
    print(*pool.map(llm_query, "0123456789"))
"""
        return printed(repl, code)

    assert with_handler(answer, script) == "0 1 2 3 4 5 6 7 8 9\n"
