"""Encode one shard: its samples' JSON to one token file."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date as Date
from itertools import chain, islice, pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError
from vila_data.core.layout import shard_stem, tokens_folder
from vila_data.core.receipts import Receipt, committing
from vila_data.core.samples import decode_sample
from vila_data.core.store import Store
from vila_data.core.tables import TOKENS, read_parquet
from vila_data.encode.config import PackConfig
from vila_data.encode.samples import Sample, as_encoded, encode_samples
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
        """Directory of the set's token files."""
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
    index = _Index(store, job)
    columns: dict[str, list[Any]] = {"key": index.keys, "record_id": index.record_ids}
    columns |= {name: [] for name in ("tokens", "images_left_out", "tokens_cut", "fate", "detail")}
    lists = {name: _ListColumn() for name in ("ids", "trained", "images")}
    samples = index.samples(store)
    while batch := list(islice(samples, _BATCH)):
        sequences = encode_samples(batch, config, tokenizer)
        for row in range(len(columns["tokens"]), len(columns["tokens"]) + len(batch)):
            try:
                sequence = next(sequences)
            except DataError as error:
                raise DataError(f"{index.where(row)}: {error}") from error
            if sequence.images and max(sequence.images) >= index.counts[row]:
                raise DataError(
                    f"{index.where(row)}: its JSON names an image that is not in the tar; run check on the set"
                )
            _add(columns, lists, sequence)
    lists |= index.of_images(lists["images"])
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

_OF_IMAGES: Final = ("offsets", "sizes", "crc32c", "widths", "heights")
"""Columns of lists with an entry for each image, which are the shard's index's."""
_LISTS: Final = ("ids", "trained", "images", *_OF_IMAGES)


class _ListColumn:
    """Rows of integers: all values one after another, and where each row ends."""

    def __init__(self, values: Any = (), ends: array[int] | None = None) -> None:
        self.values = array("i") if ends is None else values
        self.ends = array("i", [0]) if ends is None else ends

    def add(self, values: Iterable[int]) -> None:
        self.values.extend(values)
        self.ends.append(len(self.values))

    def rows(self) -> Iterator[memoryview]:
        """The items of each row."""
        values = memoryview(self.values)
        return (values[first:last] for first, last in pairwise(self.ends))

    def array(self) -> pa.Array:
        return pa.ListArray.from_arrays(*(pa.array(np.asarray(part)) for part in (self.ends, self.values)))


def _add(columns: dict[str, list[Any]], lists: dict[str, _ListColumn], sequence: TokenSequence) -> None:
    ids, trained, images, tokens, left_out, cut, fate, detail = sequence
    columns["tokens"].append(tokens)
    columns["images_left_out"].append(left_out)
    columns["tokens_cut"].append(cut)
    columns["fate"].append(fate)
    columns["detail"].append(detail)
    lists["ids"].add(ids)
    lists["trained"].add(chain.from_iterable(trained))
    lists["images"].add(images)


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


class _Index:
    """The index of a shard, as far as encoding reads it.

    counts: images of each sample.
    """

    def __init__(self, store: Store, job: EncodeJob) -> None:
        stem = shard_stem(job.name, job.index)
        self._tar = f"{stem}.tar"
        self._location = store.location(self._tar)
        with store.open_read(f"{stem}.parquet") as stream:
            index = read_parquet(stream, columns=["key", "record_id", "members", *_OF_IMAGES])
        self.keys, self.record_ids = (index.column(name).to_pylist() for name in ("key", "record_id"))
        members, (offsets, sizes, checksums, widths, heights) = index.column("members"), index.columns[3:]
        is_image = pc.ends_with(pc.list_flatten(members), IMAGE_SUFFIX)
        values = [pc.list_flatten(column).filter(is_image) for column in (offsets, sizes, checksums)]
        values += [pc.list_flatten(column) for column in (widths, heights)]
        if len({*map(len, values)}) != 1:
            raise DataError(f"{store.location(stem)}.parquet: not an entry for each image; run check on the set")
        self._of_images = {name: column.to_numpy() for name, column in zip(_OF_IMAGES, values, strict=True)}
        self.counts = pc.list_value_length(widths).to_pylist()
        self._firsts = np.cumsum([0, *self.counts])
        self._json = [pc.list_element(column, 0).to_pylist() for column in (members, offsets, sizes, checksums)]

    def where(self, row: int) -> str:
        """A sample, for a message."""
        return f"{self._location}: {self.keys[row]}"

    def samples(self, store: Store) -> Iterator[Sample]:
        """The samples in order; only their JSON members are read."""
        sides = zip(self._of_images["widths"].tolist(), self._of_images["heights"].tolist(), strict=True)
        with store.open_read(self._tar) as tar:
            for count, member, offset, size, checksum in zip(self.counts, *self._json, strict=True):
                tar.seek(offset)
                data = tar.read(size)
                where = f"{self._location}: {member}"
                if crc32c(data) != checksum:
                    raise DataError(f"{where}: its bytes differ from the index; run check on the set")
                yield as_encoded(decode_sample(data, where), tuple(islice(sides, count)))

    def of_images(self, images: _ListColumn) -> dict[str, _ListColumn]:
        """_OF_IMAGES of each image of sequences. images: their numbers in each sample, for all samples of the shard."""
        places = np.asarray(images.values) + np.repeat(self._firsts[:-1], np.diff(images.ends))
        return {name: _ListColumn(column[places], images.ends) for name, column in self._of_images.items()}
