"""The sequence of packs of an epoch: blended, shuffled, packed and ordered from lengths alone, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig, recipe_shares
from vila_data.mix.epoch_report import EpochCounts, EpochReport
from vila_data.mix.lengths import Lengths, Samples
from vila_data.mix.pack_order import sample_kinds, shuffle_within_kinds, spread_packs
from vila_data.mix.packing import pack_block
from vila_data.mix.packs import PackReport, Packs, pack_singly
from vila_data.mix.plan import BLOCK_SAMPLES, Block
from vila_data.mix.planner import BlendPlanner
from vila_data.mix.released import ReleasedBlend, ReleasedPlanner, packed_micro_batches, released_shares
from vila_data.mix.seeded import permutation


@dataclass(frozen=True)
class PlannedPacks:
    """Consecutive packs of an epoch: which samples to read, and into which sequence.

    block: number of their block; samples: pack by pack; ends int64[p]: pack j is samples ends[j - 1] (0 for the first) to
    ends[j]; before: the sequence's state before them, for JSON. micro_batches int64[m]: ranks take whole micro-batches,
    in turn, and number k is packs micro_batches[k - 1] to micro_batches[k]; None: ranks take packs. first_pack, len():
    the number in the epoch of the first pack (or micro-batch), and how many there are.
    """

    block: int
    first_pack: int
    samples: Samples
    ends: NDArray[np.int64]
    before: dict[str, Any]
    micro_batches: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ends if self.micro_batches is None else self.micro_batches)


class PackSequence:
    """The packs of an epoch in order: a pure function of (blend, pack, lengths, seed, epoch).

    blend, pack: the recipe's sections, the blend as `released.released_blend` returns it: VILA v1.0's order depends on
    the number of ranks that begin the epoch (1 otherwise). lengths: of each of `blend.leaves()`, in their order, with
    subsets applied. packs_per_step: packs of a global step, for the report's windows; the order does not depend on it.
    Iterate it for blocks; a new iteration continues where the last one stopped. Memory is that of the lengths and of one
    block, however long the epoch.

    Raises:
        UsageError: as BlendPlanner and ReleasedPlanner.
        DataError: a sample has more tokens or images than a pack may have.
    """

    def __init__(
        self,
        blend: BlendConfig,
        pack: PackConfig,
        lengths: Sequence[Lengths],
        *,
        seed: int,
        epoch: int,
        packs_per_step: int = 1,
    ) -> None:
        self._blend, self._pack, self._seeds = blend, pack, (seed, epoch)
        _check_images(blend, pack, lengths)
        self._planner = _planner(blend, pack, lengths, seed, epoch)
        shares = released_shares(blend, lengths) if pack.semantics == "released_code" else recipe_shares(blend)
        self._counts = EpochCounts(self._planner.edges, lengths, shares, packs_per_step)
        self._packs = 0

    def __iter__(self) -> Iterator[PlannedPacks]:
        while True:
            before = self.state()
            block = self._planner.next_block()
            if block is None:
                return
            yield self._plan(block, before)

    def state(self) -> dict[str, Any]:
        """The position between two blocks, for JSON: a few hundred bytes."""
        return {"packs": self._packs, "plan": self._planner.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was taken; the report then counts from there.

        Raises:
            UsageError: it is not a state, or belongs to another recipe, seed, epoch or set of shards.
        """
        if not isinstance(state.get("packs"), int) or not isinstance(state.get("plan"), Mapping):
            raise UsageError("stream state: it has no packs and plan; pass what state_dict() returned")
        self._planner.restore(state["plan"])
        self._packs = state["packs"]

    def report(self) -> EpochReport:
        """The report of the blocks so far."""
        log = self._planner.events
        return self._counts.report(log.events, log.unlisted())

    def _plan(self, block: Block, before: dict[str, Any]) -> PlannedPacks:
        limit = self._pack.max_images_per_pack
        samples = block.samples if block.micro_batches is not None else block.samples.take(self._shuffled(block))
        packs, micro_batches = self._pack_samples(samples, block.micro_batches)
        units, totals = self._counts.held(samples, packs)
        if self._pack.semantics == "improved":
            order = spread_packs(units, totals, *self._seeds, block.index)
            packs, units, totals = packs.reordered(order), units[order], totals[order]
        if self._blend.total_packs is not None and len(packs) > self._blend.total_packs - self._packs:
            count = self._blend.total_packs - self._packs
            packs, units, totals = packs.first(count), units[:count], totals[:count]
        report = PackReport.of(
            packs, samples.tokens, samples.images, capacity=self._pack.sequence_length, max_images=limit
        )
        packed = samples.take(packs.members)
        self._counts.add(block, packed, units, totals, report)
        self._planner.packed(len(packs))
        planned = PlannedPacks(block.index, self._packs, packed, packs.ends, before, micro_batches)
        self._packs += len(planned)
        return planned

    def _shuffled(self, block: Block) -> NDArray[np.int64]:
        """The order in which a block's samples are packed: consecutive rows of a shard enter a block side by side."""
        seeds = (*self._seeds, block.index, 1)
        if self._pack.semantics == "paper":
            return shuffle_within_kinds(sample_kinds(block.samples), *seeds)
        return permutation(len(block.samples), *seeds)

    def _pack_samples(self, samples: Samples, ends: NDArray[np.int64] | None) -> tuple[Packs, NDArray[np.int64] | None]:
        """A block's packs, and the number of packs up to the end of each micro-batch, if it has any."""
        if ends is not None:
            return packed_micro_batches(samples, ends)
        if self._pack.semantics == "paper":
            return pack_singly(samples.tokens, samples.images), None
        capacity, limit = self._pack.sequence_length, self._pack.max_images_per_pack
        return pack_block(samples.tokens, samples.images, capacity=capacity, max_images=limit), None


def _check_images(blend: BlendConfig, pack: PackConfig, lengths: Sequence[Lengths]) -> None:
    limit = pack.max_images_per_pack
    for leaf, held in zip(blend.leaves(), lengths, strict=False):
        images = int(held.images.max(initial=0, where=held.tokens > 0))
        if limit is not None and images > limit:
            raise DataError(
                f"blend: {leaf.source.name} has a sample with {images} images, but pack.max_images_per_pack is {limit}; "
                "encode it again with this limit, or exclude such samples with a subset"
            )


def _planner(
    blend: BlendConfig, pack: PackConfig, lengths: Sequence[Lengths], seed: int, epoch: int
) -> BlendPlanner | ReleasedPlanner:
    capacity = pack.sequence_length
    if pack.semantics == "released_code":
        ranks, item_samples = (blend.ranks, blend.item_samples) if isinstance(blend, ReleasedBlend) else (1, None)
        return ReleasedPlanner(
            blend,
            lengths,
            seed=seed,
            epoch=epoch,
            capacity=capacity,
            micro_batch=pack.samples_per_micro_batch,
            ranks=ranks,
            item_samples=item_samples,
        )
    if pack.semantics == "paper":
        return BlendPlanner(
            blend, lengths, seed=seed, epoch=epoch, capacity=capacity, samples_per_pack=1, block_packs=BLOCK_SAMPLES
        )
    return BlendPlanner(blend, lengths, seed=seed, epoch=epoch, capacity=capacity)
