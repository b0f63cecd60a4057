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
from rlm.models import catalog, get_model
from rlm.ports import Model
from rlm.types import Answered, Asking, Called, Calling, Event, Failed, Limits, Listener, Stopped


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


SubModels = str | Model | Sequence[str | Model]


@dataclass(frozen=True)
class Given:
    """A constructor's arguments, in our words.

    listeners: each makes one for a session, to be told of its events.
    """

    model: str | Model
    sub_models: Sequence[str | Model]
    limits: Limits
    tools: Sequence[Any] | Mapping[str, Any]
    sub_tools: Sequence[Any] | Mapping[str, Any] | None
    system_prompt: str | None
    settings: Mapping[str, Any]
    sub_settings: Mapping[str, Any]
    depth: int = 0
    orchestrator: bool = True
    prologue: str | None = None
    listeners: Sequence[Callable[[], Listener]] = field(default_factory=tuple)


LIMITS = {
    "max_depth": "depth",
    "max_iterations": "iterations",
    "max_budget": "usd",
    "max_timeout": "seconds",
    "max_tokens": "tokens",
    "max_errors": "errors",
    "max_concurrent_subcalls": "concurrency",
}
PROVIDERS = {"gemini": "google", "azure_openai": "azure"}
SHOWN = 80  # characters of a prompt that callbacks get
CALLBACKS = ("on_subcall_start", "on_subcall_complete", "on_iteration_start", "on_iteration_complete")


