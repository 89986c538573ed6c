"""Token files of a set: under which fingerprint they lie, finished when all are written, opened for a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vila_data.core.errors import UsageError
from vila_data.core.layout import tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.core.tables import LENGTHS, SCHEMA_VERSION, read_arrow
from vila_data.encode.config import PackConfig
from vila_data.encode.part import COUNTS, EncodeJob
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
    """What of a tokenizer names token files: a TextTokenizer, or what was noted of one."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that decides ids."""

    @property
    def templates(self) -> Mapping[str, str]:
        """The tokenizer's own templates for conversations, by name."""


def encoding_fingerprint(config: PackConfig, tokenizer: KnownTokenizer) -> str:
    """16 hex digits of everything but the samples that token files depend on."""
    value = config.model_dump(mode="json", exclude={"tokenizer", "micro_batch"})
    if config.image_tokens is not None:
        value["image_tokens"]["revision"] = config.image_tokens.revision
    chat = dict(tokenizer.templates) if config.template == "chat" else None
    return fingerprint([value, tokenizer.fingerprint, chat, ENCODING_VERSION, SCHEMA_VERSION])


def date_path(folder: str) -> str:
    """Where it is noted which date the chat template of these token files writes."""
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
