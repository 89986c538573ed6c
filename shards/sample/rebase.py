"""Copies the sample's metadata with another base URL in place of http://127.0.0.1:8765, for tests side by side.

Usage: `python shards/sample/rebase.py OUT_DIR BASE_URL`
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import make
import plan
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet


def rebase(meta_dir: Path, out_dir: Path, base_url: str) -> None:
    """Write every file of `meta_dir` to `out_dir`, its URLs under `base_url`; row groups stay as they are."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(meta_dir.iterdir()):
        if path.suffix == ".parquet":
            _rebase_parquet(path, out_dir / path.name, base_url)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                member = archive.namelist()[0]
                data = archive.read(member)
            make.write_zip(out_dir / path.name, member, _rebase_bytes(data, base_url))
        else:
            (out_dir / path.name).write_bytes(_rebase_bytes(path.read_bytes(), base_url))


def _rebase_bytes(data: bytes, base_url: str) -> bytes:
    return data.replace(plan.HOST.encode(), base_url.encode())


def _rebase_parquet(path: Path, out: Path, base_url: str) -> None:
    with parquet.ParquetFile(path) as source, parquet.ParquetWriter(out, source.schema_arrow) as writer:
        for number in range(source.num_row_groups):
            table: pa.Table = source.read_row_group(number)
            urls = compute.replace_substring(table["url"], plan.HOST, base_url)
            writer.write_table(table.set_column(table.schema.get_field_index("url"), "url", urls))


if __name__ == "__main__":
    rebase(make.HERE / "meta", Path(sys.argv[1]), sys.argv[2])
