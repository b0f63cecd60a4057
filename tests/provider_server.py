"""A model provider on 127.0.0.1 that speaks the wire formats of the real ones and keeps its own bill.

It answers OpenAI chat completions and responses, Anthropic messages and Google generateContent as its script says:
a text with usage, an error status, a body that is no JSON, a late answer, a connection cut in the middle. It runs in a
thread of its own, answers several thousand requests a second over kept-alive connections, and knows nothing of `rlm`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeAlias

ENDPOINTS = ("/chat/completions", "/responses", "/messages", ":generateContent")
SECRET_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful reply. `delay` is in seconds; `cached_tokens` are part of `input_tokens`."""

    text: str = "ok"
    input_tokens: int = 10
    output_tokens: int = 5
    cached_tokens: int = 0
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An error status, with the provider's usual JSON body around `message` and `code`."""

    status: int
    message: str = "the provider is unwell"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    code: str = "scripted"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Status 200 with a body that is not what was promised."""

    body: bytes = b'{"id": "x", "choices": [{"mess'
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks off after `after` bytes of the response; 0 means before its first byte."""

    after: int = 120


Action: TypeAlias = Answer | Failure | Malformed | Cut


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the bill. `headers` leaves out everything that carries a key; `has_key` says that one was there."""

    path: str
    headers: Mapping[str, str]
    has_key: bool
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def endpoint(self) -> str:
        """Which of `ENDPOINTS` this is; empty for any other path."""
        path = self.path.partition("?")[0]
        return next((known for known in ENDPOINTS if path.endswith(known)), "")

    @property
    def model(self) -> str:
        """The model that was asked for, found without parsing the whole body."""
        found = _MODEL_IN_PATH.search(self.path) or _MODEL_IN_BODY.search(self.raw)
        if found is None:
            return ""
        name = found[1]
        return name if isinstance(name, str) else name.decode()

    @property
    def wants_stream(self) -> bool:
        return _WANTS_STREAM.search(self.raw) is not None

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The conversation as (role, text) pairs, whatever the format; system text that stands apart comes first."""
        return _conversation(self.body)


_WANTS_STREAM = re.compile(rb'"stream": ?true')
_MODEL_IN_PATH = re.compile(r"/models/([^/:]+):")
_MODEL_IN_BODY = re.compile(rb'"model": ?"([^"]*)"')

Script: TypeAlias = Action | Sequence[Action] | Callable[[Request], Action]


class ProviderServer:
    """A context manager: `with ProviderServer(script) as server: server.url, server.requests`.

    script: one action for all requests; a list of actions, one a request, of which the last one repeats; or a function
    from the request to an action. record=False keeps no bill, for benchmarks. together=N answers no request before N of
    them wait. `server.connections` counts those that were ever opened, `server.in_flight` the requests whose answer is
    due, `server.disconnects` those of them whose client hung up.
    """

    def __init__(self, script: Script = Answer(), *, record: bool = True, together: int = 1) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.disconnects = 0
        self.in_flight = 0
        self._script = script
        self._record = record
        self._together = together
        self._held: list[Callable[[], None]] = []
        self._position = 0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="provider-server", daemon=True)
        self._ready = threading.Event()
        self._port = 0
        self._open: set[_Connection] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def answers_alone(self) -> bool:
        return self._together == 1

    def __enter__(self) -> ProviderServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=2048))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            loop.run_forever()
        finally:
            server.close()
            for connection in tuple(self._open):
                connection.abort()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Block until what the server has seen fulfils `condition`. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise TimeoutError(f"not fulfilled within {seconds} s; {len(self.requests)} requests have arrived")

    def has_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def action_for(self, request: Request) -> Action:
        if self._record:
            self.requests.append(request)
        if callable(self._script):
            return self._script(request)
        if isinstance(self._script, Sequence):
            self._position += 1
            return self._script[min(self._position, len(self._script)) - 1]
        return self._script

    def when_due(self, delay: float, answer: Callable[[], None]) -> None:
        """Call `answer` after `delay` seconds, or once as many as belong together are waiting."""
        if not self.answers_alone:
            self._held.append(answer)
            if len(self._held) == self._together:
                for held in self._held:
                    self._loop.call_soon(held)
                self._held.clear()
        else:
            self._loop.call_later(delay, answer)


