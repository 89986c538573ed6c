"""The report of an epoch's plan: shares by the recipe, target and actual shares, passes, events, and packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.config import RecipeShare, Unit, parent_path
from vila_data.mix.lengths import Lengths, Samples
from vila_data.mix.packs import PackReport, Packs
from vila_data.mix.plan import BlendEvent, Block, Edge

WINDOW_STEPS: Final = 1_000
UNITS: Final[tuple[Unit, ...]] = ("samples", "images", "tokens")


@dataclass(frozen=True)
class WholeShare:
    """Shares of the whole blend: a source's share in its blend times the shares of all blends around it, each in its
    unit. recipe: by the weights as written; target: by the current weights, pack by pack; actual: in the packs."""

    recipe: float
    target: float
    actual: float


@dataclass(frozen=True)
class SourceShare:
    """One source: a shard set, or a nested blend.

    unit: the unit of its blend's weights. target, actual: its share of its blend in that unit, target by the weights that
    apply at each pack. worst_window: the largest difference of the two over any 1,000 steps, as a share. passes: samples
    given, divided by samples of a pass; None for a blend. samples, images, tokens: for a nested blend, the sums over its
    sources. recipe: its share of its blend by the weights as written, before any source is exhausted; weights that change
    are averaged over the epoch's steps.
    """

    label: str
    path: str
    unit: Unit
    target: float
    actual: float
    worst_window: float
    samples: int
    images: int
    tokens: int
    passes: float | None
    recipe: float
    of_whole: WholeShare


@dataclass(frozen=True)
class EpochReport:
    """An epoch's plan, so far.

    worst_window: the largest `worst_window` of the outermost sources, over `windows` windows of 1,000 steps of
    `packs_per_step` packs each; 0.0 if the epoch is shorter. events: in order; unlisted: number of further events of
    each kind. samples_left_out: planned into packs after total_packs, and thus not part of the epoch.
    """

    sources: tuple[SourceShare, ...]
    packs_per_step: int
    windows: int
    worst_window: float
    events: tuple[BlendEvent, ...]
    unlisted: dict[str, int]
    samples_left_out: int
    packs: PackReport

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self) | {"packs": self.packs.as_dict(), "events": [asdict(event) for event in self.events]}


class EpochCounts:
    """Adds up blocks for the report."""

    def __init__(
        self,
        edges: Sequence[Edge],
        lengths: Sequence[Lengths],
        recipe: Mapping[str, RecipeShare],
        packs_per_step: int,
    ) -> None:
        self._edges, self._lengths, self._recipe = tuple(edges), lengths, recipe
        self._below = _membership([edge.leaves for edge in self._edges], len(lengths))
        self._around = _membership([edge.siblings for edge in self._edges], len(lengths))
        self._packs_per_step = packs_per_step
        self._windows = ShareWindows(len(self._edges), packs_per_step)
        self._amounts = np.zeros((3, len(lengths)), np.int64)
        self._given, self._target, self._totals = (np.zeros(len(self._edges)) for _ in range(3))
        self._packs = PackReport()
        self._left_out = 0

    def held(self, samples: Samples, packs: Packs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(units, totals) int64[p, e]: each pack's amount of each edge, and of the edge's blend, in the blend's unit."""
        leaves = self._below.shape[1]
        cell = np.repeat(np.arange(len(packs)) * leaves, packs.sizes) + samples.source[packs.members]
        units = np.zeros((len(packs), len(self._edges)), np.int64)
        totals = np.zeros_like(units)
        for unit in {edge.unit for edge in self._edges}:
            values = samples.units(unit)[packs.members]
            by_leaf = np.bincount(cell, weights=values, minlength=len(packs) * leaves).astype(np.int64)
            columns = [index for index, edge in enumerate(self._edges) if edge.unit == unit]
            units[:, columns] = by_leaf.reshape(-1, leaves) @ self._below[columns].T
            totals[:, columns] = by_leaf.reshape(-1, leaves) @ self._around[columns].T
        return units, totals

    def add(
        self,
        block: Block,
        samples: Samples,
        units: NDArray[np.int64],
        totals: NDArray[np.int64],
        packs: PackReport,
    ) -> None:
        """Add a block's packs in their order; samples: the samples in them; units, totals: as `held` returned them."""
        targets = np.asarray(block.targets)
        self._windows.add(units, totals, targets)
        self._given += units.sum(axis=0)
        self._totals += totals.sum(axis=0)
        self._target += targets * totals.sum(axis=0)
        leaves = self._amounts.shape[1]
        for row, unit in enumerate(UNITS):
            amounts = np.bincount(samples.source, weights=samples.units(unit), minlength=leaves)
            self._amounts[row] += amounts.astype(np.int64)
        self._packs = self._packs + packs
        self._left_out += len(block.samples) - len(samples)

    def report(self, events: Sequence[BlendEvent], unlisted: dict[str, int]) -> EpochReport:
        """The report of the blocks so far."""
        sources: dict[str, SourceShare] = {}
        for index, edge in enumerate(self._edges):  # a blend comes before its sources
            around = sources.get(parent_path(edge.path))
            sources[edge.path] = self._source(index, edge, around.of_whole if around else WholeShare(1.0, 1.0, 1.0))
        worst = max(entry.worst_window for entry, edge in zip(sources.values(), self._edges, strict=True) if edge.top)
        return EpochReport(
            tuple(sources.values()),
            self._packs_per_step,
            self._windows.windows,
            worst,
            tuple(events),
            dict(unlisted),
            self._left_out,
            self._packs,
        )

    def _source(self, index: int, edge: Edge, around: WholeShare) -> SourceShare:
        total = self._totals[index]
        samples, images, tokens = (int(count) for count in self._amounts @ self._below[index])
        target = float(self._target[index] / total) if total else 0.0
        actual = float(self._given[index] / total) if total else 0.0
        recipe = self._recipe[edge.path]
        return SourceShare(
            label=edge.label,
            path=edge.path,
            unit=edge.unit,
            target=target,
            actual=actual,
            worst_window=float(self._windows.worst[index]),
            samples=samples,
            images=images,
            tokens=tokens,
            passes=None if edge.leaf is None else samples / self._lengths[edge.leaf].totals.samples,
            recipe=recipe.of_blend,
            of_whole=WholeShare(recipe.of_whole, around.target * target, around.actual * actual),
        )


