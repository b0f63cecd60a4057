"""`rlm doctor`: what this machine offers, and what is in the way of the rest."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Option

from rlm.cli.exits import ANSWERED, FAILED, guarded
from rlm.cli.terminal import Output


@guarded
def _doctor(python: str | None, as_json: bool) -> int:
    from rlm.environments.sandbox.survey import survey

    machine, output = survey(python or sys.executable), Output(as_json)
    output.result(
        {
            **{name: getattr(machine, name) for name in ("python", "system", "user", "isolation")},
            **{name: getattr(machine, name) for name in ("levels", "landlock", "counts_memory", "others")},
        }
    )
    if not as_json:
        output.text(f"Python   {machine.python}")
        output.text(f"System   {machine.system}, as {machine.user}")
        output.text("Levels of isolation")
        for level in machine.levels:
            said = ("yes" if level.name != "none" else "yes, where it is asked for") if level.works else "no"
            output.text(f"  {level.name:<10} {said}{': ' if level.why_not else ''}{level.why_not}")
        output.text(f"  default    {machine.isolation or 'cells are refused: see above'}")
        output.text(f"Memory   {MEMORY[machine.counts_memory]}")
    for other in machine.others:
        output.note(
            f"warning: {other} is installed too, and brings a package named rlm: which of both an import finds is"
            " chance. Uninstall both, then install the one you want"
        )
    return ANSWERED if machine.isolation else FAILED


MEMORY = {
    True: "counted by the kernel, for each session",
    False: "limited for each process, and watched for each session (no control group can be made here)",
}


def doctor(
    python: Annotated[
        str | None, Option("--python", metavar="PATH", help="The interpreter that runs cells. Default: this one.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of what goes wrong.")] = False,
) -> int:
    """Say how well code of a model's is kept away from this machine, and what is in the way of more.

    Every level of isolation is tried by setting a session up. The exit code is 0 when one of them works.
    """
    return _doctor(python, as_json, debug=debug)
