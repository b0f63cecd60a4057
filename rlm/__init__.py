"""Recursive Language Models over inputs of any size, in sessions that persist.

    from rlm import RLM
    RLM("openai:gpt-5").completion(Path("logs/"), "Which service failed first, and why?").response

The public names load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlm.version import __version__

if TYPE_CHECKING:
    from rlm.environments.base_env import SupportsPersistence
    from rlm.environments.local_repl import LocalREPL
    from rlm.errors import (
        BudgetExceededError,
        CancellationError,
        ConfigurationError,
        ErrorThresholdExceededError,
        LossError,
        ModelError,
        RLMError,
        SandboxError,
        SessionBusyError,
        StoreError,
        TimeoutExceededError,
        TokenLimitExceededError,
        TurnError,
        UnfinishedTurnError,
    )
    from rlm.models import ScriptedModel
    from rlm.rlm import RLM
    from rlm.session import Session
    from rlm.sessions import Sessions
    from rlm.tools import tool
    from rlm.types import Limits, REPLResult, RLMChatCompletion, Tool, Usage, UsageSummary


_HOMES = {
    "RLM": "rlm.rlm",
    "Session": "rlm.session",
    "Sessions": "rlm.sessions",
    "LocalREPL": "rlm.environments.local_repl",
    "SupportsPersistence": "rlm.environments.base_env",
    "ScriptedModel": "rlm.models",
    "tool": "rlm.tools",
    **dict.fromkeys(("Limits", "REPLResult", "RLMChatCompletion", "Tool", "Usage", "UsageSummary"), "rlm.types"),
    **dict.fromkeys(
        (
            "BudgetExceededError",
            "CancellationError",
            "ConfigurationError",
            "ErrorThresholdExceededError",
            "LossError",
            "ModelError",
            "RLMError",
            "SandboxError",
            "SessionBusyError",
            "StoreError",
            "TimeoutExceededError",
            "TokenLimitExceededError",
            "TurnError",
            "UnfinishedTurnError",
        ),
        "rlm.errors",
    ),
}

__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    "RLM",
    "Session",
    "Sessions",
    "Limits",
    "RLMChatCompletion",
    "REPLResult",
    "Usage",
    "UsageSummary",
    "Tool",
    "tool",
    "LocalREPL",
    "SupportsPersistence",
    "ScriptedModel",
    "RLMError",
    "ConfigurationError",
    "ModelError",
    "SandboxError",
    "TurnError",
    "BudgetExceededError",
    "TimeoutExceededError",
    "TokenLimitExceededError",
    "ErrorThresholdExceededError",
    "CancellationError",
    "SessionBusyError",
    "UnfinishedTurnError",
    "LossError",
    "StoreError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
