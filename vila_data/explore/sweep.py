"""A sweep: what a run would keep at each of many values of one key, the columns read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Final

from vila_data.core.errors import UsageError
from vila_data.explore.preview.build import check_target
from vila_data.explore.sweep_page import cuts_to_show, examples_of, examples_per_side, write_sweep
from vila_data.explore.whatif import CorpusFates, FilteredRun, check_key
from vila_data.filter.config import Rules
from vila_data.filter.rules import UNKNOWN
from vila_data.filter.whatif import Tally, tally
from vila_data.filter.whatif_cuts import Measure, NearestToCuts, measure_of
from vila_data.recipe.recipe import Recipe
from vila_data.recipe.yaml_lines import ValueWithLines
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run

_MOST: Final = 1000
"""Values of a sweep."""


@dataclass(frozen=True)
class CorpusSweep:
    """A corpus at each value of the sweep. Keys of the mappings: images, records.

    entered: what the filter is asked about; in_force: what it keeps at the value in force; kept, unknown: a count per
    value; unscored: images that a run with that value would score first.
    """

    entered: dict[str, int]
    in_force: dict[str, int]
    kept: dict[str, list[int]]
    unknown: dict[str, list[int]]
    unscored: list[int]


@dataclass(frozen=True)
class SetSweep:
    """A shard set at each value: what it surely holds."""

    corpus: str
    view: str
    samples: list[int]
    images: list[int]


@dataclass(frozen=True)
class SweepAnswer:
    """What a sweep found. asked: settings beside it; in_force: the key's value with those, null: none.

    untouched: corpora for which this key changes nothing, since per_corpus sets their own or it does not hold for them.
    """

    run: str
    key: str
    asked: tuple[str, ...]
    in_force: Any
    values: list[Any]
    corpora: dict[str, CorpusSweep]
    untouched: list[str]
    sets: dict[str, SetSweep]
    page: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass
class _Plan:
    """The settings of a corpus: the run's own, with the settings beside the sweep, then one a value."""

    corpus: CorpusFates
    rules: list[Rules]
    nearest: NearestToCuts | None = field(default=None)


def sweep(
    run: str | os.PathLike[str] | Run,
    text: str,
    settings: Sequence[str] = (),
    *,
    out: str | None = None,
    watch: Progress | None = None,
) -> SweepAnswer:
    """What a run would keep at each value of ``key=START:STOP:STEP`` (or ``key=a,b,c``).

    Args:
        run: a filtered run.
        text: the key, one of `filter`, and its values; STOP is one of them where a step ends there.
        settings: ``filter.…=value`` beside it.
        out: write a page there, with curves and examples at each cut.
        watch: receives progress.

    Raises:
        UsageError: the sweep is written wrongly, changes nothing, or as `whatif`; no folder for the page.
        DataError: as `whatif`.
    """
    watch = watch or NoProgress()
    key, texts = parse_sweep(text)
    if out is not None:
        check_target(out)
    found = FilteredRun(run)
    base = found.recipe_with(settings)
    steps = [found.recipe_with([*settings, f"{key}={one}"]) for one in texts]
    in_force = found.current_value(key, settings)
    values = [ValueWithLines(key, one).value for one in texts]
    measure = measure_of(key) if out is not None else None
    shown = cuts_to_show(values, in_force, len(found.recipe.corpora)) if measure is not None else []
    plans = _plans(found, base, steps)
    if not plans:
        raise UsageError(
            f"--sweep {key}: this changes nothing for {found.store.url}: {_why_nothing(found, base, steps, key)}"
        )
    corpora: dict[str, CorpusSweep] = {}
    for plan in plans:
        if measure is not None:
            rules = measure.without(plan.rules[1])
            cuts = [values[place] for place in shown]
            plan.nearest = NearestToCuts(
                measure, rules, len(plan.rules), cuts, examples_per_side(len(cuts), len(plans))
            )
        corpora[plan.corpus.name] = _sweep_corpus(found, plan, measure, watch)
    untouched = [name for name in found.recipe.corpora if name not in corpora]
    sets = _sets(base, corpora)
    answer = SweepAnswer(found.store.url, key, tuple(settings), in_force, values, corpora, untouched, sets, out)
    if out is not None:
        nearest = {plan.corpus.name: plan.nearest for plan in plans if plan.nearest is not None}
        write_sweep(out, answer.as_dict(), examples_of(found.run, key, nearest, shown, watch))
    return answer


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """The key, and its values as YAML; ``START:STOP:STEP`` is stepped through exactly, in decimals.

    Raises:
        UsageError: it is written otherwise, has a key of another section, no value, or too many.
    """
    key, equals, right = text.partition("=")
    if not equals or not right:
        raise UsageError(f"--sweep {text}: write filter.images.min_similarity=START:STOP:STEP, or =a,b,c")
    check_key(text)
    values = [one.strip() for one in _entries(right)]
    if "" in values:
        raise UsageError(f"--sweep {text}: a value is empty (write null for none)")
    if ":" in right and not {"[", "{"} & set(right):
        values = _steps(text, right.split(":"))
    if len(values) > _MOST:
        raise UsageError(f"--sweep {text}: {len(values):,} values, the limit is {_MOST:,}; use a larger STEP")
    return key, values


