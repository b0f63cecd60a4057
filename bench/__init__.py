"""Measurements of rlm beside the reference engine and the limits of the machine, in one run.

`python -m bench` takes all of them and writes `bench/results/*.json`; `python -m bench report` makes docs/benchmarks.md
out of these files. What is measured runs in processes of its own (`bench.drivers`); here is what they are asked, in
which order, and what the answers mean.
"""
