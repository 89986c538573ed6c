"""Tables from streams, in the thread that asks.

pyarrow's own threads, those that read ahead among them, may still hold a Python stream when the
interpreter ends; a process whose work is done then dies with SIGABRT ("terminate called without an
active exception"): one in five under load, with pyarrow 26. Tasks run side by side anyway.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(stream: Any, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns.

    Raises:
        pyarrow.ArrowInvalid: it is no whole Parquet file, or not of `schema`.
    """
    return pq.read_table(stream, columns=columns, schema=schema, use_threads=False, pre_buffer=False)


def read_arrow(source: Any) -> pa.Table:
    """A whole Arrow IPC file; of a memory map nothing is copied.

    Raises:
        pyarrow.ArrowInvalid: it is no whole Arrow file.
    """
    with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as file:
        return file.read_all()
