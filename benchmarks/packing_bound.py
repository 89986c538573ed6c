"""How few sequences could do: the linear program of two-dimensional bin packing, by column generation.

A sample's type is its (tokens, images). The master program covers every type by feasible packs at least total weight;
its dual prices types so that no feasible pack is worth more than 1. The pricing knapsack is solved exactly, by dynamic
programming over (images, tokens), any number of a type in a pack. So whatever prices the master gives, divided by the
worth of the best pack they are a proof: the sum of the samples' prices is a lower bound on the packs that any packer
needs, fractions allowed. `lower` is the best such bound, `upper` the master's value; they meet at the optimum, where
the reduced cost of the best pack, 1 - its worth, is 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

PACKS_A_ROUND = 150
SMOOTHING = (0.5, 0.0)  # weights of the best prices so far, tried in turn until a pack prices out
STEPS = range(2, 13)


@dataclass(frozen=True)
class Types:
    """Distinct (tokens, images) with how many samples have them, ascending by tokens, then images."""

    tokens: NDArray[np.int64]
    images: NDArray[np.int64]
    count: NDArray[np.int64]
    of_sample: NDArray[np.int64]


@dataclass(frozen=True)
class Bound:
    """Packs needed by `samples` samples: at least `lower`; the restricted program's value `upper`.

    reduced_cost: of the best pack at the master's last prices (0 at the optimum); prices: of the sample's types.
    """

    lower: float
    upper: float
    reduced_cost: float
    rounds: int
    types: Types
    prices: NDArray[np.float64]


def merged(tokens: NDArray[np.int32], images: NDArray[np.int32]) -> Types:
    key = tokens.astype(np.int64) << 16 | images
    kinds, of_sample, count = np.unique(key, return_inverse=True, return_counts=True)
    return Types(kinds >> 16, kinds & 0xFFFF, count, of_sample)


def lower_bound(
    tokens: NDArray[np.int32],
    images: NDArray[np.int32],
    capacity: int,
    max_images: int | None,
    packs: list[NDArray[np.int64]],
    *,
    gap: float,
    seconds: float,
) -> Bound:
    """Column generation from the given packs' columns until upper and lower are within `gap`, or `seconds` of CPU time are up."""
    images = images if max_images is not None else np.zeros_like(images)
    types = merged(tokens, images)
    limit = max_images or 0
    columns = {((index, 1),): None for index in range(len(types.count))}
    for pack in packs:
        kinds, counts = np.unique(types.of_sample[pack], return_counts=True)
        columns[tuple(zip(kinds.tolist(), counts.tolist(), strict=True))] = None
    best, centre = first_prices(types, capacity, limit)
    larger = next_larger(types)
    deadline, rounds, upper = time.process_time() + seconds, 0, np.inf
    while rounds == 0 or time.process_time() < deadline:
        upper, prices = master(list(columns), types, larger)
        rounds += 1
        found: list[tuple[tuple[int, int], ...]] = []
        for weight in SMOOTHING:
            blend = weight * centre + (1 - weight) * prices
            knapsack = Knapsack(blend, types, capacity, limit)
            bound = float(blend @ types.count) / knapsack.worth
            if bound > best:
                best, centre = bound, blend / knapsack.worth
            found = [
                pack
                for pack in knapsack.packs()
                if sum(prices[t] * n for t, n in pack) > 1 + 1e-7 and pack not in columns
            ]
            if found:
                break
        if not found or upper <= best * (1 + gap):
            break
        columns |= dict.fromkeys(found)
    worth = Knapsack(prices, types, capacity, limit).worth
    return Bound(best, upper, 1 - worth, rounds, types, centre)


def lifted(bound: Bound, tokens: NDArray[np.int32], images: NDArray[np.int32], max_images: int | None) -> float:
    """A bound for other samples: each is worth what the dearest type is that needs no more tokens and images."""
    images = images if max_images is not None else np.zeros_like(images)
    order = np.lexsort((bound.types.images, bound.types.tokens))
    total = 0.0
    for count in np.unique(images):
        usable = order[bound.types.images[order] <= count]
        dearest = np.maximum.accumulate(np.concatenate([[0.0], bound.prices[usable]]))
        here = tokens[images == count]
        total += float(dearest[np.searchsorted(bound.types.tokens[usable], here, side="right")].sum())
    return total


def first_prices(types: Types, capacity: int, limit: int) -> tuple[float, NDArray[np.float64]]:
    """The best of some plain prices: tokens, or tokens in whole steps of a part of the capacity, and images."""
    by_tokens = [types.tokens / capacity]
    for parts in STEPS:
        for step in np.linspace(capacity / (parts + 1), capacity / parts, 5)[1:]:
            by_tokens.append(np.maximum(1 - np.floor((capacity - types.tokens) / step) / parts, 0.0))
    found = []
    for share in (0.0, 0.5, 1.0) if limit else (0.0,):
        for prices in by_tokens if share < 1 else by_tokens[:1]:
            blend = (1 - share) * prices + share * types.images / max(limit, 1)
            worth = Knapsack(blend, types, capacity, limit).worth
            if worth > 0:
                found.append((float(blend @ types.count) / worth, blend / worth))
    return max(found, key=lambda pair: pair[0])


