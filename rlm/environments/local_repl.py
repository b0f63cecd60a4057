"""LocalREPL: cells run in a child process of this machine. The reference implementation of the contract.

The process is not sandboxed: code in a cell can do what the user who started it can do (`repl.isolation == "none"`). It
gets none of the host's environment variables, and a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlm.environments.base_env import NonIsolatedEnv
from rlm.environments.process import ProcessTransport
from rlm.environments.repl import REPL
from rlm.types import Tool


class LocalREPL(REPL, NonIsolatedEnv):
    """A Python REPL in a child process.

    python: the interpreter that runs the cells (3.9 or newer). env: environment variables for it, beside PATH and the
    locale's. The other parameters are those of `REPL`.

        with LocalREPL() as repl:
            repl.execute_code("x = 6 * 7")
            repl.locals["x"]
    """

    def __init__(
        self,
        lm_handler_address: tuple[str, int] | None = None,
        context_payload: Any = None,
        setup_code: str | None = None,
        persistent: bool = False,
        *,
        tools: Sequence[Tool] = (),
        cell_timeout: float | None = None,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            lambda folder: ProcessTransport(folder, python=python, env=env),
            persistent=persistent,
            lm_handler_address=lm_handler_address,
            context_payload=context_payload,
            setup_code=setup_code,
            tools=tools,
            cell_timeout=cell_timeout,
        )
