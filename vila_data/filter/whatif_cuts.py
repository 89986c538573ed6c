"""What lies at a cut: of a corpus, the images or records whose measured value is just below and just above a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.filter.config import Rules
from vila_data.filter.rules import KEPT
from vila_data.filter.whatif import OPEN_IMAGE, PartTable, Settled


@dataclass(frozen=True, order=True)
class AtCut:
    """An image or, with image_index -1, a record near a cut; text_index: the sentence that the image stands before."""

    distance: float
    part: int
    row: int
    image_index: int
    text_index: int
    value: float


@dataclass(frozen=True)
class Measure:
    """What a threshold is compared with.

    section, key: of the threshold in `Rules`; off: the value that switches it off; keeps_above: whether larger values pass.
    values: (the part, its outcomes with the rule off, the setting) -> (positions, their values), images or records.
    """

    section: str
    key: str
    off: Any
    keeps_above: bool
    of_records: bool
    values: Callable[[PartTable, Settled, Rules], tuple[NDArray[np.int64], NDArray[np.float64]]]

    def without(self, rules: Rules) -> Rules:
        """The setting with this rule switched off."""
        section = getattr(rules, self.section).model_copy(update={self.key: self.off})
        return rules.model_copy(update={self.section: section})


def measure_of(key: str) -> Measure | None:
    """The measure of a dotted key of `filter`; None for a key that is no threshold on one."""
    name = ".".join(key.split(".")[-2:])
    return next((found for found in _MEASURES if f"{found.section}.{found.key}" == name), None)


class NearestToCuts:
    """Watches a corpus go by and holds the `count` items nearest to each cut on either side.

    rules: the setting with the measured rule off; place: which of the tally's settings that is.
    An item is listed where it would be kept if it were not for this rule.
    """

    def __init__(self, measure: Measure, rules: Rules, place: int, cuts: Sequence[float], count: int) -> None:
        self._measure, self._rules, self._place, self._count = measure, rules, place, count
        self._cuts = np.asarray(cuts, np.float32 if measure.key == "min_similarity" else np.float64)
        self.dropped: list[list[AtCut]] = [[] for _ in cuts]
        self.kept: list[list[AtCut]] = [[] for _ in cuts]

    def see(self, table: PartTable, settled: Sequence[Settled]) -> None:
        """Look through one part."""
        positions, values = self._measure.values(table, settled[self._place], self._rules)
        order = np.argsort(values, kind="stable")
        positions, values = positions[order], values[order]
        bounds = np.searchsorted(values, self._cuts, side="left" if self._measure.keeps_above else "right")
        for number, bound in enumerate(bounds.tolist()):
            below, above = (
                range(max(0, bound - self._count), bound),
                range(bound, min(len(values), bound + self._count)),
            )
            dropped, kept = (below, above) if self._measure.keeps_above else (above, below)
            for held, found in ((self.dropped[number], dropped), (self.kept[number], kept)):
                cut = float(self._cuts[number])
                held += [self._item(table, int(positions[at]), float(values[at]), cut) for at in found]
                held.sort()
                del held[self._count :]

    def _item(self, table: PartTable, position: int, value: float, cut: float) -> AtCut:
        distance = abs(value - cut)
        if self._measure.of_records:
            return AtCut(distance, table.part.index, position, -1, -1, value)
        columns = table.under(self._rules)
        image, text = int(table.image_index[position]), int(columns.text_index[position])
        return AtCut(distance, table.part.index, int(columns.row[position]), image, text, value)


def _similarities(table: PartTable, settled: Settled, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = table.under(rules).similarity
    positions = np.flatnonzero((settled.images == KEPT) & np.isfinite(values))
    return positions, values[positions]


def _sides(table: PartTable, settled: Settled, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    positions = np.flatnonzero((settled.images == KEPT) | (settled.images == OPEN_IMAGE))
    return positions, table.published.side[positions]


def _image_counts(table: PartTable, settled: Settled, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    counts = np.bincount(table.published.row[settled.images == KEPT], minlength=len(settled.records))
    positions = np.flatnonzero(settled.records == KEPT)
    return positions, counts[positions].astype(np.float64)


_MEASURES: Final = (
    Measure("images", "min_similarity", None, True, False, _similarities),
    Measure("images", "min_side_px", None, True, False, _sides),
    Measure("documents", "min_images", 0, True, True, _image_counts),
    Measure("documents", "max_images", None, False, True, _image_counts),
)