def master(
    columns: list[tuple[tuple[int, int], ...]], types: Types, larger: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Value and prices of the covering program over `columns`, in which a type's place may hold a type that is smaller.

    That changes no optimum, and keeps prices from falling where types grow: they settle in fewer rounds.
    """
    rows = [kind for column in columns for kind, _ in column]
    values = [count for column in columns for _, count in column]
    where = np.repeat(np.arange(len(columns)), [len(column) for column in columns])
    swaps = len(columns) + np.arange(len(larger))
    matrix = sparse.csc_matrix(
        (
            np.concatenate([values, np.ones(len(larger)), -np.ones(len(larger))]),
            (np.concatenate([rows, larger[:, 0], larger[:, 1]]), np.concatenate([where, swaps, swaps])),
        ),
        shape=(len(types.count), len(columns) + len(larger)),
    )
    costs = np.concatenate([np.ones(len(columns)), np.zeros(len(larger))])
    solved = linprog(costs, A_ub=-matrix, b_ub=-types.count, bounds=(0, None), method="highs")
    return float(solved.fun), np.maximum(-solved.ineqlin.marginals, 0.0)


def next_larger(types: Types) -> NDArray[np.int64]:
    """int64[k, 2]: each type with the next that has no fewer tokens and as many images, and with the next of more images."""
    found = []
    shown = np.unique(types.images)
    for place, count in enumerate(shown):
        here = np.flatnonzero(types.images == count)
        found.append(np.stack([here[:-1], here[1:]], axis=1))
        for more in shown[place + 1 : place + 2]:
            above = np.flatnonzero(types.images == more)
            at = np.searchsorted(types.tokens[above], types.tokens[here])
            found.append(np.stack([here[at < len(above)], above[at[at < len(above)]]], axis=1))
    return np.concatenate(found)


class Knapsack:
    """The pack worth most at given prices, exactly; `value` float64[limit + 1, capacity + 1]."""

    def __init__(self, prices: NDArray[np.float64], types: Types, capacity: int, limit: int) -> None:
        self.prices, self.types, self.capacity, self.limit = prices, types, capacity, limit
        self.value = np.zeros((limit + 1, capacity + 1))
        self.steps: list[tuple[int, int, NDArray[np.uint8]]] = []
        for kind in undominated(prices, types):
            most = capacity // int(types.tokens[kind])
            if types.images[kind]:
                most = min(most, limit // int(types.images[kind]))
            copies = 1
            while most > 0:
                copies = min(copies, most)
                self.add(int(kind), copies, float(prices[kind]) * copies)
                most -= copies
                copies *= 2
        self.worth = float(self.value[-1, -1]) * (1 + 1e-12)

    def add(self, kind: int, copies: int, worth: float) -> None:
        length, shown = int(self.types.tokens[kind]) * copies, int(self.types.images[kind]) * copies
        with_it = self.value[: self.limit + 1 - shown, : self.capacity + 1 - length] + worth
        rest = self.value[shown:, length:]
        better = with_it > rest + 1e-13
        np.copyto(rest, with_it, where=better)
        self.steps.append((kind, copies, np.packbits(better)))

    def packs(self) -> set[tuple[tuple[int, int], ...]]:
        """The packs worth most that hold a type, for PACKS_A_ROUND types that such a pack prices out."""
        tokens, images = self.types.tokens, self.types.images
        worth = self.prices + self.value[self.limit - images, self.capacity - tokens]
        out = np.flatnonzero(worth > 1 + 1e-9)
        out = out[np.linspace(0, len(out) - 1, min(len(out), PACKS_A_ROUND)).astype(np.int64)]
        return {self.pack(self.limit - int(images[t]), self.capacity - int(tokens[t]), int(t)) for t in out}

    def pack(self, shown: int, length: int, first: int) -> tuple[tuple[int, int], ...]:
        held = {first: 1}
        for kind, copies, bits in reversed(self.steps):
            tokens, images = int(self.types.tokens[kind]) * copies, int(self.types.images[kind]) * copies
            if tokens > length or images > shown:
                continue
            place = (shown - images) * (self.capacity + 1 - tokens) + length - tokens
            if bits[place >> 3] >> (7 - (place & 7)) & 1:
                held[kind] = held.get(kind, 0) + copies
                length, shown = length - tokens, shown - images
        return tuple(sorted(held.items()))


def undominated(prices: NDArray[np.float64], types: Types) -> NDArray[np.int64]:
    """Types that no type of as few tokens and images is worth as much as; by price a token, dearest first."""
    best = np.zeros(int(types.images.max()) + 1)
    kept = []
    for kind in range(len(prices)):
        shown = types.images[kind]
        if prices[kind] > best[: shown + 1].max() + 1e-12:
            best[shown] = prices[kind]
            kept.append(kind)
    chosen = np.array(kept, dtype=np.int64)
    return chosen[np.argsort(-prices[chosen] / types.tokens[chosen], kind="stable")]
