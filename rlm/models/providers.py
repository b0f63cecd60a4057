"""Every provider of pydantic-ai as a `Model`: one request, one reply, with its usage and what it cost.

Retries are made here and nowhere else (the SDKs' own are off). The connections behind it open with the first request
and close with `aclose()`, at the latest with the event loop they belong to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from rlm.errors import ConfigurationError, ModelError
from rlm.models.catalog import SETTINGS, nearest
from rlm.models.connections import Account, Connected, Connections
from rlm.models.failures import Failure, Patience, explain, presentable
from rlm.models.prices import cost_of, list_price
from rlm.models.scripted import cost_at
from rlm.types import Messages, Price, Reply, Usage

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.settings import ModelSettings

OURS = ("base_url", "api_key", "price", "retries", "max_wait")


class ProviderModel:
    """A model of a provider, named `provider:model`.

    base_url, api_key: instead of the provider's own address and its environment variable. price: dollars per million
    tokens, as `Price` or (input, output), for a model that price lists do not know; (0, 0) for one that costs nothing.
    retries, max_wait: at most so many further attempts, and so many seconds of waiting between them. random, sleep:
    where the jitter comes from and how to wait. settings: those of `catalog.SETTINGS`, the provider's own
    (`openai_reasoning_effort`), and those of an account there (`region_name`, `api_version`, `project`).

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
        self._account = Account(spec, base_url, api_key)
        self._given_price = price if isinstance(price, Price) or price is None else Price(*price)
        self._patience = Patience(retries, max_wait)
        self._random = random
        self._sleep = sleep
        self._settings = settings
        self._account.check()
        if settings.keys() - set(SETTINGS):  # to judge the less common ones takes the provider's SDK
            self._settings = self._account.take_options(settings)
            self._refuse_unknown(self._settings, self._account.connect().known_settings)
        self._connections = Connections(self._account)

    def __repr__(self) -> str:
        return f"ProviderModel({self._spec!r})"

    @property
    def name(self) -> str:
        return self._spec

    @property
    def price(self) -> Price | None:
        """Dollars per million tokens: as given, else by price list, else None."""
        return self._given_price or self._listed_price

    @cached_property
    def _listed_price(self) -> Price | None:
        return list_price(self._account.provider, self._account.model)

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        """One reply; `settings` come before those of the constructor.

        Raises `ModelError` when the provider refuses the request, or still fails after the last retry;
        `ConfigurationError` where it knows no such setting.
        """
        connected = await self._connections.here()
        self._refuse_unknown(settings, connected.known_settings)
        merged = {**connected.settings, **self._settings, **settings}
        request = _to_pydantic(messages)
        attempt, waited = 0, 0.0
        while True:
            outcome = await self._attempt(connected, request, merged)
            if not isinstance(outcome, Failure):
                return self._to_reply(outcome)
            wait = self._patience.wait(outcome, attempt, waited, self._random())
            if wait is None:
                raise self._error(outcome, attempt)
            await self._sleep(wait)
            attempt, waited = attempt + 1, waited + wait

    async def aclose(self) -> None:
        """Close the connections, on every event loop that used this model. It can be used again afterwards."""
        await self._connections.aclose()

    async def _attempt(
        self, connected: Connected, request: list[ModelMessage], settings: Mapping[str, Any]
    ) -> ModelResponse | Failure:
        from pydantic_ai.direct import model_request
        from pydantic_ai.exceptions import UserError

        try:
            response = await model_request(connected.model, request, model_settings=cast("ModelSettings", settings))
        except UserError as error:
            raise ConfigurationError(f"{self._spec}: {self._presentable(str(error))}") from None
        except Exception as error:  # noqa: BLE001 - from a malformed body the SDKs raise anything; the caller is told
            return explain(error)
        if response.text is None and response.usage.unmeasured_requests:
            return Failure("the response cannot be understood: it holds neither text nor usage")
        return response

    def _to_reply(self, response: ModelResponse) -> Reply:
        usage = response.usage
        if self._given_price is not None:
            cost = cost_at(self._given_price, usage.input_tokens, usage.output_tokens)
        else:
            cost = cost_of(response, self._account.model)
        counted = Usage(1, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, cost)
        return Reply(response.text or "", self._spec, counted)

    def _error(self, failure: Failure, attempt: int) -> ModelError:
        status = f"status {failure.status}, " if failure.status else ""
        tries = f" (after {attempt + 1} attempts)" if attempt else ""
        asked = ""
        if failure.again and failure.retry_after is not None and attempt < self._patience.retries:
            asked = f"; it asks to wait {failure.retry_after:g} s, more than max_wait={self._patience.most:g} allows"
        message = f"{self._spec}: {status}{self._presentable(failure.message)}{tries}{asked}"
        return ModelError(message, model=self._spec, status=failure.status)

    def _presentable(self, message: str) -> str:
        return presentable(message, self._account.secrets)

    def _refuse_unknown(self, settings: Mapping[str, Any], known: frozenset[str]) -> None:
        for name in settings:
            if name not in known:
                own = sorted({setting.partition("_")[0] + "_…" for setting in known.difference(SETTINGS)})
                raise ConfigurationError(
                    f"{self._spec} has no setting {name!r}.{nearest(name, (*OURS, *known))}"
                    f" Known are {', '.join((*OURS, *SETTINGS, *own))}."
                )


def _to_pydantic(messages: Messages) -> list[ModelMessage]:
    """As pydantic-ai has it: all that precedes an assistant's message is one request of several parts."""
    from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart

    converted: list[ModelMessage] = []
    for message in messages:
        role, text = message["role"], encodable(message["content"])
        if role == "assistant":
            converted.append(ModelResponse(parts=[TextPart(text)]))
            continue
        part = SystemPromptPart(text) if role == "system" else UserPromptPart(text)
        if converted and isinstance(last := converted[-1], ModelRequest):
            converted[-1] = ModelRequest(parts=[*last.parts, part])
        else:
            converted.append(ModelRequest(parts=[part]))
    return converted


def encodable(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can carry them, providers reject the request."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
