"""Download one part: every image requested once, each with a fate; the tar and tables in record order; a receipt."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import Outputs, Receipt, committing
from vila_data.core.records import BadRecord, Record, without_surrogates
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.tarcodec import TarWriter
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Network
from vila_data.download.images import PartImages, fetch_all
from vila_data.download.pending import Image, Pending, PendingRecord

_ROWS: Final = 1024  # rows of a row group
_PROFILE_IGNORED: Final = "profile_ignored"
"""Detail of a stored image whose color profile is broken or of another color space."""


def download_part(
    store: Store,
    part: Part,
    records: Iterable[Record | BadRecord],
    config: DownloadConfig,
    inputs: str,
    progress: Callable[[int], None] | None = None,
    *,
    network: Network | None = None,
) -> Receipt:
    """Fetch and normalize a part's images, write its tar and tables, and commit them with a receipt for `inputs`.

    The outputs' bytes depend on the records and on what the servers answer, not on timing or `concurrency`.
    `records` is read lazily, in a thread of its own, and another thread writes the outputs meanwhile. Memory grows
    by 0.8 kB per distinct image. `progress` is called with the number of images finished since its last call.

    Raises:
        StorageError: the store or its scratch directory cannot be written.
        RunError: this machine is out of file descriptors.
        UsageError: the engine cannot take these records, or is not installed.
    """
    report = progress or (lambda finished: None)
    with committing(store, part.receipt("download"), inputs) as outputs:
        with (
            closing(PartImages(outputs.directory / "part_images")) as part_images,
            ThreadPoolExecutor(1, "vila-write") as thread,
        ):
            writer = _Writer(part, part_images.pending, outputs)
            writing = thread.submit(writer.write)
            try:
                if config.engine == "img2dataset":
                    from vila_data.download.engine_img2dataset import fetch_with_img2dataset

                    fetch_with_img2dataset(part_images, records, config, report)
                else:
                    _run(fetch_all(part_images, records, config, network or Network(), report))
                part_images.pending.end()
                writing.result()
            except BaseException as error:
                part_images.pending.fail(error)
                raise
        outputs.counts = writer.counts(part_images.bytes_fetched)
    if outputs.receipt is None:
        raise RuntimeError("a committed part has a receipt")
    return outputs.receipt


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, also where this thread has a running event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="vila-download") as thread:
        thread.submit(asyncio.run, work).result()


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


class _Writer:
    """Writes a part's outputs in record order while its images come in."""

    def __init__(self, part: Part, pending: Pending, outputs: Outputs) -> None:
        self._part = part
        self._pending = pending
        self._stream = outputs.open(part.images_tar())
        self._tar = TarWriter(self._stream)
        self._images = _Table(outputs.path(part.images_table()), DOWNLOAD_IMAGES)
        self._records = _Table(outputs.path(part.records_table()), DOWNLOAD_RECORDS)
        self._record_fates: Counter[str] = Counter()
        self._image_fates: Counter[str] = Counter()
        self._formats: Counter[str] = Counter()
        self._profiles_ignored = 0
        self._bytes_stored = 0

    def write(self) -> None:
        """Write the tar, the images' table and the records' table.

        Raises:
            OSError: no space left; or the error of another thread of the part.
        """
        try:
            with self._stream:
                for row, record in enumerate(self._pending):
                    if isinstance(record, BadRecord):
                        self._add_bad_record(row, record)
                    else:
                        self._add_record(row, record)
                self._tar.finish()
            self._images.close()
            self._records.close()
        except BaseException as error:
            self._pending.fail(error)
            raise

    def counts(self, bytes_fetched: int) -> dict[str, Any]:
        """Fates of records and images, formats that are not decoded, and bytes; nothing that depends on timing."""
        return {
            "records": dict(sorted(self._record_fates.items())),
            "images": dict(sorted(self._image_fates.items())),
            "unsupported_formats": dict(sorted(self._formats.items())),
            "profiles_ignored": self._profiles_ignored,
            "bytes_fetched": bytes_fetched,
            "bytes_stored": self._bytes_stored,
        }

    def _add_record(self, row: int, record: PendingRecord) -> None:
        content = self._pending.records.take(record.content)
        key = record_key(self._part.corpus, self._part.index, row)
        start = self._tar.position
        self._tar.add(f"{key}.json", content)
        for index, (url, matched_text_index, image) in enumerate(record.images):
            self._pending.wait_for(image)
            fate = self._add_image(image, f"{key}.{index}.jpg")
            names = {"row": row, "record_id": record.record_id, "image_index": index, "url": url}
            self._images.add(names | {"matched_text_index": matched_text_index} | fate)
        self._records.add(
            {
                "row": row,
                "record_id": record.record_id,
                "status": "ok",
                "n_images": len(record.images),
                "n_texts": record.n_texts,
                "text_chars": record.text_chars,
                "json_bytes": len(content),
                "offset": start,
                "size": self._tar.position - start,
                "json_sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        self._record_fates["ok"] += 1

    def _add_image(self, image: Image, name: str) -> dict[str, Any]:
        """Write an image that is stored, and return the columns that say what became of it."""
        self._image_fates[f"failed:{image.error}" if image.error else "ok"] += 1
        fate = {"http_code": image.http_code, "original_bytes": image.original_bytes}
        stored = image.stored
        if stored is None:
            if image.error == "unsupported_format":
                self._formats[image.detail or "unknown"] += 1
            return fate | {"status": "failed", "error": image.error, "detail": image.detail}
        member = self._tar.add(name, self._bytes(image))
        image.offset, image.size = member.offset, member.size
        self._bytes_stored += member.size
        self._profiles_ignored += stored.profile_ignored
        return fate | {
            "status": "ok",
            "sha256": image.sha256.hex(),
            "width": stored.width,
            "height": stored.height,
            "bytes": member.size,
            "original_width": stored.original_width,
            "original_height": stored.original_height,
            "phash": stored.phash,
            "offset": member.offset,
            "detail": _PROFILE_IGNORED if stored.profile_ignored else None,
        }

    def _bytes(self, image: Image) -> bytes:
        """An image's bytes: those that wait, or of an image that occurred before, those in the tar."""
        if image.held is not None:
            held, image.held = image.held, None
            return self._pending.images.take(held)
        self._stream.flush()
        return os.pread(self._stream.fileno(), image.size, image.offset)

    def _add_bad_record(self, row: int, record: BadRecord) -> None:
        self._records.add(
            {
                "row": row,
                "record_id": without_surrogates(record.record_id),
                "status": "failed",
                "error": record.reason,
                "detail": without_surrogates(record.detail),
                "n_images": 0,
                "n_texts": 0,
                "text_chars": 0,
                "json_bytes": 0,
            }
        )
        self._record_fates[f"failed:{record.reason}"] += 1
