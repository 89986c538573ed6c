"""Report of an epoch's plan: shares of the recipe, in effect and actual; passes, events, and packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.config import Unit
from vila_data.mix.events import BlendEvent
from vila_data.mix.lengths import Lengths, Run
from vila_data.mix.merge import units_of
from vila_data.mix.pack_report import PackReport
from vila_data.mix.packs import Packs
from vila_data.mix.planner import Block
from vila_data.mix.recipe_shares import RecipeShare, blend_of
from vila_data.mix.tree import Edge
from vila_data.mix.windows import Windows


@dataclass(frozen=True)
class WholeShare:
    """Shares of the whole blend: that of the source in its blend times those of all blends around it, each in its unit.

    recipe: by the weights as written; target: by the weights in effect at each pack; actual: what the packs hold.
    """

    recipe: float
    target: float
    actual: float


@dataclass(frozen=True)
class SourceShare:
    """One source: a shard set, or a blend inside the blend.

    unit: what its blend counts; asked, realised: its share in that unit of its blend, asked as in force pack by pack;
    worst_window: the largest difference of the two over any 1,000 steps, as a share; passes: samples given over
    samples of a pass, None of a blend; of the blend inside a blend, samples, images and tokens are those below it.
    recipe: its share of its blend by the weights as written, before any source is exhausted; weights that change are
    averaged over the epoch's steps.
    """

    label: str
    path: str
    unit: Unit
    asked: float
    realised: float
    worst_window: float
    samples: int
    images: int
    tokens: int
    passes: float | None
    recipe: float
    of_whole: WholeShare


@dataclass(frozen=True)
class BlendReport:
    """An epoch's plan, so far.

    worst_window: the largest of the outermost sources' `worst_window` over `windows` windows of 1,000 steps of
    `packs_a_step` packs each; 0.0 where an epoch is shorter. events: in order; unlisted: how many more there were of a
    kind. samples_left_out: planned into packs beyond total_packs, and so not part of the epoch.
    """

    sources: tuple[SourceShare, ...]
    packs_a_step: int
    windows: int
    worst_window: float
    events: tuple[BlendEvent, ...]
    unlisted: dict[str, int]
    samples_left_out: int
    packs: PackReport

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        value = asdict(self)
        value["packs"] = self.packs.as_dict()
        value["events"] = [event.as_dict() for event in self.events]
        return value


class Tally:
    """Adds up blocks for the report."""

    def __init__(
        self,
        edges: Sequence[Edge],
        lengths: Sequence[Lengths],
        recipe: Mapping[str, RecipeShare],
        packs_a_step: int,
    ) -> None:
        self._edges, self._lengths, self._recipe = tuple(edges), lengths, recipe
        self._below = _membership([edge.leaves for edge in self._edges], len(lengths))
        self._around = _membership([edge.siblings for edge in self._edges], len(lengths))
        self._packs_a_step = packs_a_step
        self._windows = Windows(len(self._edges), packs_a_step)
        self._held = np.zeros((3, len(lengths)), np.int64)
        self._given, self._asked, self._totals = (np.zeros(len(self._edges)) for _ in range(3))
        self._packs = PackReport()
        self._left_out = 0

    def held(self, run: Run, packs: Packs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(units, totals) int64[p, e]: what each pack holds of each edge, and of the blend above it, in its unit."""
        sizes = packs.ends - packs.starts
        leaves = self._below.shape[1]
        cell = np.repeat(np.arange(len(packs)) * leaves, sizes) + run.source[packs.members]
        units = np.zeros((len(packs), len(self._edges)), np.int64)
        totals = np.zeros_like(units)
        for unit in {edge.unit for edge in self._edges}:
            values = units_of(run, unit)[packs.members]
            a_leaf = np.bincount(cell, weights=values, minlength=len(packs) * leaves).astype(np.int64)
            columns = [index for index, edge in enumerate(self._edges) if edge.unit == unit]
            units[:, columns] = a_leaf.reshape(-1, leaves) @ self._below[columns].T
            totals[:, columns] = a_leaf.reshape(-1, leaves) @ self._around[columns].T
        return units, totals

    def add(
        self, block: Block, run: Run, units: NDArray[np.int64], totals: NDArray[np.int64], packs: PackReport
    ) -> None:
        """Take a block's packs in their order; `run` are the samples in them."""
        asked = np.asarray(block.asked)
        self._windows.add(units, totals, asked)
        self._given += units.sum(axis=0)
        self._totals += totals.sum(axis=0)
        self._asked += asked * totals.sum(axis=0)
        leaves = self._held.shape[1]
        for row, unit in enumerate(("samples", "images", "tokens")):
            values = units_of(run, unit)  # type: ignore[arg-type]
            self._held[row] += np.bincount(run.source, weights=values, minlength=leaves).astype(np.int64)
        self._packs = self._packs + packs
        self._left_out += len(block.run) - len(run)

    def report(self, events: Sequence[BlendEvent], unlisted: dict[str, int]) -> BlendReport:
        """The report of the blocks so far."""
        sources: dict[str, SourceShare] = {}
        for index, edge in enumerate(self._edges):  # a blend comes before its sources
            around = sources.get(blend_of(edge.path))
            sources[edge.path] = self._source(index, edge, around.of_whole if around else WholeShare(1.0, 1.0, 1.0))
        worst = max((entry.worst_window for entry, edge in zip(sources.values(), self._edges, strict=True) if edge.top))
        return BlendReport(
            tuple(sources.values()),
            self._packs_a_step,
            self._windows.windows,
            worst,
            tuple(events),
            dict(unlisted),
            self._left_out,
            self._packs,
        )

    def _source(self, index: int, edge: Edge, around: WholeShare) -> SourceShare:
        total = self._totals[index]
        samples, images, tokens = (int(count) for count in self._held @ self._below[index])
        passes = None
        if edge.leaf is not None:
            passes = samples / self._lengths[edge.leaf].totals[0]
        asked = float(self._asked[index] / total) if total else 0.0
        realised = float(self._given[index] / total) if total else 0.0
        recipe = self._recipe[edge.path]
        return SourceShare(
            label=edge.label,
            path=edge.path,
            unit=edge.unit,
            asked=asked,
            realised=realised,
            worst_window=float(self._windows.worst[index]),
            samples=samples,
            images=images,
            tokens=tokens,
            passes=passes,
            recipe=recipe.of_blend,
            of_whole=WholeShare(recipe.of_whole, around.target * asked, around.actual * realised),
        )


def _membership(groups: Sequence[Sequence[int]], leaves: int) -> NDArray[np.int64]:
    """int64[e, l]: 1 where a leaf is in a group."""
    found = np.zeros((len(groups), leaves), np.int64)
    for index, group in enumerate(groups):
        found[index, list(group)] = 1
    return found
