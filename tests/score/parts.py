"""Small parts as the download stage leaves them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import committing
from vila_data.core.records import ImageRef, Record, record_to_json
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.tarcodec import TarWriter


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@dataclass(frozen=True)
class Item:
    """A record to put in a part: one JPEG or None (download failed) an image."""

    record: Record
    jpegs: tuple[bytes | None, ...]


def document(name: str, texts: Sequence[str], jpegs: Sequence[bytes | None], matched: Sequence[int | None]) -> Item:
    images = tuple(ImageRef(f"http://a.test/{name}/{i}.jpg", m) for i, m in enumerate(matched))
    return Item(Record(name, "document", tuple(texts), images), tuple(jpegs))


def pair(name: str, text: str, data: bytes | None) -> Item:
    return Item(Record(name, "pair", (text,), (ImageRef(f"http://a.test/{name}.jpg"),)), (data,))


def write_part(store: Store, items: Sequence[Item | None], corpus: str = "docs", index: int = 0) -> Part:
    """A committed download of `items`; None stands for a metadata row that is no record."""
    part = Part(corpus, index, "meta.jsonl", "meta", 0, len(items), len(items), f"inputs-{index}")
    images, records = [], []
    with committing(store, part.receipt("download"), "test") as outputs:
        with open(outputs.path(part.images_tar()), "wb") as stream:
            tar = TarWriter(stream)
            for row, item in enumerate(items):
                start = tar.position
                if item is None:
                    records.append((row, f"bad-{row}", "failed", "malformed_json", "line", 0, 0, 0, 0, *[None] * 3))
                    continue
                key = record_key(corpus, index, row)
                data = record_to_json(item.record)
                tar.add(f"{key}.json", data)
                for number, (ref, content) in enumerate(zip(item.record.images, item.jpegs, strict=True)):
                    head = (row, item.record.record_id, number, ref.url)
                    if content is None:
                        images.append((*head, "failed", "timeout", *[None] * 9, ref.matched_text_index, None, None))
                        continue
                    member = tar.add(f"{key}.{number}.jpg", content)
                    width, height = Image.open(BytesIO(content)).size
                    sha = hashlib.sha256(content).hexdigest()
                    facts = (sha, width, height, len(content), width, height, len(content), "0" * 16)
                    images.append((*head, "ok", None, 200, *facts, ref.matched_text_index, member.offset, None))
                counts = (len(item.jpegs), len(item.record.texts), sum(map(len, item.record.texts)), len(data))
                block = (start, tar.position - start)
                records.append((row, item.record.record_id, "ok", None, None, *counts, *block, None))
            tar.finish()
        for path, schema, rows in (
            (part.images_table(), DOWNLOAD_IMAGES, images),
            (part.records_table(), DOWNLOAD_RECORDS, records),
        ):
            table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
            pq.write_table(table, outputs.path(path))
    return part


def read_table(store: Store, path: str) -> list[dict[str, object]]:
    return pq.read_table(BytesIO(store.read(path))).to_pylist()
