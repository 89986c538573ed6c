"""The order of VILA v1.0's sampler (docs/sources.md): single items of the sets, evenly interleaved, alike on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig, RecipeShare
from vila_data.mix.lengths import CHUNK_ROWS, Lengths, Samples
from vila_data.mix.packs import Packs, pack_micro_batches
from vila_data.mix.plan import BLOCK_SAMPLES, BlendEvent, Block, Edge, EventLog, check_state, plan_fingerprint
from vila_data.mix.seeded import permutation
from vila_data.mix.tree import build_tree

STATE_VERSION: Final = 4
PAIRS_PER_ITEM: Final = 4
"""Samples per item of a shard set with view `pairs`, as in v1.0 (`n_samples_per_idx`); other views have one."""

Array = NDArray[np.int64]


class ReleasedBlend(BlendConfig):
    """A blend with the further values that v1.0's order depends on.

    ranks: ranks that begin the epoch. item_samples: samples per item, for each of `leaves()`.
    """

    ranks: int
    item_samples: tuple[int, ...]


def released_blend(blend: BlendConfig, pack: PackConfig, views: Sequence[str], ranks: int = 1) -> BlendConfig:
    """The blend as PackSequence takes it: with ranks and items under `released_code`, otherwise unchanged.

    views: of the shard set of each of the blend's `leaves()`.
    """
    if pack.semantics != "released_code":
        return blend
    items = tuple(PAIRS_PER_ITEM if view == "pairs" else 1 for view in views)
    return ReleasedBlend.model_construct(**dict(blend), ranks=ranks, item_samples=items)


def rows_at_most(blend: BlendConfig, pack: PackConfig, batch_size: int) -> int:
    """Maximum number of packs in a rank's step: `batch_size`, or under `released_code`, where it counts micro-batches,
    the number of their samples."""
    if not isinstance(blend, ReleasedBlend):
        return batch_size
    return batch_size * pack.samples_per_micro_batch * max(blend.item_samples)


@dataclass(frozen=True)
class _Visit:
    """A pass over a set: `size` items for each rank."""

    set: int
    pass_: int
    size: int


@dataclass(frozen=True)
class _Set:
    """A source's samples in the order of shards and rows; `item_samples` of them are an item."""

    lengths: Lengths
    item_samples: int

    @property
    def items(self) -> int:
        return self.lengths.totals.samples // self.item_samples

    @cached_property
    def _in_stream(self) -> Array | None:
        """int64[samples]: the entries of the lengths that are in the stream; None: all."""
        tokens = self.lengths.tokens
        return None if self.lengths.totals.samples == len(tokens) else np.flatnonzero(tokens > 0)

    def at(self, sample: Array) -> tuple[NDArray[Any], ...]:
        """Shard, row, tokens and images of samples by their number."""
        entry = sample if self._in_stream is None else self._in_stream[sample]
        shard = np.searchsorted(self.lengths.ends, entry, side="right")
        row = entry - (self.lengths.ends - self.lengths.sizes)[shard]
        return shard, row, self.lengths.tokens[entry], self.lengths.images[entry]


