"""Write one shard and its index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError
from vila_data.core.layout import Part, record_key, shard_stem
from vila_data.core.ranges.reader import Span, read_shuffled
from vila_data.core.receipts import Receipt, committing
from vila_data.core.records import Record, record_from_json
from vila_data.core.samples import KeptImage, encode_sample
from vila_data.core.store import Store
from vila_data.core.tables import SHARD_INDEX
from vila_data.core.tarcodec import BLOCK, TarWriter
from vila_data.shard.config import View
from vila_data.shard.energon import tar_index
from vila_data.shard.layout import SampleRefs


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: set, number, view, samples, and the parts that they lie in."""

    name: str
    index: int
    view: View
    corpus: str
    samples: SampleRefs
    parts: dict[int, Part]
    inputs: str

    def receipt(self) -> str:
        """The shard's receipt; in a folder of its own, since readers list the shards' folder."""
        return f"shards/{self.name}/.receipts/{self.name}-{self.index:06d}.json"


def write_shard(store: Store, job: ShardJob) -> Receipt:
    """Write `<set>-NNNNNN.tar`, its index (ours, and Energon's) and its receipt.

    Raises:
        DataError: an image's bytes are not those that were downloaded, or a record cannot be read.
    """
    stem = shard_stem(job.name, job.index)
    with committing(store, job.receipt(), job.inputs) as outputs:
        rows: list[dict[str, Any]] = []
        with outputs.open(f"{stem}.tar") as stream:
            tar = TarWriter(stream)
            for sample, (record, images) in enumerate(_read(store, job)):
                rows.append(_add(tar, job, sample, record, images))
            starts = [row["offsets"][0] - BLOCK for row in rows]
            outputs.path(f"{stem}.tar.idx").write_bytes(tar_index(starts, tar.position))
            tar.finish()
        pq.write_table(pa.Table.from_pylist(rows, SHARD_INDEX), outputs.path(f"{stem}.parquet"), compression="zstd")
        outputs.counts = {"samples": len(rows), "images": sum(row["n_images"] for row in rows)}
    assert outputs.receipt is not None
    return outputs.receipt


def _add(tar: TarWriter, job: ShardJob, sample: int, record: Record, images: list[KeptImage]) -> dict[str, Any]:
    key = record_key(job.name, int(job.samples.part[sample]), int(job.samples.row[sample]))
    text_chars = sum(map(len, record.texts))
    if job.view == "pairs":
        key = f"{key}-{images[0].image_index:03d}"
        text_chars = len(record.text_of(images[0].text_index))
    members = encode_sample(job.view, key, job.corpus, record, images)
    placed = [tar.add(name, content) for name, content in members]
    return {
        "key": key,
        "record_id": record.record_id,
        "n_images": len(images),
        "text_chars": text_chars,
        "members": [member.name for member in placed],
        "offsets": [member.offset for member in placed],
        "sizes": [member.size for member in placed],
        "crc32c": [crc32c(content) for _, content in members],
        "widths": [image.width for image in images],
        "heights": [image.height for image in images],
        "similarities": [image.similarity for image in images],
    }


def _read(store: Store, job: ShardJob) -> Iterator[tuple[Record, list[KeptImage]]]:
    """Each sample's record and its kept images, in order."""
    for sample, data in enumerate(read_shuffled(store, (_span(job, sample) for sample in range(len(job.samples))))):
        refs = job.samples
        where = store.location(job.parts[int(refs.part[sample])].images_tar())
        start = int(refs.offset[sample])
        content = data[BLOCK : BLOCK + int(refs.json_bytes[sample])]
        if _digest(hashlib.sha256(content).hexdigest()) != int(refs.json_digest[sample]):
            raise DataError(f"{where}: the record at byte {start} is not the one that was downloaded")
        record = record_from_json(content, f"{where}: byte {start + BLOCK}")
        yield record, [_image(refs, i, data, start, where) for i in refs.images_of(sample)]


def _span(job: ShardJob, sample: int) -> Span:
    """Where a record lies in its part's tar, from its header to the last of its kept images."""
    refs = job.samples
    start = int(refs.offset[sample])
    ends = (int(refs.image_offset[i] + refs.image_bytes[i]) for i in refs.images_of(sample))
    stop = max([start + BLOCK + int(refs.json_bytes[sample]), *ends])
    return Span(job.parts[int(refs.part[sample])].images_tar(), start, stop - start)


def _image(refs: SampleRefs, i: int, data: bytes, start: int, tar: str) -> KeptImage:
    at = int(refs.image_offset[i]) - start
    jpeg = data[at : at + int(refs.image_bytes[i])]
    sha256 = hashlib.sha256(jpeg).hexdigest()
    if _digest(sha256) != int(refs.digest[i]):
        raise DataError(f"{tar}: the image at byte {refs.image_offset[i]} is not the one that was downloaded")
    similarity = refs.similarity[i]
    return KeptImage(
        image_index=int(refs.image_index[i]),
        text_index=int(refs.text_index[i]),
        similarity=None if np.isnan(similarity) else float(similarity),
        sha256=sha256,
        width=int(refs.width[i]),
        height=int(refs.height[i]),
        jpeg=jpeg,
    )


def _digest(sha256: str) -> int:
    return int(sha256[:16], 16)
