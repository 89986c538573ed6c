"""Which packs of the one sequence a rank and its workers take, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.mix.lengths import Run
from vila_data.mix.sequence import PlannedPacks


@dataclass(frozen=True)
class Share:
    """A rank's part of each global step: `batch_size` packs of the step's `world_size * batch_size`.

    Where the sequence has micro-batches (order.released), all numbers count these, and ranks take them in turn.
    """

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

    def micro_batches(self, start: int, step: int) -> range:
        """Numbers of the rank's micro-batches in a step, likewise: every `world_size`-th of the step's."""
        first = start + step * self.step_packs
        return range(first + self.rank, first + self.step_packs, self.world_size)


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
    behind the whole step; last: whether no step follows. The last two are equal on all ranks.
    """

    step: int
    samples: Run
    ends: NDArray[np.int64]
    after: Position
    last: bool


def rank_batches(
    sequence: Iterable[PlannedPacks], share: Share, start: Position, *, first_step: int = 0, stride: int = 1
) -> Iterator[BatchPlan]:
    """The rank's batches of steps first_step, first_step + stride, … after `start`, to the last step of the epoch.

    `sequence` (a PackSequence) stands at a block border at or before the first of these steps. Every rank has a batch in every step that
    has a pack, so all make equally many, whatever number of packs there is.
    """
    blocks: deque[PlannedPacks] = deque()
    planned_to, coming, step = 0, iter(sequence), first_step
    more = True
    while True:
        begin = start.packs + step * share.step_packs
        end = begin + share.step_packs
        while more and planned_to <= end:  # one pack beyond the step tells whether it is the last one
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
            first = share.first_pack(start.packs, step)
            cuts = [_cut(block, first, first + share.batch_size) for block in blocks]
        else:
            cuts = [_cut(block, at, at + 1) for at in share.micro_batches(start.packs, step) for block in blocks]
        after = Position(end, blocks[0].before)
        yield BatchPlan(step, *_joined(cuts), after, not more and planned_to <= end)
        step += stride


def _forget(blocks: deque[PlannedPacks], pack: int) -> None:
    """Let go of blocks before the one that holds a pack, or that is to be restored to reach it."""
    while len(blocks) > 1 and blocks[1].first_pack <= pack:
        blocks.popleft()


def _cut(block: PlannedPacks, first: int, last: int) -> tuple[Run, NDArray[np.int64]]:
    """Samples and ends of what a block has of packs, or micro-batches, `first` to `last`, by their numbers in the epoch."""
    begin = min(max(first - block.first_pack, 0), len(block))
    stop = min(max(last - block.first_pack, begin), len(block))
    if block.micro_batches is not None:
        packs = np.concatenate([np.zeros(1, np.int64), block.micro_batches])
        begin, stop = int(packs[begin]), int(packs[stop])
    bounds = np.concatenate([np.zeros(1, np.int64), block.ends])
    sample = int(bounds[begin])
    return block.samples.take(slice(sample, int(bounds[stop]))), block.ends[begin:stop] - sample


def _joined(cuts: list[tuple[Run, NDArray[np.int64]]]) -> tuple[Run, NDArray[np.int64]]:
    """Parts of a batch from consecutive blocks as one."""
    cuts = [cut for cut in cuts if len(cut[1])] or cuts[:1]
    if len(cuts) == 1:
        return cuts[0]
    ends, behind = [], 0
    for run, part in cuts:
        ends.append(part + behind)
        behind += len(run)
    return Run.joined([run for run, _ in cuts]), np.concatenate(ends)
