"""The stage for one shard: its samples' JSON to one token file."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vila_data.core.errors import DataError
from vila_data.core.layout import shard_stem, tokens_folder
from vila_data.core.receipts import Receipt, committing
from vila_data.core.schemas import TOKENS
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.encode.config import PackConfig
from vila_data.encode.draft import document_of
from vila_data.encode.fit import Sample, encode_samples
from vila_data.encode.sequence import OK, TokenSequence
from vila_data.encode.templates import Talk, exchanges_of
from vila_data.encode.tokenizer import TextTokenizer

_BATCH: Final = 512


@dataclass(frozen=True)
class EncodeJob:
    """One shard to encode. tokenizer, encoding: fingerprints, that of all of `pack:` being the latter."""

    name: str
    index: int
    tokenizer: str
    encoding: str
    inputs: str

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
        DataError: a sample's JSON cannot be read, or the tokenizer's template cannot write it.
    """
    columns: dict[str, list[Any]] = {name: [] for name in TOKENS.names if name not in _LISTS}
    lists = {name: _ListColumn() for name in _LISTS}
    samples = _samples(store, job)
    while batch := list(islice(samples, _BATCH)):
        sequences = encode_samples([sample for _, sample in batch], config, tokenizer)
        for (key, _), sequence in zip(batch, sequences, strict=True):
            _add(columns, lists, key, sequence)
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
)
"""Counters of a token file's receipt, beside `samples` and one of each fate that is not ok."""

_LISTS: Final = ("ids", "trained", "images")


class _ListColumn:
    """Rows of integers, kept as one array and where each row ends."""

    def __init__(self) -> None:
        self._values = array("i")
        self._ends = array("i", [0])

    def add(self, values: Iterable[int]) -> None:
        self._values.extend(values)
        self._ends.append(len(self._values))

    def array(self) -> pa.Array:
        ends, values = (pa.array(np.frombuffer(part, np.int32)) for part in (self._ends, self._values))
        return pa.ListArray.from_arrays(ends, values)


def _add(columns: dict[str, list[Any]], lists: dict[str, _ListColumn], key: str, sequence: TokenSequence) -> None:
    columns["key"].append(key)
    columns["tokens"].append(sequence.tokens)
    columns["images_left_out"].append(sequence.left_out)
    columns["tokens_cut"].append(sequence.cut)
    columns["fate"].append(sequence.fate)
    lists["ids"].add(sequence.ids)
    lists["trained"].add(chain.from_iterable(sequence.trained))
    lists["images"].add(sequence.images)


def _counts(table: pa.Table) -> dict[str, int]:
    """`samples`, COUNTS, and the number of each fate that is not ok."""
    tokens, left_out, cut = (table.column(name).to_numpy() for name in ("tokens", "images_left_out", "tokens_cut"))
    ids, trained, images = (pc.list_flatten(table.column(name)).to_numpy() for name in _LISTS)
    fates = Counter(table.column("fate").to_pylist())
    found = {
        "sequences": fates[OK],
        "tokens": tokens.sum(),
        "text_tokens": len(ids) - len(images),
        "trained_tokens": trained[1::2].sum() - trained[::2].sum(),
        "images": len(images),
        "images_left_out": left_out.sum(),
        "samples_cut": np.count_nonzero(cut[tokens > 0]),
        "tokens_cut": cut.sum(),
    }
    failed = {f"failed:{fate}": count for fate, count in sorted(fates.items()) if fate != OK}
    return {"samples": table.num_rows, **{name: int(found[name]) for name in COUNTS}, **failed}


def _samples(store: Store, job: EncodeJob) -> Iterator[tuple[str, Sample]]:
    """(key, sample) of a shard in order; only the JSON members are read."""
    stem = shard_stem(job.name, job.index)
    with store.open_read(f"{stem}.parquet") as stream:
        index = read_parquet(stream, columns=["key", "members", "offsets", "sizes"])
    places = [pc.list_element(index.column(name), 0).to_pylist() for name in ("offsets", "sizes")]
    with store.open_read(f"{stem}.tar") as tar:
        for row, (key, offset, size) in enumerate(zip(index.column("key").to_pylist(), *places, strict=True)):
            tar.seek(offset)
            data = tar.read(size)
            try:
                yield key, _sample(json.loads(data.decode()))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{store.location(stem)}.tar: {index.column('members')[row][0]}"
                raise DataError(f"{where}: not a sample's JSON: {error!r}; run check on the set") from error


def _sample(value: dict[str, Any]) -> Sample:
    if "conversations" in value:
        return Talk(exchanges_of(value["conversations"]), value["system"])
    return document_of(value)
