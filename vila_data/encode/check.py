"""Is what a set's token files say of themselves what is in them: lengths.parquet and manifest.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from vila_data.core.errors import DataError, StorageError
from vila_data.core.receipts import read_receipt
from vila_data.core.schemas import LENGTHS
from vila_data.core.store import Store
from vila_data.encode.part import EncodeJob
from vila_data.encode.tokens import TokenManifest, TokenSet, lengths_of, read_token_manifest


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
            yield f"{where}: is of another folder"
            return
        if _counted(store, jobs) != Counter(manifest.counts):
            yield f"{where}: its counts are not the sums of the receipts"
        yield from _check_lengths(store, folder, manifest, jobs)
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
        found = pa.concat_tables([LENGTHS.empty_table(), *(lengths_of(store, job) for job in jobs)])
    except (pa.ArrowException, StorageError):
        return  # a token file is missing or damaged: its receipt's check says so
    if not lengths.equals(found):
        yield f"{store.location(f'{folder}/lengths.parquet')}: not the lengths of its token files"
