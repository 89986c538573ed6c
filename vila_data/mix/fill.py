"""Filling bins in parallel: all bins of a wave take a sample, or two, at once.

A wave opens a share of the bins still needed. Its bins take the longest samples first, then fill up:
- by reserve: where images are many and of one size, a bin takes the image samples that leave room for as many more
  of the usual size as it could still hold. Without this, long samples end up together and short ones with room that
  none can fill; this is what the prices of the linear program say (docs/decisions/0006);
- by the pair of samples that fills a bin exactly, or better than one sample that would be its last;
- by the longest that fits, in turns with pairs, until nothing does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.stock import Array, Stock, occurrences

COMPACT = 0.75
"""The share of its types below which a stock is compacted."""
PAIR_PROBES = 4
"""First samples of a pair that are tried for a bin."""
PAIR_ROUNDS = 2
"""Rounds of pairs before each round of single samples."""
PAIR_SAMPLES = 3
"""Pairs are sought for bins whose room is that of at most as many samples of mean size."""
GOLDEN = 0.6180339887498949

Allowed = Callable[[Array, Array], tuple[Array, Array]]
"""From bins' room and slots: the longest size that they may take, and the images."""


class Wave:
    """Bins being filled from a stock: room int64[w] tokens, slots int64[w] images; what they took, in order."""

    def __init__(self, stock: Stock, bins: int, capacity: int, limit: int) -> None:
        self.stock = stock
        self.room = np.full(bins, capacity, np.int64)
        self.slots = np.full(bins, limit, np.int64)
        self.bins: list[Array] = []
        self.kinds: list[Array] = []

    def place(self, bins: Array, types: Array) -> None:
        """Bins, each once, take a sample of a type each."""
        stock = self.stock
        np.subtract.at(stock.left, types, 1)
        self.room[bins] -= stock.tokens[types]
        self.slots[bins] -= stock.images[types]
        self.bins.append(bins)
        self.kinds.append(stock.kinds[types])


class Shelf:
    """Types by level, ascending by a size, from which bins take the largest that they may."""

    def __init__(self, stock: Stock, size: Array, *, only_images: bool = False) -> None:
        self.stock = stock
        order = size.argsort(kind="stable")
        if only_images:
            order = order[stock.images[order] > 0]
        self.types = [order[stock.entry_level[order] <= level] for level in range(len(stock.allowances))]
        self.sizes = [size[types] for types in self.types]

    def round(self, wave: Wave, allowed: Allowed) -> bool:
        """Each bin takes at most one sample; whether any did."""
        most, slots = allowed(wave.room, wave.slots)
        level = self.stock.level(slots)
        placed = False
        for found in np.bincount(level + 1)[1:].nonzero()[0]:
            types, sizes = self.types[found], self.sizes[found]
            if not len(types):
                continue
            bins = ((level == found) & (most >= sizes[0])).nonzero()[0]
            if not len(bins):
                continue
            room = most[bins]
            order = (-room).argsort(kind="stable")
            bins = bins[order]
            running = self.stock.left[types].cumsum()
            place = distinct_places(sizes.searchsorted(room[order], side="right"), running)
            got = place >= 0
            if got.any():
                wave.place(bins[got], types[running.searchsorted(place[got], side="right")])
                placed = True
        return placed


def distinct_places(fits: Array, running: Array) -> Array:
    """Distinct samples for bins by room descending: places int64[b] in ascending stock, below 0 for none.

    fits int64[b]: how many types fit each bin, one at least; running int64[u]: samples of the types up to each. The
    k-th bin gets the largest sample that fits and that no bin before it has.
    """
    rank = np.arange(len(fits))
    places: Array = np.minimum.accumulate(running[fits - 1] - 1 + rank) - rank
    return places


