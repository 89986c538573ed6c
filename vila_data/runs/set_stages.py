"""The stages over sets: shard (kept records to shards) and encode (shards to token files)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date as Date
from functools import cached_property
from typing import Any, Final

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
from vila_data.recipe.recipe import Recipe
from vila_data.runs.stage import PartStage, RunState, make_set
from vila_data.shard.manifest import Manifest, finish_set, manifest_path, read_manifest
from vila_data.shard.write import ShardJob, plan_shards, write_shard

_MB: Final = 1_000_000


class ShardStage:
    """SetStage whose finished sets are Manifests.

    A finished set stays valid if files of `download` are gone, as long as their receipts exist.
    """

    name = "shard"
    before = None
    directory = "shards"

    def __init__(self, recipe: Recipe, fingerprint: str, download: PartStage, fates: PartStage) -> None:
        self._recipe, self._fingerprint = recipe, fingerprint
        self._download, self._fates = download, fates

    def sets(self) -> list[str]:
        """See SetStage."""
        return list(self._recipe.shards)

    def inputs(self, store: Store, name: str, state: RunState) -> str | None:
        """See SetStage."""
        config = self._recipe.shards[name]
        corpus = state.corpora[config.corpus]
        downloads = corpus.recorded(store, self._download)
        if downloads is None or not corpus.is_complete(self._fates.name):
            return None
        facts = [receipt.fingerprint() for receipt in (*downloads, *corpus.of(self._fates.name))]
        return fingerprint([facts, config.model_dump(mode="json"), self._recipe.seed, name])

    def read(self, store: Store, name: str) -> Manifest | None:
        """See SetStage."""
        return read_manifest(store, name)

    def is_intact(self, store: Store, finished: Manifest) -> bool:
        """See SetStage."""
        return all(store.size(f"shards/{finished.name}/{shard.name}") == shard.bytes for shard in finished.shards)

    def remove_manifest(self, store: Store, name: str) -> None:
        """See SetStage."""
        store.remove(manifest_path(name))

    def jobs(self, store: Store, name: str, state: RunState) -> list[ShardJob]:
        """See SetStage."""
        config = self._recipe.shards[name]
        parts = state.corpora[config.corpus].plan.parts
        by_index = {part.index: part for part in parts}
        inputs = self.inputs(store, name, state)
        return [
            ShardJob(
                name,
                index,
                config.view,
                config.corpus,
                refs,
                {number: by_index[number] for number in sorted(set(refs.part.tolist()))},
                fingerprint([inputs, index]),
            )
            for index, refs in enumerate(
                plan_shards(store, parts, config.view, name, self._recipe.seed, config.max_mb * _MB)
            )
        ]

    def make(self, store: Store, job: ShardJob) -> Receipt:
        """See SetStage."""
        return write_shard(store, job)

    def finish(
        self, store: Store, name: str, state: RunState, jobs: Sequence[ShardJob], receipts: list[Receipt]
    ) -> Manifest:
        """See SetStage."""
        samples, wanted = sum(receipt.counts["samples"] for receipt in receipts), sum(len(job.samples) for job in jobs)
        if samples != wanted:
            raise DataError(f"set {name!r}: wrote {samples} of {wanted} samples")
        inputs = self.inputs(store, name, state)
        assert inputs is not None
        return finish_set(store, name, self._recipe.shards[name], receipts, self._fingerprint, inputs)

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """See SetStage."""
        tars = sum(facts["bytes"] for path, facts in receipt.outputs.items() if path.endswith(".tar"))
        return {"samples": receipt.counts["samples"], "images": receipt.counts["images"], "bytes": tars}


def ready_tokenizer(config: PackConfig) -> TextTokenizer:
    """Load the recipe's tokenizer and check that it can encode the recipe's sequences.

    Raises:
        UsageError: it cannot be loaded, or lacks a token or the chat template that the recipe needs.
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
    directory = "tokens"

    def __init__(self, pack: PackConfig, sets: Sequence[str]) -> None:
        self._pack, self._sets = pack, tuple(sets)

    def sets(self) -> Sequence[str]:
        """See SetStage."""
        return self._sets

    def inputs(self, store: Store, name: str, state: RunState) -> str | None:
        """See SetStage."""
        shards: Manifest | None = state.sets["shard"].get(name)
        if shards is None:
            return None
        return fingerprint([self._fingerprints[1], [shard.sha256 for shard in shards.shards]])

    def read(self, store: Store, name: str) -> TokenManifest | None:
        """See SetStage."""
        return read_token_manifest(store, self._directory(name))

    def is_intact(self, store: Store, finished: TokenManifest) -> bool:
        """See SetStage."""
        directory = self._directory(finished.name)
        paths = [f"{directory}/{finished.name}-{shard:06d}.arrow" for shard in range(finished.shards)]
        return all(store.size(path) is not None for path in (f"{directory}/lengths.parquet", *paths))

    def remove_manifest(self, store: Store, name: str) -> None:
        """See SetStage."""
        store.remove(f"{self._directory(name)}/manifest.json")

    def jobs(self, store: Store, name: str, state: RunState) -> list[EncodeJob]:
        """See SetStage."""
        tokenizer, (_, encoding) = ready_tokenizer(self._pack), self._fingerprints
        shards: Manifest = state.sets["shard"][name]
        day = None
        if self._pack.template == "chat" and self._pack.date is None and reads_the_date(tokenizer):
            day = _date_of(store, self._directory(name))
        return [
            EncodeJob(name, index, tokenizer.fingerprint, encoding, fingerprint([encoding, shard.sha256]), day)
            for index, shard in enumerate(shards.shards)
        ]

    def make(self, store: Store, job: EncodeJob) -> Receipt:
        """See SetStage."""
        tokenizer = load_tokenizer(self._pack.tokenizer)
        if tokenizer.fingerprint != job.tokenizer:
            raise DataError(
                f"tokenizer {tokenizer.name}: its fingerprint is {tokenizer.fingerprint} on this worker, but {job.tokenizer} "
                "where the run was started; install the same versions and files everywhere"
            )
        return encode_shard(store, job, self._pack, tokenizer)

    def finish(
        self, store: Store, name: str, state: RunState, jobs: Sequence[EncodeJob], receipts: list[Receipt]
    ) -> TokenManifest:
        """See SetStage."""
        samples, encoded = state.sets["shard"][name].samples, sum(receipt.counts["samples"] for receipt in receipts)
        if encoded != samples:
            raise DataError(f"set {name!r}: encoded {encoded} of {samples} samples; run vila-data check on it")
        inputs = self.inputs(store, name, state)
        assert inputs is not None
        return finish_tokens(store, name, jobs, receipts, self._directory(name), inputs)

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """See SetStage."""
        return {key: receipt.counts.get(key, 0) for key in ("images", "samples", "tokens")}

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Of the tokenizer and of the encoding; the tokenizer itself is not kept, since stages are sent to workers."""
        tokenizer = ready_tokenizer(self._pack)
        return tokenizer.fingerprint, encoding_fingerprint(self._pack, tokenizer)

    def _directory(self, name: str) -> str:
        tokenizer, encoding = self._fingerprints
        return tokens_folder(tokenizer, name, encoding)


def encode_sets(store: Store, pack: PackConfig, shards: Iterable[Manifest]) -> dict[str, TokenManifest]:
    """Encode finished shard sets in this process, without a run."""
    state = RunState({}, {"shard": {found.name: found for found in shards}})
    stage = EncodeStage(pack, list(state.sets["shard"]))
    return {
        name: make_set(stage, store, name, state, lambda jobs: [stage.make(store, job) for job in jobs])
        for name in stage.sets()
    }


def _date_of(store: Store, directory: str) -> Date:
    """The date for a set's chat template: the day on which its encoding began, also on reruns."""
    path = date_path(directory)
    if store.size(path) is None:
        store.commit_bytes(json.dumps({"date": Date.today().isoformat()}).encode() + b"\n", path)
    try:
        return Date.fromisoformat(json.loads(store.read(path))["date"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{store.location(path)}: not a date: {error}; delete {directory} and rerun the recipe"
        ) from error


def committed_tokens(
    store: Store, config: PackConfig, tokenizer: TextTokenizer, names: Iterable[str]
) -> dict[str, TokenManifest]:
    """The token manifests of those sets that are encoded for a recipe's `pack:`."""
    encoding = encoding_fingerprint(config, tokenizer)
    found = {name: read_token_manifest(store, tokens_folder(tokenizer.fingerprint, name, encoding)) for name in names}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def token_totals(manifest: TokenManifest) -> dict[str, Any]:
    """A set's counts for run.json."""
    return {"tokenizer": manifest.tokenizer, "encoding": manifest.encoding, **manifest.counts}
