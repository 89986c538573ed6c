"""The order of VILA v1.0's sampler (docs/sources.md): single items of the sets, evenly interleaved, alike on all ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.events import BlendEvent, EventLog
from vila_data.mix.lengths import CHUNK_ROWS, Lengths, Run
from vila_data.mix.packs import Packs, micro_batches
from vila_data.mix.planner import BLOCK_SAMPLES, Block
from vila_data.mix.recipe_shares import RecipeShare
from vila_data.mix.seeded import order
from vila_data.mix.tree import Edge, edges, grow

STATE_VERSION: Final = 3
PAIRS_PER_ITEM: Final = 4
"""Samples of a shard set of view `pairs` that are one item, as in v1.0 (`n_samples_per_idx`); of other views one."""

Array = NDArray[np.int64]


class ReleasedBlend(BlendConfig):
    """A blend with what v1.0's order depends on beside it.

    ranks: ranks that read the epoch, from its beginning. item_samples: samples of one item, for each of `leaves()`.
    """

    ranks: int
    item_samples: tuple[int, ...]


def released_blend(blend: BlendConfig, pack: PackConfig, views: Sequence[str], ranks: int = 1) -> BlendConfig:
    """The blend as PackSequence takes it: under `released_code` with the ranks and the items, else as it is.

    views: of the shard set of each of the blend's `leaves()`.
    """
    if pack.semantics != "released_code":
        return blend
    items = tuple(PAIRS_PER_ITEM if view == "pairs" else 1 for view in views)
    return ReleasedBlend.model_construct(**dict(blend), ranks=ranks, item_samples=items)


def rows_at_most(blend: BlendConfig, pack: PackConfig, batch_size: int) -> int:
    """Packs of a rank's step at most: `batch_size`; under `released_code`, where that counts micro-batches, their samples."""
    if not isinstance(blend, ReleasedBlend):
        return batch_size
    return batch_size * pack.samples_a_micro_batch * max(blend.item_samples)


