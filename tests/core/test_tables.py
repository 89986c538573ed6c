"""Parquet tables from Python streams: what is asked for, and by no thread but the one that asks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vila_data.core.tables import read_parquet

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", None], "c": [[1.0], [], None]})
THREADS = """
import os, sys
import pyarrow.compute
from vila_data.core.tables import read_parquet
before = len(os.listdir("/proc/self/task"))
with open(sys.argv[1], "rb") as stream:
    read_parquet(stream, columns=["b", "c"])
print(len(os.listdir("/proc/self/task")) - before)
"""


def stream() -> io.BytesIO:
    found = io.BytesIO()
    pq.write_table(TABLE, found, row_group_size=2)
    return found


@pytest.mark.parametrize("columns", [None, [], ["a"], ["c", "a"]])
def test_columns_come_in_the_order_asked_for(columns: list[str] | None) -> None:
    assert read_parquet(stream(), columns=columns).equals(TABLE if columns is None else TABLE.select(columns))


def test_a_schema_is_put_on() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.large_string()), ("c", pa.list_(pa.float32()))])
    assert read_parquet(stream(), schema=schema).schema == schema
    assert read_parquet(stream(), columns=["b"], schema=schema).schema == pa.schema([("b", pa.large_string())])


@pytest.mark.parametrize(("columns", "schema"), [(["a", "z"], None), (None, pa.schema([("b", pa.int64())]))])
def test_what_it_cannot_give_is_an_error(columns: list[str] | None, schema: pa.Schema | None) -> None:
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(stream(), columns=columns, schema=schema)


def test_what_is_no_table_is_an_error() -> None:
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(io.BytesIO(b"PAR1 and so on"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux has them")
def test_no_thread_is_left_that_could_outlive_the_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(TABLE, path)
    done = subprocess.run([sys.executable, "-c", THREADS, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
