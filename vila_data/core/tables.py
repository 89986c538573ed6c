"""Tables from streams, in the thread that asks.

pyarrow's own threads, those that read ahead among them, may still hold a Python stream when the
interpreter ends; a process whose work is done then dies with SIGABRT ("terminate called without an
active exception"): one in five under load, with pyarrow 26. Tasks run side by side anyway.
`pyarrow.parquet.read_table` has such threads whatever it is told, since it goes over a dataset.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(stream: Any, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns.

    Raises:
        pyarrow.ArrowInvalid: it is no whole Parquet file, or not of `schema`, or lacks a column.
    """
    names = schema.names if columns is None and schema is not None else columns
    table = pq.ParquetFile(stream, pre_buffer=False).read(columns=names, use_threads=False)
    if names is None:
        return table
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise pa.ArrowInvalid(f"no column {missing[0]!r}")
    table = table.select(names)
    return table if schema is None else table.cast(pa.schema([schema.field(name) for name in names]))


def read_arrow(source: Any) -> pa.Table:
    """A whole Arrow IPC file; of a memory map nothing is copied.

    Raises:
        pyarrow.ArrowInvalid: it is no whole Arrow file.
    """
    with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as file:
        return file.read_all()
