"""A model provider on 127.0.0.1 that keeps its own bill, for hosts that may be gone before their reply arrives.

Every request gets a number, which its usage carries as cached tokens, so that a log says which requests it has. What
it answers is a function of the messages alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlm.errors import ModelError
from rlm.types import Message, Messages, Price, Reply, Usage

Answering = Callable[[str, Messages], tuple[str, str | None]]
"""From a run and the messages to what makes the request the same as another one, and the reply; None refuses it."""

Watching = Callable[["Billed", str], None]
"""Told of a request "before" it is answered, and "after"."""

PRICE = Price(1.0, 4.0)


@dataclass(slots=True)
class Billed:
    """A request. run, life: whose; served: it was answered, and so has to be paid; sent: the reply went out."""

    number: int
    run: str
    life: int
    signature: str
    input_tokens: int
    output_tokens: int = 0
    served: bool = False
    sent: bool = False


class Provider:
    """Serves in a thread of its own, from construction to `close`. bill: all requests, in the order of arrival."""

    def __init__(self, answering: Answering, watching: Watching | None = None, *, latency: float = 0.004) -> None:
        self.bill: list[Billed] = []
        self._answering, self._watching = answering, watching
        self._latency = latency
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True, name="provider")
        self._thread.start()
        started.wait()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        self._loop.close()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await self._answer(json.loads(await reader.readexactly(length)), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the host is gone
        finally:
            writer.close()

    async def _answer(self, request: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        messages: list[Message] = request["messages"]
        size = sum(len(message["content"]) for message in messages)
        signature, text = self._answering(request["run"], messages)
        billed = Billed(len(self.bill) + 1, request["run"], request["life"], signature, -(-size // 4))
        self.bill.append(billed)
        self._watch(billed, "before")
        if self._latency:
            await asyncio.sleep(random.random() * self._latency)
        billed.served = text is not None
        billed.output_tokens = -(-len(text or "") // 4)
        reply = {"text": text, "number": billed.number, "in": billed.input_tokens, "out": billed.output_tokens}
        data = json.dumps(reply).encode()
        status = b"200 OK" if billed.served else b"400 Bad Request"
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data))
        await writer.drain()
        billed.sent = True
        self._watch(billed, "after")

    def _watch(self, billed: Billed, when: str) -> None:
        if self._watching is not None:
            self._watching(billed, when)


class Loopback:
    """The model that asks such a provider. One connection a request, no retries: the bill is to show every request."""

    name = "loopback:model"
    price = PRICE

    def __init__(self, port: int, run: str, life: int) -> None:
        self._port, self._run, self._life = port, run, life

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        body = json.dumps({"run": self._run, "life": self._life, "messages": list(messages)}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            answer = await reader.read()
        finally:
            writer.close()
        status = int(answer.split(b" ", 2)[1])
        data = json.loads(answer.partition(b"\r\n\r\n")[2])
        if status != 200:
            raise ModelError("the provider refused the request", model=self.name, status=status)
        return Reply(data["text"], self.name, billed_usage(data["number"], data["in"], data["out"]))


def billed_usage(number: int, input_tokens: int, output_tokens: int) -> Usage:
    """A request of the bill as usage."""
    cost = (input_tokens * PRICE.input + output_tokens * PRICE.output) / 1_000_000
    return Usage(1, input_tokens, output_tokens, number, cost)
