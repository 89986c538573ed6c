"""Token files of a set: their fingerprint, finishing them when all are written, opening them for a recipe, and their check."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.layout import shard_stem, tokens_folder
from vila_data.core.receipts import Receipt, fingerprint, read_receipt
from vila_data.core.store import Store
from vila_data.core.tables import LENGTHS, SCHEMA_VERSION, TOKENS, parsing, read_arrow, read_table
from vila_data.encode.config import PackConfig
from vila_data.encode.part import COUNTS, IMAGE_SUFFIX, EncodeJob
from vila_data.encode.token_set import TokenManifest, TokenSample, TokenSet, read_token_manifest

__all__ = [
    "ENCODING_VERSION",
    "KnownTokenizer",
    "TokenManifest",
    "TokenSample",
    "TokenSet",
    "encoding_fingerprint",
    "finish_tokens",
    "lengths_of",
    "open_tokens",
    "read_token_manifest",
]

ENCODING_VERSION: Final = 4
"""Raised when the same samples would give other token files. 4: checksums, widths and heights."""
_READERS: Final = 8


class KnownTokenizer(Protocol):
    """The parts of a tokenizer that token files depend on: a TextTokenizer, or a record of one."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that decides ids."""

    @property
    def templates(self) -> Mapping[str, str]:
        """The tokenizer's own templates for conversations, by name."""


def encoding_fingerprint(config: PackConfig, tokenizer: KnownTokenizer) -> str:
    """16 hex digits of everything that token files depend on, except the samples."""
    value = config.model_dump(mode="json", exclude={"tokenizer", "micro_batch"})
    if config.image_tokens is not None:
        value["image_tokens"]["revision"] = config.image_tokens.revision
    chat = dict(tokenizer.templates) if config.template == "chat" else None
    return fingerprint([value, tokenizer.fingerprint, chat, ENCODING_VERSION, SCHEMA_VERSION])


def date_path(folder: str) -> str:
    """Path of the file that records the date that the chat template of these token files writes."""
    return f"{folder}/date.json"


def finish_tokens(
    store: Store, name: str, jobs: Sequence[EncodeJob], receipts: Sequence[Receipt], folder: str, inputs: str
) -> TokenManifest:
    """Write a set's `lengths.parquet` and, last, its manifest; delete token files of an earlier layout."""
    wanted = {path for job in jobs for path in (job.path(), job.receipt())} | {date_path(folder)}
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
    """core.tables.LENGTHS of one token file."""
    with store.open_read(job.path()) as stream:
        table = read_arrow(stream)
    images = pc.list_value_length(table.column("images"))
    ids = pc.list_value_length(table.column("ids"))
    columns = {
        "shard": pa.array(np.full(table.num_rows, job.index, np.int32)),
        "row": pa.array(np.arange(table.num_rows, dtype=np.int32)),
        "images": images,
        "text_tokens": pc.subtract(ids, images),
        **{key: table.column(key) for key in ("widths", "heights", "tokens", "images_left_out", "tokens_cut", "fate")},
    }
    return pa.table({field.name: columns[field.name] for field in LENGTHS}).cast(LENGTHS)


def open_tokens(store: Store, name: str, config: PackConfig, tokenizer: KnownTokenizer) -> TokenSet:
    """The token files of a set for a recipe's `pack:`.

    Raises:
        UsageError: none exist for this tokenizer and encoding; the message lists those that exist.
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
        f"encoding {encoding}; found: {'; '.join(others)}; run the recipe with --only encode"
    )


_OF_MEMBERS: Final = ("offsets", "sizes", "crc32c")
_OF_IMAGES: Final = ("widths", "heights")
"""List columns copied from the shard's index, which has an entry per member or per image."""


def check_tokens(store: Store, folder: str) -> Iterator[str]:
    """Yield one sentence per problem in `folder`, except in receipts; nothing if the encoding is not finished."""
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
        yield f"{store.location(f'{folder}/lengths.parquet')}: does not match its token files"


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
        yield f"{where}: has different columns from this version; delete {job.folder} and run the recipe again"
    elif any(not tokens.column(name).equals(index.column(name)) for name in ("key", "record_id")):
        yield f"{where}: its samples do not match the shard's index; delete it and run the recipe again"
    elif (row := _misplaced(tokens, index)) is not None:
        key = tokens.column("key")[row].as_py()
        yield f"{where}: row {row} ({key}): image offsets do not match the tar; delete the file and rerun the recipe"
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
