"""Recipe values under `blend:`: shard sets, what their weights count, and what happens when one is exhausted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from vila_data.core.config import StrictModel
from vila_data.core.expression import parse
from vila_data.mix.columns import COLUMNS

Unit = Literal["samples", "images", "tokens"]
AtExhaustion = Literal["stop", "repeat", "renormalise"]
Location = tuple[str | int, ...]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _weight(value: object) -> float | dict[float, float]:
    if isinstance(value, dict):
        return _schedule(value)
    number = _number(value)
    if number is None:
        raise ValueError(f"a weight is a number, or weights by share of steps as {{0.0: 1, 0.6: 3}}; found {value!r}")
    if number <= 0:
        raise ValueError(f"weight {value!r} is not above 0; to leave a source out, take it out of the recipe")
    return number


def _schedule(value: dict[Any, Any]) -> dict[float, float]:
    result: dict[float, float] = {}
    for key, entry in value.items():
        try:
            start = float(key)
        except (TypeError, ValueError):
            raise ValueError(f"weights change at shares of steps, numbers from 0 to below 1; found {key!r}") from None
        number = _number(entry)
        if not 0 <= start < 1:
            raise ValueError(f"weights change at shares of steps, from 0 to below 1; found {key!r}")
        if result and start <= max(result):
            raise ValueError(f"shares of steps ascend; {key!r} stands after {max(result)}")
        if number is None or number < 0:
            raise ValueError(f"from share {key!r} on: a weight is a number of 0 or above; found {entry!r}")
        result[start] = number
    if not result or next(iter(result)) != 0:
        raise ValueError("weights by share of steps begin at 0.0")
    if not any(result.values()):
        raise ValueError("every weight is 0; to leave a source out, take it out of the recipe")
    return result


def _repeat(value: object) -> int | tuple[int, int | None]:
    if _is_count(value):
        return value  # type: ignore[return-value]
    if isinstance(value, list | tuple) and len(value) == 2:
        least, most = value
        if _is_count(least) and (most is None or (_is_count(most) and most >= least)):
            return least, most
    raise ValueError(
        f"repeat is a number of passes from 1, or [least, most] with 1 <= least <= most (null: no bound); found {value!r}"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _as_written(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(share): weight for share, weight in value.items()}
    return list(value) if isinstance(value, tuple) else value


Weight = Annotated[float | dict[float, float], PlainValidator(_weight), PlainSerializer(_as_written)]
"""A weight above 0, or weights of 0 or above by the share of steps from which on they are in force."""
Repeat = Annotated[int | tuple[int, int | None], PlainValidator(_repeat), PlainSerializer(_as_written)]
"""Passes, or least and most passes; None: no bound."""


class Subset(StrictModel):
    """Which samples of a shard set take part: one of the three.

    ids:         file of record_ids, one a line or a JSON list: these take part.
    without_ids: file of the same form: all but these.
    where:       expression over a sample's columns (core.expression), as "n_images >= 2 and text_chars < 4000".
    """

    ids: str | None = None
    without_ids: str | None = None
    where: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Subset:
        given = [name for name in ("ids", "without_ids", "where") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"a subset is given by one of ids, without_ids and where; found {found}")
        if self.where is not None:
            try:
                parse(self.where, COLUMNS)
            except ValueError as error:
                raise ValueError(f"where: {error}") from None
        return self


class BlendSource(StrictModel):
    """One source of a blend: a shard set, or a blend inside the blend.

    shards:        name of one of the recipe's shard sets.
    blend:         a blend inside the blend, in place of `shards`.
    weight:        its part of the blend, relative to its siblings' weights and counted in the blend's
                   `weight_counts`; or weights by share of the epoch's steps, each in force until the next.
    repeat:        passes over the source in an epoch: n, or [least, most]; a pass over a blend is an epoch of that
                   blend. Without it: 1, or [1, null] where at_exhaustion is `repeat`.
    at_exhaustion: overrides the blend's, for this source.
    subset:        which samples of the shard set take part.
    """

    shards: str | None = None
    blend: InnerBlend | None = None
    weight: Weight
    repeat: Repeat | None = None
    at_exhaustion: AtExhaustion | None = None
    subset: Subset | None = None

    @model_validator(mode="after")
    def _one(self) -> BlendSource:
        if (self.shards is None) == (self.blend is None):
            found = "neither" if self.shards is None else "both"
            raise ValueError(f"a source is either `shards` or `blend`; found {found}")
        if self.subset is not None and self.shards is None:
            raise ValueError("a subset goes with `shards`; give it to the shard sets inside the blend")
        return self

    @property
    def name(self) -> str:
        """The shard set's name, or ``blend``."""
        return self.shards or "blend"

    @property
    def changes(self) -> tuple[float, ...]:
        """Shares of steps at which the weight changes."""
        return tuple(self.weight)[1:] if isinstance(self.weight, dict) else ()

    def weight_at(self, share: float) -> float:
        """The weight in force at a share of the epoch's steps."""
        if not isinstance(self.weight, dict):
            return self.weight
        return [weight for start, weight in self.weight.items() if start <= share][-1]


