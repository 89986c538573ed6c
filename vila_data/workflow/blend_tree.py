"""A recipe's blend as a tree to print: shares asked for, samples, images, tokens and fingerprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vila_data.blend.config import BlendSource, InnerBlend
from vila_data.blend.labels import labels
from vila_data.blend.lengths import Lengths
from vila_data.core.store import Store
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import encoding_fingerprint
from vila_data.order.sources import read_blended_sets
from vila_data.shard.manifest import read_manifest
from vila_data.workflow.encoding import committed_tokens, ready_tokenizer
from vila_data.workflow.recipe import Recipe

Node = dict[str, Any]


def blend_node(store: Store | None, recipe: Recipe) -> Node:
    """The blend; counts are of one pass over each source, given where its shards are there and encoded."""
    assert recipe.blend is not None and recipe.pack is not None
    lengths: Iterator[Lengths | None] = iter(lambda: None, 0)
    state = "; to be encoded"
    if store is not None and all(read_manifest(store, name) for name in recipe.blended_sets()):
        tokenizer = ready_tokenizer(recipe.pack)
        names = recipe.blended_sets()
        if len(committed_tokens(store, recipe.pack, tokenizer, names)) == len(names):
            lengths = iter(read_blended_sets(store, recipe.blend, recipe.pack, tokenizer).lengths)
            state = _fingerprints(recipe, tokenizer)
    pack = recipe.pack
    total = f", {recipe.blend.total_packs:,} packs" if recipe.blend.total_packs else ""
    return {
        "label": f"blend{total}: {pack.semantics} packs of {pack.sequence_length:,} tokens, {pack.tokens_per_image} an "
        f"image{state}",
        "children": _sources(recipe.blend, "", lengths, labels(recipe.blend)),
    }


def _fingerprints(recipe: Recipe, tokenizer: TextTokenizer) -> str:
    assert recipe.pack is not None
    return f"; tokenizer {tokenizer.fingerprint}, encoding {encoding_fingerprint(recipe.pack, tokenizer)}"


def _sources(blend: InnerBlend, place: str, lengths: Iterator[Lengths | None], names: Mapping[str, str]) -> list[Node]:
    return [
        _source(blend, source, f"{place}sources.{index}", lengths, names) for index, source in enumerate(blend.sources)
    ]


def _source(
    blend: InnerBlend, source: BlendSource, place: str, lengths: Iterator[Lengths | None], names: Mapping[str, str]
) -> Node:
    shares = []
    for start in sorted({0.0, *(change for each in blend.sources for change in each.changes)}):
        share = source.weight_at(start) / sum(each.weight_at(start) for each in blend.sources)
        shares.append(f"{share:.2%}" + (f" from {start:.0%} of the steps" if start else ""))
    least, most = blend.passes(source)
    passes = f"{least} pass" if least == most == 1 else f"{least} to {most if most else 'any number of'} passes"
    label = f"{names[place]}: {', '.join(shares)} of {blend.weight_counts}; {passes}, then {blend.rule(source)}"
    if source.blend is not None:
        return {"label": label, "children": _sources(source.blend, f"{place}.blend.", lengths, names)}
    if source.subset is not None:
        given = {key: value for key, value in source.subset.model_dump().items() if value is not None}
        label += "; " + ", ".join(f"{key} {value!r}" for key, value in given.items())
    found = next(lengths)
    node: Node = {"label": label, "set": source.name, "weight_counts": blend.weight_counts, "shares": shares}
    if found is not None:
        samples, images, tokens = found.totals
        node |= {"samples": samples, "images": images, "tokens": tokens, "lengths": found.fingerprint}
        node["label"] += f"; {samples:,} samples, {images:,} images, {tokens:,} tokens ({found.fingerprint})"
    return node
