"""Every exception this package raises on purpose.

RLMError
├── ConfigurationError (also ValueError)     what was asked for cannot be had; says the mend
│   ├── MissingExtraError (also ImportError)     an optional dependency is not installed
│   └── MissingKeyError                          a provider's key is not set
├── SessionError
│   ├── SessionClosedError                       used after close()
│   ├── SessionBusyError                         another process writes to it
│   ├── SessionExistsError                       the name is taken
│   ├── UnknownSessionError (also LookupError)   there is none of this name
│   ├── UnfinishedTurnError                      resume() or discard() comes first
│   └── LossError                                strict=True, and something could not be brought back
├── StoreError                                   a store cannot read or write
│   ├── BlobError                                a blob is missing, damaged, or not what its digest says
│   ├── LogError                                 a log that no version of this package wrote, or a newer one
│   └── StaleLeaseError                          another writer has taken the session over
├── ModelError                                   a provider failed after all retries
├── ReplError                                    where cells run
│   ├── SandboxError                             a sandbox could not be started, or started again
│   ├── ProtocolError                            a worker sent what no worker sends
│   └── ContextError (also ValueError)           an input that cannot be brought into the namespace
└── TurnError                                    a turn ended early
    ├── BudgetExceededError                      money, or the number of calls
    ├── TimeoutExceededError (also TimeoutError)
    ├── TokenLimitExceededError
    ├── ErrorThresholdExceededError              too many failing cells in a row
    ├── OutputError                              no answer of the type that was asked for
    └── CancellationError                        Ctrl-C, or close() during a turn

Whichever of them ends a turn carries its partial answer, usage and transcript. A failing cell is none of these: it is a
`REPLResult` with an `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlm.types import Lost, Message, UsageSummary


class RLMError(Exception):
    """The base of all exceptions of this package.

    One that ended a turn carries what there is. partial_answer: the best so far (what `answer` held, else the last
    reply), or None. usage: of the whole tree up to the end. transcript: the turn's messages, oldest first; empty where
    the turn ended before its first message.
    """

    partial_answer: str | None = None
    usage: UsageSummary = UsageSummary()
    transcript: Sequence[Message] = ()


class ConfigurationError(RLMError, ValueError):
    """What was asked for cannot be had as asked; the message names the value and the mend."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is not installed; the message holds the line that installs it."""


class MissingKeyError(ConfigurationError):
    """A provider needs a key; the message names the environment variable."""


class SessionError(RLMError):
    """A session cannot do what was asked in the state it is in."""


class SessionClosedError(SessionError):
    """The session, or the RLM it belongs to, was closed."""


class SessionBusyError(SessionError):
    """Another process writes to the session. host, pid: which one; since: seconds since 1970, by its clock."""

    def __init__(self, message: str, *, host: str = "", pid: int = 0, since: float = 0.0) -> None:
        super().__init__(message)
        self.host = host
        self.pid = pid
        self.since = since


class SessionExistsError(SessionError):
    """The name belongs to another session of the store."""


class UnknownSessionError(SessionError, LookupError):
    """The store has no session of this name; the message names those that are near."""


class UnfinishedTurnError(SessionError):
    """A turn was cut off by the end of its process: resume() goes on with it, discard() gives it up."""


class LossError(SessionError):
    """A session opened with strict=True cannot be brought back as it was. lost: the names, with type and reason."""

    def __init__(self, message: str, lost: Mapping[str, Lost]) -> None:
        super().__init__(message)
        self.lost = lost


class StoreError(RLMError):
    """A store cannot read or write; the message names the file and the reason."""


class BlobError(StoreError):
    """A blob is missing, damaged, or not what its digest says."""


class LogError(StoreError):
    """A log that cannot be understood: damaged, or written by a newer version of this package."""


class StaleLeaseError(StoreError):
    """Another writer has taken the session over: nothing more can be recorded from here."""


class ModelError(RLMError):
    """A provider failed after all retries. `status` is the HTTP status where there was one."""

    def __init__(self, message: str, *, model: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.model = model
        self.status = status


class ReplError(RLMError):
    """Something is wrong with the place where cells run."""


class SandboxError(ReplError):
    """A sandbox could not be started, or could not be started again."""


class ProtocolError(ReplError):
    """A worker sent what no worker sends: it cannot be trusted any further."""


class ContextError(ReplError, ValueError):
    """An input cannot be brought into the namespace; the message says which part and why."""


class TurnError(RLMError):
    """A turn ended before its answer. The session stays usable, and its history holds the turn."""

    def __init__(self, message: str, *, partial_answer: str | None = None) -> None:
        super().__init__(message)
        self.partial_answer = partial_answer


class OutputError(TurnError):
    """The model gave no answer that fits the type that was asked for."""


class BudgetExceededError(TurnError):
    """The money or the number of calls of a turn is used up. `limit` says which: "usd" or "calls"."""

    def __init__(
        self,
        message: str,
        *,
        limit: str = "usd",
        spent: float = 0.0,
        budget: float = 0.0,
        partial_answer: str | None = None,
    ) -> None:
        super().__init__(message, partial_answer=partial_answer)
        self.limit = limit
        self.spent = spent
        self.budget = budget


class TimeoutExceededError(TurnError, TimeoutError):
    """The turn's wall-clock limit passed. `elapsed` and `timeout` are in seconds."""

    def __init__(
        self, message: str, *, elapsed: float = 0.0, timeout: float = 0.0, partial_answer: str | None = None
    ) -> None:
        super().__init__(message, partial_answer=partial_answer)
        self.elapsed = elapsed
        self.timeout = timeout


class TokenLimitExceededError(TurnError):
    """The turn's token limit is used up."""

    def __init__(
        self, message: str, *, tokens_used: int = 0, token_limit: int = 0, partial_answer: str | None = None
    ) -> None:
        super().__init__(message, partial_answer=partial_answer)
        self.tokens_used = tokens_used
        self.token_limit = token_limit


class ErrorThresholdExceededError(TurnError):
    """Too many cells failed in a row. `last_error` is the traceback of the last one."""

    def __init__(
        self,
        message: str,
        *,
        error_count: int = 0,
        threshold: int = 0,
        last_error: str | None = None,
        partial_answer: str | None = None,
    ) -> None:
        super().__init__(message, partial_answer=partial_answer)
        self.error_count = error_count
        self.threshold = threshold
        self.last_error = last_error


class CancellationError(TurnError):
    """The turn was cancelled: Ctrl-C, or the session was closed under it."""