def translate(
    model: str | Model | None,
    sub_model: SubModels | None,
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
    _refuse_compaction(older)
    _only_one("sub_model", sub_model is not None, "other_backends", older)
    _only_one("tools", bool(tools), "custom_tools", older)
    _only_one("sub_tools", sub_tools is not None, "custom_sub_tools", older)
    _only_one("system_prompt", system_prompt is not None, "custom_system_prompt", older)
    _only_one("settings", settings is not None, "sampling_args", older)
    _only_one("sub_settings", sub_settings is not None, "sub_sampling_args", older)
    limits, depth = _limits(limits, older), older.get("depth", 0)
    root = _model(model, older)
    sub_models = _several(_other_models(older) if sub_model is None else sub_model) or [root]
    return Given(
        model=root,
        sub_models=sub_models,
        limits=limits,
        tools=tools or older.get("custom_tools") or (),
        sub_tools=sub_tools if sub_tools is not None else older.get("custom_sub_tools"),
        system_prompt=system_prompt if system_prompt is not None else older.get("custom_system_prompt"),
        settings=settings or older.get("sampling_args") or {},
        sub_settings=sub_settings or older.get("sub_sampling_args") or {},
        depth=depth,
        orchestrator=older.get("orchestrator", True),
        prologue=older.get("user_prologue"),
        listeners=_listeners(older, limits, depth, _name(sub_models[0])),
    )


def _refuse_compaction(older: Older) -> None:
    if older.get("compaction") or "compaction_threshold_pct" in older:
        raise ConfigurationError(
            "compaction= is not available: earlier turns are already carried as short questions and answers, and their "
            "messages are in history_N"
        )


def _limits(limits: Limits | None, older: Older) -> Limits:
    named: dict[str, Any] = {ours: dict(older)[theirs] for theirs, ours in LIMITS.items() if theirs in older}
    if named and limits is not None:
        ours = next(iter(named))
        theirs = next(theirs for theirs, name in LIMITS.items() if name == ours)
        raise ConfigurationError(f"{theirs}= and limits=: give one of them (limits=Limits({ours}=…))")
    return dataclasses.replace(limits or Limits(), **named)


def _only_one(ours: str, given: bool, theirs: str, older: Older) -> None:
    if given and older.get(theirs) is not None:
        raise ConfigurationError(f"{theirs}= and {ours}= mean the same: give one of them")


def _model(model: str | Model | None, older: Older) -> str | Model:
    backend, kwargs = older.get("backend"), older.get("backend_kwargs")
    if model is not None and backend is not None:
        raise ConfigurationError("backend= and a model: give one of them")
    if isinstance(model, str) and (kwargs or model in PROVIDERS or model in catalog.PROVIDERS) and ":" not in model:
        backend = model
    elif model is not None:
        if kwargs:
            raise ConfigurationError("backend_kwargs= goes with backend=; with a model name use settings=")
        return model
    if backend is None:
        raise ConfigurationError('RLM() needs a model: RLM("openai:gpt-5"), or backend= and backend_kwargs=')
    return _backend(backend, kwargs or {})


def _several(models: SubModels | None) -> Sequence[str | Model]:
    if models is None:
        return []
    several = [models] if isinstance(models, str) or not isinstance(models, Sequence) else list(models)
    if not several:
        raise ConfigurationError("sub_model=[]: name at least one model, or leave it out")
    return several


def _name(model: str | Model) -> str:
    return model if isinstance(model, str) else str(getattr(model, "name", ""))


def _backend(backend: str, kwargs: Mapping[str, Any]) -> Model:
    """The model of an older pair: a provider's name, and its `model_name` with settings."""
    name = kwargs.get("model_name")
    if not name:
        raise ConfigurationError(
            f"backend={backend!r} needs backend_kwargs={{'model_name': …}}; or name both: RLM('{backend}:model')"
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


def _listeners(older: Older, limits: Limits, depth: int, sub_model: str) -> Sequence[Callable[[], Listener]]:
    listeners: list[Callable[[], Listener]] = []
    if older.get("verbose"):
        listeners.append(lambda: narrate.to_stderr)
    logger = older.get("logger")
    if logger is not None:
        if not callable(getattr(logger, "log", None)):
            raise ConfigurationError(f"logger={logger!r} has no method log(event)")
        listeners.append(lambda: _to_logger(logger))
    if any(dict(older).get(name) for name in CALLBACKS):
        listeners.append(lambda: Callbacks(older, limits, depth, sub_model))
    return listeners


def _to_logger(logger: Logger) -> Listener:
    def tell(event: Event) -> None:
        if event.durable:
            logger.log(event.to_dict())

    return tell


class Callbacks:
    """The four callbacks, out of the events of one session that mean the same.

    A subcall is an `rlm_query` that starts a child; `depth` is the child's. Iterations are counted from 0. Durations
    are in seconds.
    """

    def __init__(self, older: Older, limits: Limits, depth: int, sub_model: str) -> None:
        self._subcall_start = older.get("on_subcall_start") or _nothing
        self._subcall_complete = older.get("on_subcall_complete") or _nothing
        self._iteration_start = older.get("on_iteration_start") or _nothing
        self._iteration_complete = older.get("on_iteration_complete") or _nothing
        self._depth = depth
        self._max_depth = limits.depth
        self._sub_model = sub_model
        self._models: dict[str, str] = {}
        self._begun: dict[str, tuple[int, int, float]] = {}

    def __call__(self, event: Event) -> None:
        depth = self._depth + event.at.count("/rlm_query:")
        match event:
            case Calling(at, "rlm_query", prompt, model) if depth < self._max_depth:
                self._models[at] = model or self._sub_model
                self._subcall_start(depth, self._models[at], prompt[:SHOWN])
            case Called(at, "rlm_query", seconds=seconds, error=error) if depth < self._max_depth:
                self._complete_below(at)
                self._subcall_complete(depth, self._models.pop(at, self._sub_model), seconds, error)
            case Asking(at, purpose):
                path, _, number = at.rpartition("/a")
                self._complete(path)
                if purpose == "iteration":
                    self._begun[path] = (depth, int(number), time.perf_counter())
                    self._iteration_start(depth, int(number))
            case Answered(at) | Stopped(at) | Failed(at):
                self._complete_below(at)

    def _complete_below(self, at: str) -> None:
        for path in [path for path in self._begun if path == at or path.startswith(f"{at}/")]:
            self._complete(path)

    def _complete(self, path: str) -> None:
        if path in self._begun:
            depth, number, began = self._begun.pop(path)
            self._iteration_complete(depth, number, time.perf_counter() - began)


def _nothing(*_: Any) -> None:
    """Nobody asked to be called."""
