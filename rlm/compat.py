"""The names that existing RLM code uses, mapped onto ours. What has no meaning here is refused by name, never ignored.

Known: backend, backend_kwargs, other_backends, other_backend_kwargs, depth, max_depth, max_iterations, max_budget,
max_timeout, max_tokens, max_errors, max_concurrent_subcalls, custom_tools, custom_sub_tools, custom_system_prompt,
sampling_args, sub_sampling_args, verbose, logger, user_prologue, orchestrator, compaction, and four callbacks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from rlm import narrate
from rlm.errors import ConfigurationError
from rlm.models import get_model
from rlm.ports import Model
from rlm.types import Asking, Called, Calling, Event, Limits, Listener, Ran, Replied


class Logger(Protocol):
    """What `logger=` takes: told of each recorded event as plain data."""

    def log(self, event: Mapping[str, Any], /) -> object: ...


class Older(TypedDict, total=False):
    """The constructor's other names."""

    backend: str
    backend_kwargs: Mapping[str, Any] | None
    other_backends: Sequence[str] | None
    other_backend_kwargs: Sequence[Mapping[str, Any]] | None
    depth: int
    max_depth: int
    max_iterations: int
    max_budget: float | None
    max_timeout: float | None
    max_tokens: int | None
    max_errors: int | None
    max_concurrent_subcalls: int
    custom_tools: Mapping[str, Any] | None
    custom_sub_tools: Mapping[str, Any] | None
    custom_system_prompt: str | None
    sampling_args: Mapping[str, Any] | None
    sub_sampling_args: Mapping[str, Any] | None
    verbose: bool
    logger: Logger | None
    user_prologue: str | None
    orchestrator: bool
    compaction: bool
    compaction_threshold_pct: float
    on_subcall_start: Callable[[int, str, str], object] | None
    on_subcall_complete: Callable[[int, str, float, str | None], object] | None
    on_iteration_start: Callable[[int, int], object] | None
    on_iteration_complete: Callable[[int, int, float], object] | None


@dataclass(frozen=True)
class Given:
    """A constructor's arguments, in our words."""

    model: str | Model
    limits: Limits
    tools: Sequence[Any] | Mapping[str, Any]
    sub_tools: Sequence[Any] | Mapping[str, Any] | None
    system_prompt: str | None
    settings: Mapping[str, Any]
    sub_settings: Mapping[str, Any]
    sub_model: Sequence[Model] | None = None
    depth: int = 0
    orchestrator: bool = True
    prologue: str | None = None
    listeners: Sequence[Listener] = field(default_factory=tuple)


LIMITS = {
    "max_depth": "depth",
    "max_iterations": "iterations",
    "max_budget": "usd",
    "max_timeout": "seconds",
    "max_tokens": "tokens",
    "max_errors": "errors",
    "max_concurrent_subcalls": "concurrency",
}
PROVIDERS = {"gemini": "google-gla", "azure_openai": "azure", "vllm": "openai"}
CALLBACKS = ("on_subcall_start", "on_subcall_complete", "on_iteration_start", "on_iteration_complete")


def translate(
    model: str | Model | None,
    limits: Limits | None,
    tools: Sequence[Any] | Mapping[str, Any],
    sub_tools: Sequence[Any] | Mapping[str, Any] | None,
    system_prompt: str | None,
    settings: Mapping[str, Any] | None,
    sub_settings: Mapping[str, Any] | None,
    older: Older,
) -> Given:
    """One set of arguments out of both kinds of names. Raises `ConfigurationError` for a conflict, an unknown name, and
    what cannot be had."""
    unknown = sorted(set(older) - set(Older.__annotations__))
    if unknown:
        raise ConfigurationError(f"RLM() has no argument {unknown[0]!r}")
    if older.get("compaction"):
        raise ConfigurationError(
            "compaction=True is not available: earlier turns are already carried as short questions and answers, and "
            "their messages are in history_N"
        )
    named = [name for name in LIMITS if name in older]
    if named and limits is not None:
        raise ConfigurationError(f"{named[0]}= and limits=: give one of them (limits=Limits({LIMITS[named[0]]}=…))")
    _only_one("tools", bool(tools), "custom_tools", older)
    _only_one("sub_tools", sub_tools is not None, "custom_sub_tools", older)
    _only_one("system_prompt", system_prompt is not None, "custom_system_prompt", older)
    _only_one("settings", settings is not None, "sampling_args", older)
    _only_one("sub_settings", sub_settings is not None, "sub_sampling_args", older)
    changed = {LIMITS[name]: dict(older)[name] for name in named}
    return Given(
        _model(model, older),
        dataclasses.replace(limits or Limits(), **changed),
        tools or older.get("custom_tools") or (),
        sub_tools if sub_tools is not None else older.get("custom_sub_tools"),
        system_prompt or older.get("custom_system_prompt"),
        settings or older.get("sampling_args") or {},
        sub_settings or older.get("sub_sampling_args") or {},
        _other_models(older),
        older.get("depth", 0),
        older.get("orchestrator", True),
        older.get("user_prologue"),
        tuple(_listeners(older)),
    )


