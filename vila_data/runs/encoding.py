"""The encode stage: the samples of a set to token files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date as Date
from functools import cached_property
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.layout import tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.encode.chat import chat_template, reads_the_date
from vila_data.encode.config import PackConfig
from vila_data.encode.part import EncodeJob, encode_shard
from vila_data.encode.templates import check_tokenizer
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer
from vila_data.encode.tokens import TokenManifest, date_path, encoding_fingerprint, finish_tokens, read_token_manifest
from vila_data.runs.stage import Made, make_set
from vila_data.shard.manifest import Manifest


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


class EncodeStage:
    """SetStage whose finished sets are TokenManifests."""

    name = "encode"
    before = "shard"
    folder = "tokens"

    def __init__(self, pack: PackConfig, sets: Sequence[str]) -> None:
        self._pack, self._sets = pack, tuple(sets)

    def sets(self) -> Sequence[str]:
        """See SetStage."""
        return self._sets

    def inputs(self, store: Store, name: str, made: Made) -> str | None:
        """See SetStage."""
        shards: Manifest | None = made.sets["shard"].get(name)
        if shards is None:
            return None
        return fingerprint([self._fingerprints[1], [shard.sha256 for shard in shards.shards]])

    def found(self, store: Store, name: str) -> TokenManifest | None:
        """See SetStage."""
        return read_token_manifest(store, self._folder(name))

    def whole(self, store: Store, finished: TokenManifest) -> bool:
        """See SetStage."""
        folder = self._folder(finished.name)
        paths = [f"{folder}/{finished.name}-{shard:06d}.arrow" for shard in range(finished.shards)]
        return all(store.size(path) is not None for path in (f"{folder}/lengths.parquet", *paths))

    def forget(self, store: Store, name: str) -> None:
        """See SetStage."""
        store.remove(f"{self._folder(name)}/manifest.json")

    def jobs(self, store: Store, name: str, made: Made) -> list[EncodeJob]:
        """See SetStage."""
        tokenizer, (_, encoding) = ready_tokenizer(self._pack), self._fingerprints
        shards: Manifest = made.sets["shard"][name]
        day = None
        if self._pack.template == "chat" and self._pack.date is None and reads_the_date(tokenizer):
            day = _date_of(store, self._folder(name))
        return [
            EncodeJob(name, index, tokenizer.fingerprint, encoding, fingerprint([encoding, shard.sha256]), day)
            for index, shard in enumerate(shards.shards)
        ]

    def make(self, store: Store, job: EncodeJob) -> Receipt:
        """See SetStage."""
        tokenizer = load_tokenizer(self._pack.tokenizer)
        if tokenizer.fingerprint != job.tokenizer:
            raise DataError(
                f"tokenizer {tokenizer.name}: is {tokenizer.fingerprint} on this worker and {job.tokenizer} where the "
                "run was started: install the same versions and files everywhere"
            )
        return encode_shard(store, job, self._pack, tokenizer)

    def finish(
        self, store: Store, name: str, made: Made, jobs: Sequence[EncodeJob], receipts: list[Receipt]
    ) -> TokenManifest:
        """See SetStage."""
        samples, encoded = made.sets["shard"][name].samples, sum(receipt.counts["samples"] for receipt in receipts)
        if encoded != samples:
            raise DataError(f"set {name!r}: {encoded} samples encoded of {samples}: run check on it")
        inputs = self.inputs(store, name, made)
        assert inputs is not None
        return finish_tokens(store, name, jobs, receipts, self._folder(name), inputs)

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """See SetStage."""
        return {key: receipt.counts.get(key, 0) for key in ("images", "samples", "tokens")}

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Of the tokenizer and of the encoding; the tokenizer itself is not kept, since stages are sent to workers."""
        tokenizer = ready_tokenizer(self._pack)
        return tokenizer.fingerprint, encoding_fingerprint(self._pack, tokenizer)

    def _folder(self, name: str) -> str:
        tokenizer, encoding = self._fingerprints
        return tokens_folder(tokenizer, name, encoding)


def encode_sets(store: Store, pack: PackConfig, shards: Iterable[Manifest]) -> dict[str, TokenManifest]:
    """Encode finished sets in this process, where there is no run."""
    made = Made({}, {"shard": {found.name: found for found in shards}})
    stage = EncodeStage(pack, list(made.sets["shard"]))
    return {
        name: make_set(stage, store, name, made, lambda jobs: [stage.make(store, job) for job in jobs])
        for name in stage.sets()
    }


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


def token_totals(manifest: TokenManifest) -> dict[str, Any]:
    """A set's counts for run.json."""
    return {"tokenizer": manifest.tokenizer, "encoding": manifest.encoding, **manifest.counts}