class ReleasedPlanner:
    """Plans an epoch as VILA v1.0's ranks visit it together; used as a BlendPlanner is.

    An item is `item_samples` consecutive samples of a set, in the order of shards and rows. A set of n items gives each
    of W ranks floor(n / (W * micro_batch)) * micro_batch of them: rank r the r-th stretch of that many. What is behind
    the last stretch is left out, and an event says how many. All ranks shuffle their stretch alike. Sets, the largest
    first, take their places evenly from those that are left (`item_places`). A set that is repeated n times is n sets.

    The plan lays micro-batches down step by step, and in a step rank by rank: ranks that take them in turn meet the
    same set at the same position. `ranks` is that of the epoch's beginning: a restored plan keeps that of its state.

    Raises:
        UsageError: the blend has a weight other than 1, one that changes, a blend inside, passes without a number,
            total_packs, or counts other than samples; or no source has a micro-batch for each rank.
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
        root = grow(config, lengths, seed=seed, epoch=epoch, capacity=capacity)
        self.edges: tuple[Edge, ...] = tuple(edges(root))
        self.events = EventLog()
        self._items = tuple(item_samples or [1] * len(lengths))
        self._sets = [_Set(held, each) for held, each in zip(lengths, self._items, strict=True)]
        self._repeats = [child.most or 1 for child in root.children]
        self._of = (seed, epoch)
        self._batch, self._block_samples = micro_batch, block_samples
        self._block = self._samples = self._packs = 0
        self._ended = False
        plain = BlendConfig.model_dump(config, mode="json", exclude={"ranks", "item_samples"})
        of = [plain, seed, epoch, capacity, micro_batch, block_samples, self._items]
        held = [entry.fingerprint for entry in lengths]
        self.fingerprint = hashlib.sha256(json.dumps([of, held, STATE_VERSION]).encode()).hexdigest()[:16]
        self._lay(ranks)
        self._note_left_out()

    def next_block(self) -> Block | None:
        """The next block; None when the epoch is over."""
        first = self._block * self._block_steps
        if first >= self._steps:
            if not self._ended:
                reason = "every source has made its passes"
                self.events.add(BlendEvent("ended", "", 0, self._block, self._samples, self._packs, reason))
            self._ended = True
            return None
        run, ends = self._micro_batches(first, min(first + self._block_steps, self._steps))
        self._block += 1
        self._samples += len(run)
        return Block(self._block - 1, run, self._asked, ends)

    def packed(self, packs: int) -> None:
        """Say how many packs the last block made."""
        self._packs += packs

    def state(self) -> dict[str, Any]:
        """Where the plan is, for JSON."""
        counts = {"block": self._block, "samples": self._samples, "packs": self._packs, "ranks": self._ranks}
        return {"version": STATE_VERSION, "fingerprint": self.fingerprint, **counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; UsageError where it is of another version or plan."""
        if state.get("version") != STATE_VERSION:
            raise UsageError(
                f"blend state: version {state.get('version')!r} of the released order; this version reads {STATE_VERSION}, "
                "so begin the epoch anew"
            )
        if state.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"blend state: of plan {state.get('fingerprint')!r}, this is {self.fingerprint}: the recipe, the shards, "
                "the seed or the epoch differ"
            )
        try:
            self._lay(int(state["ranks"]))
            self._block, self._samples, self._packs = (int(state[name]) for name in ("block", "samples", "packs"))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"blend state: damaged: {error!r}") from error
        self._ended = False

    def _lay(self, ranks: int) -> None:
        """Decide what each rank of `ranks` takes of each set, and of how many steps a block is."""
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
            most = max(found.items for found in self._sets)
            raise UsageError(
                f"blend: no source has a micro-batch of {self._batch} items for each of the ranks ({ranks}); the largest has {most} items"
            )
        taken = np.zeros(len(self._sets), np.int64)
        for visit in self._visits:
            taken[visit.set] += visit.size * ranks * self._items[visit.set]
        self._asked = tuple((taken / taken.sum()).tolist())
        self._block_steps = max(1, self._block_samples * self._steps // int(taken.sum()))
        self._chunks: dict[int, tuple[Array, Array]] = {}

    def _note_left_out(self) -> None:
        a_pass = {visit.set: visit.size * self._ranks for visit in self._visits}
        for index, (edge, found) in enumerate(zip(self.edges, self._sets, strict=True)):
            rest = found.samples - a_pass[index] * self._items[index]
            if rest:
                why = f"{rest} samples a pass are in no micro-batch of {self._batch} items for each of the ranks ({self._ranks})"
                self.events.add(BlendEvent("short", edge.label, 0, 0, 0, 0, why))

    def _micro_batches(self, first: int, last: int) -> tuple[Run, Array]:
        """Samples of steps `first` to `last`, of all ranks, and where each micro-batch ends."""
        which, place = item_places(self._sizes, np.arange(first * self._batch, last * self._batch))
        item = np.empty_like(place)
        for number in np.unique(which).tolist():
            here = which == number
            item[here] = self._shuffled(number, int(place[here][0]), int(here.sum()))
        items = np.arange(self._ranks)[:, None] * self._sizes[which] + item
        by_step = items.reshape(self._ranks, last - first, self._batch).swapaxes(0, 1)
        visit = np.broadcast_to(which.reshape(last - first, 1, self._batch), by_step.shape)
        each = np.asarray(self._items)[[found.set for found in self._visits]][visit]
        return self._run(visit.reshape(-1), by_step.reshape(-1), each.reshape(-1)), np.cumsum(each.sum(axis=2))

    def _run(self, visit: Array, item: Array, each: Array) -> Run:
        """The samples of items: int64[i] each, the visit, the number in its set, and how many samples it is."""
        ends = np.cumsum(each)
        sample = np.repeat(item * each - (ends - each), each) + np.arange(int(ends[-1]))
        visit = np.repeat(visit, each)
        source = np.empty(len(sample), np.int16)
        shard, row, pass_, tokens, images = (np.empty(len(sample), np.int32) for _ in range(5))
        for number in np.unique(visit).tolist():
            here, found = visit == number, self._visits[number]
            source[here], pass_[here] = found.set, found.pass_
            shard[here], row[here], tokens[here], images[here] = self._sets[found.set].at(sample[here])
        return Run(source, shard, row, pass_, tokens, images)

    def _shuffled(self, number: int, start: int, count: int) -> Array:
        """int64[count]: which items of its stretch a visit takes, from the `start`-th on.

        Chunks of a stretch come in an order of (seed, epoch, set, pass), and the items of a block in one of the block
        too. The more ranks, the smaller are chunks, so that a block of each rank still has as many.
        """
        visit = self._visits[number]
        of = (*self._of, visit.set, visit.pass_)
        size = max(1, CHUNK_ROWS // (self._items[visit.set] * self._ranks))
        if number not in self._chunks:
            chunks = order(-(-visit.size // size), *of)
            self._chunks[number] = chunks, np.cumsum(np.minimum(visit.size - chunks * size, size))
        chunks, ends = self._chunks[number]
        place = np.arange(start, start + count)
        at = np.searchsorted(ends, place, side="right")
        items: Array = chunks[at] * size + place - (ends[at - 1] * (at > 0))
        return items[order(count, *of, self._block, 1)]


@dataclass(frozen=True)
class _Visit:
    """A pass over a set: `size` items for each rank."""

    set: int
    pass_: int
    size: int


@dataclass(frozen=True)
class _Set:
    """A source's samples in the order of shards and rows, `each` of them an item."""

    lengths: Lengths
    each: int

    @property
    def samples(self) -> int:
        return self.lengths.totals[0]

    @property
    def items(self) -> int:
        return self.samples // self.each

    @cached_property
    def _live(self) -> Array | None:
        """int64[samples]: which entries of the lengths are in the stream; None: all."""
        return None if self.samples == len(self.lengths.tokens) else np.flatnonzero(self.lengths.tokens > 0)

    def at(self, sample: Array) -> tuple[NDArray[Any], ...]:
        """Shard, row, tokens and images of samples by their number."""
        place = sample if self._live is None else self._live[sample]
        shard = np.searchsorted(self.lengths.ends, place, side="right")
        row = place - (self.lengths.ends - self.lengths.sizes)[shard]
        return shard, row, self.lengths.tokens[place], self.lengths.images[place]


def item_places(sizes: Array, positions: Array) -> tuple[Array, Array]:
    """int64[n] each: which set the items at some positions are of, and which item of it, from 0.

    sizes int64[k], descending: set by set, item i of n takes place floor(i * m / n) of the m places that are left.
    """
    which, item = np.full(len(positions), -1, np.int64), np.zeros(len(positions), np.int64)
    left, place, places = np.arange(len(positions)), positions.astype(np.int64), int(sizes.sum())
    for number, size in enumerate(sizes.tolist()):
        if not size:
            break
        before = -(-place * size // places)
        here = -(-(place + 1) * size // places) > before
        which[left[here]], item[left[here]] = number, before[here]
        left, place, places = left[~here], (place - before)[~here], places - size
    return which, item


def packed_micro_batches(run: Run, ends: Array) -> tuple[Packs, Array]:
    """Each micro-batch by itself as pack.micro_batches says; and packs up to the end of each.

    ends int64[m]: micro-batch k is samples ends[k - 1] (0 for the first) to ends[k]. Shorter ones are filled up with
    samples of one token: they come last in their micro-batch, so that none changes the packs of those before it.
    """
    sizes = np.diff(ends, prepend=0)
    width = int(sizes.max())
    at = np.arange(len(run)) + np.repeat(np.arange(len(sizes)) * width - (ends - sizes), sizes)
    tokens, real = np.ones(len(sizes) * width, np.int32), np.full(len(sizes) * width, -1, np.int64)
    tokens[at], real[at] = run.tokens, np.arange(len(run))
    packs = micro_batches(tokens, np.zeros_like(tokens), micro_batch=width)
    members = real[packs.members]
    kept = np.cumsum(members >= 0, dtype=np.int64)[packs.ends - 1]
    bounds: Array = kept[np.diff(kept, prepend=0) > 0]
    return Packs(bounds, members[members >= 0]), np.searchsorted(bounds, ends, side="left") + 1


def released_shares(config: BlendConfig, lengths: Sequence[Lengths]) -> dict[str, RecipeShare]:
    """What `recipe_shares` gives of other semantics: v1.0 weighs nothing, so a set's share is that of all its samples,
    as often as it is repeated, before any is left out. lengths: of each of the blend's sources."""
    pairs = zip(config.sources, lengths, strict=True)
    samples = [held.totals[0] * (config.passes(source)[1] or 1) for source, held in pairs]
    shares = [count / sum(samples) for count in samples]
    return {f"sources.{index}": RecipeShare(share, share) for index, share in enumerate(shares)}


def check_released(config: BlendConfig) -> None:
    """Raise UsageError unless VILA v1.0 could have made the blend: every row a whole number of times, nothing weighed."""
    where = "blend: semantics released_code takes sources in the ratio of their items"
    if config.weight_counts != "samples":
        raise UsageError(f"{where}: weight_counts is {config.weight_counts}; give samples")
    if config.total_packs is not None:
        raise UsageError(f"{where}, each a number of times: it has no total_packs; leave it out")
    for source in config.sources:
        if source.blend is not None:
            raise UsageError(f"{where}; it has no blend inside a blend")
        if source.weight != 1:
            raise UsageError(f"{where}: {source.name} has weight {source.weight}; give 1, and repeat for more of it")
        least, most = config.passes(source)
        if least != most:
            raise UsageError(f"{where}, each a number of times: {source.name} has no such number; give repeat: n")
