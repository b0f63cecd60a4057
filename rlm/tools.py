"""Host functions and values that users give to cells, in every form in which they may be given.

A list of functions goes by their names; a mapping gives names, to functions, values, or `{"tool": …, "description":
…}`. Host functions run on the host, with the user's own rights, whatever the environment.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from rlm.errors import ConfigurationError
from rlm.types import Tool

RESERVED = frozenset(
    {"llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS", "answer", "context", "history"}
)

RESERVED_STARTS = ("context_", "history_", "__")

_Mark = tuple[Literal["safe", "never"], str]
F = TypeVar("F", bound=Callable[..., Any])


def tool(*, retry: Literal["safe", "never"] = "safe", description: str = "") -> Callable[[F], F]:
    """Say more of a host function: `retry="never"` where calling it twice does harm."""

    def mark(function: F) -> F:
        function.__rlm_tool__ = (retry, description)  # type: ignore[attr-defined]  # functions take attributes
        return function

    return mark


def parse_tools(given: Sequence[Any] | Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools in `given`. Raises `ConfigurationError` for names that cells cannot use, or that are taken."""
    if isinstance(given, Mapping):
        tools = [_named(name, value) for name, value in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        tools = [one if isinstance(one, Tool) else _function(one) for one in given]
    else:
        raise ConfigurationError(
            f"tools={given!r}: give a list of functions, or a mapping from names to functions and values"
        )
    seen: set[str] = set()
    for one in tools:
        check_name(one.name, f"tool {one.name!r}")
        if one.name in seen:
            raise ConfigurationError(f"tool {one.name!r} is given twice")
        seen.add(one.name)
    return tuple(tools)


def check_name(name: str, given: str) -> None:
    """Raise `ConfigurationError`, beginning with `given`, for a name that cells cannot use, or that is the REPL's."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigurationError(f"{given}: the name must be a Python identifier")
    if name in RESERVED or name.startswith(RESERVED_STARTS):
        raise ConfigurationError(f"{given}: this name belongs to the REPL; choose another")


def _function(value: Any) -> Tool:
    name = getattr(value, "__name__", None)
    if not callable(value) or name is None or name == "<lambda>":
        raise ConfigurationError(f"tool {value!r} has no name: give a mapping, tools={{'name': …}}")
    return _named(name, value)


def _named(name: str, value: Any) -> Tool:
    description = ""
    if isinstance(value, Tool):
        return Tool(name, value.value, value.description, value.retry)
    if isinstance(value, Mapping) and "tool" in value and set(value) <= {"tool", "description"}:
        value, description = value["tool"], str(value.get("description") or "")
    marked: _Mark = ("safe", "")
    retry, said = getattr(value, "__rlm_tool__", marked) if callable(value) else marked
    if callable(value) and not description:
        description = said or inspect.getdoc(value) or ""
    return Tool(name, value, description, retry)
