"""Percentile of an image in its corpus, by a column: `rank.percentile >= 0.2` drops the lowest fifth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.scores import Scores, ScoreTable, Unit
from vila_data.score.scorer import Column
from vila_data.score.stage import ColumnStage, PartView

_STEPS: Final = 10_000


class Percentile(ColumnStage):
    """Share of a corpus's images that have a lower value of a column, from 0 to 1 in steps of 1/10,000.

    Taken over all images of the corpus that have a value, before any rule.

    kind: percentile.
    of:   a column of numbers, as rules name it: `clip.similarity`, `width`.
    """

    rows: ClassVar[Unit] = "image"
    gathers: ClassVar[bool] = True

    kind: Literal["percentile"]
    of: str

    def columns(self) -> tuple[Column, ...]:
        """See ColumnStage."""
        return (Column("percentile", pa.float32(), "share of images", (0, 1), f"images with a lower {self.of}"),)

    def reads(self) -> tuple[str, ...]:
        """See ColumnStage."""
        return (self.of,)

    def table(self, name: str, before: Scores) -> ScoreTable:
        """See ColumnStage."""
        found = super().table(name, before)
        if before.kinds()[self.of] != "number":
            raise ValueError(f"of: {self.of} is not a column of numbers")
        return found

    def look(self, part: PartView) -> NDArray[np.float64]:
        """The part's values."""
        column = part.values[self.of]
        return column.values[column.known()].astype(np.float64)

    def join(self, looks: list[NDArray[np.float64]]) -> Sequence[NDArray[np.float64]]:
        """The same for each part: float64[_STEPS], values at even distances in the corpus's order of size."""
        values = np.sort(np.concatenate(looks))
        grid = values[np.arange(_STEPS) * len(values) // _STEPS] if len(values) else values
        return [grid] * len(looks)

    def measure(self, part: PartView, share: NDArray[np.float64]) -> Sequence[Any]:
        """See ColumnStage."""
        column = part.values[self.of]
        lower = np.searchsorted(share, column.values.astype(np.float64), side="left") / _STEPS
        return [np.where(column.known(), lower, np.nan).astype(np.float32)]
