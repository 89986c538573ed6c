"""The encode stage over a run's shard sets: what is to be encoded, and the sets' token manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date as Date
from typing import Any

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.encode.chat import chat_template, reads_the_date
from vila_data.encode.config import PackConfig
from vila_data.encode.part import EncodeJob
from vila_data.encode.templates import check_tokenizer
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer
from vila_data.encode.tokens import TokenManifest, date_path, encoding_fingerprint, finish_tokens, read_token_manifest
from vila_data.shard.manifest import Manifest

RunJobs = Callable[[str, list[EncodeJob]], list[Receipt]]
"""(set, jobs) -> their receipts, in order."""


def ready_tokenizer(config: PackConfig) -> TextTokenizer:
    """The recipe's tokenizer, if it can write the recipe's sequences.

    Raises:
        UsageError: it cannot be loaded, or lacks a token or the template that the recipe asks for.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    check_tokenizer(config, tokenizer)
    if config.template == "chat":
        chat_template(tokenizer, config.date, False)
    return tokenizer


def encode_sets(
    store: Store, config: PackConfig, sets: Iterable[Manifest], run_jobs: RunJobs
) -> dict[str, TokenManifest]:
    """Encode what is not encoded yet of some sets."""
    tokenizer = ready_tokenizer(config)
    encoding = encoding_fingerprint(config, tokenizer)
    reads_date = config.template == "chat" and config.date is None and reads_the_date(tokenizer)
    return {found.name: _encode_set(store, found, tokenizer, encoding, run_jobs, reads_date) for found in sets}


def _encode_set(
    store: Store, shards: Manifest, tokenizer: TextTokenizer, encoding: str, run_jobs: RunJobs, reads_date: bool
) -> TokenManifest:
    folder = tokens_folder(tokenizer.fingerprint, shards.name, encoding)
    jobs = _jobs(shards, tokenizer, encoding)
    committed = read_token_manifest(store, folder)
    if committed is not None and _stands(store, committed, shards, jobs):
        run_jobs(shards.name, [])
        return committed
    if committed is not None:  # nobody must take new token files for those that it counts
        store.remove(f"{folder}/manifest.json")
    if reads_date:
        day = _date_of(store, folder)
        jobs = [replace(job, date=day) for job in jobs]
    receipts = run_jobs(shards.name, jobs)
    encoded = sum(receipt.counts["samples"] for receipt in receipts)
    if encoded != shards.samples:
        raise DataError(f"set {shards.name!r}: {encoded} samples encoded of {shards.samples}: run check on it")
    return finish_tokens(store, shards.name, jobs, receipts, folder, _inputs(shards, encoding))


def _date_of(store: Store, folder: str) -> Date:
    """The date that a set's chat template writes: of the day when its encoding began, on every rerun too."""
    path = date_path(folder)
    if store.size(path) is None:
        store.commit_bytes(json.dumps({"date": Date.today().isoformat()}).encode() + b"\n", path)
    try:
        return Date.fromisoformat(json.loads(store.read(path))["date"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{store.location(path)}: not a date: {error}; delete {folder} and run the recipe again"
        ) from error


def committed_tokens(
    store: Store, config: PackConfig, tokenizer: TextTokenizer, names: Iterable[str]
) -> dict[str, TokenManifest]:
    """The manifests of those of these sets that have finished token files for a recipe's `pack:`."""
    encoding = encoding_fingerprint(config, tokenizer)
    found = {name: read_token_manifest(store, tokens_folder(tokenizer.fingerprint, name, encoding)) for name in names}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def standing_tokens(
    store: Store, config: PackConfig, tokenizer: TextTokenizer, sets: Iterable[Manifest]
) -> dict[str, TokenManifest]:
    """The manifests of those of these sets whose token files are all there, and of these shards."""
    shards = {found.name: found for found in sets}
    encoding = encoding_fingerprint(config, tokenizer)
    return {
        name: tokens
        for name, tokens in committed_tokens(store, config, tokenizer, shards).items()
        if _stands(store, tokens, shards[name], _jobs(shards[name], tokenizer, encoding))
    }


def tokens_to_blend(store: Store, config: PackConfig, sets: Sequence[Manifest]) -> dict[str, TokenManifest]:
    """The manifests of those of these sets that have token files.

    Raises:
        UsageError: some are of other shards than those that lie there, or not whole.
    """
    tokenizer = ready_tokenizer(config)
    standing = standing_tokens(store, config, tokenizer, sets)
    committed = committed_tokens(store, config, tokenizer, [found.name for found in sets])
    stale = sorted(committed.keys() - standing.keys())
    if stale:
        raise UsageError(
            f"{store.url}: sets {', '.join(stale)}: their token files are not whole or of other shards: run the recipe "
            "with --only encode first"
        )
    return standing


def _jobs(shards: Manifest, tokenizer: TextTokenizer, encoding: str) -> list[EncodeJob]:
    return [
        EncodeJob(shards.name, index, tokenizer.fingerprint, encoding, fingerprint([encoding, shard.sha256]))
        for index, shard in enumerate(shards.shards)
    ]


def _inputs(shards: Manifest, encoding: str) -> str:
    return fingerprint([encoding, [shard.sha256 for shard in shards.shards]])


def _stands(store: Store, tokens: TokenManifest, shards: Manifest, jobs: list[EncodeJob]) -> bool:
    """Whether finished token files are of these shards, and all there."""
    if tokens.inputs != _inputs(shards, tokens.encoding):
        return False
    folder = tokens_folder(tokens.tokenizer, shards.name, tokens.encoding)
    paths = [f"{folder}/lengths.parquet", *(job.path() for job in jobs)]
    return all(store.size(path) is not None for path in paths)


def token_totals(manifest: TokenManifest) -> dict[str, Any]:
    """A set's counts for run.json."""
    return {"tokenizer": manifest.tokenizer, "encoding": manifest.encoding, **manifest.counts}
