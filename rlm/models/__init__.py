"""Models by name: `openai:gpt-5`, any other `provider:model` of pydantic-ai, or a script in place of a model.

A model takes messages and gives text (`rlm.ports.Model`). A wrong name, a missing key and a missing extra fail in
`get_model`; provider SDKs load in the first request, not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from rlm.errors import ConfigurationError
from rlm.models.catalog import guess
from rlm.models.providers import ProviderModel
from rlm.models.scripted import ScriptedModel, load_script
from rlm.ports import Model

__all__ = ["ProviderModel", "ScriptedModel", "get_model"]


def get_model(spec: str | Model, **settings: Any) -> Model:
    """The model that `spec` names.

    spec: `provider:model`, `scripted:package.module:function`, or a model (an object with `name` and an async `reply`),
    which is returned as it is. settings: for a provider, those of `ProviderModel`; for a script, those of
    `ScriptedModel`; for a model, none. Raises `ConfigurationError`, `MissingKeyError`, `MissingExtraError`.
    """
    if not isinstance(spec, str):
        _refuse_settings(repr(spec), settings)
        if isinstance(getattr(spec, "name", None), str) and inspect.iscoroutinefunction(getattr(spec, "reply", None)):
            return spec
        raise ConfigurationError(f"{spec!r} is no model: a model has a text `name` and an async method `reply`")
    provider, colon, model = spec.partition(":")
    if not (provider and colon and model):
        suggestion = f"{guess(spec)}:{spec.strip(':') or 'gpt-5'}"
        raise ConfigurationError(f"model {spec!r}: write provider:model, for example {suggestion!r}")
    if provider != "scripted":
        return ProviderModel(spec, **settings)
    script = load_script(model)
    if hasattr(script, "reply"):
        return get_model(script, **settings)
    _refuse_settings(spec, settings, known=("latency", "price", "record"))
    return ScriptedModel(script, name=spec, **settings)


def _refuse_settings(spec: str, settings: Iterable[str], known: Sequence[str] = ()) -> None:
    for name in settings:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it takes its settings where it is made"
            raise ConfigurationError(f"{spec} has no setting {name!r}: {there}")
