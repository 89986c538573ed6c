"""A run that has been filtered, as questions about its rules need it: its lock, its parts and their receipts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.fates import Funnel
from vila_data.filter.config import DocumentRules, ImageRules, Rules
from vila_data.filter.whatif import Scope, Tally
from vila_data.recipe.lock import LOCK
from vila_data.recipe.recipe import Recipe
from vila_data.runs.run import Run, open_run
from vila_data.runs.stages import stages_of

_WHY_NOT: Final = {
    "corpora": "other records would have to be downloaded",
    "download": "other bytes would have to be downloaded",
    "score": "scores would have to be made afresh",
    "stages": "their columns would have to be made afresh",
    "shards": "it decides how kept records are laid down, not which are kept",
    "seed": "it shuffles what is kept",
    "pack": "it decides how kept samples become sequences",
    "blend": "it weighs what is kept",
    "resources": "it decides where work is done",
    "name": "it is a name",
    "version": "it is the recipe's form",
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
        """Assert that the rules in force give what the run's receipts say.

        Raises:
            DataError: they do not: the rules or the scores have changed since the run was filtered.
        """
        if self.funnel_with(tally)["filter"] != self.funnel["filter"]:
            raise DataError(
                f"{where}: corpus {self.name!r}: its fates are not those that its {LOCK} gives on its columns: the rules "
                "or the scores have changed since, or an earlier version of vila-data wrote it; relaunch vila-data run "
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

    def asked(self, settings: Sequence[str]) -> Recipe:
        """The run's recipe with ``filter.…=value`` settings over it.

        Raises:
            UsageError: a key of another section; or as the recipe says it of a wrong value.
        """
        for setting in settings:
            check_key(setting)
        return self.run.recipe_with(settings)

    def value_in_force(self, key: str, settings: Sequence[str]) -> Any:
        """What the run's recipe, with settings over it, has at a dotted key of a rule, defaults included; None
        for a key that is none of a rule."""
        recipe = self.asked(settings)
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
            raise UsageError(f"{self.run.url}: corpus {name!r} is not downloaded: {self.run.finish()}")
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
    why = f"{first}: {_WHY_NOT[first]}" if first in _WHY_NOT else f"a recipe has no key {first!r}"
    raise UsageError(
        f"{key}: whatif answers for keys of `filter` alone, since they need no more than the columns that are there "
        f"({why}); ask filter.rules, filter.images.{{{images}}}, filter.documents.{{{documents}}}, or the same under "
        "filter.per_corpus.CORPUS"
    )
