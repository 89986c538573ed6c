"""Preselection: find exactly the rows with the highest published scores without sorting the corpus.

One pass over the score columns gives each file's histogram of c at 1e-4 and the
rows around the bin in which the cut will probably fall (files of a corpus are
alike). The histograms' sum names the bin; an exact sort inside it gives the cut.
Only a file unlike the others is looked at again. Memory: one histogram and a few
thousand rows per file, regardless of the corpus's size. (docs/sources.md)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.corpora.config import Preselect

BIN_WIDTH = 1e-4
_WINDOW_BINS = 50

Cut = tuple[float, int]
"""(c, id) of the last row kept: kept are c above it, and equal c with id up to it."""

KEEP_NOTHING: Cut = (float("inf"), -1)


@dataclass(frozen=True)
class FileScores:
    """What one pass over a file's scores leaves.

    histogram: {bin: rows} of rows above min_sum.
    window:    (first bin, last bin, c float64[n], id int64[n]): all rows of those bins.
    """

    histogram: dict[int, int]
    window: tuple[int, int, NDArray[np.float64], NDArray[np.int64]]


def bins_of(c: NDArray[np.float64]) -> NDArray[np.int64]:
    """Histogram bin of each c."""
    return np.floor(c / BIN_WIDTH).astype(np.int64)


def eligible(c: NDArray[np.float64], rule: Preselect) -> NDArray[np.bool_]:
    """Rows that take part: a score that is a number, above min_sum."""
    return np.isfinite(c) if rule.min_sum is None else np.isfinite(c) & (c > rule.min_sum)


def summarize(c: NDArray[np.float64], ids: NDArray[np.int64], rule: Preselect, share: float) -> FileScores:
    """Histogram of a file's scores, and its rows near the cut when `share` of its rows is kept."""
    mask = eligible(c, rule)
    rows = len(c)
    c, ids = c[mask], ids[mask]
    bins = bins_of(c)
    values, counts = np.unique(bins, return_counts=True)
    centre = _bin_of_rank(dict(zip(values.tolist(), counts.tolist(), strict=True)), int(share * rows))
    first, last = centre - _WINDOW_BINS, centre + _WINDOW_BINS
    near = (bins >= first) & (bins <= last)
    return FileScores(
        dict(zip(values.tolist(), counts.tolist(), strict=True)),
        (first, last, c[near], ids[near]),
    )


def amount(rule: Preselect, rows: int) -> int:
    """How many of `rows` rows the rule keeps at most."""
    if rule.count is not None:
        return rule.count
    return int(np.floor((rule.fraction or 0.0) * rows))


def find_cut(scores: list[FileScores], keep: int, again: Callable[[int, int], FileScores]) -> Cut:
    """The exact cut that keeps the `keep` largest over all files.

    again(file, bin): the scores of a file once more, with a window that holds `bin`;
    called only for files whose window misses it.
    """
    if keep <= 0:
        return KEEP_NOTHING
    total: dict[int, int] = {}
    for file_scores in scores:
        for value, count in file_scores.histogram.items():
            total[value] = total.get(value, 0) + count
    if sum(total.values()) <= keep:
        return (float("-inf"), np.iinfo(np.int64).max)
    boundary = _bin_of_rank(total, keep)
    above = sum(count for value, count in total.items() if value > boundary)
    c, ids = _rows_in_bin(scores, boundary, again)
    order = np.lexsort((ids, -c))
    last = order[keep - above - 1]
    return (float(c[last]), int(ids[last]))


def selected(c: NDArray[np.float64], ids: NDArray[np.int64], rule: Preselect, cut: Cut) -> NDArray[np.bool_]:
    """Which rows a cut keeps."""
    kept: NDArray[np.bool_] = eligible(c, rule) & ((c > cut[0]) | ((c == cut[0]) & (ids <= cut[1])))
    return kept


def _rows_in_bin(
    scores: list[FileScores], boundary: int, again: Callable[[int, int], FileScores]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    found_c, found_ids = [], []
    for index, file_scores in enumerate(scores):
        if boundary not in file_scores.histogram:
            continue
        first, last, c, ids = file_scores.window
        if not first <= boundary <= last:
            _, _, c, ids = again(index, boundary).window
        inside = bins_of(c) == boundary
        found_c.append(c[inside])
        found_ids.append(ids[inside])
    return np.concatenate(found_c), np.concatenate(found_ids)


def _bin_of_rank(histogram: dict[int, int], rank: int) -> int:
    """The bin in which the `rank`-th largest row falls (the lowest bin if there are fewer)."""
    seen = 0
    last = 0
    for value in sorted(histogram, reverse=True):
        seen += histogram[value]
        last = value
        if seen >= rank:
            break
    return last