def _only_one(ours: str, given: bool, theirs: str, older: Older) -> None:
    if given and older.get(theirs) is not None:
        raise ConfigurationError(f"{theirs}= and {ours}= mean the same: give one of them")


def _model(model: str | Model | None, older: Older) -> str | Model:
    backend = older.get("backend")
    if model is not None and backend is not None:
        raise ConfigurationError("backend= and a model: give one of them")
    if isinstance(model, str) and ":" not in model:
        backend, model = model, None
    if model is not None:
        if older.get("backend_kwargs"):
            raise ConfigurationError("backend_kwargs= goes with backend=; with a model name use settings=")
        return model
    if backend is None:
        raise ConfigurationError('RLM() needs a model: RLM("openai:gpt-5"), or backend= and backend_kwargs=')
    return _backend(backend, older.get("backend_kwargs") or {})


def _backend(backend: str, kwargs: Mapping[str, Any]) -> Model:
    """The model of an older pair: a provider's name, and its `model_name` with settings."""
    name = kwargs.get("model_name")
    if not name:
        raise ConfigurationError(
            f"backend={backend!r} needs backend_kwargs={{'model_name': …}}; or name both at once: RLM('{backend}:model')"
        )
    settings = {key: value for key, value in kwargs.items() if key not in ("model_name", "sampling_args")}
    return get_model(f"{PROVIDERS.get(backend, backend)}:{name}", **settings, **dict(kwargs.get("sampling_args") or {}))


def _other_models(older: Older) -> Sequence[Model] | None:
    names, kwargs = older.get("other_backends"), older.get("other_backend_kwargs")
    if not names:
        if kwargs:
            raise ConfigurationError("other_backend_kwargs= goes with other_backends=")
        return None
    if kwargs is None or len(kwargs) != len(names):
        raise ConfigurationError("other_backends= and other_backend_kwargs= must have the same length")
    return [_backend(name, own) for name, own in zip(names, kwargs, strict=True)]


def _listeners(older: Older) -> list[Listener]:
    listeners: list[Listener] = []
    if older.get("verbose"):
        listeners.append(narrate.to_stderr)
    logger = older.get("logger")
    if logger is not None:
        if not callable(getattr(logger, "log", None)):
            raise ConfigurationError(f"logger={logger!r} has no method log(event)")
        listeners.append(lambda event: logger.log(event.to_dict()) if event.durable else None)
    if any(dict(older).get(name) for name in CALLBACKS):
        listeners.append(Callbacks(older))
    return listeners


class Callbacks:
    """The four callbacks, out of the events that mean the same."""

    def __init__(self, older: Older) -> None:
        self._subcall_start = older.get("on_subcall_start") or _nothing
        self._subcall_complete = older.get("on_subcall_complete") or _nothing
        self._iteration_start = older.get("on_iteration_start") or _nothing
        self._iteration_complete = older.get("on_iteration_complete") or _nothing
        self._models: dict[str, str] = {}
        self._begun: dict[str, tuple[int, float]] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Calling(at, "rlm_query", prompt):
                self._subcall_start(_depth(at), self._models.get(_parent(at), ""), prompt)
            case Called(at, "rlm_query", seconds=seconds, error=error):
                model = next(iter(event.usage_summary.model_usage_summaries), "")
                self._subcall_complete(_depth(at), model, seconds, error)
            case Asking(at, "iteration"):
                self._complete(_parent(at))
                number = int(at.rpartition("/a")[2])
                self._begun[_parent(at)] = (number, time.perf_counter())
                self._iteration_start(_depth(at), number)
            case Replied(at, reply=reply):
                self._models[_parent(at)] = reply.model
            case Called(at) | Ran(at):
                pass
            case _ if event.kind in ("answered", "stopped", "failed"):
                for path in [path for path in self._begun if path == event.at or path.startswith(event.at + "/")]:
                    self._complete(path)
            case _:
                pass

    def _complete(self, path: str) -> None:
        begun = self._begun.pop(path, None)
        if begun is not None:
            self._iteration_complete(_depth(f"{path}/a0"), begun[0], time.perf_counter() - begun[1])


def _nothing(*_: Any) -> None:
    """Nobody asked to be called."""


def _parent(at: str) -> str:
    return at.rpartition("/")[0]


def _depth(at: str) -> int:
    """How many children's calls the place is below."""
    return at.count("/rlm_query:")
