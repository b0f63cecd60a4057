"""The real clients of the providers against a server on 127.0.0.1 that speaks their wire formats and misbehaves."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

import pytest

from rlm.errors import ConfigurationError, ModelError
from rlm.models import ProviderModel
from rlm.types import Message, Price, Reply, Usage
from tests.provider_server import Action, Answer, Cut, Failure, Malformed, ProviderServer, Request

KEY = "a-key-of-the-tests-0123456789"
QUESTION: list[Message] = [{"role": "user", "content": "Why?"}]

CHAT = "openai-chat:gpt-4o"
RESPONSES = "openai-responses:gpt-4o"
ANTHROPIC = "anthropic:claude-haiku-4-5"
SPECS = (CHAT, RESPONSES, ANTHROPIC)
PATHS = {CHAT: "/v1/chat/completions", RESPONSES: "/v1/responses", ANTHROPIC: "/v1/messages"}

T = TypeVar("T")


@dataclass
class Naps:
    """Sleeps that are over at once, and remembered."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def model_at(server: ProviderServer, spec: str = CHAT, **settings: Any) -> ProviderModel:
    """A model whose provider is the server, without jitter and, unless told otherwise, without real waits."""
    base_url = server.url if spec == ANTHROPIC else f"{server.url}/v1"
    chosen: dict[str, Any] = {"api_key": KEY, "random": lambda: 0.0, "sleep": Naps(), **settings}
    return ProviderModel(spec, base_url=base_url, **chosen)


def run(model: ProviderModel, talk: Callable[[ProviderModel], Coroutine[Any, Any, T]]) -> T:
    async def and_close() -> T:
        try:
            return await talk(model)
        finally:
            await model.aclose()

    return asyncio.run(and_close())


def ask(model: ProviderModel, messages: list[Message] = QUESTION, **settings: Any) -> Reply:
    return run(model, lambda model: model.reply(messages, **settings))


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- success -------------------------------------------------------------------------------------------------------


def test_a_reply_is_its_text_with_the_providers_count_of_tokens(spec: str) -> None:
    with ProviderServer(Answer("Because.", input_tokens=1000, output_tokens=500, cached_tokens=400)) as server:
        reply = ask(model_at(server, spec))
    assert (reply.text, reply.model) == ("Because.", spec)
    cost = reply.usage.cost
    assert reply.usage == Usage(1, input_tokens=1000, output_tokens=500, cached_tokens=400, cost=cost)
    assert [request.path.partition("?")[0] for request in server.requests] == [PATHS[spec]]
    assert server.requests[0].has_key
    assert KEY not in str(server.requests[0])


def test_cached_tokens_cost_what_the_provider_takes_for_them() -> None:
    with ProviderServer(Answer(input_tokens=1000, output_tokens=500, cached_tokens=400)) as server:
        openai, anthropic = (ask(model_at(server, spec)).usage.cost for spec in (CHAT, ANTHROPIC))
    assert openai == pytest.approx((600 * 2.5 + 400 * 1.25 + 500 * 10) / 1e6)
    assert anthropic == pytest.approx((600 * 1.0 + 400 * 0.1 + 500 * 5.0) / 1e6)


def test_an_unknown_price_is_none_and_a_given_one_is_used() -> None:
    with ProviderServer(Answer(input_tokens=10, output_tokens=20, cached_tokens=5)) as server:
        unknown = model_at(server, "vllm:local")
        assert (ask(unknown).usage.cost, unknown.price) == (None, None)
        known = model_at(server, "vllm:local", price=(1_000_000, 2_000_000))
        assert (ask(known).usage.cost, known.price) == (50, Price(1_000_000, 2_000_000))


def chat_body(**changes: Any) -> bytes:
    message = {"role": "assistant", "content": "ok"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return json.dumps({**body, "choices": choices, **changes}).encode()


def test_a_model_that_a_proxy_names_in_its_own_way_is_priced_by_the_name_it_was_asked_for() -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}
    with ProviderServer(Malformed(chat_body(model="our-proxy/best", usage=usage))) as server:
        assert ask(model_at(server)).usage.cost == pytest.approx(0.0025)


