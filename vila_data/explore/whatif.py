"""`whatif`: the funnel and the shard sets that other rules would give, compared with the run's, from stored columns alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.fates import Funnel
from vila_data.filter.config import DocumentRules, ImageRules, Rules
from vila_data.filter.rules import KEPT, UNKNOWN
from vila_data.filter.whatif import PartTable, Scope, Settled, Tally, tally
from vila_data.recipe.lock import LOCK
from vila_data.recipe.recipe import Recipe
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, open_run
from vila_data.runs.stages import stages_of
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


def whatif(run: str | os.PathLike[str] | Run, settings: Sequence[str], watch: Progress | None = None) -> Answer:
    """What a run with ``filter.…=value`` settings over its recipe would keep; nothing is written.

    Without unknown images the counts are those that relaunching the run with these settings gives.

    Raises:
        UsageError: no settings, keys other than those of `filter`, a wrong value, or a run that is not filtered.
        DataError: the run's fates differ from what its rules give; a table is not one that a run writes.
    """
    if not settings:
        raise UsageError("whatif: nothing to try; pass --set filter.images.min_similarity=0.26, or --sweep")
    watch = watch or NoProgress()
    found = FilteredRun(run)
    asked = found.recipe_with(settings)
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
    """A sentence per blended set that would surely be empty."""
    return tuple(
        f"set {name} would be empty, so a run would fail while planning the blend; use a looser rule, "
        "or remove the set from the blend"
        for name in asked.blended_sets()
        if sets[name].new.samples_at_most == 0
    )


def _tally(
    found: FilteredRun, corpus: CorpusFates, rules: Sequence[Rules], sizes: SampleSizes, watch: Progress
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
    """Bounds of the sizes of the samples that each set would have under each setting: 8 bytes per sample and setting."""

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
    image_sizes = np.bincount(row[kept], member_bytes_of(sizes.image_bytes[kept]), minlength=len(outcome.records))
    own = record_bound(sizes.json_bytes[records], sizes.n_texts[records], count[records])
    total: NDArray[np.int64] = own + image_sizes[records].astype(np.int64)
    return total


_WHY_NOT: Final = {
    "corpora": "other records would have to be downloaded",
    "download": "other bytes would have to be downloaded",
    "score": "new scores would have to be computed",
    "stages": "their columns would have to be computed again",
    "shards": "it controls how kept records are written, not which are kept",
    "seed": "it shuffles what is kept",
    "pack": "it decides how kept samples become sequences",
    "blend": "it weights what is kept",
    "resources": "it decides where work is done",
    "name": "it only names the run",
    "version": "it is the recipe's format version",
}


@dataclass(frozen=True)
class CorpusFates:
    """One corpus of a filtered run. funnel: as its receipts have it, from selection to filter."""

    name: str
    scope: Scope
    funnel: dict[str, dict[str, dict[str, int]]]

    def funnel_with(self, tally: Tally) -> dict[str, dict[str, dict[str, int]]]:
        """The funnel with the filter's fates in its place; they sum to what entered the filter.

        Raises:
            DataError: they do not.
        """
        before = Funnel.from_dict({stage: units for stage, units in self.funnel.items() if stage != "filter"})
        funnel = Funnel.from_dict(before.as_dict())
        for unit, counts in (("images", tally.images), ("records", tally.records)):
            funnel.add("filter", unit, "kept", 0)  # type: ignore[arg-type]
            for fate, count in sorted(counts.items()):
                funnel.add("filter", unit, fate, count)  # type: ignore[arg-type]
            funnel.check("filter", unit, before.kept([*before.as_dict()][-1], unit))
        return funnel.as_dict()

    def check(self, tally: Tally, where: str) -> None:
        """Assert that the current rules give what the run's receipts say.

        Raises:
            DataError: they do not: the rules or the scores have changed since the run was filtered.
        """
        if self.funnel_with(tally)["filter"] != self.funnel["filter"]:
            raise DataError(
                f"{where}: corpus {self.name!r}: the stored fates differ from what {LOCK} gives for the stored columns. The rules "
                "or scores have changed since, or an earlier version of vila-data wrote them. Rerun vila-data run "
                "with its recipe and this --out"
            )


class FilteredRun:
    """A run whose fates are committed.

    Raises:
        UsageError, DataError: as `open_run`.
    """

    def __init__(self, run: str | os.PathLike[str] | Run) -> None:
        self.run = open_run(run)
        self.store, self.recipe = self.run.store, self.run.recipe

    def recipe_with(self, settings: Sequence[str]) -> Recipe:
        """The run's recipe with ``filter.…=value`` settings over it.

        Raises:
            UsageError: a key of another section; or as the recipe says it of a wrong value.
        """
        for setting in settings:
            check_key(setting)
        return self.run.recipe_with(settings)

    def current_value(self, key: str, settings: Sequence[str]) -> Any:
        """What the run's recipe, with settings over it, has at a dotted key of a rule, defaults included; None
        for a key that is none of a rule."""
        recipe = self.recipe_with(settings)
        way = key.split(".")[1:]
        value: Any = recipe.filter
        if len(way) > 1 and way[0] == "per_corpus":
            value, way = recipe.rules_for(way[1]), way[2:]
        for step in way:
            value = getattr(value, step, None)
        return list(value) if isinstance(value, tuple) else value if way and not isinstance(value, Rules) else None

    def corpora(self) -> list[CorpusFates]:
        """The run's corpora in the recipe's order.

        Raises:
            UsageError: a stage is not complete.
        """
        return [self._corpus(name) for name in self.recipe.corpora]

    def _corpus(self, name: str) -> CorpusFates:
        parts = self.run.parts(name)
        if not parts:
            raise UsageError(f"{self.run.url}: corpus {name!r} is not downloaded; {self.run.finish()}")
        stages = stages_of(self.recipe, "").deciding()
        funnel = self.run.funnel(name)
        for stage in stages:
            if stage not in funnel:
                missing = sum(receipt is None for receipt in self.run.receipts(stage, name))
                raise UsageError(
                    f"{self.run.url}: corpus {name!r}: {stage} lacks {missing} of {len(parts)} parts: {self.run.finish()}"
                )
        conversations = self.recipe.corpora[name].makes == "conversation"
        scope = Scope(parts, self.recipe.scores(), conversations)
        return CorpusFates(name, scope, funnel)


def check_key(setting: str) -> None:
    """Assert that a ``key=value`` is about `filter`.

    Raises:
        UsageError: it is not; says which keys can be asked, and why this one cannot.
    """
    key = setting.partition("=")[0]
    first = key.split(".")[0]
    if first == "filter":
        return
    images, documents = (", ".join(model.model_fields) for model in (ImageRules, DocumentRules))
    why = f"{first}: {_WHY_NOT[first]}" if first in _WHY_NOT else f"recipes have no key {first!r}"
    raise UsageError(
        f"{key}: whatif only supports keys under `filter`, which can be evaluated from stored columns "
        f"({why}). Use filter.rules, filter.images.{{{images}}}, filter.documents.{{{documents}}}, or the same under "
        "filter.per_corpus.CORPUS"
    )
