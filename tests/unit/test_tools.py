"""The forms in which host functions and values may be given, and the names they may have."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from rlm import Tool, tool
from rlm.errors import ConfigurationError
from rlm.tools import RESERVED, parse_tools


def lookup(host: str, port: int = 443) -> str:
    """Say where a host is.

    The model sees the first paragraph of this.
    """
    return f"{host}:{port}"


class Fetcher:
    def __call__(self, url: str) -> str:
        """Fetch a page."""
        return url


def test_functions_in_a_list_go_by_their_names() -> None:
    [found] = parse_tools([lookup])
    assert (found.name, found.value, found.is_function) == ("lookup", lookup, True)
    assert found.description.startswith("Say where a host is.")


def test_a_mapping_gives_names_to_functions_and_values() -> None:
    found = parse_tools({"where": lookup, "port": 443, "table": {"a": 1}})
    assert [(one.name, one.is_function) for one in found] == [("where", True), ("port", False), ("table", False)]
    assert found[2].value == {"a": 1}


def test_a_description_may_come_along() -> None:
    found = parse_tools(
        {"where": {"tool": lookup, "description": "Find it."}, "n": {"tool": 5, "description": "Five."}}
    )
    assert [(one.value, one.description) for one in found] == [(lookup, "Find it."), (5, "Five.")]


def test_a_mapping_that_only_looks_like_one_is_a_value() -> None:
    [found] = parse_tools({"n": {"tool": 5, "colour": "red"}})
    assert found.value == {"tool": 5, "colour": "red"}


def test_the_decorator_says_more_of_a_function() -> None:
    @tool(retry="never", description="Pays an invoice.")
    def pay(invoice: str) -> None:
        """Not this."""

    [found] = parse_tools([pay])
    assert (found.retry, found.description) == ("never", "Pays an invoice.")
    assert pay("x") is None


def test_a_tool_goes_as_it_is_and_takes_the_name_of_a_mapping() -> None:
    given = Tool("a", lookup, "Here.", "never")
    assert parse_tools([given]) == (given,)
    assert parse_tools({"b": given}) == (Tool("b", lookup, "Here.", "never"),)


def test_callable_objects_need_a_name_of_a_mapping() -> None:
    [found] = parse_tools({"fetch": Fetcher()})
    assert found.is_function
    for unnamed in (Fetcher(), lambda: 1, functools.partial(lookup, "a"), 5):
        with pytest.raises(ConfigurationError, match="has no name: give a mapping"):
            parse_tools([unnamed])


@pytest.mark.parametrize("name", [*sorted(RESERVED), "context_1", "history_0", "__name__"])
def test_names_of_the_repl_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^tool '{name}': this name belongs to the REPL"):
        parse_tools({name: lookup})


@pytest.mark.parametrize("name", ["two words", "1st", "", "class", "a.b"])
def test_names_that_no_cell_can_write_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a Python identifier"):
        parse_tools({name: lookup})


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'lookup' is given twice"):
        parse_tools([lookup, lookup])


@pytest.mark.parametrize("given", ["lookup", b"x", 5, lookup])
def test_what_is_no_collection_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="give a list of functions, or a mapping"):
        parse_tools(given)
