"""What is known of each model provider without importing it: its extra, its keys, its faster HTTP client.

This is what lets a wrong name, a missing key or a missing package fail at construction, in microseconds. It knows the
providers of pydantic-ai that answer conversations; one that is missing here still works, and fails a little later.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

DISTRIBUTION = "rlm-sessions"
EXTRAS = ("openai", "anthropic", "google", "groq", "mistral", "cohere", "bedrock", "huggingface")


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.

    extra: of this distribution where it is in `EXTRAS`, else of pydantic-ai-slim. modules: what the extra installs, as
    imported. keys: environment variables of which one must be set; none where there are other ways to log in. address:
    the environment variable that names another base URL, where a server may need no key. fast_http: the SDK whose
    aiohttp client the provider accepts (two to three times the requests a second of the usual one).
    """

    extra: str
    modules: tuple[str, ...]
    keys: tuple[str, ...] = ()
    address: str | None = None
    fast_http: Literal["openai", "anthropic"] | None = None

    @property
    def is_installed(self) -> bool:
        return all(_can_import(module) for module in self.modules)

    @property
    def install_line(self) -> str:
        distribution = DISTRIBUTION if self.extra in EXTRAS else "pydantic-ai-slim"
        return f"pip install '{distribution}[{self.extra}]'"


def _can_import(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _openai_compatible(*keys: str, address: str | None = None) -> Provider:
    return Provider("openai", ("openai",), keys, address, fast_http="openai")


PROVIDERS: Mapping[str, Provider] = {
    "openai": _openai_compatible("OPENAI_API_KEY", address="OPENAI_BASE_URL"),
    "openai-chat": _openai_compatible("OPENAI_API_KEY", address="OPENAI_BASE_URL"),
    "openai-responses": _openai_compatible("OPENAI_API_KEY", address="OPENAI_BASE_URL"),
    "anthropic": Provider("anthropic", ("anthropic",), ("ANTHROPIC_API_KEY",), fast_http="anthropic"),
    "google": Provider("google", ("google.genai",), ("GOOGLE_API_KEY", "GEMINI_API_KEY")),
    "google-cloud": Provider("google", ("google.genai",)),
    "groq": Provider("groq", ("groq",), ("GROQ_API_KEY",)),
    "mistral": Provider("mistral", ("mistralai",), ("MISTRAL_API_KEY",)),
    "cohere": Provider("cohere", ("cohere",), ("CO_API_KEY",)),
    "bedrock": Provider("bedrock", ("boto3",)),
    "huggingface": Provider("huggingface", ("huggingface_hub",), ("HF_TOKEN",)),
    "xai": Provider("xai", ("xai_sdk",), ("XAI_API_KEY",)),
    "alibaba": _openai_compatible("ALIBABA_API_KEY", "DASHSCOPE_API_KEY"),
    "azure": _openai_compatible("AZURE_OPENAI_API_KEY"),
    "azure-responses": _openai_compatible("AZURE_OPENAI_API_KEY"),
    "bedrock-mantle": Provider("bedrock-mantle", ("openai", "botocore")),
    "cerebras": _openai_compatible("CEREBRAS_API_KEY"),
    "crusoe": _openai_compatible("CRUSOE_API_KEY"),
    "deepseek": _openai_compatible("DEEPSEEK_API_KEY"),
    "fireworks": _openai_compatible("FIREWORKS_API_KEY"),
    "github": Provider("openai", ("openai",), ("GITHUB_API_KEY",)),
    "github-copilot": _openai_compatible(),
    "heroku": _openai_compatible("HEROKU_INFERENCE_KEY"),
    "litellm": _openai_compatible(),
    "meta": _openai_compatible("META_API_KEY"),
    "moonshotai": _openai_compatible("MOONSHOTAI_API_KEY"),
    "nebius": _openai_compatible("NEBIUS_API_KEY"),
    "ollama": _openai_compatible(),
    "openai-chatgpt": Provider("openai", ("openai",)),
    "openai-codex": Provider("openai", ("openai",)),
    "openrouter": _openai_compatible("OPENROUTER_API_KEY"),
    "ovhcloud": _openai_compatible("OVHCLOUD_API_KEY"),
    "sambanova": _openai_compatible("SAMBANOVA_API_KEY"),
    "snowflake": _openai_compatible(),
    "together": _openai_compatible("TOGETHER_API_KEY"),
    "vercel": _openai_compatible("VERCEL_AI_GATEWAY_API_KEY", "VERCEL_OIDC_TOKEN"),
    "vllm": _openai_compatible(),
    "zai": _openai_compatible("ZAI_API_KEY"),
}

# Settings that several providers know; each also has its own, which begin with its name (`openai_reasoning_effort`).
# pydantic-ai's page on ModelSettings says which provider heeds which. Left out are those for agents and tools, and
# max_retries: retries are made in one place, and that is here (`retries`).
SETTINGS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "timeout",
    "request_timeout",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop_sequences",
    "thinking",
    "cache",
    "service_tier",
    "extra_headers",
    "extra_body",
)

# How model names begin, for a hint to those who leave the provider out.
FAMILIES = {
    "gpt": "openai",
    "o1": "openai",
    "o3": "openai",
    "o4": "openai",
    "chatgpt": "openai",
    "claude": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "command": "cohere",
    "deepseek": "deepseek",
    "grok": "xai",
}


GATEWAY = "gateway/"
GATEWAY_KEYS = ("PYDANTIC_AI_GATEWAY_API_KEY", "PAIG_API_KEY")


def entry_of(provider: str) -> Provider | None:
    """What is known of `provider`, None outside the catalog. `gateway/openai` is OpenAI through a gateway."""
    entry = PROVIDERS.get(provider.removeprefix(GATEWAY))
    if entry is not None and provider.startswith(GATEWAY):
        return replace(entry, keys=GATEWAY_KEYS, address=None)
    return entry


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that ends an error message, such as " Did you mean 'openai'?", or nothing."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def guess(model: str) -> str:
    """The provider that most likely has a model of this name."""
    return next((provider for start, provider in FAMILIES.items() if model.lower().startswith(start)), "openai")
