"""A column stage is an entry of `stages:`, between `score` and `filter`: it makes new columns from existing ones.

A kind is one class below `ColumnStage`, in a file of its own, and one line in kinds.py. A column that needs no more than
one image or record is a scorer's; a stage sees a whole part, and all parts of a corpus first where it `gathers`. Its
settings may change in a run: its columns are then made again, and nothing before them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.config import StrictModel
from vila_data.core.errors import DataError
from vila_data.core.layout import Part, score_stage
from vila_data.core.receipts import Receipt, committing, fingerprint
from vila_data.core.scores import PartTables, Scores, ScoreTable, Unit, Values
from vila_data.core.store import Store
from vila_data.core.tables import read_table, score_schema
from vila_data.score.scorer import Column


@dataclass(frozen=True)
class PartView:
    """A stage's view of a part with n images and m records.

    row:    int64[n], the record of each image, from 0 to m - 1.
    values: the columns that it `reads`, null where something was not measured. Stages of images are given a record's
            column for each of its images [n]; stages of records are given images' columns [n] and records' [m].
    """

    row: NDArray[np.int64]
    values: Mapping[str, Values]


class ColumnStage(StrictModel):
    """An entry of `stages:`, its keys being those of its kind.

    rows:     what a row of its table is.
    revision: raised when the same settings and columns give other values.
    gathers:  whether it looks at all parts of a corpus before it measures the first.
    """

    rows: ClassVar[Unit] = "image"
    revision: ClassVar[int] = 1
    gathers: ClassVar[bool] = False

    kind: str

    def columns(self) -> tuple[Column, ...]:
        """The columns that it makes; they may depend on its settings."""
        raise NotImplementedError

    def reads(self) -> tuple[str, ...]:
        """The columns that it is made from, as rules name them: of download, of scorers, of stages before it."""
        raise NotImplementedError

    def measure(self, part: PartView, share: Any) -> Sequence[Any]:
        """An array for each of `columns`, as long as the part has images or records; NaN and None are null.

        share: what `join` gave for this part; None where it does not gather.
        """
        raise NotImplementedError

    def look(self, part: PartView) -> Any:
        """Summarize a part for the other parts; all summaries are in memory at once."""
        raise NotImplementedError

    def join(self, looks: list[Any]) -> Sequence[Any]:
        """A share for each part from the summaries of all parts, in order: numpy arrays or JSON values."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits of all that decides a value, the columns that it reads aside."""
        fields = [str(column.field()) for column in self.columns()]
        return fingerprint([self.model_dump(mode="json"), self.revision, self.rows, fields, self.reads()])

    def table(self, name: str, before: Scores) -> ScoreTable:
        """What other packages see of it. before: the scores that exist when it runs.

        Raises:
            ValueError: it reads a column that does not exist.
        """
        kinds = before.kinds()
        for column in self.reads():
            if column not in kinds:
                raise ValueError(f"reads {column!r}, which does not exist at this point; columns: {', '.join(kinds)}")
        tables = frozenset(column.partition(".")[0] for column in self.reads() if "." in column)
        columns = tuple((column.name, kind) for column in self.columns() if (kind := column.kind()) is not None)
        joint = frozenset(column.name for column in self.columns() if column.joint)
        on_demand = any(before.table(other).on_demand for other in tables)
        return ScoreTable(name, self.rows, columns, joint, on_demand, tables)

    def check(self) -> None:
        """Check that its settings are consistent.

        Raises:
            ValueError: they are not.
        """


def look_at_part(store: Store, part: Part, stage: ColumnStage, scores: Scores) -> Any:
    """A stage's summary of a part, for the other parts of its corpus."""
    return stage.look(_read(store, part, stage, scores)[0])


def measure_part(
    store: Store, part: Part, name: str, stage: ColumnStage, scores: Scores, share: Any, inputs: str
) -> Receipt:
    """Write a stage's table of a part, then the receipt.

    Raises:
        DataError: tables do not fit together, or the stage gives other columns than it says.
    """
    view, heads, measured = _read(store, part, stage, scores)
    schema = score_schema(stage.rows, [column.field() for column in stage.columns()])
    found = stage.measure(view, share)
    lengths = [len(values) for values in found]
    if lengths != [heads.num_rows] * len(stage.columns()):
        expected = f"{len(stage.columns())} of {heads.num_rows}"
        raise DataError(f"stages.{name}: gave columns of {lengths} rows, expected {expected} {stage.rows}s")
    with committing(store, part.receipt(score_stage(name)), inputs) as outputs:
        there = pa.array(measured)
        columns = [*heads.columns, there]
        for values, field in zip(found, list(schema)[len(columns) :], strict=True):
            array = pa.array(values, field.type, from_pandas=True)
            columns.append(pc.if_else(there, array, pa.scalar(None, field.type)))
        table = pa.Table.from_arrays(columns, schema=schema)
        pq.write_table(table, outputs.path(part.scores_table(name)), compression="zstd")
        count = int(measured.sum())
        outputs.counts = {f"{stage.rows}s_scored": count, f"{stage.rows}s_skipped": len(measured) - count}
    assert outputs.receipt is not None
    return outputs.receipt


def share_digest(share: Any) -> str:
    """A digest of a share."""
    if isinstance(share, np.ndarray):
        return hashlib.sha256(f"{share.dtype.str}{share.shape}".encode() + share.tobytes()).hexdigest()
    return fingerprint(share)


def _read(store: Store, part: Part, stage: ColumnStage, scores: Scores) -> tuple[PartView, pa.Table, NDArray[np.bool_]]:
    """The columns that a stage reads; the first columns of its table; bool: rows whose columns are all there to be read."""
    of: dict[str, set[str]] = {"image": set(), "record": set()}
    for name in stage.reads():
        if "." in name:
            of.setdefault(name.partition(".")[0], set()).add(name.partition(".")[2])
        else:
            of[scores.unit(name)].add(name)
    images = read_table(
        store, part.images_table(), _distinct(["row", "record_id", "image_index", "status"], of.pop("image"))
    )
    records = read_table(store, part.records_table(), _distinct(["row", "record_id", "status"], of.pop("record")))
    found = {name: read_table(store, part.scores_table(name), ["scored", *sorted(names)]) for name, names in of.items()}
    tables = PartTables(images, records, found)
    tables.check(scores)
    row = images.column("row").to_numpy().astype(np.int64)
    ok = {"image": _ok(images), "record": _ok(records)}
    measured = ok[stage.rows].copy()
    for name, table in found.items():
        unit = scores.table(name).rows
        lacks = ok[unit] & ~table.column("scored").to_numpy()
        if unit != stage.rows:
            lacks = lacks[row] if unit == "record" else np.bincount(row[lacks], minlength=records.num_rows) > 0
        measured &= ~lacks
    values = {name: tables.values(name, scores.unit(name)) for name in stage.reads()}
    if stage.rows == "image":
        values = {
            name: column.of_images(row) if scores.unit(name) == "record" else column for name, column in values.items()
        }
    heads = (
        images.select(["row", "record_id", "image_index"])
        if stage.rows == "image"
        else records.select(["row", "record_id"])
    )
    return PartView(row, values), heads, measured


def _distinct(first: list[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *sorted(more)]))


def _ok(table: pa.Table) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.equal(table.column("status"), "ok").to_numpy()
    return found
