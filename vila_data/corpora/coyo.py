"""COYO: one pair a row of parquet files, read by row group, only the columns that are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record
from vila_data.corpora import selection
from vila_data.corpora.config import CoyoConfig, Preselect
from vila_data.corpora.rows import batches, open_parquet
from vila_data.corpora.source import FileScan, file_fingerprint, open_binary

_BATCH_ROWS = 8_192


class CoyoSource:
    """Pairs of COYO, or of any parquet with `url` and `text`."""

    def __init__(self, config: CoyoConfig) -> None:
        self._config = config

    def scan(self, file: str, max_rows: int | None, expected_share: float = 1.0) -> FileScan:
        """Rows of a file; with preselection also its scores, in one pass over their columns."""
        with open_binary(file) as stream:
            parquet = open_parquet(stream, file)
            needed = ("url", "text") if self._config.preselect is None else ("url", "text", *self._config.preselect.by)
            missing = [name for name in needed if name not in parquet.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{file}: no column {', '.join(missing)}; the file has {', '.join(parquet.schema_arrow.names)}"
                )
            rows = parquet.metadata.num_rows if max_rows is None else min(max_rows, parquet.metadata.num_rows)
        scores = None
        if self._config.preselect is not None:
            c, ids = self._scores(file, rows, self._config.preselect)
            scores = selection.summarize(c, ids, self._config.preselect, expected_share)
        return FileScan(file, rows, file_fingerprint(file), scores)

    def scores_at(self, file: str, rows: int, bin_index: int) -> selection.FileScores:
        """Scores of a file whose window holds `bin_index`."""
        rule = self._config.preselect
        assert rule is not None
        c, ids = self._scores(file, rows, rule)
        near = selection.eligible(c, rule) & (selection.bins_of(np.where(np.isfinite(c), c, 0.0)) == bin_index)
        return selection.FileScores({bin_index: int(near.sum())}, (bin_index, bin_index, c[near], ids[near]))

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Pairs of the selected rows from `part.start` to `part.stop`."""
        rule = self._config.preselect
        columns_read = ("id", "url", "text", *(rule.by if rule else ()))
        for at, batch in batches(part.file, part.start, part.stop, columns_read, _BATCH_ROWS):
            keep = np.ones(batch.num_rows, dtype=bool)
            if rule is not None and part.cut is not None:
                keep = selection.selected(_sum(batch, rule), _ids(batch, at), rule, part.cut)
            columns = {
                name: batch.column(name).to_pylist() for name in batch.schema.names if name in ("id", "url", "text")
            }
            for i in np.flatnonzero(keep).tolist():
                yield _pair(part, at + i, {name: column[i] for name, column in columns.items()})

    def _scores(self, file: str, rows: int, rule: Preselect) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        c = np.empty(rows, np.float64)
        ids = np.empty(rows, np.int64)
        for at, batch in batches(file, 0, rows, ("id", *rule.by), _BATCH_ROWS):
            c[at : at + batch.num_rows] = _sum(batch, rule)
            ids[at : at + batch.num_rows] = _ids(batch, at)
        return c, ids


def _sum(batch: pa.RecordBatch, rule: Preselect) -> NDArray[np.float64]:
    total = np.zeros(batch.num_rows, np.float64)
    for name in rule.by:
        column = batch.column(name).cast(pa.float64())
        total += column.to_numpy(zero_copy_only=False)
    return total


def _ids(batch: pa.RecordBatch, at: int) -> NDArray[np.int64]:
    if "id" in batch.schema.names and pa.types.is_integer(batch.column("id").type):
        ids: NDArray[np.int64] = batch.column("id").fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return ids
    return np.arange(at, at + batch.num_rows, dtype=np.int64)


def _pair(part: Part, row: int, value: dict[str, Any]) -> Record | BadRecord:
    published = value.get("id")
    record_id = str(published) if published is not None else f"{part.label}-{row:09d}"
    where = f"{part.file}: row {row}"
    for name, reason in (("url", "missing_field"), ("text", "no_text")):
        if value[name] is None:
            return BadRecord(record_id, reason, f"{where}: {name} is null")
        if not isinstance(value[name], str):
            return BadRecord(record_id, "wrong_type", f"{where}: {name} is a {type(value[name]).__name__}")
    if not value["text"].strip():
        return BadRecord(record_id, "no_text", f"{where}: text is empty")
    return Record(record_id, "pair", (value["text"],), (ImageRef(url=value["url"], matched_text_index=0),))