class ShareWindows:
    """The largest deviation from target shares over all windows of WINDOW_STEPS consecutive steps, in bounded memory.

    packs_per_step: packs of a step. Packs are added in order. A window's actual share is compared with the targets of its
    packs, so a window across a change of targets is measured by both. An incomplete step at the end does not count.
    """

    def __init__(self, sources: int, packs_per_step: int) -> None:
        self._packs = packs_per_step
        self._left = np.zeros((0, 2, sources))
        self._sums = np.zeros((1, 2, sources))
        self.windows = 0
        self.worst = np.zeros(sources)

    def add(self, units: NDArray[np.int64], totals: NDArray[np.int64], targets: NDArray[np.float64]) -> None:
        """Add the next packs: units, totals int64[p, e] as from EpochCounts.held; targets float64[e] of all of them."""
        values = np.concatenate([self._left, np.stack([units - totals * targets, totals], axis=1)])
        steps = len(values) // self._packs
        self._left = values[steps * self._packs :]
        if not steps:
            return
        by_step = values[: steps * self._packs].reshape(steps, self._packs, *values.shape[1:]).sum(axis=1)
        sums = np.concatenate([self._sums, self._sums[-1] + np.cumsum(by_step, axis=0)])
        if len(sums) > WINDOW_STEPS:
            surplus, total = np.moveaxis(sums[WINDOW_STEPS:] - sums[:-WINDOW_STEPS], 1, 0)
            share = np.abs(surplus) / np.where(total > 0, total, np.inf)
            self.worst = np.maximum(self.worst, share.max(axis=0))
            self.windows += len(share)
        kept = sums[-WINDOW_STEPS:]
        self._sums = kept - kept[:1]


def _membership(groups: Sequence[Sequence[int]], leaves: int) -> NDArray[np.int64]:
    """int64[g, l]: 1 if a leaf is in a group."""
    found = np.zeros((len(groups), leaves), np.int64)
    for index, group in enumerate(groups):
        found[index, list(group)] = 1
    return found
