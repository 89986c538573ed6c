"""The improved packer: whole samples into sequences under two limits, tokens and images, a block at a time."""

from __future__ import annotations

import numpy as np

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.fill import TRIAL, fill_block
from vila_data.mix.join import joined
from vila_data.mix.packs import Ints, Packs, check_lengths
from vila_data.mix.stock import Array, Stock, samples_of, stock_of

BLOCK_SAMPLES = 65_520
"""A good block: its packing costs little a sample, and the usual limits of images divide it, so that a stream of
samples with one image each ends in no short pack."""
TRIAL_SHARE = 12
TRIAL_SAMPLES = 4_096
"""Reserves are tried on one sample in TRIAL_SHARE, or on some TRIAL_SAMPLES where a block is small."""
USUAL_PERCENTILE = 30
"""Tokens an image that are tried as the usual ones: this percentile of the samples with images, and the longest of which
one more makes a sequence."""


def pack_block(tokens: Ints, images: Ints, *, capacity: int, max_images: int | None) -> Packs:
    """Pack every sample once, whole, into sequences of at most `capacity` tokens and `max_images` images.

    tokens int32[n]: 1 to `capacity`, images expanded; images int32[n]: at most `max_images` (None: no limit). The
    result is a function of the two arrays alone. Blocks of BLOCK_SAMPLES samples are packed best for their time.
    """
    check_lengths(tokens, images)
    _check_limits(tokens, images, capacity, max_images)
    if not len(tokens):
        return Packs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    stock, order = stock_of(tokens, images)
    limit = max(1, int(images.sum(dtype=np.int64)) if max_images is None else max_images)
    reserve = _best_reserve(stock, capacity, limit)
    bins, kinds = fill_block(stock, capacity, limit, reserve=reserve)
    return joined(_packs(bins, samples_of(kinds, order)), tokens, images, capacity, limit)


def _best_reserve(stock: Stock, capacity: int, limit: int) -> int:
    """Of the reserves that may suit, the one that packs a thinned stock into fewest bins; none if equal."""
    imaged = stock.images > 0
    if not imaged.any():
        return 0
    thin = stock.thinned(int(np.clip(stock.left.sum() // TRIAL_SAMPLES, 1, TRIAL_SHARE)))
    each = np.repeat(stock.tokens[imaged] // stock.images[imaged], stock.left[imaged])
    place = len(each) * USUAL_PERCENTILE // 100
    usual = max(1, int(np.partition(each, place)[place]))
    counts = {}
    for reserve in (0, usual, capacity // (capacity // usual + 1)):
        bins, _ = fill_block(thin, capacity, limit, reserve=reserve, pace=TRIAL, pairs=False)
        counts[reserve] = int(bins.max())
    return min(counts, key=lambda reserve: counts[reserve])


def _check_limits(tokens: Ints, images: Ints, capacity: int, max_images: int | None) -> None:
    if capacity < 1:
        raise UsageError(f"pack.sequence_length is {capacity}: give 1 or more")
    if max_images is not None and max_images < 0:
        raise UsageError(f"pack.max_images_per_pack is {max_images}: give 0 or more")
    for name, values, limit in (("tokens", tokens, capacity), ("images", images, max_images)):
        if limit is not None and len(values) and int(values.max()) > limit:
            raise DataError(
                f"pack: sample {int(values.argmax())} has {int(values.max())} {name}, a sequence holds {limit}; "
                "cut such samples or leave them out before packing"
            )


def _packs(bins: Array, samples: Array) -> Packs:
    """Packs from each sample's bin; bins keep their order, samples of a bin the order in which they were placed."""
    order = np.argsort(bins, kind="stable")
    sizes = np.bincount(bins)
    return Packs(np.cumsum(sizes[sizes > 0]).astype(np.int64), samples[order])
