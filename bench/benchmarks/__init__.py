"""The benchmarks, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping

from bench.benchmarks import cells, children, contexts, fan_out, imports, requests, sub_calls, turns
from bench.figures import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (turns, cells, sub_calls, fan_out, children, contexts, requests, imports)
}
