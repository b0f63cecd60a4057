"""LocalREPL: cells run in a process of this machine, kept away from it. The reference implementation of the contract.

The level of isolation in force is said by `repl.isolation`; see `rlm.environments.sandbox`, and docs/security.md for
what each level promises.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlm.environments.base_env import NonIsolatedEnv
from rlm.environments.repl import REPL
from rlm.environments.sandbox.sandbox import DEFAULTS, Resources, Sandbox, Settings
from rlm.types import Tool


class LocalREPL(REPL, NonIsolatedEnv):
    """A Python REPL in a sandbox on this machine.

    isolation: "auto" (the strongest level that works here, "none" never), "namespace", "landlock", or "none", where
    cells have the rights of the user. python: the interpreter that runs the cells (3.9 or newer). packages: True for
    all that are installed for it, False, or the names of some, which bring those that they need. extra_paths: further
    files and folders of this machine, read-only; a mapping says "ro" or "rw" for each. network: whether cells reach
    the network. env: environment variables for them, beside PATH and the locale's; none of the host's are passed on.

    memory: bytes that a session's processes may hold together, half of the machine's by default. disk: bytes of its
    files. processes: how many it may have, threads included. open_files: of one process. file_size: bytes of one file.
    The other parameters are those of `REPL`.

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
        isolation: str = "auto",
        python: str = sys.executable,
        packages: bool | Sequence[str] = True,
        extra_paths: Mapping[str, str] | Sequence[str | os.PathLike[str]] = (),
        network: bool = False,
        env: Mapping[str, str] | None = None,
        memory: int | None = None,
        disk: int = DEFAULTS.disk,
        processes: int = DEFAULTS.processes,
        open_files: int = DEFAULTS.open_files,
        file_size: int = DEFAULTS.file_size,
    ) -> None:
        paths = extra_paths if isinstance(extra_paths, Mapping) else {os.fspath(path): "ro" for path in extra_paths}
        sandbox = Sandbox(
            Settings(
                isolation=isolation,
                python=python,
                packages=packages,
                extra_paths=paths,
                network=network,
                env=env or {},
                resources=Resources(
                    memory=memory, disk=disk, processes=processes, open_files=open_files, file_size=file_size
                ),
            )
        )
        super().__init__(
            sandbox.connect,
            persistent=persistent,
            lm_handler_address=lm_handler_address,
            context_payload=context_payload,
            setup_code=setup_code,
            tools=tools,
            cell_timeout=cell_timeout,
            isolation=lambda: sandbox.level,
        )
