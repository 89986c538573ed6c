"""Plan one epoch of a run's blend: shares, packs, and the sequence length that wastes the fewest tokens."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vila_data.core.store import Store
from vila_data.mix.epoch_report import EpochReport
from vila_data.mix.packing import best_sequence_length
from vila_data.mix.released import released_blend
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import BlendedSets, read_blended_sets
from vila_data.mix.share_warnings import share_warnings
from vila_data.recipe.recipe import Recipe
from vila_data.runs.set_stages import ready_tokenizer


def plan_epoch(store: Store, recipe: Recipe) -> dict[str, Any]:
    """The first epoch of the recipe's blend from lengths alone, read by one rank, for run.json: EpochReport's fields, and
    `subsets`: what each took of its set, `warnings`: shares that are not the recipe's (mix.share_warnings), and, where samples are packed freely, `sequence_length`: {"best",
    "current", "fill": {length: share}}.

    Raises:
        UsageError: a shard set is missing or not encoded, or the blend cannot be built from it.
    """
    assert recipe.pack is not None and recipe.blend is not None
    sets = read_blended_sets(store, recipe.blend, recipe.pack, ready_tokenizer(recipe.pack))
    sequence = _first_epoch(recipe, sets)
    best = None
    for planned in sequence:
        if best is None and recipe.pack.semantics == "improved":
            best = best_sequence_length(
                planned.samples.tokens,
                planned.samples.images,
                current=recipe.pack.sequence_length,
                max_images=recipe.pack.max_images_per_pack,
                seed=recipe.seed,
            )
    report = sequence.report()
    value = report.as_dict() | {
        "subsets": [asdict(counts) for counts in sets.subsets],
        "warnings": _warnings(recipe, sets, report),
    }
    if recipe.pack.semantics != "improved":  # the rules leave tokens unfilled there, not a lack of samples
        del value["packs"]["unfilled_tokens"]
    if best is not None:
        fill = {str(length): round(share, 6) for length, share in best.fill}
        value["sequence_length"] = {"best": best.best, "current": recipe.pack.sequence_length, "fill": fill}
    return value


def epoch_warnings(recipe: Recipe, sets: BlendedSets, most_samples: int) -> list[dict[str, Any]] | None:
    """The `warnings` of plan_epoch, for sets that were read already; None if the epoch has more than `most_samples`."""
    sequence = _first_epoch(recipe, sets)
    samples = 0
    for planned in sequence:
        samples += len(planned.samples)
        if samples > most_samples:
            return None
    return _warnings(recipe, sets, sequence.report())


def _first_epoch(recipe: Recipe, sets: BlendedSets) -> PackSequence:
    assert recipe.pack is not None and recipe.blend is not None
    blend = released_blend(recipe.blend, recipe.pack, [opened.shards.view for opened in sets.sets])
    return PackSequence(blend, recipe.pack, sets.lengths, seed=recipe.seed, epoch=0)


def _warnings(recipe: Recipe, sets: BlendedSets, report: EpochReport) -> list[dict[str, Any]]:
    assert recipe.blend is not None
    chosen = [leaf for leaf in recipe.blend.leaves() if leaf.source.subset is not None]
    subsets = {
        leaf.path: f"its subset keeps {counts.kept:,} of {counts.samples:,} samples"
        for leaf, counts in zip(chosen, sets.subsets, strict=True)
    }
    return [found.as_dict() for found in share_warnings(report, recipe.blend, subsets)]
