"""The second pass over a part: spooled records and bodies -> the tar and the two tables, in record order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import Outputs
from vila_data.core.schemas import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.tarcodec import TarWriter
from vila_data.download.intake import Intake
from vila_data.download.results import PROFILE_IGNORED

_ROWS: Final = 1024  # rows of a row group


class _Table:
    """Rows into a zstd Parquet file; row groups end at fixed row numbers."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


class Assembly:
    """Writes a part's outputs from what `intake` holds; `counts` is the receipt's."""

    def __init__(self, part: Part, intake: Intake, outputs: Outputs) -> None:
        self._part = part
        self._intake = intake
        self._outputs = outputs
        self._record_fates: Counter[str] = Counter()
        self._image_fates: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._profiles_ignored = 0
        self._bytes_stored = 0
        self._next_image = 0

    def write(self) -> None:
        """Write the tar, the images' table and the records' table."""
        paths = self._part.images_tar(), self._part.images_table(), self._part.records_table()
        tar_path, images_path, records_path = (self._outputs.path(path) for path in paths)
        images, records = _Table(images_path, DOWNLOAD_IMAGES), _Table(records_path, DOWNLOAD_RECORDS)
        with open(tar_path, "wb", buffering=1 << 20) as stream:
            tar = TarWriter(stream)
            for row, (good, content) in enumerate(self._intake.frames()):
                if good:
                    self._add_record(row, content, tar, images, records)
                else:
                    self._add_bad_record(row, content, records)
            tar.finish()
        images.close()
        records.close()

    def counts(self) -> dict[str, Any]:
        """Fates of records and images, formats that are not decoded, and bytes; nothing that depends on timing."""
        return {
            "records": dict(sorted(self._record_fates.items())),
            "images": dict(sorted(self._image_fates.items())),
            "unsupported_formats": dict(sorted(self._formats.items())),
            "profiles_ignored": self._profiles_ignored,
            "bytes_fetched": self._intake.results.bytes_fetched,
            "bytes_stored": self._bytes_stored,
        }

    def _add_record(self, row: int, content: bytes, tar: TarWriter, images: _Table, records: _Table) -> None:
        value = json.loads(content)
        key = record_key(self._part.corpus, self._part.index, row)
        start = tar.position
        tar.add(f"{key}.json", content)
        for index, image in enumerate(value["images"]):
            images.add(self._image_row(row, value["record_id"], index, image, key, tar))
        texts = value["texts"]
        records.add(
            {
                "row": row,
                "record_id": value["record_id"],
                "status": "ok",
                "n_images": len(value["images"]),
                "n_texts": len(texts),
                "text_chars": sum(map(len, texts)),
                "json_bytes": len(content),
                "offset": start,
                "size": tar.position - start,
                "json_sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        self._record_fates["ok"] += 1

    def _image_row(
        self, row: int, record_id: str, index: int, image: dict[str, Any], key: str, tar: TarWriter
    ) -> dict[str, Any]:
        result = self._intake.results.get(self._intake.images[self._next_image])
        self._next_image += 1
        offset = None
        if result.error is None:
            jpeg = self._intake.bodies.read(result.offset, result.size)
            offset = tar.add(f"{key}.{index}.jpg", jpeg).offset
            self._bytes_stored += result.size
        if result.error == "unsupported_format":
            self._formats[result.detail or "unknown"] += 1
        self._profiles_ignored += result.error is None and result.detail == PROFILE_IGNORED
        self._image_fates["ok" if result.error is None else f"failed:{result.error}"] += 1
        return {
            "row": row,
            "record_id": record_id,
            "image_index": index,
            "url": image["url"],
            "status": "ok" if result.error is None else "failed",
            "error": result.error,
            "http_code": result.http_code,
            "sha256": result.sha256,
            "width": result.width,
            "height": result.height,
            "bytes": result.size if result.error is None else None,
            "original_width": result.original_width,
            "original_height": result.original_height,
            "original_bytes": result.original_bytes,
            "phash": result.phash,
            "matched_text_index": image["matched_text_index"],
            "offset": offset,
            "detail": result.detail,
        }

    def _add_bad_record(self, row: int, content: bytes, records: _Table) -> None:
        value = json.loads(content)
        records.add(
            {
                "row": row,
                "record_id": value["record_id"],
                "status": "failed",
                "error": value["reason"],
                "detail": value["detail"],
                "n_images": 0,
                "n_texts": 0,
                "text_chars": 0,
                "json_bytes": 0,
            }
        )
        self._record_fates[f"failed:{value['reason']}"] += 1
