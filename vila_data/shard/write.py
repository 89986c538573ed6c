"""Lay the kept records out over shards in a seeded shuffle, and write each shard with its index.

The layout is made from columns alone. The order is a function of the seed, the set's name and the kept records; the
cut, of an upper bound on each sample's size, so that no shard passes its limit. Memory: about 100 bytes per image.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError
from vila_data.core.layout import Part, record_key, shard_stem
from vila_data.core.ranges.reader import Span, read_shuffled
from vila_data.core.receipts import Receipt, committing
from vila_data.core.records import Record, record_from_json
from vila_data.core.samples import KeptImage, encode_sample
from vila_data.core.store import Store
from vila_data.core.tables import SHARD_INDEX, read_parquet
from vila_data.core.tarcodec import BLOCK, TarWriter, member_bytes
from vila_data.shard.config import View
from vila_data.shard.manifest import tar_index

_JSON_BYTES_A_SAMPLE = 800
_JSON_BYTES_AN_IMAGE = 500
_JSON_BYTES_A_TEXT = 8


@dataclass(frozen=True)
class SampleRefs:
    """Samples in order (s of them), each with its kept images (k in all) in reading order.

    part, row:      the record; offset, json_bytes: its JSON member in the part's tar, header first.
    json_digest:    the first 64 bits of the JSON's sha256.
    images_end:     int64[s], where each sample's images end among the k.
    image_offset, image_bytes, digest: where an image's bytes are, and the first 64 bits of their sha256.
    width, height:  of the stored image, pixels.
    text_index:     the sentence it comes before; similarity: to that sentence, NaN if not scored.
    size_bound:     int64[s], bytes that the sample takes in a tar at most.
    """

    part: NDArray[np.int32]
    row: NDArray[np.int32]
    offset: NDArray[np.int64]
    json_bytes: NDArray[np.int64]
    json_digest: NDArray[np.uint64]
    size_bound: NDArray[np.int64]
    images_end: NDArray[np.int64]
    image_index: NDArray[np.int32]
    image_offset: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    digest: NDArray[np.uint64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    text_index: NDArray[np.int32]
    similarity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)

    def images_of(self, sample: int) -> range:
        """Positions of a sample's images among the k."""
        return range(int(self.images_end[sample - 1]) if sample else 0, int(self.images_end[sample]))

    def take(self, order: NDArray[np.int64]) -> SampleRefs:
        """The samples of `order`, in that order."""
        ends = self.images_end
        starts = np.r_[0, ends[:-1]] if len(ends) else ends
        counts = (ends - starts)[order]
        new_ends = np.cumsum(counts)
        images = np.arange(int(new_ends[-1]) if len(new_ends) else 0) + np.repeat(
            starts[order] - (new_ends - counts), counts
        )
        values = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            values[entry.name] = value[order] if entry.name in _PER_SAMPLE else value[images]
        values["images_end"] = new_ends
        return SampleRefs(**values)


_PER_SAMPLE = {"part", "row", "offset", "json_bytes", "json_digest", "size_bound", "images_end"}


def plan_shards(
    store: Store, parts: Iterable[Part], view: View, name: str, seed: int, max_bytes: int
) -> list[SampleRefs]:
    """The samples of each shard of a set, in order; an empty list where nothing was kept."""
    refs = _joined([_part_refs(store, part, view) for part in parts])
    if not len(refs):
        return []
    shuffled = refs.take(shuffle(len(refs), seed, name))
    cuts = even_cuts(shuffled.size_bound, max_bytes)
    return [shuffled.take(np.arange(first, last)) for first, last in itertools.pairwise(cuts)]


def shuffle(count: int, seed: int, name: str) -> NDArray[np.int64]:
    """A permutation of `count` items that depends on seed and name alone (PCG64)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.PCG64(key)).permutation(count)


def even_cuts(sizes: NDArray[np.int64], max_bytes: int) -> list[int]:
    """Bounds of the fewest runs that stay within `max_bytes` (single items aside), the largest as small as can be."""
    high = max_bytes - 2 * BLOCK
    ends = np.cumsum(sizes)
    fewest = _filled(ends, high)
    low = int(ends[-1]) // (len(fewest) - 1)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(ends, middle)) > len(fewest):
            low = middle + 1
        else:
            high = middle
    return _filled(ends, high)


def _filled(ends: NDArray[np.int64], limit: int) -> list[int]:
    """Bounds of runs filled up to `limit` one after the other; an item above it is a run of its own."""
    bounds, before = [0], 0
    while bounds[-1] < len(ends):
        stop = max(bounds[-1] + 1, int(np.searchsorted(ends, before + limit, side="right")))
        bounds.append(stop)
        before = int(ends[stop - 1])
    return bounds


def record_bound(
    json_bytes: NDArray[np.int64], n_texts: NDArray[np.int64], n_images: NDArray[np.int64]
) -> NDArray[np.int64]:
    """int64[s], bytes that whole records take in a tar at most, without their images."""
    text = 2 * json_bytes + _JSON_BYTES_A_SAMPLE + _JSON_BYTES_AN_IMAGE * n_images + _JSON_BYTES_A_TEXT * n_texts
    return member_bytes_of(text) + 2 * BLOCK


def pair_bound(json_bytes: NDArray[np.int64], image_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[s], bytes that samples of the view `pairs` take at most; their text is in two members."""
    text = 2 * json_bytes + _JSON_BYTES_A_SAMPLE + _JSON_BYTES_AN_IMAGE
    return member_bytes_of(text) + 2 * BLOCK + member_bytes_of(image_bytes)


