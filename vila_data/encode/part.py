"""The stage for one shard: its samples' JSON to one token file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date as Date
from itertools import chain, islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError
from vila_data.core.layout import shard_stem, tokens_folder
from vila_data.core.receipts import Receipt, committing
from vila_data.core.samples import decode_sample
from vila_data.core.schemas import TOKENS
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.encode.config import PackConfig
from vila_data.encode.fit import Sample, as_encoded, encode_samples
from vila_data.encode.sequence import OK, TokenSequence
from vila_data.encode.token_set import row_crc32c
from vila_data.encode.tokenizer import TextTokenizer

IMAGE_SUFFIX: Final = ".jpg"
"""Of the members that are a sample's images, in their order."""
_BATCH: Final = 512


@dataclass(frozen=True)
class EncodeJob:
    """One shard to encode.

    tokenizer, encoding: fingerprints; that of all of `pack:` is the latter.
    date:                what a chat template that writes the date writes; None where the recipe says it, or none does.
    """

    name: str
    index: int
    tokenizer: str
    encoding: str
    inputs: str
    date: Date | None = None

    @property
    def folder(self) -> str:
        """Where the set's token files lie."""
        return tokens_folder(self.tokenizer, self.name, self.encoding)

    def path(self) -> str:
        """The shard's token file."""
        return f"{self.folder}/{self.name}-{self.index:06d}.arrow"

    def receipt(self) -> str:
        """The shard's receipt."""
        return f"{self.folder}/.receipts/{self.name}-{self.index:06d}.json"


def encode_shard(store: Store, job: EncodeJob, config: PackConfig, tokenizer: TextTokenizer) -> Receipt:
    """Write the token file of a shard and its receipt.

    Raises:
        DataError: a sample's JSON cannot be read or names an image that is not there.
    """
    if job.date is not None:
        config = config.model_copy(update={"date": job.date})
    columns: dict[str, list[Any]] = {name: [] for name in TOKENS.names if name not in _LISTS}
    lists = {name: _ListColumn(kind) for name, kind in _LISTS.items()}
    samples = _samples(store, job)
    while batch := list(islice(samples, _BATCH)):
        sequences = encode_samples([sample for _, sample in batch], config, tokenizer)
        for row, _ in batch:
            where = f"{store.location(shard_stem(job.name, job.index))}.tar: {row.key}"
            try:
                sequence = next(sequences)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            if max(sequence.images, default=-1) >= len(row.images):
                raise DataError(f"{where}: its JSON names an image that is no member; run check on the set")
            _add(columns, lists, row, sequence)
    columns["row_crc32c"] = _row_checksums(columns, lists)
    with committing(store, job.receipt(), job.inputs) as outputs:
        arrays = [lists[name].array() if name in lists else columns[name] for name in TOKENS.names]
        table = pa.Table.from_arrays(
            [
                pa.array(array, field.type) if isinstance(array, list) else array
                for array, field in zip(arrays, TOKENS, strict=True)
            ],
            schema=TOKENS,
        )
        with pa.OSFile(str(outputs.path(job.path())), "wb") as stream, pa.ipc.new_file(stream, TOKENS) as writer:
            writer.write_table(table.combine_chunks())
        outputs.counts = _counts(table)
    assert outputs.receipt is not None
    return outputs.receipt


COUNTS: Final = (
    "sequences",
    "tokens",
    "text_tokens",
    "trained_tokens",
    "images",
    "images_left_out",
    "samples_cut",
    "tokens_cut",
    "untrained",
)
"""Counters of a token file's receipt, next to `samples` and one for each fate that is not ok; untrained: sequences that
the fidelity modes keep although nothing in them is trained."""
_MOST_DETAILS: Final = 16
"""Different words of chat templates that a receipt counts by themselves."""

_OF_IMAGES: Final = {"offsets": "q", "sizes": "q", "crc32c": "I", "widths": "i", "heights": "i"}
_LISTS: Final = {"ids": "i", "trained": "i", "images": "i", **_OF_IMAGES}
"""Columns of lists of integers, of which those of images are in the shard's index: array's code of their items."""


class _ListColumn:
    """Rows of integers, kept as one array and where each row ends."""

    def __init__(self, kind: str) -> None:
        self._values = array(kind)
        self._ends = array("i", [0])

    def add(self, values: Iterable[int]) -> None:
        self._values.extend(values)
        self._ends.append(len(self._values))

    def rows(self) -> Iterator[memoryview]:
        """The items of each row."""
        values = memoryview(self._values)
        return (values[first:last] for first, last in pairwise(self._ends))

    def array(self) -> pa.Array:
        ends, values = (pa.array(np.frombuffer(part, part.typecode)) for part in (self._ends, self._values))
        return pa.ListArray.from_arrays(ends, values)


