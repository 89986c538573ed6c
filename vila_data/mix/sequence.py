"""Blend, mix, pack and order: the packs of an epoch, planned from lengths alone, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.blend_report import BlendReport, Tally
from vila_data.mix.config import BlendConfig
from vila_data.mix.events import EventLog
from vila_data.mix.lengths import Lengths, Run
from vila_data.mix.pack_report import PackReport
from vila_data.mix.packs import Packs, one_each
from vila_data.mix.plan import pack_block
from vila_data.mix.planner import BLOCK_SAMPLES, BlendPlanner, Block
from vila_data.mix.recipe_shares import recipe_shares
from vila_data.mix.released import ReleasedBlend, ReleasedPlanner, packed_micro_batches, released_shares
from vila_data.mix.seeded import order
from vila_data.mix.spread import alike, mixed, spread
from vila_data.mix.tree import Edge


class Planner(Protocol):
    """Gives blocks of samples; blend.BlendPlanner says what the parts mean."""

    edges: tuple[Edge, ...]
    events: EventLog
    fingerprint: str

    def next_block(self) -> Block | None:
        """The next block; None when the epoch is over."""

    def packed(self, packs: int) -> None:
        """Say how many packs the last block made."""

    def state(self) -> dict[str, Any]:
        """Where the plan is."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go there."""


@dataclass(frozen=True)
class PlannedPacks:
    """Consecutive packs of an epoch: what is to be read, and into which sequence.

    block: their block's number; samples: pack by pack, one entry each (blend.lengths.Run); ends int64[p]: pack j is
    samples ends[j - 1] (0 for the first) to ends[j]; before: the sequence's state before them, for JSON.
    micro_batches int64[m]: ranks take whole micro-batches, in turn: number k is packs micro_batches[k - 1] to
    micro_batches[k]; None: ranks take packs. first_pack, len(): the number in the epoch of the first that a rank takes,
    and how many there are to take: packs, or micro-batches.
    """

    block: int
    first_pack: int
    samples: Run
    ends: NDArray[np.int64]
    before: dict[str, Any]
    micro_batches: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ends if self.micro_batches is None else self.micro_batches)


