"""Small parts as the download stage leaves them, and where the real data lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import committing
from vila_data.core.records import ImageRef, Record, record_to_json
from vila_data.core.schemas import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS
from vila_data.core.store import Store
from vila_data.core.tarcodec import TarWriter


@pytest.fixture
def shared() -> Path:
    folder = os.environ.get("VILA_DATA_SHARED")
    if not folder or not Path(folder, "realdata").is_dir():
        pytest.skip("VILA_DATA_SHARED names no folder with realdata")
    return Path(folder)


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
                    records.append((row, f"bad-{row}", "failed", "malformed_json", "line", 0, 0, 0, 0, None, None))
                    continue
                key = record_key(corpus, index, row)
                data = record_to_json(item.record)
                tar.add(f"{key}.json", data)
                for number, (ref, content) in enumerate(zip(item.record.images, item.jpegs, strict=True)):
                    head = (row, item.record.record_id, number, ref.url)
                    if content is None:
                        images.append((*head, "failed", "timeout", *[None] * 9, ref.matched_text_index, None))
                        continue
                    member = tar.add(f"{key}.{number}.jpg", content)
                    width, height = Image.open(BytesIO(content)).size
                    sha = hashlib.sha256(content).hexdigest()
                    facts = (sha, width, height, len(content), width, height, len(content), "0" * 16)
                    images.append((*head, "ok", None, 200, *facts, ref.matched_text_index, member.offset))
                counts = (len(item.jpegs), len(item.record.texts), sum(map(len, item.record.texts)), len(data))
                block = (start, tar.position - start)
                records.append((row, item.record.record_id, "ok", None, None, *counts, *block))
            tar.finish()
        for path, schema, rows in (
            (part.images_table(), DOWNLOAD_IMAGES, images),
            (part.records_table(), DOWNLOAD_RECORDS, records),
        ):
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            pq.write_table(pa.Table.from_arrays(columns, schema=schema), outputs.path(path))
    return part


def read_table(store: Store, path: str) -> list[dict[str, object]]:
    return pq.read_table(BytesIO(store.read(path))).to_pylist()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture
def mixed() -> list[Item | None]:
    """Documents and a pair; pictures and sentences that repeat, failed images, a row that is no record."""
    a, b, c, d = (jpeg(seed) for seed in range(4))
    return [
        document("d0", ["a red dog", "a blue cat", "the end"], [a, b], [1, 0]),
        None,
        document("d1", ["the end"], [a, c, d], [0, 0, 0]),
        document("d2", ["nothing here", "nobody"], [None], [0]),
        pair("p3", "a blue cat", b),
        document("d4", ["one", "two", "the end", "a red dog"], [d, None, a], [None, 1, 3]),
        pair("p5", "gone", None),
        document("d6", ["x " * 200, "héllo wörld 你好"], [jpeg(9, (64, 20))], [1]),
    ]


Build = Callable[[Sequence[Item | None]], Part]
