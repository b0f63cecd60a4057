"""Every provider of pydantic-ai as a `Model`: one request, one reply, with its usage and what it cost.

Retries are made here and nowhere else (the SDKs' own are off). There is one HTTP client for each model and event loop,
opened by the first request and closed by `aclose()` or, at the latest, by the end of its loop. Provider SDKs are
imported in a thread, on first use.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import random
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm.config import first_set, variable
from rlm.errors import ConfigurationError, MissingExtraError, MissingKeyError, ModelError
from rlm.models.catalog import PROVIDERS, SETTINGS, Provider, nearest
from rlm.models.failures import Failure, Patience, explain, presentable
from rlm.models.prices import cost_of, list_price
from rlm.models.scripted import cost_at
from rlm.types import Messages, Price, Reply, Usage

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model as PydanticModel
    from pydantic_ai.providers import Provider as PydanticProvider
    from pydantic_ai.settings import ModelSettings

CONNECTIONS = 1_000  # per client; more requests wait for a free one, as most systems allow 1,024 open files
IDLE_SECONDS = 30.0  # a connection is kept through the cells between two requests; providers close theirs after 60 s
READ_SECONDS = 600.0  # what the SDKs themselves wait for a reply, unless `timeout` says otherwise
CONNECT_SECONDS = 10.0

# What the constructors of pydantic-ai's providers call a base URL and a key, where not `base_url` and `api_key`.
OTHER_NAMES = {"base_url": ("azure_endpoint", "api_base"), "api_key": ("token",)}

_UNKNOWN = object()


class ProviderModel:
    """A model of a provider, named `provider:model`.

    base_url, api_key: instead of the provider's own address and its environment variable. price: dollars per million
    tokens, as `Price` or (input, output), for a model that price lists do not know; (0, 0) for one that costs nothing.
    retries, max_wait: at most so many further attempts, and so many seconds of waiting between them. random, sleep:
    where the jitter comes from and how to wait. settings: those of `SETTINGS`, the provider's own
    (`openai_reasoning_effort`), and those of its account (`region_name`, `api_version`, `project`).

    Raises `ConfigurationError` for a provider or setting that does not exist, `MissingKeyError`, `MissingExtraError`.
    """

    def __init__(
        self,
        spec: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        price: Price | tuple[float, float] | None = None,
        retries: int = 4,
        max_wait: float = 120.0,
        random: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **settings: Any,
    ) -> None:
        self._spec = spec
        self._provider, _, self._model = spec.partition(":")
        self._given_price = price if isinstance(price, Price) or price is None else Price(*price)
        self._listed_price: Any = _UNKNOWN
        self._patience = Patience(retries, max_wait)
        self._random = random
        self._sleep = sleep
        given = {"base_url": base_url, "api_key": api_key}
        self._account = {name: value for name, value in given.items() if value is not None}
        self._settings: dict[str, Any] = {}
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        self._entry = _entry(self._provider)
        self._check_extra_and_key()
        self._sort_settings(settings)

    def __repr__(self) -> str:
        return f"ProviderModel({self._spec!r})"

    @property
    def name(self) -> str:
        return self._spec

    @property
    def price(self) -> Price | None:
        """Dollars per million tokens: as given, else by price list, else None."""
        if self._given_price is not None:
            return self._given_price
        if self._listed_price is _UNKNOWN:
            self._listed_price = list_price(self._provider, self._model)
        known: Price | None = self._listed_price
        return known

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        """One reply; `settings` come before those of the constructor.

        Raises `ModelError` when the provider refuses the request, or still fails after the last retry;
        `ConfigurationError` where the provider's SDK refuses a setting.
        """
        connection = await self._connection()
        if settings:
            self._refuse_unknown(settings, connection.known_settings)
        merged = {**connection.sdk_settings, **self._settings, **settings}
        request = _to_pydantic(messages)
        attempt, waited = 0, 0.0
        while True:
            outcome = await self._attempt(connection.model, request, merged)
            if not isinstance(outcome, Failure):
                return self._to_reply(outcome)
            wait = self._patience.wait(outcome, attempt, waited, self._random())
            if wait is None:
                raise self._error(outcome, attempt)
            await self._sleep(wait)
            attempt, waited = attempt + 1, waited + wait

    async def aclose(self) -> None:
        """Close the connections, on every event loop that used this model. It can be used again afterwards."""
        here = asyncio.get_running_loop()
        while self._connections:
            loop, connection = self._connections.popitem()
            if loop is here:
                await connection.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.close(), loop))

    # -- one attempt ---------------------------------------------------------------------------------------------------

    async def _attempt(
        self, model: PydanticModel[Any], request: list[ModelMessage], settings: dict[str, Any]
    ) -> ModelResponse | Failure:
        from pydantic_ai.direct import model_request
        from pydantic_ai.exceptions import UserError

        try:
            response = await model_request(model, request, model_settings=_as_model_settings(settings))
        except UserError as error:
            raise ConfigurationError(f"{self._spec}: {presentable(str(error), self._secrets())}") from None
        except Exception as error:  # noqa: BLE001 - on a malformed body the SDKs raise anything; it is told to the caller
            return explain(error)
        if response.text is None and response.usage.unmeasured_requests:
            return Failure("the response cannot be understood: it holds neither text nor usage")
        return response

    def _to_reply(self, response: ModelResponse) -> Reply:
        usage = response.usage
        if self._given_price is not None:
            cost = cost_at(self._given_price, usage.input_tokens, usage.output_tokens)
        else:
            cost = cost_of(response, self._model)
        return Reply(
            response.text or "",
            self._spec,
            Usage(1, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, cost),
        )

    def _error(self, failure: Failure, attempt: int) -> ModelError:
        status = f"status {failure.status}, " if failure.status else ""
        tries = f" (after {attempt + 1} attempts)" if attempt else ""
        patience = ""
        if failure.again and failure.retry_after is not None and attempt < self._patience.retries:
            patience = f"; it asks to wait {failure.retry_after:g} s, and max_wait is {self._patience.most:g} s"
        message = presentable(failure.message, self._secrets())
        return ModelError(f"{self._spec}: {status}{message}{tries}{patience}", model=self._spec, status=failure.status)

    def _secrets(self) -> list[str]:
        given = self._account.get("api_key")
        return [key for key in (given, *map(variable, self._entry.keys if self._entry else ())) if key]

    # -- what it is made of --------------------------------------------------------------------------------------------

    def _check_extra_and_key(self) -> None:
        """Fail early where that is certain; the provider's own checks follow in `_build`."""
        entry = self._entry
        if entry is None:
            return
        if not entry.is_installed:
            raise _missing_extra(self._spec, entry)
        elsewhere = "base_url" in self._account or (entry.address is not None and variable(entry.address) is not None)
        if entry.keys and not elsewhere and "api_key" not in self._account and first_set(entry.keys) is None:
            raise _missing_key(self._spec, " or ".join(entry.keys))

    def _sort_settings(self, settings: Mapping[str, Any]) -> None:
        """Into those of requests and those of the account. Names out of the common ones need the provider's SDK."""
        self._settings = dict(settings)
        if settings.keys() <= set(SETTINGS):
            return
        parameters = _account_parameters(_provider_class(self._spec, self._provider, self._entry))
        for name in settings.keys() & parameters:
            self._account[name] = self._settings.pop(name)
        self._refuse_unknown(self._settings, self._build().known_settings)

    def _refuse_unknown(self, settings: Mapping[str, Any], known: frozenset[str]) -> None:
        if unknown := sorted(settings.keys() - known):
            ours = ("base_url", "api_key", "price", "retries", "max_wait")
            own = sorted(known.difference(SETTINGS))
            raise ConfigurationError(
                f"{self._spec} has no setting {unknown[0]!r}.{nearest(unknown[0], (*ours, *known))}"
                f" Known are {', '.join((*ours, *SETTINGS, *own))}."
            )

    async def _connection(self) -> _Connected:
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            for other in [other for other in self._connections if other.is_closed()]:
                self._connections.pop(other, None)
            connection = self._connections.setdefault(loop, _Connection())
        if connection.connected is None:
            async with connection.opening:
                if connection.connected is None:
                    await connection.open(await asyncio.to_thread(self._build))
        assert connection.connected is not None
        return connection.connected

    def _build(self) -> _Connected:
        """The provider's client, ready but without a connection. Blocking: it imports the SDK and reads certificates."""
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model

        provider_class = _provider_class(self._spec, self._provider, self._entry)
        http = _fast_http_client(self._entry)
        arguments = _constructor_arguments(self._spec, provider_class, self._account)
        if http is not None:
            arguments["http_client"] = http
        kind = self._interface()
        try:
            provider = _construct(provider_class, self._provider, arguments)
            model = infer_model(f"{kind}:{self._model}", provider_factory=lambda _: provider)
        except UserError as error:
            key = re.search(r"[Ss]et the `(\w*(?:KEY|TOKEN)\w*)` environment variable", str(error))
            if key and "api_key" not in self._account:
                raise _missing_key(self._spec, key[1]) from None
            raise ConfigurationError(f"{self._spec}: {presentable(str(error), self._secrets())}") from None
        except ImportError as error:
            raise _missing_extra(self._spec, self._entry) from error
        except Exception as error:  # SDKs refuse an account with exceptions of their own
            raise ConfigurationError(f"{self._spec}: {presentable(str(error), self._secrets())}") from error
        return _Connected(model, http, _known_settings(type(model)), _turn_off_sdk_retries(provider, self._entry))

    def _interface(self) -> str:
        """OpenAI's responses interface for OpenAI itself; chat completions, which all others speak, elsewhere."""
        elsewhere = self._account.get("base_url") or variable("OPENAI_BASE_URL")
        if self._provider == "openai" and elsewhere and "api.openai.com" not in elsewhere:
            return "openai-chat"
        return self._provider


