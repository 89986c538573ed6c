"""What of a run stands: receipts and manifests that are whole and of this recipe, whichever launch made them.

A launch of one stage alone shows the others' results by these rules, so that run.json says what lies in the run and no
more: fates are those of these rules and these downloads, a set is of these fates, token files are of these shards.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vila_data.core.errors import UsageError, VilaDataError
from vila_data.core.layout import score_stage
from vila_data.core.receipts import Receipt, fingerprint, has_outputs, read_receipt
from vila_data.core.store import Store
from vila_data.encode.tokens import TokenManifest
from vila_data.filter.rules import scorers_read
from vila_data.shard.manifest import Manifest, read_manifest
from vila_data.workflow.blending import plan_epoch
from vila_data.workflow.encoding import ready_tokenizer, standing_tokens
from vila_data.workflow.plan import CorpusPlan
from vila_data.workflow.recipe import Recipe


@dataclass
class CorpusState:
    """A corpus's parts and their receipts by stage, None where a stage is not committed."""

    plan: CorpusPlan
    receipts: dict[str, list[Receipt | None]] = field(default_factory=dict)

    def complete(self, stage: str) -> list[Receipt]:
        """The stage's receipts.

        Raises:
            UsageError: the stage is not committed for all parts.
        """
        found = [receipt for receipt in self.receipts[stage] if receipt is not None]
        missing = len(self.plan.parts) - len(found)
        if missing:
            raise UsageError(
                f"corpus {self.plan.name!r}: {stage} lacks {missing} of {len(self.plan.parts)} parts: run it first"
            )
        return found

    def is_complete(self, stage: str) -> bool:
        """Whether the stage is committed for all parts."""
        return None not in self.receipts[stage]

    def told(self, store: Store, stage: str) -> list[Receipt] | None:
        """The stage's receipts, even of parts whose files are gone; None where one is missing."""
        found = []
        for part, known in zip(self.plan.parts, self.receipts[stage], strict=True):
            receipt = known or read_receipt(store, part.receipt(stage))
            if receipt is None:
                return None
            found.append(receipt)
        return found


def whole_fates(store: Store, corpus: CorpusState) -> list[Receipt] | None:
    """The filter's receipts of all parts, of whatever rules; None where one is missing or its table is."""
    found = []
    for part in corpus.plan.parts:
        receipt = read_receipt(store, part.receipt("filter"))
        if receipt is None or not has_outputs(store, receipt):
            return None
        found.append(receipt)
    return found


def fates_basis(store: Store, recipe: Recipe, corpus: CorpusState, fates: list[Receipt]) -> str | None:
    """Fingerprint of a corpus's fates and of what they were made from; None where that is not known.

    run.json has it of fates that were found to hold, so that the next launch need not read columns to find it again.
    """
    facts: list[Any] = [recipe.rules_for(corpus.plan.name).model_dump(mode="json")]
    facts += [[receipt.inputs, receipt.fingerprint()] for receipt in fates]
    read = scorers_read(recipe.rules_for(corpus.plan.name), recipe.scores())
    for stage in ("download", *map(score_stage, read)):
        told = corpus.told(store, stage)
        if told is None:
            return None
        facts.append([receipt.fingerprint() for receipt in told])
    return fingerprint(facts)


def set_inputs(store: Store, recipe: Recipe, name: str, corpus: CorpusState) -> str | None:
    """Fingerprint of all that a set's shards are made from; None where its corpus has no fates of this recipe."""
    told = corpus.told(store, "download")
    if told is None or not corpus.is_complete("filter"):
        return None
    facts = [receipt.fingerprint() for receipt in (*told, *corpus.complete("filter"))]
    return fingerprint([facts, recipe.shards[name].model_dump(mode="json"), recipe.seed, name])


def standing_set(store: Store, recipe: Recipe, name: str, corpus: CorpusState) -> Manifest | None:
    """A set's manifest, if its shards are there and such as this recipe makes of these fates."""
    inputs = set_inputs(store, recipe, name, corpus)
    found = read_manifest(store, name) if inputs is not None else None
    if found is None or found.inputs != inputs:
        return None
    there = all(store.size(f"shards/{name}/{shard.name}") == shard.bytes for shard in found.shards)
    return found if there else None


def standing_sets(store: Store, recipe: Recipe, corpora: Mapping[str, CorpusState]) -> dict[str, Manifest]:
    """`standing_set` of each set that has one."""
    found = {name: standing_set(store, recipe, name, corpora[config.corpus]) for name, config in recipe.shards.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def told_tokens(store: Store, recipe: Recipe, sets: Mapping[str, Manifest]) -> dict[str, TokenManifest]:
    """The token files of these sets that are whole and of these shards; where that cannot be told, a warning says why."""
    wanted = [sets[name] for name in recipe.blended_sets() or sets if name in sets]
    if recipe.pack is None or not wanted or not store.exists("tokens"):
        return {}
    try:
        return standing_tokens(store, recipe.pack, ready_tokenizer(recipe.pack), wanted)
    except VilaDataError as error:
        warnings.warn(f"{store.url}: run.json is without tokens and blend now: {error}", stacklevel=2)
        return {}


def told_blend(store: Store, recipe: Recipe) -> dict[str, Any] | None:
    """The blend's first epoch; where it cannot be planned, a warning says why."""
    try:
        return plan_epoch(store, recipe)
    except VilaDataError as error:
        warnings.warn(f"{store.url}: run.json is without a blend now: {error}", stacklevel=2)
        return None
