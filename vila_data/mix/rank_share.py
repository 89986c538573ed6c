"""Assign the packs of the global sequence to ranks and workers, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.mix.lengths import Samples
from vila_data.mix.sequence import PlannedPacks


@dataclass(frozen=True)
class RankShare:
    """A rank's part of each global step: `batch_size` of the step's `world_size * batch_size` packs.

    If the sequence has micro-batches (released.py), all numbers count these, and ranks take them in turn.
    """

    rank: int
    world_size: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(f"stream: rank {self.rank} is out of range for world_size {self.world_size}")
        if self.batch_size < 1:
            raise UsageError(f"stream: batch_size must be at least 1 pack, found {self.batch_size}")

    @property
    def step_packs(self) -> int:
        """Packs of a global step."""
        return self.world_size * self.batch_size


@dataclass(frozen=True)
class Position:
    """A position in an epoch. packs: consumed so far, by all ranks; plan: the sequence's state (PackSequence.state) at a
    block boundary at or before them, None at the beginning."""

    packs: int = 0
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class BatchPlan:
    """A rank's packs of one step.

    step: counted from where the iteration began; samples: pack by pack; ends int64[p]: pack j is samples ends[j - 1] (0
    for the first) to ends[j]; the last step has fewer packs than the batch has rows, or none. after: the position after
    the whole step; last: whether no step follows. The last two are equal on all ranks.
    """

    step: int
    samples: Samples
    ends: NDArray[np.int64]
    after: Position
    last: bool


def rank_batches(
    sequence: Iterable[PlannedPacks], share: RankShare, start: Position, *, first_step: int = 0, stride: int = 1
) -> Iterator[BatchPlan]:
    """The rank's batches of steps first_step, first_step + stride, … after `start`, to the last step of the epoch.

    `sequence` (a PackSequence) is at a block boundary at or before the first of these steps. Every rank has a batch in
    every step that has a pack, so all ranks have equally many, whatever the number of packs.
    """
    blocks: deque[PlannedPacks] = deque()
    planned_to, coming, step = 0, iter(sequence), first_step
    more = True
    while True:
        begin = start.packs + step * share.step_packs
        end = begin + share.step_packs
        while more and planned_to <= end:  # one pack after the step tells whether it is the last one
            block = next(coming, None)
            more = block is not None
            if block is not None:
                blocks.append(block)
                planned_to = block.first_pack + len(block)
            _forget(blocks, begin)
        _forget(blocks, begin)
        if planned_to <= begin:
            return
        if blocks[0].micro_batches is None:
            first = begin + share.rank * share.batch_size
            cuts = [_cut(block, first, first + share.batch_size) for block in blocks]
        else:
            numbers = range(begin + share.rank, end, share.world_size)
            cuts = [_cut(block, number, number + 1) for number in numbers for block in blocks]
        after = Position(end, blocks[0].before)
        yield BatchPlan(step, *_joined(cuts), after, not more and planned_to <= end)
        step += stride


def _forget(blocks: deque[PlannedPacks], pack: int) -> None:
    """Drop the blocks before the one that contains a pack, or that must be restored to reach it."""
    while len(blocks) > 1 and blocks[1].first_pack <= pack:
        blocks.popleft()


def _cut(block: PlannedPacks, first: int, last: int) -> tuple[Samples, NDArray[np.int64]]:
    """Samples and ends of a block's packs (or micro-batches) `first` to `last`, by their numbers in the epoch."""
    begin = min(max(first - block.first_pack, 0), len(block))
    stop = min(max(last - block.first_pack, begin), len(block))
    if block.micro_batches is not None:
        packs = np.concatenate([np.zeros(1, np.int64), block.micro_batches])
        begin, stop = int(packs[begin]), int(packs[stop])
    bounds = np.concatenate([np.zeros(1, np.int64), block.ends])
    sample = int(bounds[begin])
    return block.samples.take(slice(sample, int(bounds[stop]))), block.ends[begin:stop] - sample


def _joined(cuts: list[tuple[Samples, NDArray[np.int64]]]) -> tuple[Samples, NDArray[np.int64]]:
    """Parts of a batch from consecutive blocks as one."""
    cuts = [cut for cut in cuts if len(cut[1])] or cuts[:1]
    if len(cuts) == 1:
        return cuts[0]
    ends, before = [], 0
    for samples, part in cuts:
        ends.append(part + before)
        before += len(samples)
    return Samples.joined([samples for samples, _ in cuts]), np.concatenate(ends)
