"""Writing score/<corpus>/part-NNNNN.parquet row group by row group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP: Final = 1024


class TableWriter:
    """Append rows to a zstd Parquet file; the bytes depend on rows, schema and `metadata` alone."""

    def __init__(self, path: Path, schema: pa.Schema, metadata: Mapping[bytes, bytes] | None = None) -> None:
        self._schema = schema.with_metadata(dict(metadata)) if metadata else schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._columns: list[list[Any]] = [[] for _ in schema]

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, *values: Any) -> None:
        """One row, values in the schema's order."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=_ROW_GROUP)
        for column in self._columns:
            column.clear()
