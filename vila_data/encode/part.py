"""The stage for one shard: its samples' JSON to one token file."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date as Date
from itertools import chain, islice
from typing import Any, Final, NamedTuple

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
from vila_data.encode.conversation import Conversation
from vila_data.encode.draft import document_of
from vila_data.encode.fit import Sample, encode_samples
from vila_data.encode.sequence import OK, TokenSequence
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
        for (row, _), sequence in zip(batch, sequences, strict=True):
            if max(sequence.images, default=-1) >= len(row.places):
                where = f"{store.location(shard_stem(job.name, job.index))}.tar: {row.key}"
                raise DataError(f"{where}: its JSON names an image that is no member; run check on the set")
            _add(columns, lists, row, sequence)
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

_LISTS: Final = {"ids": "i", "trained": "i", "images": "i", "offsets": "q", "sizes": "q"}
"""Columns of lists of integers: array's code of their items."""


class _ListColumn:
    """Rows of integers, kept as one array and where each row ends."""

    def __init__(self, kind: str) -> None:
        self._values = array(kind)
        self._ends = array("i", [0])

    def add(self, values: Iterable[int]) -> None:
        self._values.extend(values)
        self._ends.append(len(self._values))

    def array(self) -> pa.Array:
        ends, values = (pa.array(np.frombuffer(part, part.typecode)) for part in (self._ends, self._values))
        return pa.ListArray.from_arrays(ends, values)


class _Row(NamedTuple):
    """A sample as the shard's index has it; places: (offset, size) of each of its images, in their order."""

    key: str
    record_id: str
    places: list[tuple[int, int]]


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
    lists["offsets"].add(row.places[image][0] for image in sequence.images)
    lists["sizes"].add(row.places[image][1] for image in sequence.images)


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
    with store.open_read(f"{stem}.parquet") as stream:
        index = read_parquet(stream, columns=["key", "record_id", "members", "offsets", "sizes"])
    with store.open_read(f"{stem}.tar") as tar:
        for key, record_id, members, *held in zip(*(column.to_pylist() for column in index.columns), strict=True):
            (offset, size), *others = zip(*held, strict=True)
            tar.seek(offset)
            data = tar.read(size)
            try:
                sample = _sample(json.loads(data.decode()))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{store.location(stem)}.tar: {members[0]}"
                raise DataError(f"{where}: not a sample's JSON: {error!r}; run check on the set") from error
            images = [place for name, place in zip(members[1:], others, strict=True) if name.endswith(IMAGE_SUFFIX)]
            yield _Row(key, record_id, images), sample


def _sample(value: dict[str, Any]) -> Sample:
    if "conversations" in value:
        return Conversation.of(value)
    return document_of(value)