@dataclass(frozen=True, slots=True)
class _Connected:
    """A model of pydantic-ai over its client. `http` is None where the provider makes, and closes, its own."""

    model: PydanticModel[Any]
    http: Any
    known_settings: frozenset[str]
    sdk_settings: Mapping[str, Any]


@dataclass(slots=True)
class _Connection:
    """What one event loop uses. An HTTP connection belongs to the loop that opened it."""

    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    connected: _Connected | None = None
    lifetime: AsyncGenerator[None] | None = None

    async def open(self, connected: _Connected) -> None:
        self.lifetime = _lifetime(connected)
        await anext(self.lifetime)
        self.connected = connected

    async def close(self) -> None:
        self.connected = None
        if self.lifetime is not None:
            await self.lifetime.aclose()


async def _lifetime(connected: _Connected) -> AsyncGenerator[None]:
    """An asynchronous generator, because event loops close those that are left over before they end: a program that
    forgets `aclose()` still ends without open connections."""
    try:
        async with connected.model:
            yield
    finally:
        if connected.http is not None:
            await connected.http.aclose()


# -- pydantic-ai ---------------------------------------------------------------------------------------------------


def _to_pydantic(messages: Messages) -> list[ModelMessage]:
    """The conversation as pydantic-ai wants it: what precedes an assistant's message is one request of several parts."""
    from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart

    converted: list[ModelMessage] = []
    for message in messages:
        role, text = message["role"], _encodable(message["content"])
        if role == "assistant":
            converted.append(ModelResponse(parts=[TextPart(text)]))
            continue
        part = SystemPromptPart(text) if role == "system" else UserPromptPart(text)
        if converted and isinstance(last := converted[-1], ModelRequest):
            converted[-1] = ModelRequest(parts=[*last.parts, part])
        else:
            converted.append(ModelRequest(parts=[part]))
    return converted


def _encodable(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can carry them, providers reject the request."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _as_model_settings(settings: dict[str, Any]) -> ModelSettings | None:
    from pydantic_ai.settings import ModelSettings

    return ModelSettings(**settings) if settings else None  # type: ignore[typeddict-item]


def _provider_class(spec: str, name: str, entry: Provider | None) -> type[PydanticProvider[Any]]:
    from pydantic_ai.providers import infer_provider_class

    try:
        return infer_provider_class(name)
    except ImportError as error:
        raise _missing_extra(spec, entry) from error