@dataclass(frozen=True)
class BlendLeaf:
    """A shard set in a blend: its source, and where it stands below the blend's section of the recipe."""

    location: Location
    source: BlendSource


class InnerBlend(StrictModel):
    """Sources, what their weights count, and what happens when one is exhausted.

    A source is exhausted when it has been passed over `most` times. Then, by its rule (`stop` unless the recipe says
    another; each such event is in the plan and in the report),

    - stop: the epoch ends there, whatever the others have left;
    - renormalise: it leaves, and the others share its weight in proportion to theirs;
    - repeat: never; it goes on from its start, so `most` is null.

    An epoch ends at the first of: a `stop` source is exhausted; every source has left; only repeating sources are
    left and each has made its `least` passes (unless the recipe says total_packs: then they go on until there); no
    source that is left has a weight above 0; total_packs. `least` holds an epoch of repeating sources open; where
    another rule ends the epoch before a source has made its least passes, the report says so.

    Inside a blend inside a blend, an epoch is a pass of the outer source. The outer blend decides in its unit how much
    comes from the inner one, the inner one in its own unit how that is split.

    weight_counts: what the weights weigh.
    at_exhaustion: what happens when a source has made its passes; None: `stop`.
    sources:       shard sets, or blends inside the blend.
    """

    weight_counts: Unit
    at_exhaustion: AtExhaustion | None = None
    sources: Annotated[tuple[BlendSource, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rules(self) -> InnerBlend:
        for index, source in enumerate(self.sources):
            where = f"sources.{index} ({source.name})"
            rule = source.at_exhaustion or self.at_exhaustion
            bounded = source.repeat is not None and (isinstance(source.repeat, int) or source.repeat[1] is not None)
            if rule == "repeat" and bounded:
                raise ValueError(
                    f"{where}: repeat {_shown(source.repeat)} is bounded and at_exhaustion: repeat is not; give "
                    "[least, null], or at_exhaustion: stop or renormalise to the source"
                )
            if rule != "repeat" and source.repeat is not None and not bounded:
                raise ValueError(
                    f"{where}: repeat {_shown(source.repeat)} has no bound: only at_exhaustion: repeat goes on"
                )
        for share in sorted({0.0, *(change for source in self.sources for change in source.changes)}):
            if not any(source.weight_at(share) for source in self.sources):
                raise ValueError(f"from share {share} of the steps on every source has weight 0")
        return self

    def rule(self, source: BlendSource) -> AtExhaustion:
        """What happens when a source of this blend is exhausted; `stop` where nothing is said."""
        return source.at_exhaustion or self.at_exhaustion or "stop"

    def passes(self, source: BlendSource) -> tuple[int, int | None]:
        """(least, most) passes over a source of this blend in an epoch; None: no bound."""
        if source.repeat is None:
            return (1, None) if self.rule(source) == "repeat" else (1, 1)
        return (source.repeat, source.repeat) if isinstance(source.repeat, int) else source.repeat

    def leaves(self, location: Location = ()) -> Iterator[BlendLeaf]:
        """The shard sets of this blend and of those inside it, in the recipe's order."""
        for index, source in enumerate(self.sources):
            here = (*location, "sources", index)
            if source.blend is None:
                yield BlendLeaf(here, source)
            else:
                yield from source.blend.leaves((*here, "blend"))

    def changes(self) -> tuple[float, ...]:
        """Shares of steps at which a weight changes here or further inside, ascending."""
        found = {change for source in self.sources for change in source.changes}
        for source in self.sources:
            found |= set(source.blend.changes()) if source.blend is not None else set()
        return tuple(sorted(found))


def _shown(repeat: int | tuple[int, int | None] | None) -> str:
    if isinstance(repeat, tuple):
        return f"[{repeat[0]}, {'null' if repeat[1] is None else repeat[1]}]"
    return str(repeat)


class BlendConfig(InnerBlend):
    """A recipe's blend.

    total_packs: an epoch ends after that many packs; the steps of which weights that change are shares.
    """

    total_packs: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _steps(self) -> BlendConfig:
        if self.changes() and self.total_packs is None:
            raise ValueError("total_packs is required where weights change: they change at shares of that many packs")
        return self
