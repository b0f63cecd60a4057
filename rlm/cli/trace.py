"""`rlm trace`: a session as a page (`rlm.trace`), as a command."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from rlm.cli.sessions import written
from rlm.cli.settings import Storing, with_options


@with_options(Storing)
def trace(
    options: Storing,
    name: Annotated[str, Argument(metavar="NAME")],
    file: Annotated[
        str | None,
        Option("--output", "-o", metavar="FILE", help="Where to. Default: NAME.html in the current folder."),
    ] = None,
) -> int:
    """Write a stored session as one HTML file: turns, cells and calls as a tree, with what they cost.

    The file needs no server and no network.
    """
    return written(options, name, file, ".html", lambda sessions, path: sessions.trace(name, path))
