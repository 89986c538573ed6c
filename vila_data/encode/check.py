"""Is what token files say true: of themselves in lengths.parquet and manifest.json, and of the shards' images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError, StorageError
from vila_data.core.layout import shard_stem
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.core.tables import LENGTHS, TOKENS, parsing, read_arrow, read_table
from vila_data.encode.part import IMAGE_SUFFIX, EncodeJob
from vila_data.encode.tokens import TokenManifest, TokenSet, lengths_of, read_token_manifest

_OF_MEMBERS: Final = ("offsets", "sizes", "crc32c")
_OF_IMAGES: Final = ("widths", "heights")
"""Columns of lists that a token file takes from the shard's index, there an entry per member and per image."""


def check_tokens(store: Store, folder: str) -> Iterator[str]:
    """One sentence for each thing that is wrong in `folder`, receipts aside; nothing of an encoding not finished."""
    where = store.location(f"{folder}/manifest.json")
    try:
        manifest = read_token_manifest(store, folder)
        if manifest is None:
            return
        jobs = [
            EncodeJob(manifest.name, index, manifest.tokenizer, manifest.encoding, "")
            for index in range(manifest.shards)
        ]
        if any(job.folder != folder for job in jobs):
            yield f"{where}: belongs to a different directory"
            return
        if _counted(store, jobs) != Counter(manifest.counts):
            yield f"{where}: its counts do not equal the sums of the receipts"
        yield from _check_lengths(store, folder, manifest, jobs)
        tokens = TokenSet(store, manifest, folder)
        for job in jobs:
            yield from _check_places(store, job, tokens)
    except (DataError, StorageError) as error:
        yield str(error)


def _counted(store: Store, jobs: list[EncodeJob]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for job in jobs:
        receipt = read_receipt(store, job.receipt())
        counts.update(receipt.counts if receipt is not None else {})
    return counts


def _check_lengths(store: Store, folder: str, manifest: TokenManifest, jobs: list[EncodeJob]) -> Iterator[str]:
    lengths = TokenSet(store, manifest, folder).lengths()
    try:
        with parsing(store.location(folder)):
            found = pa.concat_tables([LENGTHS.empty_table(), *(lengths_of(store, job) for job in jobs)])
    except (DataError, StorageError):
        return  # a token file is missing or damaged: its receipt's check says so
    if not lengths.equals(found):
        yield f"{store.location(f'{folder}/lengths.parquet')}: not the lengths of its token files"


def _check_places(store: Store, job: EncodeJob, rows: TokenSet) -> Iterator[str]:
    """Whether a token file's rows have their checksums, and are, with their images, those of the shard's index."""
    where = store.location(job.path())
    try:
        with store.open_read(job.path()) as stream, parsing(where):
            tokens = read_arrow(stream)
        columns = ["key", "record_id", "members", *_OF_MEMBERS, *_OF_IMAGES]
        index = read_table(store, f"{shard_stem(job.name, job.index)}.parquet", columns)
    except (DataError, StorageError):
        return  # missing or damaged: a receipt's check says so
    if not tokens.schema.equals(TOKENS):
        yield f"{where}: has not the columns of this version; delete {job.folder} and run the recipe again"
    elif any(not tokens.column(name).equals(index.column(name)) for name in ("key", "record_id")):
        yield f"{where}: its samples are not those of the shard's index; delete it and run the recipe again"
    elif (row := _misplaced(tokens, index)) is not None:
        key = tokens.column("key")[row].as_py()
        yield f"{where}: row {row} ({key}): its images are not in the tar as it says; delete it and run the recipe again"
    else:
        for row in range(tokens.num_rows):
            rows.sample(job.index, row)


def _misplaced(tokens: pa.Table, index: pa.Table) -> int | None:
    """The first row whose images have other places, checksums or pixels in the shard's index; None where all agree."""
    counts = _counts(tokens, "images")
    differing = np.zeros(len(counts), np.bool_)
    for name in (*_OF_MEMBERS, *_OF_IMAGES):
        differing |= _counts(tokens, name) != counts
    if differing.any():
        return int(differing.argmax())
    row = np.repeat(np.arange(len(counts)), counts)
    image = pc.ends_with(pc.list_flatten(index.column("members")), IMAGE_SUFFIX).to_numpy(zero_copy_only=False)
    of_row = np.repeat(np.arange(index.num_rows), _counts(index, "members"))[image]
    first = np.searchsorted(of_row, np.arange(index.num_rows + 1))
    number = pc.list_flatten(tokens.column("images")).to_numpy()
    wrong = (number < 0) | (number >= np.diff(first)[row])
    place = np.where(wrong, 0, first[row] + number)
    for name in (*_OF_MEMBERS, *_OF_IMAGES):
        held, said = (pc.list_flatten(table.column(name)).to_numpy() for table in (index, tokens))
        of_images = held[image] if name in _OF_MEMBERS else held
        if len(of_images) != len(of_row):
            return 0
        wrong |= np.append(of_images.astype(np.int64), -1)[place] != said
    return int(row[wrong.argmax()]) if wrong.any() else None


def _counts(table: pa.Table, column: str) -> NDArray[np.int64]:
    """int64[n]: the length of each row's list."""
    counts: NDArray[np.int64] = pc.list_value_length(table.column(column)).to_numpy().astype(np.int64)
    return counts
