"""Namespaces whose checkpoints are measured: the cells that make them, read them, and change a part or all of them.

Standard library only: it also runs in the environment of those who save a whole namespace. The names of a heap begin
with `heap`; each change is one that no change before it has made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LINE = "2026-01-01T00:00:00Z service-a handled request 0123456789 in 17 ms, status 200\n"
MB = 1_000_000
BESIDE, READ, PART, ALL = "another name is changed", "it is read", "1 % of it changes", "all of it changes"
FRACTIONS = {BESIDE: 0.0, READ: 0.0, PART: 0.01, ALL: 1.0}


@dataclass(frozen=True)
class Heap:
    """Cells; # stands for a number that is new each time.

    check: an expression, whose repr is `value` once all is there. needs: a package that has to be importable
    where the cells run.
    """

    make: str
    read: str
    part: str
    all: str
    check: str
    value: str
    needs: str = ""

    def cell(self, change: str, number: int) -> str:
        cells = {BESIDE: "beside = #", READ: self.read, PART: self.part, ALL: self.all}
        return cells[change].replace("#", str(number))


def text(size: int) -> Heap:
    """One string; changed it is another one, of which a hundredth in the middle, or everything, is new. The size is a
    multiple of ten."""
    part, middle = size // 1_000, size // 2  # of ten characters each; in the middle
    return Heap(
        make=f"heap = ({LINE!r} * {size // len(LINE) + 1})[:{size}]",
        read="found = heap.count('zebra')",
        part=f"heap = heap[:{middle}] + f'{{#:010d}}' * {part} + heap[{middle + 10 * part}:]",
        all=f"heap = f'{{#:010d}}' * {size // 10}",
        check="len(heap)",
        value=str(size),
    )


def dicts(count: int) -> Heap:
    """A list of small dicts."""
    return Heap(
        make=f"heap = [{{'id': i, 'name': f'name {{i}}', 'seen': 0}} for i in range({count})]",
        read="found = len(heap)",
        part="for _ in heap[::100]: _['seen'] = #\ndel _",
        all="for _ in heap: _['seen'] = #\ndel _",
        check="len(heap), heap[-1]['id']",
        value=str((count, count - 1)),
    )


def array(size: int) -> Heap:
    count = size // 8
    return Heap(
        make=f"import numpy\nheap = numpy.arange({count}, dtype='float64')",
        read="found = float(heap.sum())",
        part=f"heap[:{count // 100}] += #",
        all="heap += #",
        check="int(heap.shape[0])",
        value=str(count),
        needs="numpy",
    )


def definitions(functions: int, classes: int) -> Heap:
    """Functions that call each other, and classes with two methods; of 1 % the least that there is: one of them."""
    defined = [
        f"def heap_function_{i}(x):\n    y = x + #\n"
        f"    return y if x <= 0 else heap_function_{(i + 1) % functions}(x - 1)"
        for i in range(functions)
    ]
    defined += [
        f"class HeapClass{i}:\n    def __init__(self):\n        self.value = #\n"
        f"    def tell(self):\n        return heap_function_0(self.value)"
        for i in range(classes)
    ]
    everything = "\n".join(defined)
    return Heap(
        make=everything.replace("#", "0"),
        read="found = heap_function_0(3)",
        part=defined[0],
        all=everything,
        check="heap_function_1(0) >= 0",
        value="True",
    )


def variables(count: int) -> Heap:
    """So many numbers, each under a name of its own. 1 %: an assignment to each; all: `globals().update`."""
    return Heap(
        make=f"globals().update({{f'heap_{{i}}': i for i in range({count})}})",
        read="found = heap_0 + heap_1",
        part="\n".join(f"heap_{i} = #" for i in range(count // 100)),
        all=f"globals().update({{f'heap_{{i}}': i + # for i in range({count})}})",
        check=f"heap_{count - 1} >= {count - 1}",
        value="True",
    )


HEAPS: Mapping[str, Heap] = {
    "1 MB text": text(MB),
    "250 MB text": text(250 * MB),
    "1,000,000 dicts": dicts(1_000_000),
    "100 MB numpy": array(100 * MB),
    "50 functions, 10 classes": definitions(50, 10),
    "100,000 variables": variables(100_000),
}
