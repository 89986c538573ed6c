"""The order of a block: samples that lie side by side in a shard are far apart in it, and so are packs that are alike."""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.lengths import Run
from vila_data.mix.seeded import order

_SCALE: Final = 1_024
"""Whole numbers a mean pack: sums are exact, and the order is the same on every machine."""
_KINDS: Final = 128
"""Kinds of packs told apart at most."""
_EVENNESS: Final = 0.05
"""What a kind's lag of one pack behind its even spread weighs, beside a share's lag of one mean pack, squared."""

_LONG: Final = 16
"""Parts of a doubling of tokens that are told apart when samples change places."""

_Kind = tuple[int, int, NDArray[np.int64], int, int]


def mixed(kind: NDArray[np.integer], *of: int) -> NDArray[np.int64]:
    """int64[n]: an order of n samples, named by the seed integers `of`: those of one kind change places by chance.

    kind int[n]: equal for samples of one kind. Which kind comes at which place stays as it is.
    """
    shuffled = order(len(kind), *of)
    found = np.empty(len(kind), np.int64)
    found[np.argsort(kind, kind="stable")] = shuffled[np.argsort(kind[shuffled], kind="stable")]
    return found


def alike(run: Run) -> NDArray[np.int64]:
    """int64[n]: kinds of samples that may change places without a share's noticing.

    Samples of a kind are of one source, have as many images, and tokens that differ by a part in _LONG at most.
    """
    part, power = np.frexp(run.tokens.astype(np.float64))
    long = power.astype(np.int64) * _LONG + ((part - 0.5) * (2 * _LONG)).astype(np.int64)
    images = run.images.astype(np.int64)
    return (run.source * (int(images.max(initial=0)) + 1) + images) * (_LONG * _LONG) + long


def spread(units: NDArray[np.int64], totals: NDArray[np.int64], *of: int) -> NDArray[np.int64]:
    """int64[p]: an order of p packs, named by the seed integers `of`.

    units int64[p, e]: what each pack holds of each source; totals int64[p, e]: of the blend above it. Each next pack is
    of the kind that leaves the sources' lags, and the kinds' own lags behind an even spread, least in squares; which
    pack of a kind is by chance. A source's running sum so stays within about a pack of its share of the block.
    """
    packs = len(units)
    if packs < 3:
        return order(packs, *of)
    lag = _lags(units, totals)
    kind = _kinds(lag)
    count = np.bincount(kind)
    shuffled = order(packs, *of)
    queue = shuffled[np.argsort(kind[shuffled], kind="stable")]
    return _greedy(lag, kind, count, queue)


def _greedy(
    lag: NDArray[np.int64], kind: NDArray[np.int64], count: NDArray[np.int64], queue: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Take packs one by one; `queue` has them kind by kind. All numbers are integers below 2^53, in float64."""
    packs = len(lag)
    sums = np.zeros((len(count), lag.shape[1]))
    np.add.at(sums, kind, lag)
    typical = np.rint(sums / count[:, None])
    weight = round(_EVENNESS * _SCALE * _SCALE)
    cost = np.rint((typical * typical).sum(axis=1) / 2) + weight / 2
    change = lag.astype(np.float64) @ typical.T - np.rint(weight * count / packs)
    change[np.arange(packs), kind] += weight
    end = np.cumsum(count)
    place, ends = (end - count).tolist(), end.tolist()
    members = queue.tolist()
    rows = list(change)
    found = []
    for _ in range(packs):
        best = int(cost.argmin())
        pack = members[place[best]]
        found.append(pack)
        np.add(cost, rows[pack], out=cost)
        place[best] += 1
        if place[best] == ends[best]:
            cost[best] = np.inf
    return np.asarray(found, np.int64)


def _lags(units: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[p, e]: what a pack holds of a source beyond the source's share of it, in 1 / _SCALE of a mean pack's total."""
    packs = len(units)
    given, whole = units.sum(axis=0), totals.sum(axis=0)
    there = whole > 0
    share = np.where(there, given / np.where(there, whole, 1), 0.0)
    mean = np.where(there, whole / packs, 1.0)
    lags: NDArray[np.int64] = np.rint((units - share * totals) / mean * _SCALE).astype(np.int64)
    return lags


def _kinds(lag: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[p]: numbers of kinds, each with a pack at least: the widest kind is halved at its mean, up to _KINDS times."""
    kind = np.zeros(len(lag), np.int64)
    widest = [_width(lag, np.arange(len(lag)), 0)]
    for number in range(1, _KINDS):
        spread_out, _, members, column, middle = heapq.heappop(widest)
        if not spread_out:
            break
        above = lag[members, column] > middle
        kind[members[above]] = number
        heapq.heappush(widest, _width(lag, members[~above], 2 * number))
        heapq.heappush(widest, _width(lag, members[above], 2 * number + 1))
    return kind


def _width(lag: NDArray[np.int64], members: NDArray[np.int64], name: int) -> _Kind:
    """Minus the largest sum of squares about the mean, a tie-break, the members, its column, the mean there."""
    held = lag[members]
    sums = held.sum(axis=0)
    squares = (held * held).sum(axis=0) - sums * sums // len(members)
    column = int(squares.argmax())
    return -int(squares[column]), name, members, column, int(sums[column]) // len(members)
