"""Counters of bounded size: histograms with fixed edges, and the most frequent of many names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAMES_BOUND: Final = 100_000
_LEAST_COLUMNS: Final = 8


class Binned:
    """A histogram of all values and of the kept ones, between edges that are fixed beforehand.

    What lies below the first edge, or above a finite last one, is counted in the first or last column.
    Edges are compared as float32, as the rules compare similarities.
    """

    def __init__(self, edges: ArrayLike) -> None:
        self._edges: NDArray[np.float64] = np.asarray(edges, np.float64)
        self._all = np.zeros(len(self._edges) - 1, np.int64)
        self._kept = np.zeros_like(self._all)
        self._sums = [0.0, 0.0]

    def add(self, values: NDArray[Any], kept: NDArray[np.bool_]) -> None:
        """Count values; NaN is not counted. kept: bool, one a value."""
        known = ~np.isnan(values)
        values, kept = values[known], kept[known]
        places = np.searchsorted(self._edges.astype(np.float32), values.astype(np.float32), side="right") - 1
        places = np.clip(places, 0, len(self._all) - 1)
        self._all += np.bincount(places, minlength=len(self._all))
        self._kept += np.bincount(places[kept], minlength=len(self._all))
        self._sums[0] += float(values.sum(dtype=np.float64))
        self._sums[1] += float(values[kept].sum(dtype=np.float64))

    def value(self, unit: str, of: str, marks: Iterable[tuple[str, float]] = ()) -> dict[str, Any] | None:
        """JSON of what was counted, without the empty columns at both ends; None where nothing was.

        {"unit", "of", "edges" (null: without end), "counts", "kept", "mean", "mean_kept", "marks": [[label, value]]}
        """
        filled = np.flatnonzero(self._all)
        if not len(filled):
            return None
        first, last = int(filled[0]), int(filled[-1]) + 1
        for _, mark in marks:  # a threshold is shown with what it parts
            if math.isfinite(mark) and self._edges[0] <= mark <= self._edges[-1]:
                place = int(np.searchsorted(self._edges, mark, side="right")) - 1
                first, last = min(first, max(0, place)), max(last, min(place + 1, len(self._all)))
        while last - first < min(_LEAST_COLUMNS, len(self._all)):
            first, last = (first, last + 1) if last < len(self._all) else (first - 1, last)
        total, kept = int(self._all.sum()), int(self._kept.sum())
        return {
            "unit": unit,
            "of": of,
            "edges": [float(edge) if math.isfinite(edge) else None for edge in self._edges[first : last + 1]],
            "counts": self._all[first:last].tolist(),
            "kept": self._kept[first:last].tolist(),
            "mean": _six(self._sums[0] / total),
            "mean_kept": _six(self._sums[1] / kept) if kept else None,
            "marks": [[label, at] for label, at in marks],
        }


@dataclass
class TopNames:
    """Counts by name, exact up to `bound` names; beyond that the rare ones give way (Misra and Gries, 1982).

    Then a count may be short of the true one, by at most `short_by`, and is never above it.
    """

    bound: int = NAMES_BOUND
    total: int = 0
    short_by: int = 0

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, names: Iterable[str], counts: Iterable[int]) -> None:
        """Count names, each once in a call or more often."""
        mine = self._counts
        for name, count in zip(names, counts, strict=True):
            mine[name] = mine.get(name, 0) + count
            self.total += count
        if len(mine) > self.bound:
            keep = max(1, self.bound // 2)
            less = sorted(mine.values(), reverse=True)[keep]
            self._counts = {name: count - less for name, count in mine.items() if count > less}
            self.short_by += less

    @property
    def distinct(self) -> int | None:
        """How many names there are; None where more than are held."""
        return None if self.short_by else len(self._counts)

    def top(self, count: int | None = None) -> list[tuple[str, int]]:
        """The most frequent first, equal ones by name."""
        return sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))[:count]


def _six(value: float) -> float:
    return float(f"{value:.6g}")
