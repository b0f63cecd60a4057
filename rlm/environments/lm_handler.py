"""Where calls of executed code reach the engine, for environments that have no channel of their own.

One JSON object a line over a TCP connection to 127.0.0.1, the same frames that workers use:

    {"type": "call", "id": 1, "token": "…", "name": "llm_query", "args": ["…"], "kwargs": {}}
    {"type": "reply", "id": 1, "value": "…"}     or     {"type": "reply", "id": 1, "error": "…", "reason": "…"}

A connection may carry many calls; replies come as they are ready. Whoever does not know the token is answered nothing.
`call` below is the whole client. Values are plain JSON, or what `codec` makes of bytes, tuples and the like. The value
of a batch (`llm_query_batched`) is a list with an object for each prompt, `{"value": …}` or
`{"error": …, "reason": …}`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from rlm.environments import codec
from rlm.portal import in_thread
from rlm.ports import Answer, CallFailed

MAX_LINE = 256 * 1024 * 1024  # bytes of one call, as for a worker's frame


class HandlerAddress(tuple[str, int]):
    """`(host, port)` of a handler; `token` is what it expects of its callers."""

    token: str

    def __new__(cls, host: str, port: int, token: str) -> HandlerAddress:
        address = super().__new__(cls, (host, port))
        address.token = token
        return address


def call(address: tuple[str, int], name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """Ask the handler at `address`, blocking; returns the value.

    Raises `CallFailed` with the handler's reason, or with "disconnected" where it cannot be reached.
    """
    frame = {"type": "call", "id": 1, "token": getattr(address, "token", ""), "name": name}
    frame |= {"args": [codec.encode(arg) for arg in args], "kwargs": codec.encode(dict(kwargs or {}))}
    try:
        with socket.create_connection((address[0], address[1])) as connection, connection.makefile("rb") as replies:
            connection.sendall(_line(frame))
            line = replies.readline()
    except OSError as error:
        raise CallFailed(
            f"the LM handler at {address[0]}:{address[1]} cannot be reached: {error}", "disconnected"
        ) from error
    if not line.endswith(b"\n"):
        raise CallFailed(f"the LM handler at {address[0]}:{address[1]} closed the connection", "disconnected")
    reply = json.loads(line)
    if "error" in reply:
        raise CallFailed(reply["error"], reply.get("reason", "error"))
    return codec.decode(reply["value"])


class LMHandler:
    """Listens on 127.0.0.1 and has calls answered by whatever `answer` currently is (None: refused)."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self._token = secrets.token_hex(32)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._replies: set[asyncio.Task[None]] = set()

    async def start(self) -> HandlerAddress:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=MAX_LINE)
        host, port = self._server.sockets[0].getsockname()[:2]
        return HandlerAddress(host, port, self._token)

    def end_cell(self) -> None:
        """From now on calls are refused; those still unanswered are told that their cell has ended."""
        self.answer = None
        for reply in self._replies:
            reply.cancel()

    async def close(self) -> None:
        """Stop listening and end all connections. Twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.TaskGroup() as calls:
                while line := await reader.readline():
                    frame = self._parse(line)
                    if frame is None:
                        break  # not one of ours: no word to it
                    reply = calls.create_task(self._reply(frame, writer))
                    self._replies.add(reply)
                    reply.add_done_callback(self._replies.discard)
        except* (ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass  # the caller is gone, or sends lines without end: there is nobody to tell
        finally:
            self._connections.discard(task)
            writer.close()

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(frame, dict) or not hmac.compare_digest(
            str(frame.get("token")).encode(), self._token.encode()
        ):
            return None
        return frame

    async def _reply(self, frame: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        reply: dict[str, Any] = {"type": "reply", "id": frame.get("id")}
        try:
            name, args, kwargs = (codec.decode(frame.get(field)) for field in ("name", "args", "kwargs"))
            if not (isinstance(name, str) and isinstance(args, list) and isinstance(kwargs, dict)):
                raise CallFailed("a call needs a name, a list of args and an object of kwargs", "value")
            if self.answer is None:
                raise CallFailed(f"{name}() was called while no cell runs", "late")
            reply["value"] = codec.encode(await self.answer(name, args, kwargs))
        except CallFailed as error:
            reply |= {"error": str(error), "reason": error.reason}
        except asyncio.CancelledError:
            reply |= {"error": "the cell that made this call has ended", "reason": "cancelled"}
            writer.write(_line(reply))
            raise
        except codec.CodecError as error:
            reply |= {"error": f"not a value that can be sent: {error}", "reason": "value"}
        except Exception as error:  # noqa: BLE001 - whatever a host function raises is the caller's to handle
            reply |= {"error": f"{type(error).__name__}: {error}", "reason": "tool"}
        writer.write(_line(reply))
        await writer.drain()


def _line(frame: Mapping[str, Any]) -> bytes:
    return json.dumps(frame).encode("ascii") + b"\n"


async def acall(address: tuple[str, int], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`call` for callers on an event loop: it waits in a thread of its own, so that any number may wait at once."""
    return await in_thread(lambda: call(address, name, args, kwargs))
