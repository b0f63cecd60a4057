"""The options that every conversation takes, declared once: which models, where cells run, limits, what is printed.

What is not given comes from the environment and the config file (`rlm.config`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

from typer import Option

from rlm.cli.exits import UsageError, guarded
from rlm.cli.terminal import Output
from rlm.config import config_path, load_config
from rlm.types import Limits, Listener

if TYPE_CHECKING:
    from rlm.rlm import RLM

P = ParamSpec("P")

MODELS, LIMITS, OUTPUT = "Models", "Limits, for each turn", "Output"


@dataclass(frozen=True, slots=True)
class Settings:
    """The common options, as given; None is what was not given. Limits are those of `rlm.Limits`."""

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
    environment: Annotated[
        str,
        Option(
            "--environment",
            "-e",
            metavar="NAME",
            rich_help_panel=MODELS,
            help="Where cells run: local, or your own as package.module:Class. Default: local.",
        ),
    ] = "local"
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
    as_json: Annotated[bool, Option("--json", rich_help_panel=OUTPUT, help="Print results as JSON, one line each.")] = (
        False
    )
    events: Annotated[
        bool, Option("--events", rich_help_panel=OUTPUT, help="Print every event as a line of JSON, as it happens.")
    ] = False
    quiet: Annotated[
        bool, Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print answers and errors, nothing else.")
    ] = False
    debug: Annotated[bool, Option("--debug", rich_help_panel=OUTPUT, help="Show the traceback of what goes wrong.")] = (
        False
    )

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

    def open(self, listener: Listener) -> RLM:
        """The RLM that these options describe, with nothing started. Raises `ConfigurationError`."""
        from rlm.rlm import RLM

        config = load_config()
        model = self.model or config.model
        if model is None:
            raise UsageError(
                "no model is named: give --model provider:name (such as openai:gpt-5), set RLM_MODEL,"
                f' or write model = "provider:name" in {config_path()}'
            )
        sub_model = self.sub_model or config.sub_model
        named = [model, *(sub_model if isinstance(sub_model, list) else [sub_model or ""])]
        if self.environment != "local" or any(name.startswith("scripted:") for name in named):
            make_importable(Path.cwd())
        return RLM(
            model,
            sub_model=sub_model,
            limits=self.limits(config.limits),
            environment=self.environment,
            listener=listener,
        )


def make_importable(folder: Path) -> None:
    """Let `import` find the user's own modules there, after everything that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def with_settings(body: Callable[Concatenate[Settings, P], int]) -> Callable[..., int]:
    """A command as Typer takes one: the parameters of `body`, and after them those of `Settings`. It is `guarded`."""
    hints = get_type_hints(Settings, include_extras=True)
    common = {one.name: one for one in dataclasses.fields(Settings)}

    def command(**given: Any) -> int:
        settings = Settings(**{name: given.pop(name) for name in common})
        return guarded(body)(settings, debug=settings.debug, **given)

    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[name])
        for name, one in common.items()
    ]
    command.__name__, command.__doc__ = body.__name__, body.__doc__
    command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    return command
