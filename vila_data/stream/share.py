"""Which packs of the one sequence a rank and its workers take, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.blend.lengths import Run
from vila_data.core.errors import UsageError
from vila_data.stream.sequence import PackSequence, PlannedPacks


@dataclass(frozen=True)
class Share:
    """A rank's part of each global step: `batch_size` packs of the step's `world_size * batch_size`."""

    rank: int
    world_size: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(f"stream: rank {self.rank} of world_size {self.world_size}: give 0 <= rank < world_size")
        if self.batch_size < 1:
            raise UsageError(f"stream: batch_size {self.batch_size}: give at least 1 pack")

    @property
    def step_packs(self) -> int:
        """Packs of a global step."""
        return self.world_size * self.batch_size

    def first_pack(self, start: int, step: int) -> int:
        """The number of the rank's first pack in a step, steps counted from pack `start` of the epoch."""
        return start + step * self.step_packs + self.rank * self.batch_size


@dataclass(frozen=True)
class Position:
    """A place in an epoch. packs: consumed so far, by all ranks; plan: the sequence's state (PackSequence.state) at a
    block border at or before them, None at the beginning."""

    packs: int = 0
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class BatchPlan:
    """A rank's packs of one step.

    step: counted from where the iteration began; samples: pack by pack; ends int64[p]: pack j is samples ends[j - 1] (0
    for the first) to ends[j]; fewer packs than the batch has rows, or none, in the last step. after: the position
    behind the whole step, equal on all ranks.
    """

    step: int
    samples: Run
    ends: NDArray[np.int64]
    after: Position


def rank_batches(
    sequence: PackSequence, share: Share, start: Position, *, first_step: int = 0, stride: int = 1
) -> Iterator[BatchPlan]:
    """The rank's batches of steps first_step, first_step + stride, … after `start`, to the last step of the epoch.

    `sequence` stands at a block border at or before the first of these steps. Every rank has a batch in every step that
    has a pack, so all make equally many, whatever number of packs there is.
    """
    step = first_step
    pieces: list[tuple[Run, NDArray[np.int64]]] = []
    borders: list[tuple[int, dict[str, Any]]] = []
    end = 0
    for planned in sequence:
        end = planned.first_pack + len(planned)
        borders.append((planned.first_pack, planned.before))
        while (first := share.first_pack(start.packs, step)) < end:
            last = first + share.batch_size
            piece = _cut(planned, max(first, planned.first_pack), min(last, end))
            if piece is not None:
                pieces.append(piece)
            if last > end:
                break
            yield _batch(step, pieces, share, start, borders)
            step += stride
            pieces = []
        borders = _needed(borders, start.packs + step * share.step_packs)
    while start.packs + step * share.step_packs < end:
        yield _batch(step, pieces, share, start, borders)
        step += stride
        pieces = []


def _needed(borders: list[tuple[int, dict[str, Any]]], pack: int) -> list[tuple[int, dict[str, Any]]]:
    """The last border at or before a pack, and those after it."""
    while len(borders) > 1 and borders[1][0] <= pack:
        borders = borders[1:]
    return borders


def _cut(planned: PlannedPacks, first: int, last: int) -> tuple[Run, NDArray[np.int64]] | None:
    """Packs `first` to `last` of a block, by their numbers in the epoch; None where it has none of them."""
    begin, stop = first - planned.first_pack, last - planned.first_pack
    if stop <= begin:
        return None
    sample = int(planned.ends[begin - 1]) if begin else 0
    return planned.samples.take(slice(sample, int(planned.ends[stop - 1]))), planned.ends[begin:stop] - sample


def _batch(
    step: int,
    pieces: list[tuple[Run, NDArray[np.int64]]],
    share: Share,
    start: Position,
    borders: list[tuple[int, dict[str, Any]]],
) -> BatchPlan:
    first = start.packs + step * share.step_packs
    plan = _needed(borders, first)[0][1]
    after = Position(first + share.step_packs, plan)
    if len(pieces) == 1:
        return BatchPlan(step, *pieces[0], after)
    samples = Run.joined([run for run, _ in pieces])
    ends, behind = [np.zeros(0, np.int64)], 0
    for run, piece_ends in pieces:
        ends.append(piece_ends + behind)
        behind += len(run)
    return BatchPlan(step, samples, np.concatenate(ends), after)
