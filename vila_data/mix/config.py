"""Recipe values under `blend`: shard sets, the unit of their weights, and what happens when a source is exhausted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from vila_data.core.config import StrictModel
from vila_data.mix.subset import Subset

Unit = Literal["samples", "images", "tokens"]
OnExhaustion = Annotated[
    Literal["stop", "repeat", "renormalize"],
    BeforeValidator(lambda value: "renormalize" if value == "renormalise" else value),
]
Location = tuple[str | int, ...]
_LONGEST_LABEL: Final = 48


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _weight(value: object) -> float | dict[float, float]:
    if isinstance(value, dict):
        return _schedule(value)
    number = _number(value)
    if number is None:
        raise ValueError(
            f"weight must be a number, or a schedule by fraction of steps such as {{0.0: 1, 0.6: 3}}; found {value!r}"
        )
    if number <= 0:
        raise ValueError(
            f"weight must be greater than 0, found {value!r}; to exclude a source, remove it from the recipe"
        )
    return number


def _schedule(value: dict[Any, Any]) -> dict[float, float]:
    result: dict[float, float] = {}
    for key, entry in value.items():
        try:
            start = float(key)
        except (TypeError, ValueError):
            start = math.nan
        number = _number(entry)
        if not 0 <= start < 1:
            raise ValueError(f"a weight schedule's keys must be fractions of steps, from 0 to below 1; found {key!r}")
        if result and start <= max(result):
            raise ValueError(f"fractions of steps must increase; {key!r} follows {max(result)}")
        if number is None or number < 0:
            raise ValueError(f"the weight at fraction {key!r} must be a number of 0 or more; found {entry!r}")
        result[start] = number
    if not result or next(iter(result)) != 0:
        raise ValueError("a weight schedule must start at fraction 0.0")
    if not any(result.values()):
        raise ValueError("all weights are 0; to exclude a source, remove it from the recipe")
    return result


def _repeat(value: object) -> int | tuple[int, int | None]:
    if _is_count(value):
        return value  # type: ignore[return-value]
    if isinstance(value, list | tuple) and len(value) == 2:
        least, most = value
        if _is_count(least) and (most is None or (_is_count(most) and most >= least)):
            return least, most
    raise ValueError(
        "repeat must be a number of passes (1 or more) or [min, max] with 1 <= min <= max (null: no limit); "
        f"found {value!r}"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _as_written(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(fraction): weight for fraction, weight in value.items()}
    return list(value) if isinstance(value, tuple) else value


Weight = Annotated[float | dict[float, float], PlainValidator(_weight), PlainSerializer(_as_written)]
"""A weight above 0, or weights of 0 or more by the fraction of the steps from which each applies."""
Repeat = Annotated[int | tuple[int, int | None], PlainValidator(_repeat), PlainSerializer(_as_written)]
"""Passes, or the minimum and maximum of passes; None: no limit."""


class BlendSource(StrictModel):
    """One source of a blend: a shard set, or a nested blend.

    shards:        name of one of the recipe's shard sets.
    blend:         a nested blend, instead of `shards`.
    weight:        weight relative to its siblings, in the blend's `weight_unit`; or a schedule of weights by fraction of
                   the epoch's steps, each of which applies until the next.
    repeat:        passes over the source per epoch: n, or [min, max]. A pass over a nested blend is an epoch of that
                   blend. Default: 1, or [1, null] if on_exhaustion is `repeat`.
    on_exhaustion: overrides the blend's `on_exhaustion` for this source.
    subset:        restricts the shard set to some of its samples.
    """

    shards: str | None = None
    blend: InnerBlend | None = None
    weight: Weight
    repeat: Repeat | None = None
    on_exhaustion: OnExhaustion | None = Field(None, validation_alias=AliasChoices("on_exhaustion", "at_exhaustion"))
    subset: Subset | None = None

    @model_validator(mode="after")
    def _one(self) -> BlendSource:
        if (self.shards is None) == (self.blend is None):
            found = "neither" if self.shards is None else "both"
            raise ValueError(f"a source needs exactly one of `shards` and `blend`; found {found}")
        if self.subset is not None and self.shards is None:
            raise ValueError("`subset` only applies to `shards`; move it to the shard sets inside the blend")
        return self

    @property
    def name(self) -> str:
        """The shard set's name, or ``blend``."""
        return self.shards or "blend"

    @property
    def changes(self) -> tuple[float, ...]:
        """Fractions of steps at which the weight changes."""
        return tuple(self.weight)[1:] if isinstance(self.weight, dict) else ()

    def weight_at(self, fraction: float) -> float:
        """The weight that applies at a fraction of the epoch's steps."""
        if not isinstance(self.weight, dict):
            return self.weight
        return [weight for start, weight in self.weight.items() if start <= fraction][-1]


