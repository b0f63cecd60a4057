"""The contract of an environment: where cells run, and what makes its sessions persist.

`BaseEnv` is the least an environment offers: `setup`, `load_context`, `execute_code`. `SupportsPersistence` is the five
methods that let one namespace serve turn after turn. Both are blocking code, so that a third party needs no asyncio:
the engine calls them in a thread. `docs/adding-an-environment.md` builds one step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rlm.errors import ConfigurationError
from rlm.types import REPLResult

PERSISTENCE_METHODS = (
    "update_handler_address",
    "add_context",
    "get_context_count",
    "add_history",
    "get_history_count",
)


class BaseEnv(ABC):
    """A Python REPL somewhere.

    A subclass that does not support persistence refuses `persistent=True` at construction, before anything is started.
    """

    def __init__(self, persistent: bool = False, **kwargs: Any) -> None:
        if persistent and not supports_persistence(type(self)):
            raise NotImplementedError(
                f"Persistent REPLs are currently not supported for environment: {type(self).__name__}"
            )
        self.persistent = persistent
        self.kwargs: Mapping[str, Any] = kwargs

    @abstractmethod
    def setup(self) -> None:
        """Make the REPL ready: an empty namespace with `llm_query`, `llm_query_batched`, `rlm_query`,
        `rlm_query_batched`, `SHOW_VARS` and `answer = {"content": "", "ready": False}` in it.

        Called once, before everything else. Raise `rlm.errors.SandboxError` with the reason where it fails.
        """

    @abstractmethod
    def load_context(self, context_payload: Any) -> None:
        """Make the first input available as `context` (and `context_0`): str, dict, list, or any value that pickles."""

    @abstractmethod
    def execute_code(self, code: str) -> REPLResult:
        """Run one cell in the namespace and return what came of it.

        Names that the cell binds must be there for the next one, also where it raised. An exception in the code is
        data: it goes into `REPLResult.error` and, as a traceback, into `stderr`; nothing of it may reach the caller.
        Read `answer` at the end of the cell: where `ready` is true, its `content` as text is `final_answer`. While the
        code runs, `llm_query(prompt, model=None)` asks the LM handler (`rlm.environments.lm_handler.call`).
        """

    def cleanup(self) -> None:  # noqa: B027 - nothing to free is what many environments have
        """Free everything. Called at the end, possibly twice, and on a half-built object."""


class NonIsolatedEnv(BaseEnv, ABC):
    """An environment on the machine of the caller, with the rights that its own documentation states."""


class IsolatedEnv(BaseEnv, ABC):
    """An environment on another machine or behind a boundary: code in it cannot reach the caller's files or memory."""


@runtime_checkable
class SupportsPersistence(Protocol):
    """What an environment needs so that one namespace serves many turns.

    The engine decides by `isinstance(environment, SupportsPersistence)` and by nothing else: implement these five
    methods and `RLM(environment=..., persistent=True)` works. It calls them in this order:

    - once: `setup()`;
    - before each turn: `update_handler_address` with the address at which the LM handler listens from now on; then
      `add_context` if the turn has an input;
    - during a turn: `execute_code`, as often as the model writes cells;
    - after each turn, also one that ended by a limit, an error or a cancellation: `add_history`.

    Names in the namespace: `context_0`, `context_1`, …, `history_0`, `history_1`, …; `context` is always `context_0`
    and `history` always `history_0`. If a cell rebinds one of them, put it back after the cell. Everything else in the
    namespace belongs to the user's code and stays until `cleanup()`.

    The functions that cells call (`llm_query` and the others) connect to the handler's address and speak JSON lines:
    `rlm.environments.lm_handler.call(address, name, args, kwargs)` is the whole client, and ten lines long. An
    environment whose cells run in another process sends `(host, port, address.token)` there.
    """

    def update_handler_address(self, address: tuple[str, int]) -> None:
        """From now on, calls from executed code go to `address`, a `(host, port)` tuple.

        What the engine passes is a `HandlerAddress`, a tuple whose attribute `token` proves to the handler that a
        caller is meant to call; keep the object, not a copy of its two items.
        """
        ...

    def add_context(self, context_payload: Any, context_index: int | None = None) -> int:
        """Make the payload available as `context_N`; N is `context_index`, or the next free number where it is None.

        Returns N. Index 0 is also bound to `context`. An index that exists is replaced.
        """
        ...

    def get_context_count(self) -> int:
        """How many contexts were added so far: the number that the next one without an index gets."""
        ...

    def add_history(self, message_history: Sequence[Mapping[str, Any]], history_index: int | None = None) -> int:
        """Make the messages (`{"role": …, "content": …}`, oldest first) available as `history_N`; returns N.

        Store a deep copy: the caller may go on changing its list. Index 0 is also bound to `history`.
        """
        ...

    def get_history_count(self) -> int:
        """How many histories were added so far."""
        ...


def supports_persistence(kind: type) -> bool:
    """Whether objects of this class have the five methods of `SupportsPersistence`."""
    return all(callable(getattr(kind, name, None)) for name in PERSISTENCE_METHODS)


def require_persistence(name: object, environment: object) -> None:
    """Raise `ConfigurationError` if `environment`, a class or an object of one, lacks one of the five methods.

    `name` is how the user named it. Asked at construction and again before each reuse: a namespace that forgets must
    not be taken for one that keeps.
    """
    missing = [method for method in PERSISTENCE_METHODS if not callable(getattr(environment, method, None))]
    if missing:
        kind = environment if isinstance(environment, type) else type(environment)
        called = kind.__name__ if isinstance(name, type) else repr(name)
        raise ConfigurationError(
            f"persistent=True is not supported for environment {called}: {kind.__name__} lacks {', '.join(missing)}. "
            "A session of several turns needs them (see rlm.SupportsPersistence)"
        )