def test_a_reply_without_usage_has_no_known_cost() -> None:
    with ProviderServer(Malformed(chat_body())) as server:
        reply = ask(model_at(server))
    assert (reply.text, reply.usage) == ("ok", Usage(1, cost=None))


def test_the_conversation_arrives_in_order_with_several_messages_of_one_role() -> None:
    conversation: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be right."},
        {"role": "user", "content": "One?"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    with ProviderServer() as server:
        for spec in SPECS:
            ask(model_at(server, spec), conversation)
    said = [(message["role"], message["content"]) for message in conversation]
    chat, responses, anthropic = (request.texts for request in server.requests)
    assert chat == responses == said
    # Anthropic's format has one system prompt and puts the texts of one turn together.
    assert anthropic[0] == ("system", "Be brief.\n\nBe right.")
    assert [text for _, text in anthropic[1:]] == ["One?Two?", "One.", "Two.", "Three?"]


def test_lone_surrogates_are_replaced_before_they_are_sent(spec: str) -> None:
    with ProviderServer() as server:
        ask(model_at(server, spec), [{"role": "user", "content": "a\ud800b"}])
    assert server.requests[0].texts[-1] == ("user", "a\ufffdb")


def test_settings_reach_the_provider_and_those_of_a_request_come_first() -> None:
    with ProviderServer() as server:
        model = model_at(server, temperature=0.5, seed=1, max_tokens=100, extra_body={"top_k": 3})
        ask(model, temperature=0.9, stop_sequences=["END"])
    sent = server.requests[0].body
    assert {name: sent[name] for name in ("temperature", "seed", "top_k")} == {
        "temperature": 0.9,
        "seed": 1,
        "top_k": 3,
    }
    assert sent["max_completion_tokens"] == 100
    assert sent["stop"] == ["END"]


def test_a_setting_that_does_not_exist_is_refused_before_the_request() -> None:
    with ProviderServer() as server:
        with pytest.raises(ConfigurationError, match=r"no setting 'temprature'\. Did you mean 'temperature'\?"):
            ask(model_at(server), temprature=1)
        assert server.requests == []


def test_a_combination_of_settings_that_the_client_refuses_is_not_sent() -> None:
    with ProviderServer() as server:
        with pytest.raises(ConfigurationError, match="`anthropic_cache` and `anthropic_cache_messages` cannot both be"):
            ask(model_at(server, ANTHROPIC), anthropic_cache=True, anthropic_cache_messages=True)
        assert server.requests == []


def test_a_model_behind_the_gateway_is_asked_in_its_own_format() -> None:
    with ProviderServer(Answer("through")) as server:
        assert ask(model_at(server, "gateway/openai-chat:gpt-4o")).text == "through"
    assert server.requests[0].path.endswith("/chat/completions")


# -- trouble that passes -------------------------------------------------------------------------------------------

IN_TEN_SECONDS = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)


def test_after_429_it_waits_as_long_as_the_provider_asks(spec: str) -> None:
    naps = Naps()
    script: list[Action] = [
        Failure(429, headers={"Retry-After": "7"}),
        Failure(429, headers={"Retry-After-Ms": "1500"}),
        Failure(429, headers={"Retry-After": IN_TEN_SECONDS}),
        Answer("at last"),
    ]
    with ProviderServer(script) as server:
        assert ask(model_at(server, spec, sleep=naps)).text == "at last"
    assert naps.seconds[:2] == [7, 1.5]
    assert 0 <= naps.seconds[2] <= 10
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_passing_status_is_tried_again_with_growing_waits(status: int) -> None:
    naps = Naps()
    with ProviderServer([Failure(status), Failure(status), Failure(status), Answer("at last")]) as server:
        assert ask(model_at(server, sleep=naps)).text == "at last"
    assert naps.seconds == [0.5, 1, 2]


BROKEN = [
    Malformed(),
    Malformed(b""),
    Malformed(b"null"),
    Malformed(b"{}"),
    Malformed(b"[]"),
    Malformed(b'{"error": {"message": "upstream died", "code": 502}}'),
    Malformed(b"<html>Bad gateway</html>", "text/html"),
    Malformed(b"event: ping\ndata: {bad\n\n", "text/event-stream"),
    Cut(after=0),
    Cut(after=50),
    Cut(after=150),
]


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
def test_a_malformed_or_cut_response_is_tried_again(spec: str, broken: Action) -> None:
    with ProviderServer([broken, Answer("whole", input_tokens=10)]) as server:
        reply = ask(model_at(server, spec))
    assert reply.text == "whole"
    assert (reply.usage.calls, reply.usage.input_tokens) == (1, 10)  # what came back, nothing invented
    assert len(server.requests) == 2