def _entries(text: str) -> list[str]:
    """The text cut at its commas, but for those inside of brackets."""
    entries, depth = [""], 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth <= 0:
            entries.append("")
        else:
            entries[-1] += char
    return entries


def _steps(text: str, numbers: list[str]) -> list[str]:
    try:
        start, stop, step = (Decimal(number.strip()) for number in numbers)
        if not all(number.is_finite() for number in (start, stop, step)) or step <= 0 or stop < start:
            raise UsageError(f"--sweep {text}: needs START <= STOP and a STEP above 0")
        count = int((stop - start) / step) + 1
    except (ArithmeticError, ValueError):
        raise UsageError(f"--sweep {text}: START:STOP:STEP are three numbers, e.g. 0.1:0.4:0.02") from None
    return [format(start + step * number, "f") for number in range(min(count, _MOST + 1))]


def _plans(found: FilteredRun, base: Recipe, steps: Sequence[Recipe]) -> list[_Plan]:
    """The corpora for which the values make a difference."""
    names = {
        name
        for name in found.recipe.corpora
        if len({base.rules_for(name), *(step.rules_for(name) for step in steps)}) > 1
    }
    return [
        _Plan(
            corpus,
            [found.recipe.rules_for(corpus.name), base.rules_for(corpus.name)]
            + [step.rules_for(corpus.name) for step in steps],
        )
        for corpus in found.corpora()
        if corpus.name in names
    ]


def _why_nothing(found: FilteredRun, base: Recipe, steps: Sequence[Recipe], key: str) -> str:
    """Why no corpus is kept otherwise at any value, and what to ask instead."""
    section, _, name = key.removeprefix("filter.").rpartition(".")
    rule = key.removeprefix("filter.")
    if key.startswith("filter.per_corpus.") or all(step.filter == base.filter for step in steps):
        value = "value is" if len(steps) == 1 else "values are all"
        return f"its {value} already set; try others"
    reasons = []
    for corpus in found.corpora():
        own = base.filter.per_corpus.get(corpus.name)
        if own is not None and name in getattr(own, section or "none", own).model_fields_set:
            reasons.append(f"{corpus.name}: per_corpus overrides it; sweep filter.per_corpus.{corpus.name}.{rule}")
        elif not sum(corpus.funnel["filter"].get("images", {}).values()):
            reasons.append(f"{corpus.name}: has no images")
        else:
            reasons.append(
                f"{corpus.name}: contains conversations; the rule applies to them only as filter.per_corpus.{corpus.name}.{rule}"
            )
    return "; ".join(reasons)


def _sweep_corpus(found: FilteredRun, plan: _Plan, measure: Measure | None, watch: Progress) -> CorpusSweep:
    corpus, name = plan.corpus, f"columns {plan.corpus.name}"
    watch.stage(name, len(corpus.scope.parts), 0)
    counts = tally(
        found.store,
        corpus.scope,
        plan.rules + ([measure.without(plan.rules[1])] if measure is not None else []),
        watchers=[plan.nearest] if plan.nearest is not None else [],
        progress=lambda images: watch.advance(name, images),
    )
    corpus.check(counts[0], found.store.url)
    base, steps = counts[1], counts[2 : len(plan.rules)]
    entered = {unit: sum(corpus.funnel["filter"].get(unit, {}).values()) for unit in ("images", "records")}
    return CorpusSweep(
        entered,
        {"images": base.images["kept"], "records": base.records["kept"]},
        {"images": [one.images["kept"] for one in steps], "records": [one.records["kept"] for one in steps]},
        {unit: [_unknown(one, unit) for one in steps] for unit in ("images", "records")},
        [one.unscored for one in steps],
    )


def _unknown(counts: Tally, unit: str) -> int:
    found: int = getattr(counts, unit).get(UNKNOWN, 0)
    return found


def _sets(recipe: Recipe, corpora: dict[str, CorpusSweep]) -> dict[str, SetSweep]:
    result = {}
    for name, config in recipe.shards.items():
        kept = corpora[config.corpus].kept if config.corpus in corpora else None
        if kept is not None:
            samples = kept["images"] if config.view == "pairs" else kept["records"]
            result[name] = SetSweep(config.corpus, config.view, samples, kept["images"])
    return result