def count_shards(size_bounds: NDArray[np.int64], name: str, seed: int, max_bytes: int) -> int:
    """How many shards `plan_shards` makes of samples with these bounds, given in the order of parts and rows."""
    if not len(size_bounds):
        return 0
    return len(even_cuts(size_bounds[shuffle(len(size_bounds), seed, name)], max_bytes)) - 1


def _part_refs(store: Store, part: Part, view: View) -> SampleRefs:
    with store.open_read(part.fates_table()) as stream:
        fates = read_parquet(stream, columns=["row", "image_index", "fate", "text_index", "similarity"])
    with store.open_read(part.records_table()) as stream:
        records = read_parquet(stream, columns=["row", "n_texts", "offset", "json_bytes", "json_sha256"])
    with store.open_read(part.images_table()) as stream:
        images = read_parquet(stream, columns=["offset", "bytes", "sha256", "width", "height"])
    is_image = pc.is_valid(fates.column("image_index"))
    is_kept = pc.equal(fates.column("fate"), "kept")
    kept_rows = fates.filter(pc.and_(is_kept, pc.invert(is_image))).column("row").to_numpy()
    # The image rows of `fates` and of `images` are the same rows in the same order.
    image_fates = fates.filter(is_image)
    kept = pc.equal(image_fates.column("fate"), "kept")
    refs = _document_refs(part, records, kept_rows, image_fates.filter(kept), images.filter(kept))
    return _one_image_each(refs) if view == "pairs" else refs


def _document_refs(
    part: Part,
    records: pa.Table,
    rows: NDArray[np.int64],
    fates: pa.Table,
    images: pa.Table,
) -> SampleRefs:
    """fates, images: rows of the kept images, the same ones in both."""
    image_row = fates.column("row").to_numpy()
    image_index = fates.column("image_index").to_numpy()
    text_index = fates.column("text_index").to_numpy()
    image_bytes = images.column("bytes").to_numpy().astype(np.int64)
    reading = np.lexsort((image_index, text_index, image_row))  # docs/sources.md: by sentence, then as published
    ends = np.searchsorted(image_row, rows, side="right").astype(np.int64)
    starts = np.searchsorted(image_row, rows, side="left")
    counts = ends - starts
    json_bytes = records.column("json_bytes").to_numpy()[rows].astype(np.int64)
    n_texts = records.column("n_texts").to_numpy()[rows]
    padded = np.r_[0, np.cumsum(member_bytes_of(image_bytes))]
    return SampleRefs(
        part=np.full(len(rows), part.index, np.int32),
        row=rows.astype(np.int32),
        offset=records.column("offset").to_numpy(zero_copy_only=False)[rows].astype(np.int64),
        json_bytes=json_bytes,
        json_digest=_digests(records.column("json_sha256").take(pa.array(rows))),
        size_bound=record_bound(json_bytes, n_texts, counts) + padded[ends] - padded[starts],
        images_end=np.cumsum(counts),
        image_index=image_index[reading].astype(np.int32),
        image_offset=images.column("offset").to_numpy()[reading].astype(np.int64),
        image_bytes=image_bytes[reading],
        digest=_digests(images.column("sha256"))[reading],
        width=images.column("width").to_numpy()[reading].astype(np.int32),
        height=images.column("height").to_numpy()[reading].astype(np.int32),
        text_index=text_index[reading].astype(np.int32),
        similarity=fates.column("similarity").to_numpy(zero_copy_only=False)[reading].astype(np.float32),
    )


def _one_image_each(refs: SampleRefs) -> SampleRefs:
    """A sample for each image; the record is repeated."""
    counts = np.diff(np.r_[0, refs.images_end])
    sample = np.repeat(np.arange(len(refs)), counts)
    values = {entry.name: getattr(refs, entry.name) for entry in fields(refs)}
    values |= {name: values[name][sample] for name in _PER_SAMPLE}
    values["images_end"] = np.arange(1, len(sample) + 1)
    values["size_bound"] = pair_bound(refs.json_bytes[sample], refs.image_bytes)
    return SampleRefs(**values)


def _joined(pieces: Sequence[SampleRefs]) -> SampleRefs:
    if not pieces:
        return _nothing()
    shifts = np.cumsum([0, *(len(piece.image_index) for piece in pieces[:-1])])
    values = {
        entry.name: np.concatenate([getattr(piece, entry.name) for piece in pieces]) for entry in fields(SampleRefs)
    }
    values["images_end"] = np.concatenate(
        [piece.images_end + shift for piece, shift in zip(pieces, shifts, strict=True)]
    )
    return SampleRefs(**values)


def _nothing() -> SampleRefs:
    values: dict[str, Any] = {entry.name: np.empty(0, np.int64) for entry in fields(SampleRefs)}
    return SampleRefs(**values)


def member_bytes_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`tarcodec.member_bytes` of an array."""
    assert member_bytes(1) == 2 * BLOCK
    return BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK


def _digests(sha256: pa.ChunkedArray) -> NDArray[np.uint64]:
    return np.array([int(value[:16], 16) for value in sha256.to_pylist()], dtype=np.uint64)


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: set, number, view, samples, and the parts that they are in."""

    name: str
    index: int
    view: View
    corpus: str
    samples: SampleRefs
    parts: dict[int, Part]
    inputs: str

    def receipt(self) -> str:
        """The shard's receipt; in a directory of its own, since readers list the shards' directory."""
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
            raise DataError(f"{where}: the record at byte {start} has changed since it was downloaded")
        record = record_from_json(content, f"{where}: byte {start + BLOCK}")
        yield record, [_image(refs, i, data, start, where) for i in refs.images_of(sample)]


def _span(job: ShardJob, sample: int) -> Span:
    """Where a record is in its part's tar, from its header to the last of its kept images."""
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
        raise DataError(f"{tar}: the image at byte {refs.image_offset[i]} has changed since it was downloaded")
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