class ReleasedPlanner:
    """Plans an epoch as VILA v1.0's ranks visit it together; used like a BlendPlanner.

    An item is `item_samples` consecutive samples of a set, in the order of shards and rows. A set of n items gives each
    of W ranks floor(n / (W * micro_batch)) * micro_batch of them: rank r gets the r-th stretch of that many. Items after
    the last stretch are omitted, and an event says how many. All ranks shuffle their stretch alike. Sets, the largest
    first, take their positions evenly from those that are left (`interleave`). A set that is repeated n times is n sets.

    The plan lists micro-batches step by step and, within a step, rank by rank: ranks that take them in turn meet the same
    set at the same position. `ranks` is the number at the beginning of the epoch: a restored plan keeps that of its state.

    Raises:
        UsageError: the blend has a weight other than 1, one that changes, a nested blend, an unspecified number of
            passes, total_packs, or another unit than samples; or no source has a micro-batch for each rank.
    """

    def __init__(
        self,
        config: BlendConfig,
        lengths: Sequence[Lengths],
        *,
        seed: int,
        epoch: int,
        capacity: int,
        micro_batch: int,
        ranks: int = 1,
        item_samples: Sequence[int] | None = None,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        check_released(config)
        root = build_tree(config, lengths, seed=seed, epoch=epoch, capacity=capacity)
        self.edges: tuple[Edge, ...] = tuple(root.edges())
        self.events = EventLog()
        self._items = tuple(item_samples or [1] * len(lengths))
        self._sets = [_Set(held, count) for held, count in zip(lengths, self._items, strict=True)]
        self._repeats = [child.most or 1 for child in root.children]
        self._seeds = (seed, epoch)
        self._batch, self._block_samples = micro_batch, block_samples
        self._block = self._samples = self._packs = 0
        self._ended = False
        blend = BlendConfig.model_dump(config, mode="json", exclude={"ranks", "item_samples"})
        values = [blend, seed, epoch, capacity, micro_batch, block_samples, self._items]
        self.fingerprint = plan_fingerprint(values, lengths, STATE_VERSION)
        self._plan_visits(ranks)
        self._add_omitted()

    def next_block(self) -> Block | None:
        """The next block; None at the end of the epoch."""
        first = self._block * self._block_steps
        if first >= self._steps:
            if not self._ended:
                reason = "all sources completed their passes"
                self.events.add(BlendEvent("ended", "", 0, self._block, self._samples, self._packs, reason))
            self._ended = True
            return None
        samples, ends = self._micro_batches(first, min(first + self._block_steps, self._steps))
        self._block += 1
        self._samples += len(samples)
        return Block(self._block - 1, samples, self._targets, ends)

    def packed(self, packs: int) -> None:
        """Report the number of packs made from the last block."""
        self._packs += packs

    def state(self) -> dict[str, Any]:
        """The position between two blocks, for JSON."""
        counts = {"block": self._block, "samples": self._samples, "packs": self._packs, "ranks": self._ranks}
        return {"version": STATE_VERSION, "fingerprint": self.fingerprint, **counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was taken; UsageError if it belongs to another version or plan."""
        check_state(state, STATE_VERSION, self.fingerprint)
        try:
            self._plan_visits(int(state["ranks"]))
            self._block, self._samples, self._packs = (int(state[name]) for name in ("block", "samples", "packs"))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"blend state: damaged: {error!r}") from error
        self._ended = False

    def _plan_visits(self, ranks: int) -> None:
        """Decide which part of each set each of `ranks` ranks takes, and how many steps a block has."""
        sizes = [found.items // (ranks * self._batch) * self._batch for found in self._sets]
        visits = [
            _Visit(index, pass_, size)
            for index, (size, repeat) in enumerate(zip(sizes, self._repeats, strict=True))
            for pass_ in range(repeat)
        ]
        self._visits = sorted(visits, key=lambda visit: -visit.size)
        self._sizes = np.asarray([visit.size for visit in self._visits], np.int64)
        self._ranks, self._steps = ranks, int(self._sizes.sum()) // self._batch
        if not self._steps:
            raise UsageError(
                f"blend: no source has a micro-batch of {self._batch} items for every rank at world size {ranks}; the largest "
                f"has {max(found.items for found in self._sets)} items"
            )
        taken = np.zeros(len(self._sets), np.int64)
        for visit in self._visits:
            taken[visit.set] += visit.size * ranks * self._items[visit.set]
        self._targets = tuple((taken / taken.sum()).tolist())
        self._block_steps = max(1, self._block_samples * self._steps // int(taken.sum()))
        self._chunks: dict[int, tuple[Array, Array]] = {}

    def _add_omitted(self) -> None:
        items = {visit.set: visit.size * self._ranks for visit in self._visits}
        for index, (edge, found) in enumerate(zip(self.edges, self._sets, strict=True)):
            rest = found.lengths.totals.samples - items[index] * self._items[index]
            if rest:
                reason = (
                    f"{rest} samples per pass do not fill a micro-batch of {self._batch} items for every rank at world "
                    f"size {self._ranks}"
                )
                self.events.add(BlendEvent("omitted", edge.label, 0, 0, 0, 0, reason))

    def _micro_batches(self, first: int, last: int) -> tuple[Samples, Array]:
        """Samples of steps `first` to `last`, of all ranks, and where each micro-batch ends."""
        which, position = interleave(self._sizes, np.arange(first * self._batch, last * self._batch))
        item = np.empty_like(position)
        for number in np.unique(which).tolist():
            here = which == number
            item[here] = self._shuffled(number, int(position[here][0]), int(here.sum()))
        items = np.arange(self._ranks)[:, None] * self._sizes[which] + item
        by_step = items.reshape(self._ranks, last - first, self._batch).swapaxes(0, 1)
        visit = np.broadcast_to(which.reshape(last - first, 1, self._batch), by_step.shape)
        sizes = np.asarray(self._items)[[found.set for found in self._visits]][visit]
        samples = self._samples_of(visit.reshape(-1), by_step.reshape(-1), sizes.reshape(-1))
        return samples, np.cumsum(sizes.sum(axis=2))

    def _samples_of(self, visit: Array, item: Array, sizes: Array) -> Samples:
        """The samples of items, given as int64[i]: the visit, the item's number in its set, and its number of samples."""
        ends = np.cumsum(sizes)
        sample = np.repeat(item * sizes - (ends - sizes), sizes) + np.arange(int(ends[-1]))
        visit = np.repeat(visit, sizes)
        source = np.empty(len(sample), np.int16)
        shard, row, pass_, tokens, images = (np.empty(len(sample), np.int32) for _ in range(5))
        for number in np.unique(visit).tolist():
            here, found = visit == number, self._visits[number]
            source[here], pass_[here] = found.set, found.pass_
            shard[here], row[here], tokens[here], images[here] = self._sets[found.set].at(sample[here])
        return Samples(source, shard, row, pass_, tokens, images)

    def _shuffled(self, number: int, start: int, count: int) -> Array:
        """int64[count]: the items of its stretch that a visit takes, beginning with the `start`-th.

        Chunks of a stretch are permuted by (seed, epoch, set, pass), and the items of a block also by the block. The more
        ranks, the smaller the chunks, so that a block of each rank still has as many.
        """
        visit = self._visits[number]
        seeds = (*self._seeds, visit.set, visit.pass_)
        size = max(1, CHUNK_ROWS // (self._items[visit.set] * self._ranks))
        if number not in self._chunks:
            chunks = permutation(-(-visit.size // size), *seeds)
            self._chunks[number] = chunks, np.cumsum(np.minimum(visit.size - chunks * size, size))
        chunks, ends = self._chunks[number]
        position = np.arange(start, start + count)
        at = np.searchsorted(ends, position, side="right")
        items: Array = chunks[at] * size + position - (ends[at - 1] * (at > 0))
        return items[permutation(count, *seeds, self._block, 1)]


def interleave(sizes: Array, positions: Array) -> tuple[Array, Array]:
    """int64[n] each: the set of the items at some positions, and the number of the item in it, from 0.

    sizes int64[k], descending: set by set, item i of n takes position floor(i * m / n) of the m positions that are left.
    """
    which, item = np.full(len(positions), -1, np.int64), np.zeros(len(positions), np.int64)
    left, position, free = np.arange(len(positions)), positions.astype(np.int64), int(sizes.sum())
    for number, size in enumerate(sizes.tolist()):
        if not size:
            break
        before = -(-position * size // free)
        here = -(-(position + 1) * size // free) > before
        which[left[here]], item[left[here]] = number, before[here]
        left, position, free = left[~here], (position - before)[~here], free - size
    return which, item


def packed_micro_batches(samples: Samples, ends: Array) -> tuple[Packs, Array]:
    """Each micro-batch packed separately as by packs.pack_micro_batches; and the number of packs up to the end of each.

    ends int64[m]: micro-batch k is samples ends[k - 1] (0 for the first) to ends[k]. Shorter ones are padded with samples
    of one token, which come last in their micro-batch and thus do not change the packs before them.
    """
    sizes = np.diff(ends, prepend=0)
    width = int(sizes.max())
    at = np.arange(len(samples)) + np.repeat(np.arange(len(sizes)) * width - (ends - sizes), sizes)
    tokens, real = np.ones(len(sizes) * width, np.int32), np.full(len(sizes) * width, -1, np.int64)
    tokens[at], real[at] = samples.tokens, np.arange(len(samples))
    packs = pack_micro_batches(tokens, np.zeros_like(tokens), micro_batch=width)
    members = real[packs.members]
    kept = np.cumsum(members >= 0, dtype=np.int64)[packs.ends - 1]
    bounds: Array = kept[np.diff(kept, prepend=0) > 0]
    return Packs(bounds, members[members >= 0]), np.searchsorted(bounds, ends, side="left") + 1


def released_shares(config: BlendConfig, lengths: Sequence[Lengths]) -> dict[str, RecipeShare]:
    """The counterpart of `recipe_shares`: v1.0 has no weights, so a set's share is that of all its samples times its
    repeats, before any are omitted. lengths: of each of the blend's sources."""
    pairs = zip(config.sources, lengths, strict=True)
    samples = [held.totals.samples * (config.passes(source)[1] or 1) for source, held in pairs]
    shares = [count / sum(samples) for count in samples]
    return {f"sources.{index}": RecipeShare(share, share) for index, share in enumerate(shares)}


def check_released(config: BlendConfig) -> None:
    """Raise UsageError unless VILA v1.0 could make the blend: every row a whole number of times, without weights."""
    where = "blend: semantics released_code takes sources in proportion to their items"
    if config.weight_unit != "samples":
        raise UsageError(f"{where}; weight_unit must be samples, found {config.weight_unit}")
    if config.total_packs is not None:
        raise UsageError(f"{where}, a fixed number of times each; remove total_packs")
    for source in config.sources:
        if source.blend is not None:
            raise UsageError(f"{where}; it does not support nested blends")
        if source.weight != 1:
            raise UsageError(
                f"{where}; the weight of {source.name} must be 1, found {source.weight}; use repeat to see more of it"
            )
        least, most = config.passes(source)
        if least != most:
            raise UsageError(f"{where}, a fixed number of times each; set repeat of {source.name} to one number")