def test_a_slow_response_is_given_up_after_the_timeout_and_tried_again(spec: str) -> None:
    with ProviderServer([Answer("too late", delay=30), Answer("in time")]) as server:
        assert ask(model_at(server, spec, timeout=0.3)).text == "in time"


def test_the_clients_own_retries_are_off(spec: str) -> None:
    with ProviderServer(Failure(500, "out of order")) as server:
        with pytest.raises(ModelError, match=r"status 500, out of order$"):
            ask(model_at(server, spec, retries=0))
        assert len(server.requests) == 1


# -- trouble that stays --------------------------------------------------------------------------------------------


def test_it_gives_up_after_the_last_retry_and_says_what_the_provider_said(spec: str) -> None:
    with ProviderServer(Failure(503, "all servers are on fire")) as server:
        with pytest.raises(ModelError) as raised:
            ask(model_at(server, spec, retries=2))
        assert len(server.requests) == 3
    assert str(raised.value) == f"{spec}: status 503, all servers are on fire (after 3 attempts)"
    assert (raised.value.status, raised.value.model) == (503, spec)


def test_a_malformed_response_that_stays_so_is_an_error_without_status() -> None:
    with ProviderServer(Malformed()) as server, pytest.raises(ModelError, match="decode response as JSON") as raised:
        ask(model_at(server))
    assert raised.value.status is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refused_request_is_not_sent_again(spec: str, status: int) -> None:
    with ProviderServer(Failure(status, f"no, and {KEY} or sk-live-0123456789 do not help")) as server:
        with pytest.raises(ModelError, match=r"no, and \[key\] or \[key\] do not help$") as raised:
            ask(model_at(server, spec))
        assert len(server.requests) == 1
    assert raised.value.status == status
    assert raised.value.__cause__ is None  # the client's own exception quotes the body, key and all


def test_an_exhausted_account_is_not_waited_for() -> None:
    with ProviderServer(Failure(429, "You exceeded your current quota", code="insufficient_quota")) as server:
        with pytest.raises(ModelError, match=r"status 429, You exceeded your current quota$"):
            ask(model_at(server))
        assert len(server.requests) == 1


def test_a_wait_that_is_too_long_is_not_begun() -> None:
    naps = Naps()
    too_long = r"later; it asks to wait 3600 s, more than max_wait=60 allows$"
    with ProviderServer(Failure(429, "later", headers={"Retry-After": "3600"})) as server:
        model = model_at(server, sleep=naps, max_wait=60)
        with pytest.raises(ModelError, match=too_long):
            ask(model)
        assert len(server.requests) == 1
    assert naps.seconds == []


def test_a_server_that_is_not_there_is_an_error_that_names_it(spec: str) -> None:
    with ProviderServer() as server:
        model = model_at(server, spec, retries=1)
    with pytest.raises(ModelError, match=r"the connection failed: Cannot connect to host 127\.0\.0\.1:\d+"):
        ask(model)


# -- concurrency, cancellation, event loops ------------------------------------------------------------------------


def test_a_cancelled_request_ends_at_once_and_hangs_up(spec: str) -> None:
    async def cancel_under_way(model: ProviderModel) -> None:
        request = asyncio.create_task(model.reply(QUESTION))
        await asyncio.to_thread(server.wait_until, lambda: server.in_flight == 1)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.to_thread(server.wait_until, lambda: server.disconnects == 1)

    with ProviderServer(Answer(delay=3600)) as server:
        run(model_at(server, spec), cancel_under_way)
        assert len(server.requests) == 1


def test_a_wait_between_attempts_can_be_cancelled() -> None:
    asked_to_wait = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asked_to_wait.set()
        await asyncio.sleep(3600)

    async def cancel_while_waiting(model: ProviderModel) -> None:
        request = asyncio.create_task(model.reply(QUESTION))
        await asked_to_wait.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    with ProviderServer(Failure(500)) as server:
        run(model_at(server, sleep=sleep), cancel_while_waiting)


