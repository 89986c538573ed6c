"""`whatif`: the funnel and the shard sets that other rules would give, beside those of the run, from columns alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.explore.whatif.run import CorpusFates, FilteredRun
from vila_data.filter.config import Rules
from vila_data.filter.rules import KEPT, UNKNOWN
from vila_data.filter.whatif import PartTable, Settled, Tally, tally
from vila_data.recipe.recipe import Recipe
from vila_data.runs.progress import Silence, Watch
from vila_data.runs.run import Run
from vila_data.shard.config import ShardSet, View
from vila_data.shard.write import count_shards, member_bytes_of, pair_bound, record_bound

MB = 1_000_000


@dataclass(frozen=True)
class SetSize:
    """A shard set under one setting.

    samples, images, shards: of what is surely kept; shards is None where something is unknown, since then nobody knows.
    samples_at_most, images_at_most: if all that is unknown were kept.
    """

    samples: int
    images: int
    shards: int | None
    samples_at_most: int
    images_at_most: int


@dataclass(frozen=True)
class CorpusAnswer:
    """A corpus's funnel (core.fates.Funnel.as_dict) under the run's rules and under the asked ones.

    unscored: images without a score that a run with the asked rules would score first.
    """

    old: dict[str, dict[str, dict[str, int]]]
    new: dict[str, dict[str, dict[str, int]]]
    unscored: int


@dataclass(frozen=True)
class SetAnswer:
    """A shard set under the run's rules and under the asked ones."""

    corpus: str
    view: View
    old: SetSize
    new: SetSize


@dataclass(frozen=True)
class Answer:
    """What `whatif` found. asked: the settings as given. notes: what a run with them would stop at."""

    run: str
    asked: tuple[str, ...]
    corpora: dict[str, CorpusAnswer]
    sets: dict[str, SetAnswer]
    notes: tuple[str, ...] = ()


def whatif(run: str | os.PathLike[str] | Run, settings: Sequence[str], watch: Watch | None = None) -> Answer:
    """What a run with ``filter.…=value`` settings over its recipe would keep; nothing is written.

    Without unknown images the counts are those that relaunching the run with these settings gives.

    Raises:
        UsageError: no settings, keys other than those of `filter`, a wrong value, or a run that is not filtered.
        DataError: the run's fates are not those of its own rules; a table is not what a run leaves.
    """
    if not settings:
        raise UsageError("whatif: nothing is asked: give --set filter.images.min_similarity=0.26, or --sweep")
    watch = watch or Silence()
    found = FilteredRun(run)
    asked = found.asked(settings)
    corpora: dict[str, CorpusAnswer] = {}
    sets: dict[str, SetAnswer] = {}
    for corpus in found.corpora():
        own = {name: config for name, config in asked.shards.items() if config.corpus == corpus.name}
        rules = [found.recipe.rules_for(corpus.name), asked.rules_for(corpus.name)]
        sizes = SampleSizes(own, 2)
        counts = _tally(found, corpus, rules, sizes, watch)
        corpus.check(counts[0], found.store.url)
        corpora[corpus.name] = CorpusAnswer(
            corpus.funnel_with(counts[0]), corpus.funnel_with(counts[1]), counts[1].unscored
        )
        for name, config in own.items():
            old, new = (sizes.size(name, place, counts[place], asked.seed) for place in range(2))
            sets[name] = SetAnswer(corpus.name, config.view, old, new)
    ordered = {name: sets[name] for name in asked.shards}
    return Answer(found.store.url, tuple(settings), corpora, ordered, _notes(asked, ordered))


def _notes(asked: Recipe, sets: dict[str, SetAnswer]) -> tuple[str, ...]:
    """A sentence a blended set that would surely be empty."""
    return tuple(
        f"set {name} would be empty, so the blend could not be planned and the run would end there: ask for a looser rule, "
        "or take the set out of the blend"
        for name in asked.blended_sets()
        if sets[name].new.samples_at_most == 0
    )


def _tally(
    found: FilteredRun, corpus: CorpusFates, rules: Sequence[Rules], sizes: SampleSizes, watch: Watch
) -> list[Tally]:
    watch.stage(f"columns {corpus.name}", len(corpus.scope.parts), 0)
    return tally(
        found.store,
        corpus.scope,
        rules,
        sizes=True,
        watchers=[sizes],
        progress=lambda images: watch.advance(f"columns {corpus.name}", images),
    )


class SampleSizes:
    """Bounds of the sizes of the samples that each set would have under each setting: 8 bytes a sample and setting."""

    def __init__(self, sets: dict[str, ShardSet], settings: int) -> None:
        self._sets = sets
        self._bounds: list[dict[str, list[NDArray[np.int64]]]] = [{name: [] for name in sets} for _ in range(settings)]

    def see(self, table: PartTable, settled: Sequence[Settled]) -> None:
        """Note the samples of one part."""
        for place, outcome in enumerate(settled):
            for view in {config.view for config in self._sets.values()}:
                bounds = _bounds(table, outcome, view)
                for name, config in self._sets.items():
                    if config.view == view:
                        self._bounds[place][name].append(bounds)

    def size(self, name: str, place: int, counts: Tally, seed: int) -> SetSize:
        """The set under one setting, from its counts and what was seen."""
        images, records = counts.images, counts.records
        kept, most = images["kept"], images["kept"] + images.get(UNKNOWN, 0)
        samples, samples_most = records["kept"], records["kept"] + records.get(UNKNOWN, 0)
        if self._sets[name].view == "pairs":
            samples, samples_most = kept, most
        shards = None
        if (samples, kept) == (samples_most, most):
            bounds = np.concatenate([np.empty(0, np.int64), *self._bounds[place][name]])
            shards = count_shards(bounds, name, seed, self._sets[name].max_mb * MB)
        return SetSize(samples, kept, shards, samples_most, most)


def _bounds(table: PartTable, outcome: Settled, view: View) -> NDArray[np.int64]:
    assert table.sizes is not None
    sizes, kept, row = table.sizes, outcome.images == KEPT, table.published.row
    if view == "pairs":
        return pair_bound(sizes.json_bytes[row[kept]], sizes.image_bytes[kept])
    records = np.flatnonzero(outcome.records == KEPT)
    count = np.bincount(row[kept], minlength=len(outcome.records))
    pictures = np.bincount(row[kept], member_bytes_of(sizes.image_bytes[kept]), minlength=len(outcome.records))
    own = record_bound(sizes.json_bytes[records], sizes.n_texts[records], count[records])
    total: NDArray[np.int64] = own + pictures[records].astype(np.int64)
    return total
