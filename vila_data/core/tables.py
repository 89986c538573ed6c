"""Tables from streams, in the thread that asks.

pyarrow's own threads, those that read ahead among them, may still hold a Python stream when the
interpreter ends; a process whose work is done then dies with SIGABRT ("terminate called without an
active exception"): one in five under load, with pyarrow 26. Tasks run side by side anyway.
`pyarrow.parquet.read_table` has such threads whatever it is told, since it goes over a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from vila_data.core.errors import DataError
from vila_data.core.store import Store


def read_table(
    store: Store,
    path: str,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    *,
    what: str = "a whole Parquet table",
    advice: str = "run check on the run",
) -> pa.Table:
    """A Parquet file of a store, or some of its columns. what, advice: as for `parsing`.

    Raises:
        DataError: it is not a whole Parquet file, or not of `schema`, or lacks a column.
        StorageError: it is missing or cannot be read.
    """
    with store.open_read(path) as stream, parsing(store.location(path), what, advice):
        return read_parquet(stream, None if columns is None else list(columns), schema)


@contextmanager
def parsing(
    where: str, what: str = "a whole Parquet table", advice: str = "run check on the run", *more: type[Exception]
) -> Iterator[None]:
    """Raise pyarrow's errors in the block, and those of `more`, as a DataError: ``{where}: not {what}: {error}; {advice}``."""
    try:
        yield
    except (pa.ArrowException, *more) as error:
        raise DataError(f"{where}: not {what}: {error}; {advice}") from error


def read_parquet(stream: Any, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns.

    Raises:
        pyarrow.ArrowInvalid: it is no whole Parquet file, or not of `schema`, or lacks a column.
    """
    from pyarrow import parquet as pq  # loader processes do without it

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
