"""The samples not yet placed, counted by type: samples of as many tokens and images are one type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.packs import Ints

Array = NDArray[np.int64]
MAX_LEVELS = 32
"""Image allowances told apart when samples are looked up; more distinct image counts than these share levels."""


class Stock:
    """Counts of the samples left, by type; types ascend by tokens, then by images.

    tokens, images int64[u]: of a sample of each type; left int64[u]: samples not yet placed; kinds int64[u]: each
    type's number among all types of the block. A level is an allowance of images: `allowances` int64[l], ascending, the
    last no less than any type's images; entry_level int64[u]: the lowest level that allows each type.
    """

    def __init__(self, tokens: Array, images: Array, left: Array, kinds: Array) -> None:
        self.tokens, self.images, self.left, self.kinds = tokens, images, left, kinds
        found = np.unique(images)
        spread = np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_LEVELS)).round().astype(np.int64))
        self.allowances = found[spread]
        self.lengths, self._length_rank = np.unique(tokens, return_inverse=True)
        self.entry_level = self.allowances.searchsorted(images)

    def thinned(self, share: int) -> Stock:
        """One sample in `share`, evenly over the types in their order."""
        running = np.cumsum(self.left)
        left = running // share - (running - self.left) // share
        return Stock(self.tokens, self.images, left, self.kinds).compact()

    def compact(self) -> Stock:
        """The types of which samples are left."""
        kept = self.left > 0
        return Stock(self.tokens[kept], self.images[kept], self.left[kept], self.kinds[kept])

    def bins_needed(self, capacity: int, limit: int) -> int:
        """Bins that what is left needs at least, by either sum."""
        return max(-(-int(self.left @ self.tokens) // capacity), -(-int(self.left @ self.images) // limit))

    def level(self, slots: Array) -> Array:
        """The level of each allowance of images; -1 where it allows none of the types."""
        found: Array = self.allowances.searchsorted(slots, side="right") - 1
        return found

    def longest(self) -> NDArray[np.int64]:
        """int64[l + 1, u' + 1]: the longest type left at each level among the u' shortest lengths; -1 for none.

        The last row, which index -1 names too, allows nothing; column 0 is no length.
        """
        table = np.full((len(self.allowances) + 1, len(self.lengths) + 1), -1, np.int64)
        alive = self.left.nonzero()[0]
        table[self.entry_level[alive], self._length_rank[alive] + 1] = alive
        for level in range(len(self.allowances)):
            if level:
                np.maximum(table[level], table[level - 1], out=table[level])
            np.maximum.accumulate(table[level], out=table[level])
        return table


def stock_of(tokens: Ints, images: Ints) -> tuple[Stock, Array]:
    """The stock of a block, and the positions of its samples in the order of their types."""
    span = int(images.max()) + 1
    keys = tokens.astype(np.int64) * span + images
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate([[0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1])
    left = np.diff(first, append=len(keys))
    types = ordered[first]
    return Stock(types // span, types % span, left, np.arange(len(types))), order


def samples_of(kinds: Array, order: Array) -> Array:
    """int64[n]: for the j-th mention of a type, the position of the j-th sample of that type."""
    found = np.empty(len(kinds), np.int64)
    found[np.argsort(kinds, kind="stable")] = order
    return found


def occurrences(values: Array) -> tuple[Array, Array]:
    """A stable order that sorts `values`, and in that order how often each value came before."""
    order = values.argsort(kind="stable")
    ordered = values[order]
    new = np.ones(len(values), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    place = np.arange(len(values))
    return order, place - np.maximum.accumulate(np.where(new, place, 0))
