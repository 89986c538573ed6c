"""Pairs as img2dataset writes them: NNNNN.tar next to NNNNN.parquet and NNNNN_stats.json (docs/sources.md).

Every file but the last has the same number of rows, as img2dataset cuts its input: with that number of rows a file, in this order,
its incremental mode finds the work done. Its own columns come first, ours after them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.receipts import Outputs
from vila_data.export.format import Content, ExportCounts, ExportedSet, Part, parts_of, tar_file
from vila_data.shard.config import View

ROWS_PER_FILE: Final = 10_000
_ROWS_AT_ONCE: Final = 1_000
_KEY_DIGITS: Final = 4  # of 10,000 rows, after the five digits of the file's number
_COLUMNS: Final = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("sample_id", pa.string()),
        ("corpus", pa.string()),
        ("record_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)


class Img2dataset:
    """See the module."""

    name: ClassVar[str] = "img2dataset"
    views: ClassVar[tuple[View, ...]] = ("pairs",)
    revision: ClassVar[int] = 1

    def __init__(self, view: View) -> None:
        del view

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """Files of 10,000 rows, img2dataset's own number; or the size that gives the requested number of files, or a few less."""
        count = sum(samples)
        rows = ROWS_PER_FILE if shards is None else max(1, -(-count // shards))
        return parts_of(set_name, [*range(0, count, rows), count])

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """One tar, its table and its statistics, without times."""
        counts = ExportCounts()
        stem = f"{part.index:05d}"
        rows_a_file = part.start // part.index if part.index else part.stop
        digits = max(_KEY_DIGITS, len(str(rows_a_file - 1)))
        table = files.path(part.file(f"{stem}.parquet"))
        with (
            tar_file(files.path(part.file(f"{stem}.tar"))) as tar,
            pq.ParquetWriter(table, _COLUMNS, compression="snappy") as writer,
        ):
            rows: list[dict[str, Any]] = []
            for number, content in enumerate(contents):
                row = _row(f"{stem}{number:0{digits}d}", content)
                rows.append(row)
                tar.add(f"{row['key']}.jpg", content.images[0].jpeg)
                tar.add(f"{row['key']}.json", json.dumps(row, indent=4).encode())
                tar.add(f"{row['key']}.txt", content.texts[0].encode())
                counts.add(content)
                if len(rows) == _ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(rows, _COLUMNS))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, _COLUMNS))
        files.path(part.file(f"{stem}_stats.json")).write_text(json.dumps(_stats(counts.exported), indent=4))
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Nothing: img2dataset takes every .json of the directory for a file's statistics."""


def _row(key: str, content: Content) -> dict[str, Any]:
    (image,) = content.images
    return {
        "caption": content.texts[0],
        "url": image.url,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": image.width,
        "height": image.height,
        "original_width": image.width,
        "original_height": image.height,
        "exif": "{}",
        "sha256": image.sha256,
        "sample_id": content.key,
        "corpus": content.corpus,
        "record_id": content.record_id,
        "similarity": image.similarity,
    }


def _stats(count: int) -> dict[str, Any]:
    """The numbers that img2dataset sums; the duration is 1 s because it divides by it."""
    return {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 1.0,
        "start_time": 0.0,
        "end_time": 1.0,
        "status_dict": {"success": count},
    }
