"""Amounts as people read them."""

from __future__ import annotations

SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}


def amount(value: float, unit: str) -> str:
    """Three digits, and the unit's usual multiple: 0.00142 s is 1.42 ms."""
    if unit == "×":
        return times(value)
    if value == 0:
        return "0"
    for scale, name in SCALES.get(unit, ()):
        if abs(value) >= scale:
            return f"{digits(value / scale)} {name}"
    if unit in SCALES:
        scale, name = SCALES[unit][-1]
        return f"{digits(value / scale)} {name}"
    return digits(value)


def times(ratio: float) -> str:
    return f"{digits(ratio)} ×"


def digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
