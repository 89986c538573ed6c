"""What a run would do, as a tree: parts, records, bytes, hours, and what is committed already."""

from __future__ import annotations

import os
from typing import Any, Final

from vila_data.core.errors import VilaDataError
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.recipe import lock
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.blend_tree import blend_node
from vila_data.runs.plan import CorpusPlan, corpus_inputs, plan_corpus, scan_here
from vila_data.runs.stage import CorpusState, PartStage, Work, find_committed
from vila_data.runs.stages import Stages, stages_of
from vila_data.shard.manifest import read_manifest

IMAGES_A_RECORD: Final = {"mmc4": 5.7, "obelics": 2.5, "text": 0.0}
"""Published means by kind, else 1 (docs/sources.md); a guess until a part is downloaded."""
STORED_BYTES_AN_IMAGE: Final = 40_000
"""JPEG of 336 px, quality 90; a guess until a part is downloaded."""
IMAGES_A_SECOND_A_CORE: Final = 80.0
"""img2dataset's published rate on the open web, where links are slow (docs/sources.md)."""

Node = dict[str, Any]


def forecast(
    recipe: Recipe | str | os.PathLike[str], out: str | os.PathLike[str] | None, limit: int | None = None
) -> Node:
    """The tree of a run as {"label": str, "children": [...], numbers …}; nothing is written.

    Raises:
        UsageError: the recipe is wrong, or `out` holds another recipe's run.
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
    hours = images / IMAGES_A_SECOND_A_CORE / 3600
    children[0]["label"] += f"; about {images:,} images, {bytes_ / 1e9:.2f} GB stored, {hours:.2f} core hours"
    for stage in stages.parts[1:]:
        committed = sum(receipt is not None for receipt in corpus.receipts[stage.name])
        children.append(_stage_node(stage, len(plan.parts), committed))
    return {
        "label": f"corpus {plan.name} ({config.kind}): {plan.rows:,} rows in {len(config.files)} files{selected}",
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
    label = f"{stage.name}: {parts} parts, {done} committed"
    return {"label": label, "stage": stage.verb, "name": stage.name, "parts": parts, "committed": done}


def _set_node(work: Work, name: str) -> Node:
    config = work.recipe.shards[name]
    try:
        manifest = read_manifest(work.store, name)
    except VilaDataError:
        manifest = None
    state = (
        "to be written"
        if manifest is None
        else f"{len(manifest.shards)} shards, {manifest.samples:,} samples committed"
    )
    return {
        "label": f"set {name}: {config.view} of {config.corpus}, at most {config.max_mb} MB a shard; {state}",
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
    images = round(plan.expected * IMAGES_A_RECORD.get(kind, 1.0))
    return images, images * STORED_BYTES_AN_IMAGE
