"""The order of a blend's samples: each source gives its next one when its share is due.

A source of weight w that has given u units stands at time u / w. Its next sample, of c units, is due at (u + c / 2) / w;
the blend's order is that of due times, so that at any time each source is within half a sample of its share, however
unequal samples are. A blend inside a blend is a source whose samples come in its own such order. Everything is cumulative
sums and one sort a block, exact in integers up to the division, and so the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vila_data.mix.config import Unit
from vila_data.mix.lengths import Run
from vila_data.mix.state import ChildState, LeafState, MixState
from vila_data.mix.tree import UNITS, Child, Leaf, Mix


@dataclass(frozen=True)
class Ahead:
    """The next samples of a source or a blend, not yet taken.

    change: after the last one something changes (passes are done, a source inside is exhausted).
    Of a blend: child int16[n], which source each sample is from; due float64[n]; parts: what each source has ahead,
    with its running sum of units int64[m]; None for a source that gives nothing now.
    """

    run: Run
    change: bool
    child: NDArray[np.int16] | None = None
    due: NDArray[np.float64] | None = None
    parts: tuple[tuple[Ahead, NDArray[np.int64]] | None, ...] = ()


def units_of(run: Run, unit: Unit) -> NDArray[np.int64]:
    """int64[n]: what each sample counts."""
    if unit == "samples":
        return np.ones(len(run), np.int64)
    return (run.images if unit == "images" else run.tokens).astype(np.int64)


def exhausted(child: Child, state: ChildState) -> bool:
    """Whether a source may give no more in its blend's epoch."""
    return child.most is not None and state.made >= child.most


def weight_now(child: Child, state: ChildState, share: float) -> float:
    """A source's weight at a share of the steps; 0 once it is exhausted."""
    return 0.0 if exhausted(child, state) else child.source.weight_at(share)


def shares(mix: Mix, state: MixState, share: float) -> list[float]:
    """The shares asked for now of every source, in the order of `tree.edges`."""
    weights = [weight_now(child, held, share) for child, held in zip(mix.children, state.children, strict=True)]
    total = sum(weights)
    found = []
    for child, held, weight in zip(mix.children, state.children, weights, strict=True):
        found.append(weight / total if total else 0.0)
        if isinstance(child.node, Mix) and isinstance(held.node, MixState):
            found += shares(child.node, held.node, share)
    return found


def look(mix: Mix, state: MixState, share: float, want: int, unbounded: bool) -> Ahead:
    """Up to about `want` samples of a blend, in order, none beyond the next change.

    unbounded: repeating sources go on beyond their least passes without a change.
    """
    weights = [weight_now(child, held, share) for child, held in zip(mix.children, state.children, strict=True)]
    expected = [
        weight / child.node.a_sample()[UNITS.index(mix.unit)] if weight else 0.0
        for child, weight in zip(mix.children, weights, strict=True)
    ]
    total = sum(expected)
    parts: list[tuple[Ahead, NDArray[np.int64]] | None] = []
    due = []
    for child, held, weight, part in zip(mix.children, state.children, weights, expected, strict=True):
        if not weight:
            parts.append(None)
            continue
        ahead = _look_source(child, held, share, _enough(want * part / total), unbounded)
        units = units_of(ahead.run, mix.unit)
        running = np.cumsum(units)
        parts.append((ahead, running))
        due.append((held.ahead + (running - units / 2)) / weight)
    return _merged(parts, due, want)


def _enough(expected: float) -> int:
    """Samples to look at where `expected` are: where they are too few, the block is shorter."""
    return int(1.05 * expected + 4 * math.sqrt(expected)) + 16


def _merged(parts: list[tuple[Ahead, NDArray[np.int64]] | None], due: list[NDArray[np.float64]], want: int) -> Ahead:
    giving = [(index, part[0]) for index, part in enumerate(parts) if part is not None]
    times = np.concatenate(due)
    order = np.argsort(times, kind="stable")
    ends = np.cumsum([len(ahead.run) for _, ahead in giving])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    reach = place[ends - 1] + 1  # what comes after a source's last known sample may be its next one
    first = int(np.argmin(reach))
    count = min(int(reach[first]), want)
    change = giving[first][1].change and count == int(reach[first])
    order = order[:count]
    child = np.repeat(np.asarray([index for index, _ in giving], np.int16), [len(ahead.run) for _, ahead in giving])
    run = Run.joined([ahead.run for _, ahead in giving]).take(order)
    return Ahead(run, change, child[order], times[order], tuple(parts))


def _look_source(child: Child, state: ChildState, share: float, want: int, unbounded: bool) -> Ahead:
    if isinstance(child.node, Mix) and isinstance(state.node, MixState):
        return look(child.node, state.node, share, want, unbounded=False)
    assert isinstance(child.node, Leaf) and isinstance(state.node, LeafState)
    left = child.most - state.made if child.most is not None else child.least - state.made
    bounded = child.most is not None or (left > 0 and not unbounded)
    reader = child.node.reader
    runs: list[Run] = []
    pass_, position, found, done = state.node.pass_, state.node.position, 0, 0
    while found < want and not (bounded and done == left):
        runs.append(reader.read(pass_, position, want - found))
        found += len(runs[-1])
        position += len(runs[-1])
        if position == reader.samples:
            pass_, position, done = pass_ + 1, 0, done + 1
    return Ahead(Run.joined(runs), change=bounded and done == left)


def take(mix: Mix, state: MixState, ahead: Ahead, share: float, count: int) -> MixState:
    """The state after the first `count` (at least one) samples ahead."""
    assert ahead.child is not None and ahead.due is not None
    counts = np.bincount(ahead.child[:count], minlength=len(mix.children))
    now = float(ahead.due[count - 1])
    children = []
    for child, held, part, taken in zip(mix.children, state.children, ahead.parts, counts.tolist(), strict=True):
        if part is None:
            children.append(held)
            continue
        given = int(part[1][taken - 1]) if taken else 0
        beyond = held.ahead + given - child.source.weight_at(share) * now
        children.append(_take_source(child, replace(held, ahead=beyond), part[0], share, taken))
    return MixState(tuple(children))


def _take_source(child: Child, state: ChildState, ahead: Ahead, share: float, count: int) -> ChildState:
    if isinstance(child.node, Mix) and isinstance(state.node, MixState):
        return replace(state, node=take(child.node, state.node, ahead, share, count)) if count else state
    assert isinstance(child.node, Leaf) and isinstance(state.node, LeafState)
    passes, position = divmod(state.node.position + count, child.node.reader.samples)
    return replace(state, made=state.made + passes, node=LeafState(state.node.pass_ + passes, position))
