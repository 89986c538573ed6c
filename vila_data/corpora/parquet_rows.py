"""Rows of parquet files, by row group, only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.tables import parsing
from vila_data.corpora.source import open_binary


def open_parquet(stream: Any, file: str) -> pq.ParquetFile:
    """A parquet file, its footer read.

    Raises:
        DataError: it is none.
    """
    with parsing(file, "a parquet file", "replace it, or leave it out of the recipe", OSError):
        return pq.ParquetFile(stream)


def count_parquet(file: str) -> int:
    """Rows of a file, from its footer."""
    with open_binary(file) as stream:
        return int(open_parquet(stream, file).metadata.num_rows)


def batches(
    file: str, start: int, stop: int, columns: tuple[str, ...] | None, batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(row of the first, batch) over the rows `start` to `stop`, opening only their row groups.

    columns: those of them that the file has are read; None reads all.
    """
    with open_binary(file) as stream:
        parquet = open_parquet(stream, file)
        names = parquet.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        at = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if at + rows > start and at < stop:
                yield from _clipped(parquet, group, (at, start, stop), wanted, batch_rows)
            at += rows


def _clipped(
    parquet: pq.ParquetFile, group: int, rows: tuple[int, int, int], columns: list[str], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    at, start, stop = rows
    for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
        first, last = max(start, at), min(stop, at + batch.num_rows)
        if first < last:
            yield first, batch.slice(first - at, last - first)
        at += batch.num_rows
