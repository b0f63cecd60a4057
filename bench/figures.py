"""What a benchmark is, how it is taken, and the figures that come of it.

A benchmark is a list of `Take`s. They are taken in turns, round after round, in alternating order, so that whatever
else the machine does meets all of them alike; a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.driver import DriverError, Drivers
from bench.show import amount, times

OURS, PEER, PEER_FIXED, LIMIT = "rlm", "rlms", "rlms, poll 1 ms", "limit"
DILL, CLOUDPICKLE = "dill", "cloudpickle"
BUBBLEWRAP, KERNEL = "bubblewrap", "ipykernel"
DURABLE, WEEK = "durable", "week"  # drivers of our sessions in a store
SANDBOXES = "sandboxes"  # the driver of our sessions at each level of isolation
PEERS = {
    PEER: ("peer",),
    PEER_FIXED: ("peer", "0.001"),
    DILL: ("picklers", "dill"),
    CLOUDPICKLE: ("picklers", "cloudpickle"),
    BUBBLEWRAP: ("bubblewrap",),
    KERNEL: ("kernels",),
}
DRIVERS: Mapping[str, tuple[str, ...]] = {
    OURS: ("ours",),
    DURABLE: ("durable",),
    WEEK: ("week",),
    SANDBOXES: ("sandboxes",),
    **PEERS,
    LIMIT: ("machine",),
}

Values = Mapping[str, Any]
"""From a table's key to a value for the take's row, or to a mapping from rows to values."""


@dataclass(frozen=True)
class Take:
    """One measurement: for column `who` and row `row`, by the driver of `driver` (by default that of `who`)."""

    who: str
    row: str
    measure: Callable[[Drivers], Values]
    driver: str = ""
    rounds: int | None = None

    @property
    def needs(self) -> str:
        return self.driver or self.who


def ask(who: str, row: str, command: str, *, rounds: int | None = None, driver: str = "", **arguments: Any) -> Take:
    """A take that is one command of a driver; a bare number is the value of the table "time"."""

    def measure(drivers: Drivers) -> Values:
        value = drivers[driver or who].do(command, **arguments)
        return value if isinstance(value, Mapping) else {"time": value}

    return Take(who, row, measure, driver, rounds)


@dataclass(frozen=True)
class Table:
    """How figures are shown. unit: of the values (s, B, /s, ×, …). ratios: pairs of columns, this ÷ that."""

    key: str
    title: str
    unit: str = "s"
    ratios: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Target:
    """A promise: the figure at `at` is at most `most`; with `by`, its ratio to the figure there."""

    says: str
    at: tuple[str, str, str]
    most: float
    by: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Figures:
    """Values by (table, row, column), one a round, in the tables' units; failures by (row, column)."""

    values: Mapping[tuple[str, str, str], Sequence[float]]
    failures: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    def median(self, table: str, row: str, who: str = OURS) -> float:
        return statistics.median(self.values[table, row, who])

    def ratio(self, one: tuple[str, str, str], other: tuple[str, str, str]) -> float:
        """The median of the rounds' ratios, or of the medians where one was taken in fewer rounds."""
        above, below = self.values[one], self.values[other]
        if len(above) != len(below):
            return statistics.median(above) / statistics.median(below)
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    def says(self, table: str, row: str, who: str = OURS, unit: str = "s") -> str:
        """A median in words."""
        return amount(self.median(table, row, who), unit) if self.has(table, row, who) else "an unknown time"

    def compared(self, table: str, row: str, who: str, by: str) -> str:
        """The ratio of two columns in words."""
        if not (self.has(table, row, who) and self.has(table, row, by)):
            return "an unknown number of times"
        return times(self.ratio((table, row, who), (table, row, by)))

    def has(self, table: str, row: str, who: str = OURS) -> bool:
        return (table, row, who) in self.values

    def rows(self, table: str) -> list[str]:
        return list(dict.fromkeys(row for key, row, _ in self.values if key == table))

    def columns(self, table: str) -> list[str]:
        return list(dict.fromkeys(who for key, _, who in self.values if key == table))


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. how: what is measured; means: what the figures say; where: where the time goes."""

    name: str
    title: str
    how: str
    tables: Sequence[Table]
    takes: Callable[[bool], Sequence[Take]]
    means: Callable[[Figures], str]
    targets: Sequence[Target] = ()
    where: Callable[[Figures], str] | None = None
    rounds: int = 5


def take_all(takes: Iterable[Take], drivers: Drivers, rounds: int, tell: Callable[[str], None]) -> Figures:
    """Take everything, in rounds. A peer that fails is written down as such; one of ours that fails ends the run."""
    takes = list(takes)
    values: dict[tuple[str, str, str], list[float]] = {}
    failures: dict[tuple[str, str], list[str]] = {}
    for number in range(rounds):
        for take in takes if number % 2 == 0 else reversed(takes):
            if number >= (take.rounds or rounds):
                continue
            tell(f"round {number + 1}/{rounds}: {take.row}, {take.who}")
            try:
                got = take.measure(drivers)
            except DriverError as error:
                if take.needs not in PEERS:
                    raise
                failures.setdefault((take.row, take.who), []).append(str(error).strip().splitlines()[-1][:300])
                drivers.forget(take.needs)
                continue
            for table, found in got.items():
                for row, value in found.items() if isinstance(found, Mapping) else [(take.row, found)]:
                    values.setdefault((table, row, take.who), []).append(float(value))
    return Figures(values, failures)