class _Row(NamedTuple):
    """A sample as the shard's index has it. images: values of _OF_IMAGES of each of its images, in their order."""

    key: str
    record_id: str
    images: list[tuple[int, ...]]


def _add(columns: dict[str, list[Any]], lists: dict[str, _ListColumn], row: _Row, sequence: TokenSequence) -> None:
    columns["key"].append(row.key)
    columns["record_id"].append(row.record_id)
    columns["tokens"].append(sequence.tokens)
    columns["images_left_out"].append(sequence.left_out)
    columns["tokens_cut"].append(sequence.cut)
    columns["fate"].append(sequence.fate)
    columns["detail"].append(sequence.detail)
    lists["ids"].add(sequence.ids)
    lists["trained"].add(chain.from_iterable(sequence.trained))
    lists["images"].add(sequence.images)
    images = [row.images[image] for image in sequence.images]
    for at, name in enumerate(_OF_IMAGES):
        lists[name].add([image[at] for image in images])


def _row_checksums(columns: dict[str, list[Any]], lists: dict[str, _ListColumn]) -> list[int]:
    held = (columns[name] for name in ("key", "record_id", "tokens"))
    rows = zip(*held, *(lists[name].rows() for name in _LISTS), strict=True)
    return [row_crc32c(key.encode(), record_id.encode(), tokens, *found) for key, record_id, tokens, *found in rows]


def _counts(table: pa.Table) -> dict[str, int]:
    """`samples`, COUNTS, and the number of each fate that is not ok."""
    tokens, left_out, cut = (table.column(name).to_numpy() for name in ("tokens", "images_left_out", "tokens_cut"))
    ids, trained, images = (pc.list_flatten(table.column(name)).to_numpy() for name in ("ids", "trained", "images"))
    fates = Counter(zip(table.column("fate").to_pylist(), table.column("detail").to_pylist(), strict=True))
    found = {
        "sequences": fates[OK, ""],
        "tokens": tokens.sum(),
        "text_tokens": len(ids) - len(images),
        "trained_tokens": trained[1::2].sum() - trained[::2].sum(),
        "images": len(images),
        "images_left_out": left_out.sum(),
        "samples_cut": np.count_nonzero(cut[tokens > 0]),
        "tokens_cut": cut.sum(),
        "untrained": fates[OK, ""] - np.count_nonzero(pc.list_value_length(table.column("trained")).to_numpy()),
    }
    failed: Counter[str] = Counter()
    for (fate, detail), count in sorted(fates.items(), key=lambda entry: (-entry[1], entry[0])):
        if fate != OK:
            named = f"failed:{fate}: {detail}" if detail and len(failed) < _MOST_DETAILS else f"failed:{fate}"
            failed[named] += count
    return {"samples": table.num_rows, **{name: int(found[name]) for name in COUNTS}, **failed}


def _samples(store: Store, job: EncodeJob) -> Iterator[tuple[_Row, Sample]]:
    """Samples of a shard in order; only the JSON members are read."""
    stem = shard_stem(job.name, job.index)
    tar_path = store.location(f"{stem}.tar")
    with store.open_read(f"{stem}.parquet") as stream:
        index = read_parquet(stream, columns=["key", "record_id", "members", *_OF_IMAGES])
    names, (offsets, sizes, checksums, widths, heights) = index.column("members"), index.columns[3:]
    is_image = pc.ends_with(pc.list_flatten(names), IMAGE_SUFFIX)
    of_images = [pc.list_flatten(column).filter(is_image) for column in (offsets, sizes, checksums)]
    of_images += [pc.list_flatten(column) for column in (widths, heights)]
    if len({*map(len, of_images)}) != 1:
        raise DataError(f"{store.location(stem)}.parquet: not an entry for each image; run check on the set")
    images = zip(*(column.to_pylist() for column in of_images), strict=True)
    counts = pc.list_value_length(widths).to_pylist()
    firsts = (pc.list_element(column, 0).to_pylist() for column in (names, offsets, sizes, checksums))
    rows = zip(index.column("key").to_pylist(), index.column("record_id").to_pylist(), counts, *firsts, strict=True)
    with store.open_read(f"{stem}.tar") as tar:
        for key, record_id, count, member, offset, size, checksum in rows:
            tar.seek(offset)
            data = tar.read(size)
            if crc32c(data) != checksum:
                raise DataError(f"{tar_path}: {member}: its bytes are not those of the index; run check on the set")
            row = _Row(key, record_id, list(islice(images, count)))
            sample = as_encoded(decode_sample(data, f"{tar_path}: {member}"))
            yield row, sample._replace(sides=tuple([(width, height) for *_, width, height in row.images]))
