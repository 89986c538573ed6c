"""Copies the sample's metadata with another base URL in place of http://127.0.0.1:8765, for tests side by side.

Usage: `python shards/sample/rebase.py OUT_DIR BASE_URL` writes OUT_DIR/meta/ and OUT_DIR/corpora.yaml.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import make
import plan
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import yaml

PATH_KEYS = ("image_root", "model", "tokenizer")  # values of corpora.yaml that stay where they are


def rebase_sample(out_dir: Path, base_url: str) -> Path:
    """Write all metadata under `out_dir`/meta and a corpora.yaml beside it that uses it; returns the latter.

    Pictures, CLIP and tokenizer are not copied: corpora.yaml names them by absolute path.
    """
    rebase(make.HERE / "meta", out_dir / "meta", base_url)
    text = (make.HERE / "corpora.yaml").read_text(encoding="utf-8")
    ours, theirs = (url.removeprefix("http://") for url in (plan.HOST, base_url))
    switch = _with_absolute_paths(yaml.safe_load(text.replace(ours, theirs)))
    path = out_dir / "corpora.yaml"
    path.write_text(yaml.safe_dump(switch, sort_keys=False), encoding="utf-8")
    return path


def _with_absolute_paths(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: str(make.HERE / entry) if key in PATH_KEYS else _with_absolute_paths(entry) for key, entry in value.items()
    }


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
            table: pa.Table = source.read_row_group(number).combine_chunks()
            columns = [_rebase_column(table.column(name).combine_chunks(), base_url) for name in table.column_names]
            writer.write_table(pa.Table.from_arrays(columns, schema=table.schema))


def _rebase_column(column: pa.Array, base_url: str) -> pa.Array:
    """A column of strings, or of lists of strings, with the base URL replaced; others as they are."""
    if pa.types.is_string(column.type):
        return compute.replace_substring(column, plan.HOST, base_url)
    if pa.types.is_list(column.type):
        return pa.ListArray.from_arrays(column.offsets, _rebase_column(column.values, base_url), type=column.type)
    return column


if __name__ == "__main__":
    print(rebase_sample(Path(sys.argv[1]), sys.argv[2]))