class _Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection: requests with a Content-Length, answered one after the other."""

    def __init__(self, server: ProviderServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._is_due = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections += 1
        self._server._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server._open.discard(self)
        if self._is_due:
            self._is_due = False
            self._server.in_flight -= 1
            self._server.disconnects += 1
            self._server.has_changed()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self._is_due and (request := self._take_request()) is not None:
            self._handle(request)

    def _take_request(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        start_line, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < stop:
            return None
        raw = bytes(self._buffer[end + 4 : stop])
        del self._buffer[:stop]
        public = {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
        return Request(start_line.split(" ")[1], public, len(public) < len(headers), raw)

    def _handle(self, request: Request) -> None:
        server = self._server
        action = server.action_for(request)
        delay = action.delay if isinstance(action, (Answer, Failure)) else 0.0
        if delay == 0.0 and server.answers_alone:
            self._answer(request, action)
            return
        server.in_flight += 1
        self._is_due = True
        server.has_changed()
        server.when_due(delay, lambda: self._answer_late(request, action))

    def _answer_late(self, request: Request, action: Action) -> None:
        if self._is_due:  # not so once the client has hung up
            self._is_due = False
            self._server.in_flight -= 1
            self._answer(request, action)
            self.data_received(b"")

    def _answer(self, request: Request, action: Action) -> None:
        endpoint = request.endpoint
        if not endpoint:
            action = Failure(404, f"no such endpoint: {request.path}")
        match action:
            case Answer():
                self._transport.write(_success(request, action))
            case Failure():
                self._transport.write(_response(action.status, _failure(endpoint, action), action.headers))
            case Malformed(body, content_type):
                self._transport.write(_response(200, body, content_type=content_type))
            case Cut(after):
                self._transport.write(_success(request, Answer("cut off"))[:after])
                self._transport.close()


def _response(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, content_type: str = "application/json"
) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"HTTP/1.1 {status} {_phrase(status)}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + body


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # providers have some of their own, such as 529
        return "Scripted"


# -- the formats ---------------------------------------------------------------------------------------------------


def _success(request: Request, answer: Answer) -> bytes:
    build = {
        "/chat/completions": _chat_completion,
        "/responses": _openai_response,
        "/messages": _anthropic_message,
        ":generateContent": _google_content,
    }[request.endpoint]
    body = build(request.model, answer)
    if request.endpoint == "/messages" and request.wants_stream:
        return _response(200, _anthropic_events(body), content_type="text/event-stream")
    return _response(200, json.dumps(body).encode())


def _failure(endpoint: str, failure: Failure) -> bytes:
    if endpoint == ":generateContent":
        error = {"code": failure.status, "message": failure.message, "status": failure.code.upper()}
        return json.dumps({"error": error}).encode()
    error = {"message": failure.message, "type": failure.code, "code": failure.code}
    return json.dumps({"type": "error", "error": error} if endpoint == "/messages" else {"error": error}).encode()


def _chat_completion(model: str, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1760000000,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": answer.input_tokens,
            "completion_tokens": answer.output_tokens,
            "total_tokens": answer.input_tokens + answer.output_tokens,
            "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        },
    }


def _openai_response(model: str, answer: Answer) -> dict[str, Any]:
    content = {"type": "output_text", "text": answer.text, "annotations": []}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a private thought"}]}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [content]}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "status": "completed",
        "model": model,
        "output": [reasoning, message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": answer.input_tokens,
            "input_tokens_details": {"cached_tokens": answer.cached_tokens},
            "output_tokens": answer.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.input_tokens + answer.output_tokens,
        },
    }


def _anthropic_message(model: str, answer: Answer) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [
            {"type": "thinking", "thinking": "a private thought", "signature": "x"},
            {"type": "text", "text": answer.text},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.input_tokens - answer.cached_tokens,
            "cache_read_input_tokens": answer.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": answer.output_tokens,
        },
    }


def _anthropic_events(message: dict[str, Any]) -> bytes:
    """The message as the stream that Anthropic's SDK insists on where many output tokens are allowed."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    ]
    for index, block in enumerate(message["content"]):
        kind = block["type"]
        empty = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
        deltas = [{"type": f"{kind}_delta", kind: piece} for piece in (block[kind][:3], block[kind][3:]) if piece]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": ending, "usage": message["usage"]})
    events.append({"type": "message_stop"})
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def _google_content(model: str, answer: Answer) -> dict[str, Any]:
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": answer.text}]}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {
            "promptTokenCount": answer.input_tokens,
            "candidatesTokenCount": answer.output_tokens,
            "cachedContentTokenCount": answer.cached_tokens,
            "totalTokenCount": answer.input_tokens + answer.output_tokens,
        },
        "modelVersion": model,
        "responseId": "1",
    }


def _conversation(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    system = body.get("system") or body.get("instructions") or body.get("systemInstruction")
    messages = body.get("messages") or body.get("input") or body.get("contents") or []
    pairs = [("system", _text(system))] if system else []
    if isinstance(messages, str):
        return [*pairs, ("user", messages)]
    return pairs + [(message["role"], _text(message.get("content", message.get("parts")))) for message in messages]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _text(content.get("text", content.get("parts", "")))
    return "".join(_text(part) for part in content or ())


def main() -> None:
    """Serve instant answers in a process of its own until standard input ends; the first line printed is the URL."""
    with ProviderServer(record=False) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
