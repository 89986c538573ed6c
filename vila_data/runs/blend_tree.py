"""A recipe's blend as a tree to print: shares of the recipe, samples, images, tokens, fingerprints, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vila_data.core.store import Store
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import encoding_fingerprint
from vila_data.mix.config import BlendSource, InnerBlend, RecipeShare, recipe_shares, source_labels
from vila_data.mix.lengths import Lengths
from vila_data.mix.shard_sets import BlendedSets, read_blended_sets
from vila_data.recipe.recipe import Recipe
from vila_data.runs.blending import epoch_warnings
from vila_data.runs.encoding import committed_tokens, ready_tokenizer
from vila_data.shard.manifest import read_manifest

Node = dict[str, Any]
MOST_PLANNED: Final = 1_000_000
"""Samples of an epoch that `plan` goes through for its shares: a few seconds."""


def blend_node(store: Store | None, recipe: Recipe) -> Node:
    """The blend; counts are of one pass over each source, given where its shards are there and encoded."""
    assert recipe.blend is not None and recipe.pack is not None
    lengths: Iterator[Lengths | None] = iter(lambda: None, 0)
    state = "; to be encoded"
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
    images = f"policy {pack.images.policy} for" if pack.tokens_per_image is None else str(pack.tokens_per_image)
    total = f", {recipe.blend.total_packs:,} packs" if recipe.blend.total_packs else ""
    return {
        "label": f"blend{total}: {pack.semantics} packs of {pack.sequence_length:,} tokens, {images} an image{state}",
        "children": _sources(recipe.blend, "", lengths, source_labels(recipe.blend), recipe_shares(recipe.blend))
        + warnings,
    }


def _fingerprints(recipe: Recipe, tokenizer: TextTokenizer) -> str:
    assert recipe.pack is not None
    return f"; tokenizer {tokenizer.fingerprint}, encoding {encoding_fingerprint(recipe.pack, tokenizer)}"


def _warnings(recipe: Recipe, sets: BlendedSets) -> list[Node]:
    """A node for each source whose share of an epoch is not the recipe's."""
    found = epoch_warnings(recipe, sets, MOST_PLANNED)
    if found is None:
        return [
            {
                "label": f"shares of an epoch of more than {MOST_PLANNED:,} samples are not planned here: run the recipe "
                "with --only blend, then inspect shows them"
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
