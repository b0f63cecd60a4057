"""The options of commands, declared once: where sessions live, which models, where cells run, limits, what is printed.

`Settings` are those of a conversation, `Reopening` of what opens a stored session and asks no model, `Storing` of what
only looks at the store. What is not given comes from the environment and the config file (`rlm.config`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from typer import Option

from rlm.cli.exits import UsageError, guarded
from rlm.cli.terminal import Output
from rlm.config import config_path, load_config
from rlm.types import Limits, Listener, Messages

if TYPE_CHECKING:
    from rlm.ports import Model
    from rlm.rlm import RLM

P = ParamSpec("P")
Kind = TypeVar("Kind", bound="Options")

SESSIONS, MODELS, LIMITS, OUTPUT = "Sessions", "Models", "Limits, for each turn", "Output"

STORE = Option(
    "--store",
    metavar="PATH",
    rich_help_panel=SESSIONS,
    help="The folder of stored sessions. Default: RLM_STORE, store in the config file, or the platform's place for"
    " data.",
)
WAIT = Option(
    "--wait",
    metavar="SECONDS",
    rich_help_panel=SESSIONS,
    help="How long to wait for another process that has the session open. Default: 0.",
)
ENVIRONMENT = Option(
    "--environment",
    "-e",
    metavar="NAME",
    rich_help_panel=MODELS,
    help="Where cells run: local, or your own as package.module:Class. Default: local.",
)
ISOLATION = Option(
    "--isolation",
    metavar="LEVEL",
    rich_help_panel=MODELS,
    help="How local cells are kept away from this machine: auto (the strongest level that works), namespace, landlock,"
    " or none. Default: isolation in the config file, or auto. See rlm doctor.",
)
JSON = Option("--json", rich_help_panel=OUTPUT, help="Print results as JSON, one line each.")
DEBUG = Option("--debug", rich_help_panel=OUTPUT, help="Show the traceback of what goes wrong.")


@dataclass(frozen=True, slots=True)
class Storing:
    """The options of commands that look at stored sessions, and open none."""

    store: Annotated[str | None, STORE] = None
    as_json: Annotated[bool, JSON] = False
    debug: Annotated[bool, DEBUG] = False

    def output(self) -> Output:
        return Output(self.as_json)

    def place(self) -> str | Path | None:
        """The store that is meant; None for the default one."""
        return self.store or load_config().store


@dataclass(frozen=True, slots=True)
class Reopening:
    """The options of commands that open a stored session, and ask no model."""

    store: Annotated[str | None, STORE] = None
    wait: Annotated[float, WAIT] = 0.0
    environment: Annotated[str, ENVIRONMENT] = "local"
    isolation: Annotated[str | None, ISOLATION] = None
    as_json: Annotated[bool, JSON] = False
    debug: Annotated[bool, DEBUG] = False

    def output(self) -> Output:
        return Output(self.as_json)

    def place(self) -> str | Path | None:
        """The store that is meant; None for the default one."""
        return self.store or load_config().store

    def open(self, listener: Listener | None = None) -> RLM:
        """An RLM over this store, with nothing started. What one of its cells asks a model, fails."""
        config = load_config()
        _check_wait(self.wait)
        if self.environment != "local":
            make_importable(Path.cwd())
        where = self.environment, self.isolation or (config.isolation if self.environment == "local" else None)
        return _rlm(nobody(), None, config.limits, where, listener, self.store or config.store)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a conversation, as given; None is what was not given. Limits are those of `rlm.Limits`."""

    store: Annotated[str | None, STORE] = None
    wait: Annotated[float, WAIT] = 0.0
    model: Annotated[
        str | None,
        Option(
            "--model",
            "-m",
            metavar="PROVIDER:NAME",
            rich_help_panel=MODELS,
            help="The model that answers, such as openai:gpt-5; scripted:package.module:function is a script in"
            " place of one. Default: RLM_MODEL, or model in the config file.",
        ),
    ] = None
    sub_model: Annotated[
        list[str] | None,
        Option(
            "--sub-model",
            metavar="PROVIDER:NAME",
            rich_help_panel=MODELS,
            help="The model that cells ask; given again, one more that they can name. Default: RLM_SUB_MODEL,"
            " sub_model in the config file, or the model itself.",
        ),
    ] = None
    environment: Annotated[str, ENVIRONMENT] = "local"
    isolation: Annotated[str | None, ISOLATION] = None
    usd: Annotated[
        float | None, Option("--usd", metavar="DOLLARS", rich_help_panel=LIMITS, help="Money, sub-calls included.")
    ] = None
    seconds: Annotated[
        float | None, Option("--seconds", metavar="SECONDS", rich_help_panel=LIMITS, help="Wall-clock time.")
    ] = None
    iterations: Annotated[
        int | None,
        Option(
            "--iterations", metavar="N", rich_help_panel=LIMITS, help="Replies before the final request. Default: 30."
        ),
    ] = None
    depth: Annotated[
        int | None,
        Option(
            "--depth",
            metavar="N",
            rich_help_panel=LIMITS,
            help="Levels of REPLs; from 2 on rlm_query starts a child. Default: 1.",
        ),
    ] = None
    calls: Annotated[
        int | None, Option("--calls", metavar="N", rich_help_panel=LIMITS, help="Model requests, sub-calls included.")
    ] = None
    tokens: Annotated[
        int | None,
        Option("--tokens", metavar="N", rich_help_panel=LIMITS, help="Input and output, sub-calls included."),
    ] = None
    errors: Annotated[
        int | None, Option("--errors", metavar="N", rich_help_panel=LIMITS, help="Failing cells in a row.")
    ] = None
    concurrency: Annotated[
        int | None,
        Option("--concurrency", metavar="N", rich_help_panel=LIMITS, help="Model requests at once. Default: 64."),
    ] = None
    as_json: Annotated[bool, JSON] = False
    events: Annotated[
        bool, Option("--events", rich_help_panel=OUTPUT, help="Print every event as a line of JSON, as it happens.")
    ] = False
    quiet: Annotated[
        bool, Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print answers and errors, nothing else.")
    ] = False
    debug: Annotated[bool, DEBUG] = False

    def output(self) -> Output:
        if self.as_json and self.events:
            raise UsageError("--json and --events both want standard output: give one of them")
        return Output(self.as_json, self.events, self.quiet)

    def limits(self, defaults: Limits) -> Limits:
        """`defaults` with what was given. Raises `UsageError`, naming the option."""
        names = [one.name for one in dataclasses.fields(Limits)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        try:
            return dataclasses.replace(defaults, **given)
        except ValueError as error:
            told = re.fullmatch(r"Limits\((\w+)=(.*?)\): (.*?)(, or None for no limit)?", str(error))
            raise UsageError(f"--{told[1]} {told[2]}: {told[3]}" if told else str(error)) from None

    def place(self) -> str | Path | None:
        """The store that is meant; None for the default one."""
        return self.store or load_config().store

    def open(self, listener: Listener | None = None, *, stand_in: Model | None = None) -> RLM:
        """The RLM that these options describe, with nothing started. Raises `ConfigurationError`.

        stand_in: the model where none is named, which else is wrong usage.
        """
        config = load_config()
        _check_wait(self.wait)
        model = self.model or config.model or stand_in
        if model is None:
            raise UsageError(_no_model())
        sub_model = None if model is stand_in else self.sub_model or config.sub_model
        named = [model, *(sub_model if isinstance(sub_model, list) else [sub_model])]
        if self.environment != "local" or any(isinstance(one, str) and one.startswith("scripted:") for one in named):
            make_importable(Path.cwd())
        limits, place = self.limits(config.limits), self.store or config.store
        where = self.environment, self.isolation or (config.isolation if self.environment == "local" else None)
        return _rlm(model, sub_model, limits, where, listener, place)


Options = Storing | Reopening | Settings


def nobody() -> Model:
    """Stands where a model would, and answers nothing."""
    from rlm.errors import ModelError
    from rlm.models import ScriptedModel

    def refuse(messages: Messages) -> str:
        raise ModelError(_no_model())

    return ScriptedModel(refuse, name="none", record=False)


def _no_model() -> str:
    return (
        "no model is named: give --model provider:name (such as openai:gpt-5), set RLM_MODEL,"
        f' or write model = "provider:name" in {config_path()}'
    )


def _check_wait(seconds: float) -> None:
    if not seconds >= 0:
        raise UsageError(f"--wait {seconds:g}: give seconds, 0 or more")


def _rlm(
    model: str | Model,
    sub_model: str | list[str] | None,
    limits: Limits,
    where: tuple[str, str | None],
    listener: Listener | None,
    store: str | Path | None,
) -> RLM:
    """where: the environment, and its level of isolation where one was chosen."""
    from rlm.rlm import RLM

    environment, isolation = where
    options = {} if isolation is None else {"isolation": isolation}
    return RLM(
        model,
        sub_model=sub_model,
        limits=limits,
        environment=environment,
        environment_kwargs=options,
        listener=listener,
        store=store,
    )


def make_importable(folder: Path) -> None:
    """Let `import` find the user's own modules there, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def with_options(kind: type[Kind]) -> Callable[[Callable[Concatenate[Kind, P], int]], Callable[..., int]]:
    """Makes a command as Typer takes one: the parameters of the body, after them those of `kind`. It is `guarded`."""
    hints = get_type_hints(kind, include_extras=True)
    common = {one.name: one for one in dataclasses.fields(kind)}

    def decorate(body: Callable[Concatenate[Kind, P], int]) -> Callable[..., int]:
        def command(**given: Any) -> int:
            options = kind(**{name: given.pop(name) for name in common})
            return guarded(body)(options, debug=options.debug, **given)

        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[name])
            for name, one in common.items()
        ]
        command.__name__, command.__doc__ = body.__name__, body.__doc__
        command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
        command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        return command

    return decorate
