"""What other rooms know of a recipe's scorers and stages: names, order and columns; and the columns of a part by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.expression import Kind

Unit = Literal["image", "record"]

DOWNLOADED: Final[dict[str, tuple[Unit, Kind]]] = {
    "image_index": ("image", "number"),
    "url": ("image", "text"),
    "http_code": ("image", "number"),
    "width": ("image", "number"),
    "height": ("image", "number"),
    "bytes": ("image", "number"),
    "original_width": ("image", "number"),
    "original_height": ("image", "number"),
    "original_bytes": ("image", "number"),
    "matched_text_index": ("image", "number"),
    "record_id": ("record", "text"),
    "n_images": ("record", "number"),
    "n_texts": ("record", "number"),
    "text_chars": ("record", "number"),
    "json_bytes": ("record", "number"),
}
"""The columns of core.tables.DOWNLOAD_IMAGES and DOWNLOAD_RECORDS that a rule may name."""


@dataclass(frozen=True)
class ScoreTable:
    """A scorer's table, or that of an entry of `stages:`.

    rows:    what a row of it is.
    columns: (name, kind) of those that a rule may name.
    joint:   columns whose values may change when more images of their record are scored.
    on_demand: whether it measures conversations only where a rule asks for its columns.
    reads:   names of the tables that it is made from; none for scorers.
    """

    name: str
    rows: Unit
    columns: tuple[tuple[str, Kind], ...]
    joint: frozenset[str] = frozenset()
    on_demand: bool = False
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scores:
    """The scorers of a recipe in the order in which they run, cheap ones first, then its stages.

    similarity: the one that `min_similarity` and `reassign` mean; None: there is none.
    """

    tables: tuple[ScoreTable, ...] = ()
    similarity: str | None = None

    def rank(self, name: str) -> int:
        """A scorer's place, from 1 on; what is measured at rank r is known before the scorer of rank r + 1 runs."""
        return next(place for place, table in enumerate(self.tables, 1) if table.name == name)

    def table(self, name: str) -> ScoreTable:
        """The table of a scorer."""
        return self.tables[self.rank(name) - 1]

    def kinds(self) -> dict[str, Kind]:
        """What each column that a rule may name holds: those of download by name, others as ``scorer.column``."""
        return {name: kind for name, (_, kind) in DOWNLOADED.items()} | {
            f"{table.name}.{name}": kind for table in self.tables for name, kind in table.columns
        }

    def made_from(self, name: str) -> frozenset[str]:
        """A table's name, and those of all tables that it is made from."""
        return frozenset({name}).union(*(self.made_from(other) for other in self.table(name).reads))

    def unit(self, column: str) -> Unit:
        """What a column has a value for."""
        scorer = column.partition(".")[0]
        return DOWNLOADED[column][0] if scorer == column else self.table(scorer).rows


NONE: Final = Scores()
"""Of a recipe that scores nothing."""


@dataclass(frozen=True)
class Values:
    """A column. values: float64, float32, bool or str objects [n], anything where it is null; null: bool[n], None: it never is."""

    values: NDArray[Any]
    null: NDArray[np.bool_] | None

    def known(self) -> NDArray[np.bool_]:
        """bool[n]: where it is not null."""
        return np.ones(len(self.values), np.bool_) if self.null is None else ~self.null

    def of_images(self, row: NDArray[np.int64]) -> Values:
        """A record's column as one of its images. row: int64[n], the record of each."""
        return Values(self.values[row], None if self.null is None else self.null[row])


@dataclass(frozen=True)
class PartTables:
    """Columns of a part: of its images [n], of its records [m], and of its scorers' tables."""

    images: pa.Table
    records: pa.Table
    scores: Mapping[str, pa.Table]

    def check(self, scores: Scores) -> None:
        """Assert that the score tables have a row for each image or record.

        Raises:
            DataError: one has not.
        """
        for name, table in self.scores.items():
            of = self.images if scores.table(name).rows == "image" else self.records
            if table.num_rows != of.num_rows:
                raise DataError(f"score table {name} has {table.num_rows} rows, download table {of.num_rows}")

    def values(self, column: str, unit: Unit) -> Values:
        """A column by the name that a rule has for it."""
        scorer, _, name = column.rpartition(".")
        table = self.scores[scorer] if scorer else self.images if unit == "image" else self.records
        return values_of(table.column(name))


def values_of(column: pa.ChunkedArray) -> Values:
    """A column's values and nulls; a number that is not one is null too."""
    null: NDArray[np.bool_] | None = column.is_null(nan_is_null=pa.types.is_floating(column.type)).to_numpy()
    if null is not None and not null.any():
        null = None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return Values(column.fill_null("").to_numpy(), null)  # objects: np.str_ takes the longest text's bytes for each
    if pa.types.is_boolean(column.type):
        return Values(column.fill_null(False).to_numpy(), null)
    type_ = np.float32 if column.type == pa.float32() else np.float64
    return Values(column.fill_null(0).to_numpy().astype(type_), null)
