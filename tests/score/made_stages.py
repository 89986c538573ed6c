"""A small stage as a user would write it: of the images of a record, how far each is from their mean by a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from vila_data.core.scores import Unit
from vila_data.score.scorer import Column
from vila_data.score.stage import ColumnStage, PartView


class Lead(ColumnStage):
    """A column's value minus its mean in the image's record, times a factor.

    kind:   lead.
    of:     the column.
    factor: what it is multiplied by.
    """

    kind: Literal["lead"] = "lead"
    of: str
    factor: float = 1.0

    def columns(self) -> tuple[Column, ...]:
        return (Column("lead", pa.float32(), "", None, f"{self.of} above its mean in the record", joint=True),)

    def reads(self) -> tuple[str, ...]:
        return (self.of,)

    def measure(self, part: PartView, share: Any) -> Sequence[Any]:
        assert share is None
        column = part.values[self.of]
        known = column.known()
        values = np.where(known, column.values, 0).astype(np.float64)
        total, count = np.bincount(part.row, values), np.bincount(part.row, known)
        lead = values - (total / np.maximum(count, 1))[part.row]
        return [np.where(known, self.factor * lead, np.nan).astype(np.float32)]


class Widest(ColumnStage):
    """The width of a record's widest image.

    kind: widest.
    """

    rows: ClassVar[Unit] = "record"
    kind: Literal["widest"] = "widest"

    def columns(self) -> tuple[Column, ...]:
        return (Column("width", pa.float32(), "pixels", None, "of the widest image"),)

    def reads(self) -> tuple[str, ...]:
        return ("n_images", "width")

    def measure(self, part: PartView, share: Any) -> Sequence[Any]:
        widest = np.zeros(len(part.values["n_images"].values))
        width = part.values["width"]
        np.maximum.at(widest, part.row[width.known()], width.values[width.known()])
        return [np.where(widest > 0, widest, np.nan)]


MADE = {"lead": Lead, "widest": Widest}
