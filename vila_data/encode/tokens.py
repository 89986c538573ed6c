"""Token files: where a set's are, its lengths, and one sample's ids and labels by number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.layout import tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.schemas import LENGTHS, SCHEMA_VERSION
from vila_data.core.store import Store
from vila_data.core.tables import read_arrow, read_parquet
from vila_data.encode.config import PackConfig
from vila_data.encode.part import COUNTS, EncodeJob
from vila_data.encode.sequence import IGNORED
from vila_data.encode.tokenizer import TextTokenizer

ENCODING_VERSION: Final = 1
"""Raised when the same samples would give other tokens."""
_READERS: Final = 8
_OPEN_FILES: Final = 64


def encoding_fingerprint(config: PackConfig, tokenizer: TextTokenizer) -> str:
    """16 hex digits of everything but the samples that token files depend on."""
    value = config.model_dump(mode="json", exclude={"tokenizer", "micro_batch"})
    chat = tokenizer.chat_template if config.template == "chat" else None
    return fingerprint([value, tokenizer.fingerprint, chat, ENCODING_VERSION, SCHEMA_VERSION])


@dataclass(frozen=True)
class TokenManifest:
    """What a set's token files hold: tokens/…/manifest.json, written last.

    counts: of encode.part.COUNTS, `samples`, and failed:<fate>; shards: how many token files.
    """

    name: str
    tokenizer: str
    encoding: str
    inputs: str
    shards: int
    counts: dict[str, int]


def finish_tokens(
    store: Store, name: str, jobs: Sequence[EncodeJob], receipts: Sequence[Receipt], folder: str, inputs: str
) -> TokenManifest:
    """Write a set's `lengths.parquet` and, last, its manifest; delete token files of an earlier layout."""
    wanted = {path for job in jobs for path in (job.path(), job.receipt())}
    for path in store.files(folder):
        if path not in wanted and path.endswith((".arrow", ".json")):
            store.remove(path)
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda job: lengths_of(store, job), jobs))
    with store.scratch() as scratch:
        pq.write_table(pa.concat_tables([LENGTHS.empty_table(), *tables]), scratch / "lengths", compression="zstd")
        store.commit_file(scratch / "lengths", f"{folder}/lengths.parquet")
    names = sorted({*COUNTS, "samples", *(key for receipt in receipts for key in receipt.counts)})
    counts = {key: sum(receipt.counts.get(key, 0) for receipt in receipts) for key in names}
    _, tokenizer, _, encoding = folder.split("/")
    manifest = TokenManifest(name, tokenizer, encoding, inputs, len(jobs), counts)
    store.commit_bytes(json.dumps(asdict(manifest), indent=1).encode() + b"\n", f"{folder}/manifest.json")
    return manifest


def lengths_of(store: Store, job: EncodeJob) -> pa.Table:
    """core.schemas.LENGTHS of one token file."""
    with store.open_read(job.path()) as stream:
        table = read_arrow(stream)
    images = pc.list_value_length(table.column("images"))
    ids = pc.list_value_length(table.column("ids"))
    columns = {
        "shard": pa.array(np.full(table.num_rows, job.index, np.int32)),
        "row": pa.array(np.arange(table.num_rows, dtype=np.int32)),
        "images": images,
        "text_tokens": pc.subtract(ids, images),
        **{key: table.column(key) for key in ("tokens", "images_left_out", "tokens_cut", "fate")},
    }
    return pa.table({field.name: columns[field.name] for field in LENGTHS}).cast(LENGTHS)


def read_token_manifest(store: Store, folder: str) -> TokenManifest | None:
    """The manifest of the token files in a folder; None where they are not finished."""
    path = f"{folder}/manifest.json"
    if store.size(path) is None:
        return None
    try:
        return TokenManifest(**json.loads(store.read(path)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{store.location(path)}: not a manifest of token files: {error}") from error


@dataclass(frozen=True)
class TokenSample:
    """One sample's tokens.

    ids, labels int32[n]: IMAGE_ID stands once for each image; labels are IGNORED where nothing is trained.
    images int32[k]: the sample's member of each image. tokens: length with images expanded.
    """

    key: str
    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    images: NDArray[np.int32]
    tokens: int


class TokenSet:
    """A set's token files, open for reading."""

    def __init__(self, store: Store, manifest: TokenManifest, folder: str) -> None:
        self.manifest = manifest
        self._store, self._folder = store, folder
        self._file = lru_cache(maxsize=_OPEN_FILES)(self._open)

    def lengths(self) -> pa.Table:
        """core.schemas.LENGTHS: a row a sample, in the order of shards and rows."""
        path = f"{self._folder}/lengths.parquet"
        if self._store.size(path) is None:
            raise DataError(f"{self._store.location(path)}: missing: run the recipe again to encode it")
        try:
            with self._store.open_read(path) as stream:
                return read_parquet(stream, schema=LENGTHS)
        except (pa.ArrowException, StorageError) as error:
            raise DataError(
                f"{self._store.location(path)}: not the lengths of token files: {error}; "
                "delete it and run the recipe again"
            ) from error

    def sample(self, shard: int, row: int) -> TokenSample:
        """One sample; a local file is mapped, not read."""
        batch = self._file(shard)
        ids = batch.column("ids")[row].values.to_numpy()
        labels = np.full(len(ids), IGNORED, np.int32)
        for first, last in batch.column("trained")[row].values.to_numpy().reshape(-1, 2).tolist():
            labels[first:last] = ids[first:last]
        images = batch.column("images")[row].values.to_numpy()
        return TokenSample(batch.column("key")[row].as_py(), ids, labels, images, batch.column("tokens")[row].as_py())

    def _open(self, shard: int) -> Any:
        path = f"{self._folder}/{self.manifest.name}-{shard:06d}.arrow"
        if self._store.size(path) is None:
            raise DataError(f"{self._store.location(path)}: missing: run the recipe again to encode it")
        if self._store.is_local:
            source = pa.memory_map(self._store.location(path))
        else:
            source = pa.BufferReader(self._store.read(path))
        try:
            return read_arrow(source).combine_chunks().to_batches()[0]
        except (pa.ArrowInvalid, IndexError) as error:
            raise DataError(f"{self._store.location(path)}: not a token file: {error}") from error


def open_tokens(store: Store, name: str, config: PackConfig, tokenizer: TextTokenizer) -> TokenSet:
    """The token files of a set for a recipe's `pack:`.

    Raises:
        UsageError: there are none for this tokenizer and encoding; the message says which there are.
    """
    encoding = encoding_fingerprint(config, tokenizer)
    folder = tokens_folder(tokenizer.fingerprint, name, encoding)
    manifest = read_token_manifest(store, folder)
    if manifest is not None:
        return TokenSet(store, manifest, folder)
    found = sorted({tuple(path.split("/")[1:4]) for path in store.files("tokens") if path.split("/")[2:3] == [name]})
    others = [f"tokenizer {there}, encoding {how}" for there, _, how in found] or ["none"]
    raise UsageError(
        f"{store.url}: set {name!r} has no token files of tokenizer {config.tokenizer} ({tokenizer.fingerprint}) with "
        f"encoding {encoding}; there: {'; '.join(others)}; run the recipe with --only encode"
    )
