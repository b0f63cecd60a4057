"""From `provider:model` to a client that is ready to ask: accounts, provider SDKs, HTTP clients, event loops.

An `Account` says what is wrong before any SDK is imported, where that can be known. `Connections` keeps one client for
each event loop, since an HTTP connection belongs to the loop that opened it. All imports of provider SDKs are here, in
functions, and run in a thread once an event loop waits for them.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import importlib
import inspect
import os
import re
import ssl
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

from rlm.config import first_set, variable
from rlm.errors import ConfigurationError, MissingExtraError, MissingKeyError
from rlm.models.catalog import GATEWAY, PROVIDERS, SETTINGS, entry_of, nearest
from rlm.models.failures import presentable

if TYPE_CHECKING:
    from pydantic_ai.models import Model as PydanticModel
    from pydantic_ai.providers import Provider as PydanticProvider

CONNECTIONS = 1_000  # in one client; further requests wait for a free one, as systems often allow 1,024 open files
IDLE_SECONDS = 30.0  # a connection outlives the cells between two requests; servers close theirs after 60 s or more
READ_SECONDS = 600.0  # what the SDKs themselves wait for, where `timeout` does not say otherwise
CONNECT_SECONDS = 10.0

# What a provider's constructor calls a base URL and a key, where not `base_url` and `api_key`.
OTHER_NAMES = {"base_url": ("azure_endpoint", "api_base"), "api_key": ("token",)}


@dataclass(frozen=True, slots=True)
class Connected:
    """A model of pydantic-ai over its client.

    known_settings: what a request may set. settings: what every request sets. http: our HTTP client; None where the
    provider makes, and closes, its own.
    """

    model: PydanticModel[Any]
    known_settings: frozenset[str]
    settings: Mapping[str, Any]
    http: Any


class Account:
    """Where to ask for a model, and with which key; `options` are those of the provider, such as a region."""

    def __init__(self, spec: str, base_url: str | None, api_key: str | None) -> None:
        self.spec = spec
        self.provider, _, self.model = spec.partition(":")
        given = {"base_url": base_url, "api_key": api_key}
        self.options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._entry = entry_of(self.provider)

    @property
    def secrets(self) -> list[str]:
        """The keys that must appear in no message."""
        keys = map(variable, self._entry.keys if self._entry else ())
        return [key for key in (self.options.get("api_key"), *keys) if key]

    def check(self) -> None:
        """Fail for a provider that nobody knows, a missing extra or a missing key, as far as that is certain.

        A server at an address of the user's own may need no key, and a provider that is not in the catalog has to be
        looked up, which takes an import.
        """
        entry = self._entry
        if entry is None:
            _ = self._constructor
            return
        if not entry.is_installed:
            raise self._missing_extra()
        elsewhere = "base_url" in self.options or (entry.address is not None and variable(entry.address) is not None)
        if entry.keys and not elsewhere and "api_key" not in self.options and first_set(entry.keys) is None:
            raise self._missing_key(" or ".join(entry.keys))

    def take_options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what the provider's constructor takes among `settings`, and return the others."""
        own = {name for name in settings.keys() & self._parameters if not name.endswith("_client")}
        self.options.update({name: settings[name] for name in own})
        return {name: value for name, value in settings.items() if name not in own}

    def connect(self) -> Connected:
        """A client that has not connected yet. Blocking: it imports the SDK and reads certificates."""
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model

        http = self._fast_http_client()
        arguments = self._arguments() | ({} if http is None else {"http_client": http})
        try:
            provider: PydanticProvider[Any] = self._constructor(**arguments)
            model = infer_model(f"{self._interface()}:{self.model}", provider_factory=lambda _: provider)
        except ImportError as error:
            raise self._missing_extra() from error
        except UserError as error:
            key = re.search(r"[Ss]et the `(\w*(?:KEY|TOKEN)\w*)` environment variable", str(error))
            if key and "api_key" not in self.options:
                raise self._missing_key(key[1]) from None
            raise self._refused(error) from None
        except Exception as error:  # SDKs refuse an account with exceptions of their own
            raise self._refused(error) from error
        return Connected(model, _known_settings(type(model)), _without_sdk_retries(model, provider), http)

    @cached_property
    def _constructor(self) -> Callable[..., PydanticProvider[Any]]:
        from pydantic_ai.providers import infer_provider_class

        if self.provider.startswith(GATEWAY):
            from pydantic_ai.providers.gateway import gateway_provider

            return partial(gateway_provider, self.provider.removeprefix(GATEWAY))
        try:
            return infer_provider_class(self.provider)
        except ImportError as error:
            raise self._missing_extra() from error
        except ValueError:
            raise ConfigurationError(
                f"{self.spec!r}: unknown provider {self.provider!r}.{nearest(self.provider, PROVIDERS)}"
                f" Known are {', '.join(PROVIDERS)}, and scripted."
            ) from None

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._constructor).parameters)

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, value in self.options.items():
            accepted = next((other for other in (name, *OTHER_NAMES.get(name, ())) if other in self._parameters), None)
            if accepted is None:
                mend = " (for another server of the same kind, use openai-chat with its base_url)"
                raise ConfigurationError(f"{self.spec}: {self.provider} takes no {name}{mend * (name == 'base_url')}")
            arguments[accepted] = value
        return arguments

    def _interface(self) -> str:
        """OpenAI itself is asked by its responses interface; servers elsewhere by chat completions, which all speak."""
        if self.provider == "openai":
            address = self.options.get("base_url") or variable("OPENAI_BASE_URL") or ""
            if address and "api.openai.com" not in address:
                return "openai-chat"
        return self.provider

    def _fast_http_client(self) -> Any:
        """The SDK's client over aiohttp, or None for the usual one: other providers, and where aiohttp is missing."""
        if self._entry is None or self._entry.fast_http is None:
            return None
        import httpx2

        limits = httpx2.Limits(
            max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=IDLE_SECONDS
        )
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        sdk = importlib.import_module(self._entry.fast_http)
        try:
            return sdk.DefaultAioHttpClient(limits=limits, timeout=timeout, verify=_trusted_certificates())
        except RuntimeError:  # so the SDKs say that aiohttp is not installed
            return None

    def _missing_extra(self) -> MissingExtraError:
        line = self._entry.install_line if self._entry else f"pip install 'pydantic-ai-slim[{self.provider}]'"
        return MissingExtraError(f"{self.spec}: {self.provider} needs packages that are not installed: {line}")

    def _missing_key(self, variables: str) -> MissingKeyError:
        return MissingKeyError(f"{self.spec}: no key. Set the environment variable {variables}, or pass api_key=")

    def _refused(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(f"{self.spec}: {presentable(str(error), self.secrets)}")


@dataclass(slots=True)
class _OfOneLoop:
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    connected: Connected | None = None
    lifetime: AsyncGenerator[None] | None = None

    async def close(self) -> None:
        self.connected = None
        if self.lifetime is not None:
            await self.lifetime.aclose()


class Connections:
    """The clients of one account, one for each event loop that asks."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._loops: dict[asyncio.AbstractEventLoop, _OfOneLoop] = {}
        self._process = os.getpid()
        _all.add(self)

    async def here(self) -> Connected:
        """The client of the running event loop; many tasks that ask for the first time share one."""
        loop = asyncio.get_running_loop()
        of_loop = self._loops.get(loop)
        if of_loop is None:
            self._forget_closed_loops()
            of_loop = self._loops.setdefault(loop, _OfOneLoop())
        if of_loop.connected is None:
            async with of_loop.opening:
                if of_loop.connected is None:
                    connected = await asyncio.to_thread(self._account.connect)
                    of_loop.lifetime = _lifetime(connected)
                    await anext(of_loop.lifetime)
                    of_loop.connected = connected
        return of_loop.connected

    async def aclose(self) -> None:
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()
        await asyncio.gather(*map(asyncio.wrap_future, self.hang_up()))

    def hang_up(self) -> list[concurrent.futures.Future[None]]:
        """Have every loop that runs in another thread close its client; the futures are done when it has."""
        if self._process != os.getpid():  # forked: the threads that ran those loops stayed behind
            return []
        closing = []
        while self._loops:
            loop, of_loop = self._loops.popitem()
            if loop.is_running():
                closing.append(asyncio.run_coroutine_threadsafe(of_loop.close(), loop))
        return closing

    def _forget_closed_loops(self) -> None:
        for loop in tuple(self._loops):
            if loop.is_closed():
                self._loops.pop(loop, None)


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


@atexit.register
def _hang_up_at_exit() -> None:
    """A loop in a daemon thread never ends; at the exit of the interpreter aiohttp complains of what it left open."""
    closing = [future for connections in tuple(_all) for future in connections.hang_up()]
    concurrent.futures.wait(closing, timeout=1.0)


async def _lifetime(connected: Connected) -> AsyncGenerator[None]:
    """Open from the first step to `aclose()`.

    It is an asynchronous generator because an event loop closes those that are left over before it ends: so a program
    that forgets to close a model still leaves no connection open.
    """
    try:
        async with connected.model:
            yield
    finally:
        if connected.http is not None:
            await connected.http.aclose()


@cache
def _trusted_certificates() -> ssl.SSLContext:
    """What all clients trust. Reading it takes 30 ms, most of what a client takes."""
    import httpx2

    return httpx2.create_ssl_context()


def _known_settings(model: type[PydanticModel[Any]]) -> frozenset[str]:
    """The common settings, and those that the modules of this model's classes declare."""
    from pydantic_ai.settings import ModelSettings

    known = set(SETTINGS)
    for base in model.__mro__:
        for name, declared in vars(sys.modules[base.__module__]).items():
            if name.endswith("ModelSettings"):
                known |= declared.__annotations__.keys() - ModelSettings.__annotations__.keys()
    return frozenset(known)


def _without_sdk_retries(model: PydanticModel[Any], provider: PydanticProvider[Any]) -> dict[str, int]:
    """Turn the SDK's own retries off: on its client where that is possible, else by the setting this returns."""
    if isinstance(getattr(provider.client, "max_retries", None), int):
        provider.client.max_retries = 0
        return {}
    return {} if "max_retries" in model.unsupported_settings else {"max_retries": 0}
