"""The benchmarks, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping

from bench.benchmarks import (
    cells,
    checkpoints,
    children,
    commits,
    contexts,
    durable_turns,
    fan_out,
    imports,
    isolation,
    requests,
    resume,
    sessions,
    sub_calls,
    turns,
    week,
)
from bench.figures import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        turns,
        cells,
        isolation,
        sub_calls,
        fan_out,
        children,
        contexts,
        commits,
        durable_turns,
        checkpoints,
        resume,
        sessions,
        week,
        requests,
        imports,
    )
}
