"""What importing the package costs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.driver import Drivers, peer_python
from bench.figures import LIMIT, OURS, PEER, Benchmark, Figures, Table, Take, Values, ask

PACKAGE, CLASS = "import rlm", "from rlm import RLM"


def takes(quick: bool) -> Sequence[Take]:
    taken = []
    for statement in (PACKAGE, CLASS):

        def peers(drivers: Drivers, statement: str = statement) -> Values:
            return {"time": drivers[LIMIT].do("imported", statement=statement, python=str(peer_python()))}

        taken += [
            ask(LIMIT, statement, "imported", statement="import asyncio"),
            ask(OURS, statement, "imported", driver=LIMIT, statement=statement),
            Take(PEER, statement, peers, PEER),
        ]
    return taken


def means(figures: Figures) -> str:
    return (
        f"`import rlm` takes {figures.says('time', PACKAGE)}, since it loads the rest on first use: with the class, "
        f"{figures.says('time', CLASS)}, of which asyncio is {figures.says('time', CLASS, LIMIT)}. Providers, "
        f"pydantic and Rich come later still. The peer takes {figures.says('time', CLASS, PEER)}."
    )


BENCHMARK = Benchmark(
    name="imports",
    title="Import",
    how="In a new interpreter, by its own clock, with compiled files; the limit is `import asyncio`.",
    tables=[Table("time", "Import", ratios=[(OURS, LIMIT), (PEER, OURS)])],
    takes=takes,
    means=means,
    rounds=11,
)
