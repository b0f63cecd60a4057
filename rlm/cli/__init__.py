"""The command `rlm`: every command parses, calls, and prints.

Nothing of this package is loaded by `import rlm`; no provider is loaded before a model is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (by default this process's) and return the exit code."""
    try:
        from rlm.cli.app import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before a command began, or after it ended
        return 130