@dataclass(frozen=True)
class LocatedSource:
    """A source and its location below the blend's section of the recipe."""

    location: Location
    source: BlendSource

    @property
    def path(self) -> str:
        """The location as text, e.g. ``sources.0.blend.sources.1``."""
        return ".".join(map(str, self.location))


class InnerBlend(StrictModel):
    """Sources, the unit of their weights, and what happens when a source is exhausted.

    A source is exhausted after its maximum number of passes. What happens then (`stop` by default; every such event is
    in the plan and in the report):

    - stop: the epoch ends, even if other sources have samples left;
    - renormalize: the source is removed, and its weight is redistributed to the others in proportion to theirs;
    - repeat: a source with this rule is never exhausted; it continues from its start, so its maximum is null.

    An epoch ends as soon as a `stop` source is exhausted, every source is removed, only repeating sources remain and
    each has completed its minimum of passes (with total_packs they continue instead), no remaining source has a weight
    above 0, or total_packs is reached. A minimum extends an epoch of repeating sources; if another rule ends the epoch
    before a source has completed its minimum, the report says so.

    An epoch of a nested blend is one pass of the source that contains it. The outer blend decides, in its unit, how much
    comes from the nested blend, and the nested blend decides, in its own unit, how that is split.

    weight_unit:   what the weights count.
    on_exhaustion: what happens when a source has completed its passes; None: `stop`.
    sources:       shard sets, or nested blends.
    """

    weight_unit: Unit = Field(validation_alias=AliasChoices("weight_unit", "weight_counts"))
    on_exhaustion: OnExhaustion | None = Field(None, validation_alias=AliasChoices("on_exhaustion", "at_exhaustion"))
    sources: Annotated[tuple[BlendSource, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rules(self) -> InnerBlend:
        for index, source in enumerate(self.sources):
            where = f"sources.{index} ({source.name}): repeat {_repeat_text(source.repeat)}"
            bounded = source.repeat is not None and (isinstance(source.repeat, int) or source.repeat[1] is not None)
            if self.rule(source) == "repeat" and bounded:
                raise ValueError(
                    f"{where} has a maximum, but on_exhaustion: repeat has none; use [min, null], or set the source's "
                    "on_exhaustion to stop or renormalize"
                )
            if self.rule(source) != "repeat" and source.repeat is not None and not bounded:
                raise ValueError(f"{where} has no maximum; that requires on_exhaustion: repeat")
        for fraction in sorted({0.0, *(change for source in self.sources for change in source.changes)}):
            if not any(source.weight_at(fraction) for source in self.sources):
                raise ValueError(f"every source has weight 0 from fraction {fraction} of the steps")
        return self

    def rule(self, source: BlendSource) -> OnExhaustion:
        """What happens when a source of this blend is exhausted."""
        return source.on_exhaustion or self.on_exhaustion or "stop"

    def passes(self, source: BlendSource) -> tuple[int, int | None]:
        """(minimum, maximum) of passes over a source of this blend in an epoch; None: no limit."""
        if source.repeat is None:
            return (1, None) if self.rule(source) == "repeat" else (1, 1)
        return (source.repeat, source.repeat) if isinstance(source.repeat, int) else source.repeat

    def walk(self, location: Location = ()) -> Iterator[LocatedSource]:
        """All sources of this blend and of nested blends, in the recipe's order; a blend before its sources."""
        for index, source in enumerate(self.sources):
            here = (*location, "sources", index)
            yield LocatedSource(here, source)
            if source.blend is not None:
                yield from source.blend.walk((*here, "blend"))

    def leaves(self, location: Location = ()) -> Iterator[LocatedSource]:
        """The shard sets of this blend and of nested blends, in the recipe's order."""
        return (found for found in self.walk(location) if found.source.blend is None)

    def changes(self) -> tuple[float, ...]:
        """Fractions of steps at which a weight changes, here or in a nested blend, ascending."""
        return tuple(sorted({change for found in self.walk() for change in found.source.changes}))


def _repeat_text(repeat: int | tuple[int, int | None] | None) -> str:
    return str(_as_written(repeat)).replace("None", "null")


class BlendConfig(InnerBlend):
    """A recipe's blend.

    total_packs: an epoch ends after this many packs; the steps that a weight schedule's fractions refer to.
    """

    total_packs: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _steps(self) -> BlendConfig:
        if self.changes() and self.total_packs is None:
            raise ValueError(
                "total_packs is required when weights change over time, because the schedule is in fractions of it"
            )
        return self


def source_labels(blend: InnerBlend) -> dict[str, str]:
    """{path: label} of each source, in the recipe's order; labels are unique.

    A shard set's label is its name, a nested blend's the names of its sets, as many as fit. A path is appended where
    several sources would have the same label. No order, seed or state depends on labels.
    """
    found = {located.path: located.source for located in blend.walk()}
    names = {path: _name(source) for path, source in found.items()}
    counts = Counter(names.values())
    sets = Counter(source.name for source in found.values() if source.blend is None)
    unique = {path: (counts if source.blend else sets)[names[path]] == 1 for path, source in found.items()}
    return {path: name if unique[path] else f"{name} ({path})" for path, name in names.items()}


def _name(source: BlendSource) -> str:
    if source.blend is None:
        return source.name
    names = list(dict.fromkeys(leaf.source.name for leaf in source.blend.leaves()))
    shown = len(names)
    while shown > 1 and len(" + ".join(names[:shown])) > _LONGEST_LABEL:
        shown -= 1
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return " + ".join(names[:shown]) + more


@dataclass(frozen=True)
class RecipeShare:
    """A source's share by the weights as written. of_blend: of the blend that contains it; of_whole: of the whole."""

    of_blend: float
    of_whole: float


def recipe_shares(blend: InnerBlend) -> dict[str, RecipeShare]:
    """{path: shares} of each source by the weights as written, before any source is exhausted; in the recipe's order.

    Weights that change are averaged over the epoch's steps. In a nested blend, steps count in proportion to that blend's
    own share at the time.
    """
    wholes: dict[str, float] = {}
    for start, end in pairwise((0.0, *blend.changes(), 1.0)):
        for path, share in _shares_at(blend, start, "", 1.0):
            wholes[path] = wholes.get(path, 0.0) + (end - start) * share
    around = {path: wholes.get(parent_path(path), 1.0) for path in wholes}
    return {path: RecipeShare(whole / around[path] if around[path] else 0.0, whole) for path, whole in wholes.items()}


def parent_path(path: str) -> str:
    """The path of the nested blend that contains a source: ``sources.0`` for ``sources.0.blend.sources.1``; "" if none."""
    return path.rpartition(".blend.")[0]


def _shares_at(blend: InnerBlend, fraction: float, prefix: str, whole: float) -> Iterator[tuple[str, float]]:
    weights = [source.weight_at(fraction) for source in blend.sources]
    for index, (source, weight) in enumerate(zip(blend.sources, weights, strict=True)):
        path, share = f"{prefix}sources.{index}", whole * weight / sum(weights)
        yield path, share
        if source.blend is not None:
            yield from _shares_at(source.blend, fraction, f"{path}.blend.", share)
