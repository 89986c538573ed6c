"""A run's blend as Megatron-Energon's MetadatasetV2, whose weights count samples.

A weight that counts images or tokens is divided by the set's measured images or tokens a sample; a blend inside the
blend is multiplied out, since Energon's blends hold data sets alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vila_data.mix.config import InnerBlend, Unit


@dataclass(frozen=True)
class SetTotals:
    """What a set holds; tokens: None where the run has not encoded it."""

    samples: int
    images: int
    tokens: int | None

    def mean(self, unit: Unit) -> float | None:
        """Of a sample; None where it is not known, or the set is empty."""
        total = {"samples": self.samples, "images": self.images, "tokens": self.tokens}[unit]
        return None if total is None or not self.samples else total / self.samples


@dataclass(frozen=True)
class SampleBlend:
    """Sets with their shares of the samples, which sum to 1, in the recipe's order."""

    shares: tuple[tuple[str, float], ...]
    counted: tuple[Unit, ...]


class NotExpressible(Exception):
    """The blend has something that Energon's has not; the message says what."""


def sample_blend(blend: InnerBlend, totals: Mapping[str, SetTotals]) -> SampleBlend:
    """The blend by samples.

    totals: of the sets that are exported.

    Raises:
        NotExpressible: a subset, weights that change, a set that is not exported or whose tokens are not counted.
    """
    shares = _shares(blend, totals)
    counted = {blend.weight_unit, *(unit for unit in _inner_units(blend))}
    return SampleBlend(tuple(shares), tuple(sorted(counted)))


def metadataset_yaml(found: SampleBlend, totals: Mapping[str, SetTotals]) -> bytes:
    """The file; its paths are relative to it, and its head says where the weights come from."""
    head = [
        "# Megatron-Energon's MetadatasetV2 of the run's blend. Energon's weights count samples; the recipe's count",
        f"# {' and '.join(found.counted)}: each was divided by the set's measured mean.",
    ]
    for name in dict.fromkeys(name for name, _ in found.shares):
        means = [f"{totals[name].mean(unit):.6g} {unit}" for unit in found.counted if unit != "samples"]
        if means:
            head.append(f"#   {name}: {', '.join(means)} a sample")
    head.append(
        "# Energon draws from each set without end: what the recipe says of repeat and on_exhaustion is not here."
    )
    value: dict[str, Any] = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend": [{"weight": share, "path": name} for name, share in found.shares]}},
    }
    return "\n".join([*head, yaml.safe_dump(value, sort_keys=False)]).encode()


def _shares(blend: InnerBlend, totals: Mapping[str, SetTotals]) -> list[tuple[str, float]]:
    """Each set's share of the samples of a blend."""
    unit = blend.weight_unit
    found: list[tuple[str, float]] = []
    for source in blend.sources:
        if source.subset is not None:
            raise NotExpressible(f"{source.name} is taken in part (subset)")
        if isinstance(source.weight, dict):
            raise NotExpressible(f"the weight of {source.name} changes over the steps")
        inner = [(source.name, 1.0)] if source.blend is None else _shares(source.blend, totals)
        mean = sum(share * _mean(name, unit, totals) for name, share in inner)
        if not mean:
            raise NotExpressible(f"weights count {unit}, and {source.name} has none")
        found += [(name, share * source.weight / mean) for name, share in inner]
    whole = sum(share for _, share in found)
    return [(name, share / whole) for name, share in found]


def _mean(name: str, unit: Unit, totals: Mapping[str, SetTotals]) -> float:
    if name not in totals:
        raise NotExpressible(f"{name} is not exported")
    mean = totals[name].mean(unit)
    if mean is None:
        reason = "is empty" if not totals[name].samples else f"has no count of {unit}: run its recipe to the end"
        raise NotExpressible(f"{name} {reason}")
    return mean


def _inner_units(blend: InnerBlend) -> set[Unit]:
    units: set[Unit] = set()
    for source in blend.sources:
        if source.blend is not None:
            units |= {source.blend.weight_unit} | _inner_units(source.blend)
    return units
