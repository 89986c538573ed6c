"""What a run would do, as a tree to print: parts, records, bytes, hours, the blend, and which work is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vila_data.core.errors import VilaDataError
from vila_data.core.readable import many
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import encoding_fingerprint
from vila_data.mix.config import BlendSource, InnerBlend, RecipeShare, recipe_shares, source_labels
from vila_data.mix.lengths import Lengths
from vila_data.mix.shard_sets import BlendedSets, read_blended_sets
from vila_data.recipe import lock
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.completed_work import find_committed
from vila_data.runs.epoch_plan import epoch_warnings
from vila_data.runs.plan import CorpusPlan, corpus_inputs, plan_corpus, scan_here
from vila_data.runs.set_stages import committed_tokens, ready_tokenizer
from vila_data.runs.stage import CorpusState, PartStage, Work
from vila_data.runs.stages import Stages, stages_of
from vila_data.shard.manifest import read_manifest

IMAGES_PER_RECORD: Final = {"mmc4": 5.7, "obelics": 2.5, "text": 0.0}
"""Published means by corpus kind, otherwise 1 (docs/sources.md); used until a part is downloaded."""
STORED_BYTES_PER_IMAGE: Final = 40_000
"""JPEG of 336 px, quality 90; used until a part is downloaded."""
IMAGES_PER_SECOND_PER_CORE: Final = 80.0
"""img2dataset's published rate on the open web, where many links are slow (docs/sources.md)."""

Node = dict[str, Any]


def summarize_plan(
    recipe: Recipe | str | os.PathLike[str], out: str | os.PathLike[str] | None, limit: int | None = None
) -> Node:
    """The tree of a run as {"label": str, "children": [...], numbers …}; nothing is written.

    Raises:
        UsageError: the recipe is invalid, or `out` belongs to a run of a different recipe.
        DataError: a corpus has no records.
    """
    value = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    store = Store(os.fspath(out)) if out is not None else None
    scorers = {name: scorer.fingerprint() for name, scorer in value.score.items()}
    inputs = corpus_inputs(value)
    fingerprints = lock.stage_fingerprints(value, limit, inputs, scorers)
    if store is not None:
        lock.check_same_run(store, lock.lock_value(value, limit, fingerprints, inputs, scorers))
    work = Work(store or Store("memory://nothing-is-here"), value, scorers)
    stages = stages_of(value, fingerprints["recipe"])
    plans = {
        name: plan_corpus(work.store, name, config, inputs[name], limit, scan_here)
        for name, config in value.corpora.items()
    }
    children = [_corpus_node(work, stages, plan) for plan in plans.values()]
    children += [_set_node(work, name) for name in value.shards]
    if value.blend is not None:
        children.append(blend_node(store, value))
    where = f" in {store.url}" if store is not None else ""
    return {
        "label": f"{value.name}{where} (recipe {fingerprints['recipe']}, seed {value.seed})",
        "recipe": fingerprints["recipe"],
        "children": children,
    }


def _corpus_node(work: Work, stages: Stages, plan: CorpusPlan) -> Node:
    config = work.recipe.corpora[plan.name]
    corpus = CorpusState(plan)
    for stage in stages.parts:
        if stage.gather is None:
            find_committed(work, [stage], corpus)
        else:  # whether it is stale needs columns of all parts: what is there counts
            corpus.receipts[stage.name] = [read_receipt(work.store, stage.receipt(part)) for part in plan.parts]
    done = [receipt for receipt in corpus.receipts["download"] if receipt is not None]
    images, bytes_ = _expected_images(plan, config.kind, done)
    selected = f", {plan.expected:,} selected" if plan.expected != plan.rows else ""
    children = [_stage_node(stages.parts[0], len(plan.parts), len(done))]
    hours = images / IMAGES_PER_SECOND_PER_CORE / 3600
    children[0]["label"] += f"; about {images:,} images, {bytes_ / 1e9:.2f} GB stored, {hours:.2f} core hours"
    for stage in stages.parts[1:]:
        committed = sum(receipt is not None for receipt in corpus.receipts[stage.name])
        children.append(_stage_node(stage, len(plan.parts), committed))
    return {
        "label": f"corpus {plan.name} ({config.kind}): {plan.rows:,} rows in {many(len(config.files), 'files')}{selected}",
        "corpus": plan.name,
        "rows": plan.rows,
        "records": plan.expected,
        "parts": len(plan.parts),
        "images_expected": images,
        "bytes_expected": bytes_,
        "core_hours_expected": round(hours, 4),
        "children": children,
    }


def _stage_node(stage: PartStage, parts: int, done: int) -> Node:
    label = f"{stage.name}: {many(parts, 'parts')}, {done} complete"
    return {"label": label, "stage": stage.verb, "name": stage.name, "parts": parts, "committed": done}


def _set_node(work: Work, name: str) -> Node:
    config = work.recipe.shards[name]
    try:
        manifest = read_manifest(work.store, name)
    except VilaDataError:
        manifest = None
    state = (
        "not written yet"
        if manifest is None
        else f"complete: {many(len(manifest.shards), 'shards')}, {many(manifest.samples, 'samples')}"
    )
    return {
        "label": f"set {name}: {config.view} of {config.corpus}, up to {config.max_mb} MB per shard; {state}",
        "set": name,
        "committed": 0 if manifest is None else len(manifest.shards),
    }


