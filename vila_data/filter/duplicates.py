"""Exact duplicates over a whole corpus: the first picture of equal bytes stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
"""The first 128 bits of a sha256: 16 bytes a picture, so 100 million take 1.6 GB."""


_HEX: Final = np.full(256, 255, np.uint8)
_HEX[list(b"0123456789abcdef")] = range(16)


def digests(sha256: pa.ChunkedArray, mask: NDArray[np.bool_]) -> NDArray[np.void]:
    """DIGEST[k] of the hex digests where `mask` is true, in order.

    Raises:
        DataError: one of them is none.
    """
    size = 2 * DIGEST.itemsize
    hexes = pc.binary_slice(sha256.filter(pa.array(mask)).cast(pa.binary()), 0, size).combine_chunks()
    if not len(hexes):
        return np.empty(0, DIGEST)
    _, offsets, data = hexes.buffers()
    ends = np.frombuffer(offsets, np.int32)[hexes.offset : hexes.offset + len(hexes) + 1]
    nibbles = _HEX[np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]]
    if hexes.null_count or len(nibbles) != len(hexes) * size or (nibbles > 15).any():
        raise DataError("column sha256: not the hex digest of every picture")
    return (nibbles[0::2] << 4 | nibbles[1::2]).view(DIGEST)


def later_copies(digests_by_part: list[NDArray[np.void]]) -> list[NDArray[np.bool_]]:
    """bool[k] for each part: whether an equal digest stands earlier in the corpus."""
    together = np.concatenate(digests_by_part) if digests_by_part else np.empty(0, DIGEST)
    order = np.lexsort((together["low"], together["high"]))  # stable: equal digests stay in corpus order
    ordered = together[order]
    copy = np.zeros(len(together), dtype=bool)
    copy[order[1:]] = ordered[1:] == ordered[:-1]
    ends = np.cumsum([len(part) for part in digests_by_part])
    return np.split(copy, ends[:-1]) if digests_by_part else []


@dataclass(frozen=True)
class Copies:
    """Pictures of a corpus that are there more than once: all that its duplicates' rule can be about.

    place, group: int64 and int32 [k] for each part, where such a picture stands among the part's images and which
    picture it is; groups: how many such pictures there are.
    """

    place: tuple[NDArray[np.int64], ...]
    group: tuple[NDArray[np.int32], ...]
    groups: int


def find_copies(digests_by_part: Sequence[NDArray[np.void]], places_by_part: Sequence[NDArray[np.int64]]) -> Copies:
    """The pictures with equal digests; `places_by_part` says where each digest's picture stands in its part."""
    together = np.concatenate([np.empty(0, DIGEST), *digests_by_part])
    high = np.sort(together["high"])
    repeated = np.unique(high[1:][high[1:] == high[:-1]])
    at = np.searchsorted(repeated, together["high"])
    candidates = (
        np.flatnonzero(repeated[np.minimum(at, len(repeated) - 1)] == together["high"]) if len(repeated) else at[:0]
    )
    group, counts = _groups(together[candidates])
    several = counts[group] > 1
    numbers = np.cumsum(counts > 1) - 1
    chosen, groups = candidates[several], numbers[group[several]].astype(np.int32)
    ends = np.cumsum([0, *(len(part) for part in digests_by_part)])
    bounds = np.searchsorted(chosen, ends)
    places, members = [], []
    for index, places_of_part in enumerate(places_by_part):
        here = slice(bounds[index], bounds[index + 1])
        places.append(places_of_part[chosen[here] - ends[index]])
        members.append(groups[here])
    return Copies(tuple(places), tuple(members), int((counts > 1).sum()))


def _groups(found: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([k] the number of each digest among the distinct ones, how often each of those is there)."""
    order = np.lexsort((found["low"], found["high"]))
    ordered = found[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]][: len(found)]
    group = np.empty(len(found), np.int64)
    group[order] = np.cumsum(starts) - 1
    return group, np.bincount(group)


class FirstOnly:
    """Walks over a corpus's parts in order, under one setting, and tells later copies from the first."""

    def __init__(self, copies: Copies) -> None:
        self._copies, self._seen = copies, np.zeros(copies.groups, dtype=bool)

    def copy(self) -> FirstOnly:
        """Another that has seen the same so far."""
        other = FirstOnly(self._copies)
        other._seen[:] = self._seen
        return other

    def later(self, part: int, passing: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Places of the part's images that pass and whose picture has passed before; call once a part, in order."""
        place, group = self._copies.place[part], self._copies.group[part]
        chosen = passing[place]
        place, group = place[chosen], group[chosen]
        later = np.ones(len(place), dtype=bool)
        later[np.unique(group, return_index=True)[1]] = False
        later |= self._seen[group]
        self._seen[group] = True
        return place[later]