@dataclass(frozen=True)
class Pace:
    """How finely a block is packed: bins a wave, against time.

    A wave takes one bin in `share` of those still needed; near the end one in two, but no more than `small`.
    """

    share: int
    small: int

    @classmethod
    def of(cls, need: int, samples: int) -> Pace:
        """Many waves where bins hold few samples, since a wave costs a round a sample; fewer in a small block."""
        each = samples / need
        return cls(int(np.clip(48 / each, 8, 24)), int(np.clip(need // 24, 4, np.clip(8 * each, 16, 64))))

    def wave(self, need: int) -> int:
        """Bins that the next wave opens."""
        return max(need // self.share, min(self.small, -(-need // 2)))


TRIAL = Pace(share=4, small=32)
"""For finding out which reserve suits."""


def fill_block(
    stock: Stock, capacity: int, limit: int, *, reserve: int, pace: Pace | None = None, pairs: bool = True
) -> tuple[Array, Array]:
    """Place all that is left in `stock`, which stays as it is: bins int64[n] and kinds int64[n], in order of placing.

    reserve: tokens of the usual image sample an image, for which room is kept; 0 keeps none.
    """
    bins: list[Array] = []
    kinds: list[Array] = []
    opened, types = 0, -1
    need, samples = stock.bins_needed(capacity, limit), int(stock.left.sum())
    pace = pace or Pace.of(need, samples)
    pair_room = min(capacity, PAIR_SAMPLES * capacity * need // samples) if pairs else 0
    while need := stock.bins_needed(capacity, limit):
        if types < 0 or np.count_nonzero(stock.left) < COMPACT * types:
            stock = stock.compact()
            types = len(stock.left)
            longest_first = Shelf(stock, stock.tokens)
            spaced = Shelf(stock, stock.tokens - stock.images * reserve, only_images=True)
            rank = stock.lengths.searchsorted(np.arange(capacity + 1), side="right")
        wave = Wave(stock, pace.wave(need), capacity, limit)
        longest_first.round(wave, _as_they_are)
        while reserve and spaced.round(wave, _keeping(reserve)):
            pass
        fill_up(wave, longest_first, rank, pair_room)
        bins += [found + opened for found in wave.bins]
        kinds += wave.kinds
        opened += len(wave.room)
    return np.concatenate(bins), np.concatenate(kinds)


def fill_up(wave: Wave, longest_first: Shelf, rank: Array, pair_room: int) -> None:
    """Bins take pairs and single samples in turns until nothing fits.

    rank int64[capacity + 1]: how many of the stock's lengths are no longer than each room; pair_room: the most room
    with which a bin takes pairs.
    """
    turn = 0
    placed = True
    while placed:
        for _ in range(PAIR_ROUNDS):
            turn += 1
            if not _pairs_round(wave, rank, pair_room, turn):
                break
        placed = longest_first.round(wave, _as_they_are)


def _as_they_are(room: Array, slots: Array) -> tuple[Array, Array]:
    return room, slots


def _keeping(reserve: int) -> Allowed:
    def allowed(room: Array, slots: Array) -> tuple[Array, Array]:
        usual = np.minimum(slots, room // reserve)
        return room - usual * reserve, np.where(usual > 0, usual, -1)

    return allowed


def _pairs_round(wave: Wave, rank: Array, pair_room: int, turn: int) -> int:
    """One pair for each bin that has a good one and gets it; how many did. Another `turn` tries other pairs."""
    stock = wave.stock
    bins = ((wave.room >= 2 * stock.lengths[0]) & (wave.room <= pair_room)).nonzero()[0]
    if not len(bins):
        return 0
    table = stock.longest()
    single = table[stock.level(wave.slots[bins]), rank[wave.room[bins]]]
    held = np.where(single >= 0, stock.tokens[single], wave.room[bins])
    loose = held < wave.room[bins]
    bins, held = bins[loose], held[loose]
    if not len(bins):
        return 0
    room, slots = wave.room[bins], wave.slots[bins]
    offset = (np.arange(len(bins)) + turn / 2) * GOLDEN % 1.0
    probe = (0.5 + (np.arange(PAIR_PROBES) + offset[:, None]) / (2 * PAIR_PROBES)) * room[:, None]
    first = table[stock.level(slots)[:, None], rank[probe.astype(np.int64)]]
    first_tokens = np.where(first >= 0, stock.tokens[first], room[:, None])
    second = table[stock.level(slots[:, None] - stock.images[first]), rank[room[:, None] - first_tokens]]
    total = np.where(second >= 0, first_tokens + stock.tokens[second], 0)
    best = np.arange(len(bins)), total.argmax(axis=1)
    better = (total[best] > held) & ((total[best] == room) | (room - held < stock.lengths[0]))
    if not better.any():
        return 0
    bins, first, second = bins[better], first[best][better], second[best][better]
    granted = _granted(first, second, stock.left)
    wave.place(bins[granted], first[granted])
    wave.place(bins[granted], second[granted])
    return int(granted.sum())


def _granted(first: Array, second: Array, left: Array) -> NDArray[np.bool_]:
    """bool[b]: the bins whose two types are both still there when types go to bins in their order."""
    wanted = np.concatenate([first, second])
    order, before = occurrences(wanted)
    there = np.empty(len(wanted), np.bool_)
    there[order] = before < left[wanted[order]]
    granted: NDArray[np.bool_] = there[: len(first)] & there[len(first) :]
    return granted
