"""The shard stage: fates and bytes of a corpus to the shards of a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vila_data.core.errors import DataError
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.recipe.recipe import Recipe
from vila_data.runs.stage import Made, PartStage
from vila_data.shard.manifest import Manifest, finish_set, manifest_path, read_manifest
from vila_data.shard.write import ShardJob, plan_shards, write_shard

_MB: Final = 1_000_000


class ShardStage:
    """SetStage whose finished sets are Manifests.

    Of a set that is there, the files of `download` may be gone; its receipts say enough.
    """

    name = "shard"
    before = None
    folder = "shards"

    def __init__(self, recipe: Recipe, fingerprint: str, download: PartStage, fates: PartStage) -> None:
        self._recipe, self._fingerprint = recipe, fingerprint
        self._download, self._fates = download, fates

    def sets(self) -> list[str]:
        """See SetStage."""
        return list(self._recipe.shards)

    def inputs(self, store: Store, name: str, made: Made) -> str | None:
        """See SetStage."""
        config = self._recipe.shards[name]
        corpus = made.corpora[config.corpus]
        downloads = corpus.told(store, self._download)
        if downloads is None or not corpus.is_complete(self._fates.name):
            return None
        facts = [receipt.fingerprint() for receipt in (*downloads, *corpus.of(self._fates.name))]
        return fingerprint([facts, config.model_dump(mode="json"), self._recipe.seed, name])

    def found(self, store: Store, name: str) -> Manifest | None:
        """See SetStage."""
        return read_manifest(store, name)

    def whole(self, store: Store, finished: Manifest) -> bool:
        """See SetStage."""
        return all(store.size(f"shards/{finished.name}/{shard.name}") == shard.bytes for shard in finished.shards)

    def forget(self, store: Store, name: str) -> None:
        """See SetStage."""
        store.remove(manifest_path(name))

    def jobs(self, store: Store, name: str, made: Made) -> list[ShardJob]:
        """See SetStage."""
        config = self._recipe.shards[name]
        parts = made.corpora[config.corpus].plan.parts
        by_index = {part.index: part for part in parts}
        inputs = self.inputs(store, name, made)
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
        self, store: Store, name: str, made: Made, jobs: Sequence[ShardJob], receipts: list[Receipt]
    ) -> Manifest:
        """See SetStage."""
        samples, wanted = sum(receipt.counts["samples"] for receipt in receipts), sum(len(job.samples) for job in jobs)
        if samples != wanted:
            raise DataError(f"set {name!r}: {samples} samples written of {wanted}")
        inputs = self.inputs(store, name, made)
        assert inputs is not None
        return finish_set(store, name, self._recipe.shards[name], receipts, self._fingerprint, inputs)

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """See SetStage."""
        tars = sum(facts["bytes"] for path, facts in receipt.outputs.items() if path.endswith(".tar"))
        return {"samples": receipt.counts["samples"], "images": receipt.counts["images"], "bytes": tars}
