"""Pack whole samples into sequences under two limits, tokens and images, a block at a time.

Bins (packs being filled) are filled in parallel: each round opens a fraction of the bins still needed, and in each turn
of a round every bin takes one sample, or two, at once. The bins of a round take the longest samples first, then fill up:
- with a reserve: if images are many and of one size, a bin takes the image samples that leave room for as many more of
  the usual size as it could still hold. Without this, long samples end up together, and short ones with room that
  nothing can fill; this is what the prices of the linear program say (docs/decisions/0006);
- with the pair of samples that fills a bin exactly, or better than one sample that would be its last;
- with the longest sample that fits, alternating with pairs, until nothing fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.packs import Ints, Packs, check_lengths

BLOCK_SAMPLES = 65_520
"""A good block size: packing it costs little per sample, and the usual image limits divide it, so that a stream of samples
with one image each ends without a short pack."""
TRIAL_FRACTION = 12
TRIAL_SAMPLES = 4_096
"""Reserves are tried on one sample in TRIAL_FRACTION, or on about TRIAL_SAMPLES if a block is small."""
USUAL_PERCENTILE = 30
"""Tokens per image that are tried as the usual size: this percentile of the samples with images, and the longest size of
which one more fits into a sequence."""
MERGE_ATTEMPTS = 256
"""Short packs that are tried to be merged into others after packing."""
MAX_LEVELS = 32
"""Levels of remaining images that are distinguished when samples are looked up; more distinct image counts share levels."""
COMPACT = 0.75
"""A pool is compacted when fewer than this fraction of its types have samples left."""
PAIR_PROBES = 4
"""First samples of a pair that are tried per bin."""
PAIR_TURNS = 2
"""Turns of pairs before each turn of single samples."""
PAIR_SAMPLES = 3
"""Pairs are sought for bins whose room is that of at most this many samples of mean size."""
GOLDEN = 0.6180339887498949
STEP = 64
SAMPLE = 16_384
"""Sequence lengths are tried in steps of STEP tokens, on SAMPLE samples."""

Array = NDArray[np.int64]


def pack_block(tokens: Ints, images: Ints, *, capacity: int, max_images: int | None) -> Packs:
    """Pack every sample once, whole, into sequences of at most `capacity` tokens and `max_images` images.

    tokens int32[n]: 1 to `capacity`, images expanded; images int32[n]: at most `max_images` (None: no limit). The
    result is a function of the two arrays alone. Blocks of BLOCK_SAMPLES samples are packed best for their time.
    """
    check_lengths(tokens, images)
    _check_limits(tokens, images, capacity, max_images)
    if not len(tokens):
        return Packs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    pool, order = _pool_of(tokens, images)
    limit = max(1, int(images.sum(dtype=np.int64)) if max_images is None else max_images)
    bins, types = fill_bins(pool, capacity, limit, reserve=_best_reserve(pool, capacity, limit))
    samples = np.empty(len(types), np.int64)
    samples[np.argsort(types, kind="stable")] = order  # the j-th mention of a type is the j-th sample of that type
    sizes = np.bincount(bins)
    packs = Packs(np.cumsum(sizes[sizes > 0]).astype(np.int64), samples[np.argsort(bins, kind="stable")])
    return _merge_short(packs, tokens, images, capacity, limit)


def _check_limits(tokens: Ints, images: Ints, capacity: int, max_images: int | None) -> None:
    if capacity < 1:
        raise UsageError(f"pack.sequence_length must be at least 1, found {capacity}")
    if max_images is not None and max_images < 0:
        raise UsageError(f"pack.max_images_per_pack must be at least 0, found {max_images}")
    for name, values, limit in (("tokens", tokens, capacity), ("images", images, max_images)):
        if limit is not None and len(values) and int(values.max()) > limit:
            raise DataError(
                f"pack: sample {int(values.argmax())} has {int(values.max())} {name}, but a sequence holds {limit}; "
                "truncate or exclude such samples before packing"
            )


class Pool:
    """The samples not yet placed, counted by type. A type is a pair (tokens, images); types ascend by tokens, then images.

    tokens, images int64[u]: of a sample of each type; left int64[u]: samples not yet placed; numbers int64[u]: each
    type's number among all types of the block. A level is an allowance of images: `allowances` int64[l], ascending, the
    last no less than any type's images; lowest_level int64[u]: the lowest level that allows each type.
    """

    def __init__(self, tokens: Array, images: Array, left: Array, numbers: Array) -> None:
        self.tokens, self.images, self.left, self.numbers = tokens, images, left, numbers
        counts = np.unique(images)
        chosen = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), MAX_LEVELS)).round().astype(np.int64))
        self.allowances = counts[chosen]
        self.lengths, self._length_rank = np.unique(tokens, return_inverse=True)
        self.lowest_level = self.allowances.searchsorted(images)

    def thinned(self, fraction: int) -> Pool:
        """One sample in `fraction`, evenly over the types in their order."""
        running = np.cumsum(self.left)
        left = running // fraction - (running - self.left) // fraction
        return Pool(self.tokens, self.images, left, self.numbers).compact()

    def compact(self) -> Pool:
        """The types that have samples left."""
        kept = self.left > 0
        return Pool(self.tokens[kept], self.images[kept], self.left[kept], self.numbers[kept])

    def bins_needed(self, capacity: int, limit: int) -> int:
        """Lower bound on the bins that the remaining samples need, by tokens and by images."""
        return max(-(-int(self.left @ self.tokens) // capacity), -(-int(self.left @ self.images) // limit))

    def level(self, image_room: Array) -> Array:
        """The level of each number of further images; -1 if it allows none of the types."""
        found: Array = self.allowances.searchsorted(image_room, side="right") - 1
        return found

    def longest(self) -> Array:
        """int64[l + 1, u' + 1]: the longest remaining type at each level among the u' shortest lengths; -1 if none.

        The last row, which index -1 also refers to, allows nothing; column 0 is for no length.
        """
        table = np.full((len(self.allowances) + 1, len(self.lengths) + 1), -1, np.int64)
        alive = self.left.nonzero()[0]
        table[self.lowest_level[alive], self._length_rank[alive] + 1] = alive
        for level in range(len(self.allowances)):
            if level:
                np.maximum(table[level], table[level - 1], out=table[level])
            np.maximum.accumulate(table[level], out=table[level])
        return table


def _pool_of(tokens: Ints, images: Ints) -> tuple[Pool, Array]:
    """The pool of a block, and the positions of its samples in the order of their types."""
    span = int(images.max()) + 1
    keys = tokens.astype(np.int64) * span + images
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate([[0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1])
    left = np.diff(first, append=len(keys))
    types = ordered[first]
    return Pool(types // span, types % span, left, np.arange(len(types))), order


class OpenBins:
    """The bins of a round: room int64[b] tokens and image_room int64[b] images; their samples so far, in order."""

    def __init__(self, pool: Pool, count: int, capacity: int, limit: int) -> None:
        self.pool = pool
        self.room = np.full(count, capacity, np.int64)
        self.image_room = np.full(count, limit, np.int64)
        self.bins: list[Array] = []
        self.types: list[Array] = []

    def place(self, bins: Array, types: Array) -> None:
        """Put one sample of a type into each of some distinct bins."""
        pool = self.pool
        np.subtract.at(pool.left, types, 1)
        self.room[bins] -= pool.tokens[types]
        self.image_room[bins] -= pool.images[types]
        self.bins.append(bins)
        self.types.append(pool.numbers[types])


class SizeIndex:
    """Types at each level, ascending by tokens, from which bins take the largest sample that fits.

    reserve: tokens of the usual image sample per image, for which bins keep room; only samples with images are taken
    then. 0: no room is kept.
    """

    def __init__(self, pool: Pool, reserve: int = 0) -> None:
        self.pool, self.reserve = pool, reserve
        size = pool.tokens - pool.images * reserve
        order = size.argsort(kind="stable")
        if reserve:
            order = order[pool.images[order] > 0]
        self.types = [order[pool.lowest_level[order] <= level] for level in range(len(pool.allowances))]
        self.sizes = [size[types] for types in self.types]

    def turn(self, bins: OpenBins) -> bool:
        """Put at most one sample into each bin; whether any was placed."""
        room, image_room = bins.room, bins.image_room
        if self.reserve:
            usual = np.minimum(image_room, room // self.reserve)
            room, image_room = room - usual * self.reserve, np.where(usual > 0, usual, -1)
        levels = self.pool.level(image_room)
        placed = False
        for level in np.bincount(levels + 1)[1:].nonzero()[0]:
            types, sizes = self.types[level], self.sizes[level]
            if not len(types):
                continue
            chosen = ((levels == level) & (room >= sizes[0])).nonzero()[0]
            if not len(chosen):
                continue
            chosen = chosen[(-room[chosen]).argsort(kind="stable")]
            running = self.pool.left[types].cumsum()
            position = _distinct_positions(sizes.searchsorted(room[chosen], side="right"), running)
            got = position >= 0
            if got.any():
                bins.place(chosen[got], types[running.searchsorted(position[got], side="right")])
                placed = True
        return placed


def _distinct_positions(fits: Array, running: Array) -> Array:
    """Distinct samples for bins by descending room: positions int64[b] in the ascending pool, below 0 if none is left.

    fits int64[b]: number of types that fit each bin, at least one; running int64[u]: samples of the types up to each.
    The k-th bin gets the largest sample that fits and that no earlier bin has.
    """
    rank = np.arange(len(fits))
    positions: Array = np.minimum.accumulate(running[fits - 1] - 1 + rank) - rank
    return positions


@dataclass(frozen=True)
class RoundSize:
    """How many bins a round opens: one in `fraction` of those still needed; near the end half of them, but at most
    `small`. Smaller rounds pack better and take longer."""

    fraction: int
    small: int

    @classmethod
    def of(cls, need: int, samples: int) -> RoundSize:
        """Many rounds if bins hold few samples, since a round costs a turn per sample; fewer in a small block."""
        per_bin = samples / need
        small = int(np.clip(need // 24, 4, np.clip(8 * per_bin, 16, 64)))
        return cls(int(np.clip(48 / per_bin, 8, 24)), small)

    def bins(self, need: int) -> int:
        """Bins that the next round opens."""
        return max(need // self.fraction, min(self.small, -(-need // 2)))


TRIAL = RoundSize(fraction=4, small=32)
"""For choosing a reserve."""


def _best_reserve(pool: Pool, capacity: int, limit: int) -> int:
    """The reserve, of those that may suit, that packs a thinned pool into the fewest bins; 0 if equal."""
    with_images = pool.images > 0
    if not with_images.any():
        return 0
    thin = pool.thinned(int(np.clip(pool.left.sum() // TRIAL_SAMPLES, 1, TRIAL_FRACTION)))
    per_image = np.repeat(pool.tokens[with_images] // pool.images[with_images], pool.left[with_images])
    rank = len(per_image) * USUAL_PERCENTILE // 100
    usual = max(1, int(np.partition(per_image, rank)[rank]))
    counts = {}
    for reserve in (0, usual, capacity // (capacity // usual + 1)):
        bins, _ = fill_bins(thin, capacity, limit, reserve=reserve, size=TRIAL, pairs=False)
        counts[reserve] = int(bins.max())
    return min(counts, key=lambda reserve: counts[reserve])


def fill_bins(
    pool: Pool, capacity: int, limit: int, *, reserve: int, size: RoundSize | None = None, pairs: bool = True
) -> tuple[Array, Array]:
    """Place all samples of a pool, which does not change: bins int64[n] and types' numbers int64[n], in order of placing.

    reserve: as in SizeIndex.
    """
    bins: list[Array] = []
    types: list[Array] = []
    opened, known_types = 0, -1
    need, samples = pool.bins_needed(capacity, limit), int(pool.left.sum())
    size = size or RoundSize.of(need, samples)
    pair_room = min(capacity, PAIR_SAMPLES * capacity * need // samples) if pairs else 0
    while need := pool.bins_needed(capacity, limit):
        if known_types < 0 or np.count_nonzero(pool.left) < COMPACT * known_types:
            pool = pool.compact()
            known_types = len(pool.left)
            longest_first = SizeIndex(pool)
            reserving = SizeIndex(pool, reserve) if reserve else longest_first
            rank = pool.lengths.searchsorted(np.arange(capacity + 1), side="right")
        opening = OpenBins(pool, size.bins(need), capacity, limit)
        longest_first.turn(opening)
        while reserve and reserving.turn(opening):
            pass
        _fill_up(opening, longest_first, rank, pair_room)
        bins += [found + opened for found in opening.bins]
        types += opening.types
        opened += len(opening.room)
    return np.concatenate(bins), np.concatenate(types)


def _fill_up(bins: OpenBins, longest_first: SizeIndex, rank: Array, pair_room: int) -> None:
    """Bins take pairs and single samples alternately until nothing fits.

    rank int64[capacity + 1]: how many of the pool's lengths fit into each room; pair_room: the largest room for which
    pairs are sought.
    """
    turn = 0
    placed = True
    while placed:
        for _ in range(PAIR_TURNS):
            turn += 1
            if not _place_pairs(bins, rank, pair_room, turn):
                break
        placed = longest_first.turn(bins)


def _place_pairs(bins: OpenBins, rank: Array, pair_room: int, turn: int) -> bool:
    """Put a good pair into each bin that has one; whether any was placed. Another `turn` tries other pairs."""
    pool = bins.pool
    chosen = ((bins.room >= 2 * pool.lengths[0]) & (bins.room <= pair_room)).nonzero()[0]
    if not len(chosen):
        return False
    table = pool.longest()
    single = table[pool.level(bins.image_room[chosen]), rank[bins.room[chosen]]]
    single_tokens = np.where(single >= 0, pool.tokens[single], bins.room[chosen])
    loose = single_tokens < bins.room[chosen]
    chosen, single_tokens = chosen[loose], single_tokens[loose]
    if not len(chosen):
        return False
    room, image_room = bins.room[chosen], bins.image_room[chosen]
    offset = (np.arange(len(chosen)) + turn / 2) * GOLDEN % 1.0
    probe = (0.5 + (np.arange(PAIR_PROBES) + offset[:, None]) / (2 * PAIR_PROBES)) * room[:, None]
    first = table[pool.level(image_room)[:, None], rank[probe.astype(np.int64)]]
    first_tokens = np.where(first >= 0, pool.tokens[first], room[:, None])
    second = table[pool.level(image_room[:, None] - pool.images[first]), rank[room[:, None] - first_tokens]]
    total = np.where(second >= 0, first_tokens + pool.tokens[second], 0)
    best = np.arange(len(chosen)), total.argmax(axis=1)
    better = (total[best] > single_tokens) & ((total[best] == room) | (room - single_tokens < pool.lengths[0]))
    if not better.any():
        return False
    chosen, first, second = chosen[better], first[best][better], second[best][better]
    available = _both_available(first, second, pool.left)
    bins.place(chosen[available], first[available])
    bins.place(chosen[available], second[available])
    return bool(available.any())


def _both_available(first: Array, second: Array, left: Array) -> NDArray[np.bool_]:
    """bool[b]: the bins whose two types both have samples left when types are handed out to bins in order."""
    requested = np.concatenate([first, second])
    order = requested.argsort(kind="stable")
    ordered = requested[order]
    new = np.ones(len(ordered), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    position = np.arange(len(ordered))
    before = position - np.maximum.accumulate(np.where(new, position, 0))  # earlier requests for the same type
    available = np.empty(len(requested), np.bool_)
    available[order] = before < left[ordered]
    both: NDArray[np.bool_] = available[: len(first)] & available[len(first) :]
    return both


def _merge_short(packs: Packs, tokens: Ints, images: Ints, capacity: int, limit: int) -> Packs:
    """Merge the MERGE_ATTEMPTS shortest packs into the fullest ones with room; image limits leave some packs short."""
    pack_tokens, pack_images = packs.sums(tokens), packs.sums(images)
    short = (pack_tokens * 2 <= capacity).nonzero()[0]
    into = np.arange(len(packs))
    for pack in short[pack_tokens[short].argsort(kind="stable")][:MERGE_ATTEMPTS]:
        fits = (pack_tokens + pack_tokens[pack] <= capacity) & (pack_images + pack_images[pack] <= limit)
        fits[pack] = False
        others = fits.nonzero()[0]
        if len(others):
            other = others[pack_tokens[others].argmax()]
            pack_tokens[other] += pack_tokens[pack]
            pack_images[other] += pack_images[pack]
            pack_tokens[pack], pack_images[pack] = capacity + 1, limit + 1
            into[into == pack] = other
    pack_of_member = np.repeat(into, packs.sizes)
    sizes = np.bincount(pack_of_member)
    return Packs(np.cumsum(sizes[sizes > 0]), packs.members[pack_of_member.argsort(kind="stable")])


class SequenceLengths(NamedTuple):
    """Sequence lengths that were tried: `fill` has (length, fill rate) of each, ascending; `best` wastes the fewest
    tokens."""

    best: int
    fill: tuple[tuple[int, float], ...]


def best_sequence_length(
    tokens: Ints, images: Ints, *, current: int, max_images: int | None, seed: int, sample: int = SAMPLE
) -> SequenceLengths:
    """Estimate the sequence length that wastes the fewest tokens, by packing at most `sample` samples at each candidate.

    tokens, images int32[n] as for `pack_block`. Candidates are `current` and multiples of STEP from three quarters to
    five quarters of it, none shorter than the longest sample. Of equally good lengths, the one nearest to `current` is
    chosen.
    """
    check_lengths(tokens, images)
    if not len(tokens):
        raise UsageError("best_sequence_length: no samples to pack")
    if len(tokens) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(len(tokens), size=sample, replace=False))
        tokens, images = tokens[chosen], images[chosen]
    low, high = -(-max(current * 3 // 4, int(tokens.max())) // STEP), current * 5 // 4 // STEP
    fill = []
    for length in sorted({*(STEP * k for k in range(low, high + 1)), current}):
        packs = pack_block(tokens, images, capacity=length, max_images=max_images)
        fill.append((length, int(tokens.sum(dtype=np.int64)) / (len(packs) * length)))
    best = max(fill, key=lambda entry: (entry[1], -abs(entry[0] - current)))[0]
    return SequenceLengths(best, tuple(fill))