def _expected_images(plan: CorpusPlan, kind: str, done: list[Any]) -> tuple[int, int]:
    """Images and bytes expected: from the parts downloaded so far, else from published means."""
    records = sum(sum(receipt.counts["records"].values()) for receipt in done)
    if records:
        images = sum(sum(receipt.counts["images"].values()) for receipt in done)
        stored = sum(receipt.counts["bytes_stored"] for receipt in done)
        return round(images / records * plan.expected), round(stored / records * plan.expected)
    images = round(plan.expected * IMAGES_PER_RECORD.get(kind, 1.0))
    return images, images * STORED_BYTES_PER_IMAGE


MAX_PLANNED_SAMPLES: Final = 1_000_000
"""Maximum number of samples in an epoch for which `plan` computes the shares: takes a few seconds."""


def blend_node(store: Store | None, recipe: Recipe) -> Node:
    """The blend; with counts for one pass over each source if its shards exist and are encoded."""
    assert recipe.blend is not None and recipe.pack is not None
    lengths: Iterator[Lengths | None] = iter(lambda: None, 0)
    state = "; not encoded yet"
    warnings: list[Node] = []
    if store is not None and all(read_manifest(store, name) for name in recipe.blended_sets()):
        tokenizer = ready_tokenizer(recipe.pack)
        names = recipe.blended_sets()
        if len(committed_tokens(store, recipe.pack, tokenizer, names)) == len(names):
            sets = read_blended_sets(store, recipe.blend, recipe.pack, tokenizer)
            lengths = iter(sets.lengths)
            state = _fingerprints(recipe, tokenizer)
            warnings = _warnings(recipe, sets)
    pack = recipe.pack
    images = (
        f"image tokens by policy {pack.images.policy}"
        if pack.tokens_per_image is None
        else f"{pack.tokens_per_image} tokens per image"
    )
    total = f", {recipe.blend.total_packs:,} packs" if recipe.blend.total_packs else ""
    return {
        "label": f"blend{total}: {pack.semantics} packs of {pack.sequence_length:,} tokens, {images}{state}",
        "children": _sources(recipe.blend, "", lengths, source_labels(recipe.blend), recipe_shares(recipe.blend))
        + warnings,
    }


def _fingerprints(recipe: Recipe, tokenizer: TextTokenizer) -> str:
    assert recipe.pack is not None
    return f"; tokenizer {tokenizer.fingerprint}, encoding {encoding_fingerprint(recipe.pack, tokenizer)}"


def _warnings(recipe: Recipe, sets: BlendedSets) -> list[Node]:
    """A node for each source whose share of an epoch differs from the recipe's."""
    found = epoch_warnings(recipe, sets, MAX_PLANNED_SAMPLES)
    if found is None:
        return [
            {
                "label": f"shares are not shown for epochs of more than {MAX_PLANNED_SAMPLES:,} samples; run the recipe "
                "with --only blend, and inspect will show them"
            }
        ]
    return [{"label": f"warning: {warning['text']}", "warning": warning} for warning in found]


def _sources(
    blend: InnerBlend,
    place: str,
    lengths: Iterator[Lengths | None],
    names: Mapping[str, str],
    whole: Mapping[str, RecipeShare],
) -> list[Node]:
    return [
        _source(blend, source, f"{place}sources.{index}", lengths, names, whole)
        for index, source in enumerate(blend.sources)
    ]


def _source(
    blend: InnerBlend,
    source: BlendSource,
    place: str,
    lengths: Iterator[Lengths | None],
    names: Mapping[str, str],
    whole: Mapping[str, RecipeShare],
) -> Node:
    shares = []
    for start in sorted({0.0, *(change for each in blend.sources for change in each.changes)}):
        share = source.weight_at(start) / sum(each.weight_at(start) for each in blend.sources)
        shares.append(f"{share:.2%}" + (f" from {start:.0%} of the steps" if start else ""))
    least, most = blend.passes(source)
    passes = f"{least} pass" if least == most == 1 else f"{least} to {most if most else 'any number of'} passes"
    inside = f" ({whole[place].of_whole:.2%} of the whole blend)" if ".blend." in place else ""
    label = f"{names[place]}: {', '.join(shares)} of {blend.weight_unit}{inside}; {passes}, then {blend.rule(source)}"
    if source.blend is not None:
        return {"label": label, "children": _sources(source.blend, f"{place}.blend.", lengths, names, whole)}
    if source.subset is not None:
        given = {key: value for key, value in source.subset.model_dump().items() if value is not None}
        label += "; " + ", ".join(f"{key} {value!r}" for key, value in given.items())
    found = next(lengths)
    node: Node = {"label": label, "set": source.name, "weight_counts": blend.weight_unit, "shares": shares}
    node["recipe_share"] = whole[place].of_whole
    if found is not None:
        samples, images, tokens = found.totals
        node |= {"samples": samples, "images": images, "tokens": tokens, "lengths": found.fingerprint}
        node["label"] += f"; {samples:,} samples, {images:,} images, {tokens:,} tokens ({found.fingerprint})"
    return node
