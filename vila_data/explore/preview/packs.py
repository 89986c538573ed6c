"""The first packs of a run's epoch, as they will be trained."""

from __future__ import annotations

import numpy as np

from vila_data.core.schemas import IGNORED
from vila_data.core.store import Store
from vila_data.encode.token_set import TokenSet
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.explore.preview.drawn_packs import PackedSample, PackLegend, ShownPack
from vila_data.explore.preview.faults import DAMAGE, TokenFaults
from vila_data.loader.assemble import Expansion
from vila_data.mix.released import released_blend
from vila_data.mix.sequence import PackSequence, PlannedPacks
from vila_data.mix.sources import BlendedSets, read_blended_sets
from vila_data.recipe.recipe import Recipe


def first_packs(
    store: Store, recipe: Recipe, tokenizer: TextTokenizer | None, count: int, faults: TokenFaults
) -> tuple[tuple[ShownPack, ...], PackLegend, str]:
    """The first `count` packs of the recipe's seed, the names of their sets, and, where there are none, why.

    A pack whose token files cannot be read is left out and counted in `faults`.
    """
    if recipe.blend is None or recipe.pack is None:
        return (), PackLegend(), "No packs are shown: the run has no blend."
    if tokenizer is None:
        return (), PackLegend(), "No packs are shown: they need the run's token files and its tokenizer."
    try:
        sets = read_blended_sets(store, recipe.blend, recipe.pack, tokenizer)
        blend = released_blend(recipe.blend, recipe.pack, [opened.shards.view for opened in sets.sets])
        sequence = PackSequence(blend, recipe.pack, sets.lengths, seed=recipe.seed, epoch=0)
    except DAMAGE as error:
        return (), PackLegend(), f"No packs are shown: {error}"
    legend = PackLegend(tuple(opened.name for opened in sets.sets))
    packs: list[ShownPack | None] = []
    for planned in sequence:
        first = len(packs) + 1
        for number in range(min(len(planned.ends), count - len(packs))):
            packs.append(_pack(store, recipe, sets, planned, number, faults, first + number))
        if len(packs) >= count:
            break
    return tuple(pack for pack in packs if pack is not None), legend, ""


def _pack(
    store: Store,
    recipe: Recipe,
    sets: BlendedSets,
    planned: PlannedPacks,
    number: int,
    faults: TokenFaults,
    shown: int,
) -> ShownPack | None:
    """One of the planned packs, `shown` being its number on the page; None where a token file of it cannot be read."""
    assert recipe.pack is not None
    run, ends = planned.samples, planned.ends
    first, last = int(ends[number - 1]) if number else 0, int(ends[number])
    samples = []
    for at in range(first, last):
        source, shard, row = int(run.source[at]), int(run.shard[at]), int(run.row[at])
        opened = sets.sets[source]
        try:
            sample = TokenSet(store, opened.tokens, opened.folder).sample(shard, row)
            found = Expansion.of(sample, recipe.pack.images, tokens=int(run.tokens[at]), images=int(run.images[at]))
            samples.append(_sample(found, source, int(run.tokens[at])))
        except DAMAGE as error:
            faults.add(store.location(f"{opened.folder}/{opened.name}-{shard:06d}.arrow"), error, packs=1)
            return None
    return ShownPack(shown, recipe.pack.sequence_length, tuple(samples))


def _sample(found: Expansion, source: int, tokens: int) -> PackedSample:
    """Columns of its images and of what is trained."""
    ids, labels = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
    images = found.write(ids, labels)
    edges = np.flatnonzero(np.diff(np.r_[False, labels != IGNORED, False])).tolist()
    return PackedSample(
        source=source,
        record_id=found.sample.record_id,
        tokens=tokens,
        images=tuple((start, start + size) for start, size in images),
        trained=tuple(zip(edges[::2], edges[1::2], strict=True)),
    )