def test_two_hundred_requests_are_in_flight_at_once() -> None:
    def echo(request: Request) -> Answer:
        return Answer(request.texts[-1][1])

    async def fan_out(model: ProviderModel) -> list[Reply]:
        return await asyncio.gather(*(model.reply([{"role": "user", "content": str(n)}]) for n in range(200)))

    with ProviderServer(echo, together=200) as server:  # no reply before all have arrived
        replies = run(model_at(server), fan_out)
    assert [reply.text for reply in replies] == [str(number) for number in range(200)]


def test_connections_are_kept_from_one_request_to_the_next(spec: str) -> None:
    async def ten_in_turn(model: ProviderModel) -> None:
        for _ in range(10):
            await model.reply(QUESTION)

    with ProviderServer() as server:
        run(model_at(server, spec), ten_in_turn)
        assert (len(server.requests), server.connections) == (10, 1)


def test_one_model_serves_one_event_loop_after_the_other_and_several_at_once(spec: str) -> None:
    with ProviderServer(Answer(delay=0.05)) as server:
        model = model_at(server, spec)
        for _ in range(2):
            assert asyncio.run(model.reply(QUESTION)).text == "ok"  # closed by the end of its loop
        threads = [threading.Thread(target=lambda: asyncio.run(model.reply(QUESTION))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 5


def test_closing_reaches_the_connections_of_other_running_loops_and_the_model_can_be_used_again() -> None:
    with ProviderServer() as server:
        model = model_at(server)
        other = asyncio.new_event_loop()
        thread = threading.Thread(target=other.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(model.reply(QUESTION), other).result()
        asyncio.run(model.aclose())
        asyncio.run_coroutine_threadsafe(model.reply(QUESTION), other).result()
        assert server.connections == 2
        asyncio.run(model.aclose())
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()


def test_a_loop_in_a_daemon_thread_leaves_no_complaint_when_the_interpreter_exits() -> None:
    program = """
import asyncio, sys, threading
from rlm.models import get_model
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
model = get_model("openai-chat:gpt-4o", base_url=sys.argv[1], api_key="k")
question = [dict(role="user", content="Why?")]
print(asyncio.run_coroutine_threadsafe(model.reply(question), loop).result().text)
"""
    with ProviderServer() as server:
        command = [sys.executable, "-W", "error", "-c", program, f"{server.url}/v1"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("client", ["aiohttp", "the usual one"])
def test_a_program_that_forgets_to_close_a_model_ends_without_a_complaint(client: str) -> None:
    program = f"""
import asyncio, sys
if {client!r} != "aiohttp":
    sys.modules["aiohttp"] = None  # as good as not installed
from rlm.models import get_model
model = get_model("openai-chat:gpt-4o", base_url=sys.argv[1], api_key="k")
print(asyncio.run(model.reply([dict(role="user", content="Why?")])).text)
"""
    with ProviderServer() as server:
        command = [sys.executable, "-W", "error", "-c", program, f"{server.url}/v1"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


# -- other providers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sdk"),
    [
        ("google:gemini-2.5-pro", "google.genai"),
        ("groq:llama-3.3-70b-versatile", "groq"),
        ("mistral:mistral-large-latest", "mistralai"),
    ],
)
def test_other_providers_have_the_same_retries_and_the_same_bill(spec: str, sdk: str) -> None:
    try:
        found = importlib.util.find_spec(sdk)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"needs the extra {spec.partition(':')[0]}")
    naps = Naps()
    script: list[Action] = [
        Failure(429, headers={"Retry-After": "3"}),
        Malformed(),
        Cut(150),
        Answer("yes", 1000, 500, 400),
    ]
    with ProviderServer(script) as server:
        model = ProviderModel(spec, base_url=server.url, api_key=KEY, random=lambda: 0.0, sleep=naps)
        reply = ask(model)
        assert len(server.requests) == 4
    assert (reply.text, reply.usage.input_tokens, reply.usage.cached_tokens) == ("yes", 1000, 400)
    assert reply.usage.cost
    assert naps.seconds == [3, 1, 2]
