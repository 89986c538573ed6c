"""Axes of charts: round ticks."""

from __future__ import annotations

import math


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, both included where they are round: steps of 1, 2 or 5 times a power of ten.

    whole: whole numbers only.
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    step = _step(span, about, whole)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def above(value: float, about: int = 5, *, whole: bool = False) -> float:
    """The first round number that is not below `value`: where an axis from zero ends."""
    if value <= 0:
        return 1.0
    step = _step(value, about, whole)
    return math.ceil(value / step - 1e-9) * step


def _step(span: float, about: int, whole: bool) -> float:
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= about)
    return max(1.0, step) if whole else step
