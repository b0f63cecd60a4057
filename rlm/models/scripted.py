"""A model that answers from a script: for tests, for demonstrations, for measurements without a provider.

It keeps the order of requests and replies under concurrency and threads, costs nothing unless a price is given, and
switches no task where `latency` is 0. It knows no providers and does no I/O.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from rlm.errors import ConfigurationError, ModelError
from rlm.types import Message, Messages, Price, Reply, Usage

CHARACTERS_PER_TOKEN = 4
FREE = Price(0.0, 0.0)

Script: TypeAlias = Sequence[str | Reply] | Callable[[Messages], str | Reply | Awaitable[str | Reply]]


class ScriptedModel:
    """A `Model` whose replies are known beforehand.

    replies: a list of texts (or `Reply` objects), one a request, after which `ModelError` is raised; or a function,
    sync or async, from the list of messages to one of these. latency: seconds of sleep before each reply. price: what
    its usage is billed with; None makes it a model of unknown price. record=False keeps no `requests`.

    Usage is estimated, at 4 characters a token, unless the script gives a `Reply`, which is passed on as it is.
    """

    def __init__(
        self,
        replies: Script,
        latency: float = 0.0,
        name: str = "scripted",
        price: Price | None = FREE,
        *,
        record: bool = True,
    ) -> None:
        if isinstance(replies, str) or not (callable(replies) or isinstance(replies, Sequence)):
            raise ConfigurationError(f"ScriptedModel({replies!r}): give a list of replies, or a function that replies")
        self.requests: list[list[Message]] = []
        self._replies = replies
        self._latency = latency
        self._name = name
        self._price = price
        self._record = record
        self._given = 0
        self._order = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def price(self) -> Price | None:
        return self._price

    async def reply(self, messages: Messages, **settings: Any) -> Reply:
        """The script's next reply. Settings are accepted, as of any model, and change nothing."""
        with self._order:
            if self._record:
                self.requests.append([message.copy() for message in messages])
            position = self._given
            self._given += 1
        if self._latency > 0:
            await asyncio.sleep(self._latency)
        given = await self._given_by_script(position, messages)
        return given if isinstance(given, Reply) else Reply(given, self._name, self._usage(messages, given))

    async def _given_by_script(self, position: int, messages: Messages) -> str | Reply:
        if isinstance(self._replies, Sequence):
            if position < len(self._replies):
                return self._replies[position]
            count = f"{len(self._replies)} {'reply' if len(self._replies) == 1 else 'replies'}"
            raise ModelError(
                f"{self._name}: request {position + 1} has no reply, the script has {count}", model=self._name
            )
        given = self._replies(messages)
        if inspect.isawaitable(given):
            given = await given
        if not isinstance(given, (str, Reply)):
            raise ModelError(f"{self._name}: the script gave {given!r}, not a text or a Reply", model=self._name)
        return given

    def _usage(self, messages: Messages, text: str) -> Usage:
        input_tokens = _tokens(sum(len(message["content"]) for message in messages))
        output_tokens = _tokens(len(text))
        return Usage(1, input_tokens, output_tokens, cost=cost_at(self._price, input_tokens, output_tokens))


def cost_at(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars for so many tokens, None where there is no price."""
    if price is None:
        return None
    return (input_tokens * price.input + output_tokens * price.output) / 1_000_000


def load_script(spec: str) -> Any:
    """What `package.module:name` names: a list of replies, a function, or a model. Raises `ConfigurationError`."""
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise ConfigurationError(f"'scripted:{spec}': write scripted:package.module:function")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"'scripted:{spec}' cannot be loaded: {error}. The module must be importable;"
            " one in the current folder is so with PYTHONPATH=."
        ) from error
    return found


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