class PackSequence:
    """The packs of an epoch in order: a pure function of (blend, pack, lengths, seed, epoch).

    blend, pack: the recipe's sections, the blend as `order.released.released_blend` gives it: VILA v1.0's order depends
    on the number of ranks that begin the epoch (without it: 1). lengths: of each of `blend.leaves()`, in their order
    (subsets taken).
    packs_a_step: packs of a global step, for the report's windows; the order does not depend on it.
    Iterate it for blocks; a new iteration goes on where the last one stopped. Memory is that of the lengths and of one
    block, whatever the epoch's length.

    Raises:
        UsageError: as BlendPlanner and ReleasedPlanner.
        DataError: a sample has more tokens or images than a pack takes.
    """

    def __init__(
        self,
        blend: BlendConfig,
        pack: PackConfig,
        lengths: Sequence[Lengths],
        *,
        seed: int,
        epoch: int,
        packs_a_step: int = 1,
    ) -> None:
        self._blend, self._pack, self._seed, self._epoch = blend, pack, seed, epoch
        _check_images(blend, pack, lengths)
        self._planner = _planner(blend, pack, lengths, seed, epoch)
        shares = released_shares(blend, lengths) if pack.semantics == "released_code" else recipe_shares(blend)
        self._tally = Tally(self._planner.edges, lengths, shares, packs_a_step)
        self._packs = 0

    def __iter__(self) -> Iterator[PlannedPacks]:
        while True:
            before = self.state()
            block = self._planner.next_block()
            if block is None:
                return
            planned = self._plan(block, before)
            yield planned

    def state(self) -> dict[str, Any]:
        """Where the sequence is, between two blocks, for JSON: some hundred bytes."""
        return {"packs": self._packs, "plan": self._planner.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; the report then counts from there.

        Raises:
            UsageError: it is none, or of another recipe, seed, epoch or set of shards.
        """
        if not isinstance(state.get("packs"), int) or not isinstance(state.get("plan"), Mapping):
            raise UsageError("stream state: it has no packs and plan")
        self._planner.restore(state["plan"])
        self._packs = state["packs"]

    def report(self) -> BlendReport:
        """What the blocks so far came to."""
        log = self._planner.events
        return self._tally.report(log.events, log.unlisted())

    def _plan(self, block: Block, before: dict[str, Any]) -> PlannedPacks:
        capacity, limit = self._pack.sequence_length, self._pack.max_images_per_pack
        run = block.run if block.micro_batches is not None else block.run.take(self._mixed(block))
        packs, micro_batches = self._packs_of(run, block.micro_batches)
        units, totals = self._tally.held(run, packs)
        if self._pack.semantics == "improved":
            evenly = spread(units, totals, self._seed, self._epoch, block.index)
            packs, units, totals = _ordered(packs, evenly), units[evenly], totals[evenly]
        if self._blend.total_packs is not None and len(packs) > self._blend.total_packs - self._packs:
            count = self._blend.total_packs - self._packs
            ends = packs.ends[:count]
            packs, units, totals = Packs(ends, packs.members[: ends[-1]]), units[:count], totals[:count]
        samples = run.take(packs.members)
        report = PackReport.of(packs, run.tokens, run.images, capacity=capacity, max_images=limit)
        self._tally.add(block, samples, units, totals, report)
        self._planner.packed(len(packs))
        planned = PlannedPacks(block.index, self._packs, samples, packs.ends, before, micro_batches)
        self._packs += len(planned)
        return planned

    def _mixed(self, block: Block) -> NDArray[np.int64]:
        """An order of a block's samples for packing: rows of a shard come to a block side by side."""
        of = (self._seed, self._epoch, block.index, 1)
        if self._pack.semantics == "paper":
            return mixed(alike(block.run), *of)
        return order(len(block.run), *of)

    def _packs_of(self, run: Run, ends: NDArray[np.int64] | None) -> tuple[Packs, NDArray[np.int64] | None]:
        """A block's packs; and packs up to the end of each micro-batch, where it has any."""
        capacity, limit = self._pack.sequence_length, self._pack.max_images_per_pack
        if ends is not None:
            return packed_micro_batches(run, ends)
        if self._pack.semantics == "paper":
            return one_each(run.tokens, run.images), None
        return pack_block(run.tokens, run.images, capacity=capacity, max_images=limit), None


def _check_images(blend: BlendConfig, pack: PackConfig, lengths: Sequence[Lengths]) -> None:
    limit = pack.max_images_per_pack
    for leaf, held in zip(blend.leaves(), lengths, strict=False):
        images = int(held.images.max(initial=0, where=held.tokens > 0))
        if limit is not None and images > limit:
            raise DataError(
                f"blend: {leaf.source.name} has a sample of {images} images, pack.max_images_per_pack is {limit}; "
                "encode it again under this limit, or leave such samples out by a subset"
            )


def _planner(blend: BlendConfig, pack: PackConfig, lengths: Sequence[Lengths], seed: int, epoch: int) -> Planner:
    capacity = pack.sequence_length
    if pack.semantics == "released_code":
        ranks, item_samples = (blend.ranks, blend.item_samples) if isinstance(blend, ReleasedBlend) else (1, None)
        return ReleasedPlanner(
            blend,
            lengths,
            seed=seed,
            epoch=epoch,
            capacity=capacity,
            micro_batch=pack.samples_a_micro_batch,
            ranks=ranks,
            item_samples=item_samples,
        )
    if pack.semantics == "paper":
        return BlendPlanner(
            blend, lengths, seed=seed, epoch=epoch, capacity=capacity, samples_a_pack=1, block_packs=BLOCK_SAMPLES
        )
    return BlendPlanner(blend, lengths, seed=seed, epoch=epoch, capacity=capacity)


def _ordered(packs: Packs, order: NDArray[np.int64]) -> Packs:
    """The packs in another order."""
    starts, sizes = packs.starts[order], (packs.ends - packs.starts)[order]
    ends = np.cumsum(sizes)
    place = np.repeat(starts - (ends - sizes), sizes) + np.arange(len(packs.members))
    return Packs(ends, packs.members[place])
