"""The heaps whose checkpoints are measured: their cells change what they are said to, each time to something new."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from bench.drivers import heaps
from bench.drivers.heaps import ALL, BESIDE, PART, READ, Heap

SMALL = {
    "text": heaps.text(100_000),
    "dicts": heaps.dicts(1_000),
    "definitions": heaps.definitions(50, 10),
    "variables": heaps.variables(1_000),
}


def made(heap: Heap) -> dict[str, Any]:
    names: dict[str, Any] = {"beside": 0}
    exec(heap.cell(BESIDE, 0), names)
    exec(heap.make.replace("#", "0"), names)
    return names


def seen(names: dict[str, Any]) -> dict[str, object]:
    """What a heap is, in parts that can be counted."""
    parts: dict[str, object] = {}
    for name, value in names.items():
        if not name.startswith("heap"):
            continue
        if isinstance(value, str):
            parts.update({f"{place}": value[place : place + 10] for place in range(0, len(value), 10)})
        elif isinstance(value, list):
            parts.update({f"{place}": pickle.dumps(item) for place, item in enumerate(value)})
        elif isinstance(value, type):
            parts[name] = value().tell.__code__.co_consts, value().value
        else:
            parts[name] = getattr(getattr(value, "__code__", None), "co_consts", value)
    return parts


@pytest.mark.parametrize("name", SMALL)
def test_a_heap_is_what_its_check_says(name: str) -> None:
    heap = SMALL[name]
    assert repr(eval(heap.check, made(heap))) == heap.value


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("change", "least", "most"), [(BESIDE, 0, 0), (READ, 0, 0), (PART, 0.008, 0.02), (ALL, 1, 1)])
def test_a_cell_changes_as_much_as_it_is_said_to(name: str, change: str, least: float, most: float) -> None:
    names = made(SMALL[name])
    for number in (1_000_001, 1_000_002):
        before = seen(names)
        exec(SMALL[name].cell(change, number), names)
        after = seen(names)
        assert before.keys() == after.keys()
        assert least <= sum(before[key] != after[key] for key in before) / len(before) <= most
