"""`rlm demo`: the demonstration (`rlm.demo`) as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from rlm.cli.exits import guarded
from rlm.cli.settings import make_importable


@guarded
def _demo(model: str | None, sub_model: str | None, as_json: bool) -> int:
    from rlm.demo import run

    make_importable(Path.cwd())  # as for the other commands: a script may play the model
    return run(model, sub_model=sub_model, json=as_json)


def demo(
    model: Annotated[
        str | None,
        Option("--model", "-m", metavar="PROVIDER:NAME", help="A real model. Default: a script that plays one."),
    ] = None,
    sub_model: Annotated[
        str | None,
        Option("--sub-model", metavar="PROVIDER:NAME", help="The model that cells ask. Default: the model itself."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object in the end, nothing else.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of what goes wrong.")] = False,
) -> int:
    """Watch a conversation of three turns over tens of megabytes of real text, each answer checked.

    Without --model a script plays the model: no key is needed and nothing is spent. The exit code is 0 when every
    answer is right.
    """
    return _demo(model, sub_model, as_json, debug=debug)
