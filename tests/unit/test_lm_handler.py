"""Where calls of third-party environments arrive: a token, any number of calls at once, an answer or an error."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.environments import lm_handler
from rlm.environments.lm_handler import HandlerAddress, LMHandler, acall, call
from rlm.ports import CallFailed

PATIENCE = 30.0


async def echo(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return name, list(args), dict(kwargs)


def with_handler(script: Callable[[LMHandler, HandlerAddress], Awaitable[Any]]) -> Any:
    """What the script returns that is given a listening handler, which answers with an echo."""

    async def main() -> Any:
        handler = LMHandler()
        handler.answer = echo
        address = await handler.start()
        try:
            async with asyncio.timeout(PATIENCE):
                return await script(handler, address)
        finally:
            await handler.close()
            await handler.close()

    return asyncio.run(main())


def said(address: tuple[str, int], *lines: bytes) -> bytes:
    """Everything the handler says to these lines, up to the end of the connection."""
    with socket.create_connection((address[0], address[1])) as connection:
        connection.sendall(b"".join(lines))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as replies:
            return replies.read()


def frame(token: Any, **changes: Any) -> bytes:
    fields = {"type": "call", "id": 1, "token": token, "name": "llm_query", "args": ["?"], "kwargs": {}}
    return json.dumps({**fields, **changes}).encode() + b"\n"


def test_a_call_and_its_value() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        assert address[0] == "127.0.0.1"
        assert isinstance(address, tuple)
        value = await asyncio.to_thread(call, address, "lookup", [1, b"\x00", (2, {3})], {"key": {4: "\ud800"}})
        assert value == ("lookup", [1, b"\x00", (2, {3})], {"key": {4: "\ud800"}})
        assert await acall(address, "f", [], {}) == ("f", [], {})

    with_handler(script)


def test_the_documented_frames_are_all_that_is_needed() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        answer = await asyncio.to_thread(said, address, frame(address.token, id="mine"))
        assert json.loads(answer) == {
            "type": "reply",
            "id": "mine",
            "value": {"$": "tuple", "v": ["llm_query", ["?"], {}]},
        }

    with_handler(script)
    body = inspect.getsource(call).partition('"""\n')[2].partition('"""\n')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize(
    "sent",
    [
        lambda token: frame("guess"),
        lambda token: frame(""),
        lambda token: frame(None),
        lambda token: frame([token]),
        lambda token: frame("\ud800"),
        lambda token: b'{"type":"call","id":1,"name":"llm_query","args":[],"kwargs":{}}\n',
        lambda token: json.dumps([token]).encode() + b"\n",
        lambda token: token.encode() + b"\n",
        lambda token: b"GET / HTTP/1.1\r\n\r\n",
        lambda token: b"\xff\xfe\n",
        lambda token: b"[" * 100_000 + b"\n",
        lambda token: b"",
    ],
)
def test_who_does_not_know_the_token_is_answered_nothing(sent: Callable[[str], bytes]) -> None:
    asked: list[str] = []

    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            asked.append(name)

        handler.answer = answer
        assert await asyncio.to_thread(said, address, sent(address.token)) == b""
        assert await acall(address, "known", [], {}) is None

    with_handler(script)
    assert asked == ["known"]


def test_a_tuple_without_a_token_is_refused() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        with pytest.raises(CallFailed, match="closed the connection") as refused:
            await acall((address[0], address[1]), "llm_query", ["?"], {})
        assert refused.value.reason == "disconnected"

    with_handler(script)


def test_each_handler_has_a_token_of_its_own() -> None:
    async def main() -> None:
        one, other = LMHandler(), LMHandler()
        first, second = await one.start(), await other.start()
        assert first.token != second.token
        with pytest.raises(CallFailed):
            await acall(HandlerAddress(*second, first.token), "f", [], {})
        await one.close()
        await other.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"args": {}}, "a name, a list of args and an object of kwargs"),
        ({"kwargs": []}, "a name, a list of args and an object of kwargs"),
        ({"name": 5}, "a name, a list of args and an object of kwargs"),
        ({"args": [{"$": "pickle", "v": ""}]}, "not a value that can be sent: unknown kind of value 'pickle'"),
        ({"args": json.loads("[" * 150 + "]" * 150)}, "nested over"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_so(changes: dict[str, Any], told: str) -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        answer = json.loads(await asyncio.to_thread(said, address, frame(address.token, **changes)))
        assert told in answer["error"]
        assert answer["reason"] == "value"

    with_handler(script)


def test_failures_come_with_their_reason() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            match name:
                case "refused":
                    raise CallFailed("no money left", "budget")
                case "broken":
                    raise ValueError("no such row")
            return object()

        handler.answer = answer
        for name, told, reason in (
            ("refused", "no money left", "budget"),
            ("broken", "ValueError: no such row", "tool"),
            ("odd", "not a value that can be sent: value is of type object", "value"),
        ):
            with pytest.raises(CallFailed, match=told) as failed:
                await acall(address, name, [], {})
            assert failed.value.reason == reason

    with_handler(script)


def test_calls_on_one_connection_are_answered_as_they_are_ready() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        order = {n: asyncio.Event() for n in range(5)}
        order[4].set()

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            await order[args[0]].wait()
            order.get(args[0] - 1, asyncio.Event()).set()
            return args[0]

        handler.answer = answer
        lines = [frame(address.token, id=n, args=[n]) for n in range(5)]
        replies = (await asyncio.to_thread(said, address, *lines)).splitlines()
        assert [json.loads(reply)["id"] for reply in replies] == [4, 3, 2, 1, 0]

    with_handler(script)


def test_many_threads_ask_at_once() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        barrier = asyncio.Barrier(30)

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            await barrier.wait()
            return args[0]

        handler.answer = answer
        assert await asyncio.gather(*(acall(address, "f", [n], {}) for n in range(30))) == list(range(30))

    with_handler(script)


def test_calls_end_with_their_cell() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        asked = asyncio.Event()

        async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            asked.set()
            await asyncio.Event().wait()

        handler.answer = never
        waiting = asyncio.create_task(acall(address, "slow", [], {}))
        await asked.wait()
        handler.end_cell()
        for name, task, reason in (("slow", waiting, "cancelled"), ("late", acall(address, "late", [], {}), "late")):
            with pytest.raises(CallFailed) as ended:
                await task
            assert ended.value.reason == reason, name
        handler.answer = echo
        assert (await acall(address, "next", [], {}))[0] == "next"

    with_handler(script)


def test_closing_ends_those_who_wait() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        asked = asyncio.Event()

        async def never(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            asked.set()
            await asyncio.Event().wait()

        handler.answer = never
        waiting = asyncio.create_task(acall(address, "slow", [], {}))
        await asked.wait()
        await handler.close()
        with pytest.raises(CallFailed):
            await waiting
        with pytest.raises(CallFailed, match=r"127.0.0.1:\d+ cannot be reached") as gone:
            await acall(address, "f", [], {})
        assert gone.value.reason == "disconnected"

    with_handler(script)


def test_a_caller_that_leaves_harms_nobody() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            asked.set()
            await go.wait()
            return "x" * 10_000_000

        handler.answer = answer
        with socket.create_connection((address[0], address[1])) as connection:
            connection.sendall(frame(address.token) + b'{"half of a')
            await asked.wait()
        go.set()
        handler.answer = echo
        assert (await acall(address, "f", [], {}))[0] == "f"

    with_handler(script)


def test_a_connection_cut_in_the_midst_of_a_reply_is_told() -> None:
    def cut(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b'{"type":"reply","id":1,"val')

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=cut, args=[server])
        thread.start()
        with pytest.raises(CallFailed, match="closed the connection"):
            call(server.getsockname(), "f")
        thread.join(PATIENCE)


@settings(max_examples=25)
@given(
    st.lists(
        st.binary(max_size=40) | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)), max_size=4
    )
)
def test_whatever_a_stranger_sends_the_handler_goes_on(lines: list[Any]) -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        sent = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        assert await asyncio.to_thread(said, address, b"\n".join([*sent, b""])) == b""
        assert (await acall(address, "f", [], {}))[0] == "f"

    with_handler(script)


def test_a_line_may_be_long() -> None:
    async def script(handler: LMHandler, address: HandlerAddress) -> None:
        assert (await acall(address, "f", ["x" * 5_000_000], {}))[1] == ["x" * 5_000_000]

    with_handler(script)
    assert lm_handler.MAX_LINE >= 5_000_000
