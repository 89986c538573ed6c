"""The order within a block: samples from neighboring rows are far apart, and so are packs with similar contents."""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.lengths import Samples
from vila_data.mix.seeded import permutation

_SCALE: Final = 1_024
"""Integer steps per mean pack: sums are exact, and the order is the same on every machine."""
_KINDS: Final = 128
"""Maximum number of kinds of packs."""
_EVENNESS: Final = 0.05
"""Weight of a kind's deficit of one pack against its even spread, relative to a source's deficit of one mean pack against
its share, squared."""
_LENGTHS_PER_DOUBLING: Final = 16
"""Classes of lengths per doubling of tokens that are distinguished when samples are exchanged."""

_Kind = tuple[int, int, NDArray[np.int64], int, int]


def shuffle_within_kinds(kind: NDArray[np.integer], *seeds: int) -> NDArray[np.int64]:
    """int64[n]: an order of n samples in which samples of the same kind are shuffled; kinds keep their positions.

    kind int[n]: equal for samples of one kind.
    """
    shuffled = permutation(len(kind), *seeds)
    found = np.empty(len(kind), np.int64)
    found[np.argsort(kind, kind="stable")] = shuffled[np.argsort(kind[shuffled], kind="stable")]
    return found


def sample_kinds(samples: Samples) -> NDArray[np.int64]:
    """int64[n]: kinds of samples that can be exchanged without a noticeable effect on shares.

    Samples of a kind are from one source, have equally many images, and tokens that differ by at most one part in
    _LENGTHS_PER_DOUBLING.
    """
    per_doubling = _LENGTHS_PER_DOUBLING
    part, power = np.frexp(samples.tokens.astype(np.float64))
    length = power.astype(np.int64) * per_doubling + ((part - 0.5) * (2 * per_doubling)).astype(np.int64)
    images = samples.images.astype(np.int64)
    return (samples.source * (int(images.max(initial=0)) + 1) + images) * (per_doubling * per_doubling) + length


def spread_packs(units: NDArray[np.int64], totals: NDArray[np.int64], *seeds: int) -> NDArray[np.int64]:
    """int64[p]: an order of p packs in which every source keeps its share of the block at any point.

    units int64[p, e]: what each pack holds of each source; totals int64[p, e]: of the blend that contains the source. The
    next pack is always of the kind that minimizes the squares of the sources' deficits against their shares and of the
    kinds' own deficits against an even spread; within a kind, packs are shuffled. A source's running sum thus stays
    within about a pack of its share.
    """
    packs = len(units)
    shuffled = permutation(packs, *seeds)
    if packs < 3:
        return shuffled
    surplus = _surpluses(units, totals)
    kind = _kinds(surplus)
    queue = shuffled[np.argsort(kind[shuffled], kind="stable")]
    return _greedy(surplus, kind, queue)


def _greedy(surplus: NDArray[np.int64], kind: NDArray[np.int64], queue: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take packs one by one; `queue` has them kind by kind. All numbers are integers below 2^53, in float64."""
    packs = len(surplus)
    count = np.bincount(kind)
    sums = np.zeros((len(count), surplus.shape[1]))
    np.add.at(sums, kind, surplus)
    typical = np.rint(sums / count[:, None])
    weight = round(_EVENNESS * _SCALE * _SCALE)
    cost = np.rint((typical * typical).sum(axis=1) / 2) + weight / 2
    change = surplus.astype(np.float64) @ typical.T - np.rint(weight * count / packs)
    change[np.arange(packs), kind] += weight
    end = np.cumsum(count)
    position, ends = (end - count).tolist(), end.tolist()
    members = queue.tolist()
    rows = list(change)
    found = []
    for _ in range(packs):
        best = int(cost.argmin())
        pack = members[position[best]]
        found.append(pack)
        np.add(cost, rows[pack], out=cost)
        position[best] += 1
        if position[best] == ends[best]:
            cost[best] = np.inf
    return np.asarray(found, np.int64)


def _surpluses(units: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[p, e]: what a pack holds of a source beyond the source's share of it, in 1 / _SCALE of a mean pack's total."""
    given, whole = units.sum(axis=0), totals.sum(axis=0)
    present = whole > 0
    share = np.where(present, given / np.where(present, whole, 1), 0.0)
    mean = np.where(present, whole / len(units), 1.0)
    surpluses: NDArray[np.int64] = np.rint((units - share * totals) / mean * _SCALE).astype(np.int64)
    return surpluses


def _kinds(surplus: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[p]: numbers of kinds, each with at least one pack: the widest kind is split at its mean, up to _KINDS times."""
    kind = np.zeros(len(surplus), np.int64)
    widest = [_width(surplus, np.arange(len(surplus)), 0)]
    for number in range(1, _KINDS):
        width, _, members, column, middle = heapq.heappop(widest)
        if not width:
            break
        above = surplus[members, column] > middle
        kind[members[above]] = number
        heapq.heappush(widest, _width(surplus, members[~above], 2 * number))
        heapq.heappush(widest, _width(surplus, members[above], 2 * number + 1))
    return kind


def _width(surplus: NDArray[np.int64], members: NDArray[np.int64], name: int) -> _Kind:
    """Minus the largest sum of squares about the mean, a tie-break, the members, its column, the mean there."""
    held = surplus[members]
    sums = held.sum(axis=0)
    squares = (held * held).sum(axis=0) - sums * sums // len(members)
    column = int(squares.argmax())
    return -int(squares[column]), name, members, column, int(sums[column]) // len(members)
