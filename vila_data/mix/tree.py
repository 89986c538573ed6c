"""A blend as a tree over shard sets: the order of its samples, and the position in it.

Each source gives its next sample when its share is due. A source of weight w that has given u units is at time u / w.
Its next sample, of c units, is due at (u + c / 2) / w. The blend's order is that of due times, so every source stays
within half a sample of its share, however unequal the samples are. A nested blend is a source whose samples come in its
own such order. Everything is cumulative sums and one sort per block, exact in integers up to the division, and therefore
the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.config import BlendSource, InnerBlend, Location, OnExhaustion, Unit, source_labels
from vila_data.mix.lengths import Lengths, PassReader, Samples
from vila_data.mix.plan import Edge, EventKind

AddEvent = Callable[[EventKind, str, int, str], None]
"""Called with an event's kind, source, passes, and consequence."""


@dataclass(frozen=True)
class Lookahead:
    """The next samples of a source or a blend, which are not given yet.

    changes: something changes after the last one (passes are completed, a nested source is exhausted).
    The rest is for a blend: child int16[n]: the source of each sample; due float64[n]; parts: the lookahead of each
    source and its running sum of units int64[m]; None for a source that gives nothing now.
    """

    samples: Samples
    changes: bool
    child: NDArray[np.int16] | None = None
    due: NDArray[np.float64] | None = None
    parts: tuple[tuple[Lookahead, NDArray[np.int64]] | None, ...] = ()


@dataclass
class ShardSetNode:
    """A shard set. number: counted through the blend in the recipe's order; pass_: number of the current pass, from 0;
    position: samples of this pass that were given."""

    number: int
    reader: PassReader
    pass_: int = 0
    position: int = 0

    def leaves(self) -> Iterator[ShardSetNode]:
        """The shard sets below: this one."""
        yield self

    def per_sample(self, unit: Unit) -> float:
        """The mean amount of a sample in a unit."""
        totals = self.reader.lengths.totals
        return float(getattr(totals, unit) / totals.samples)


@dataclass
class SourceNode:
    """A source of a blend.

    least, most: minimum and maximum of passes (None: no limit). passes: completed in the blend's epoch; applied_passes:
    those whose consequences were applied; ahead: units given beyond the source's share, below 0 for a deficit.
    """

    label: str
    path: str
    config: BlendSource
    rule: OnExhaustion
    least: int
    most: int | None
    node: ShardSetNode | BlendNode
    passes: int = 0
    applied_passes: int = 0
    ahead: float = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether it may give no more samples in its blend's epoch."""
        return self.most is not None and self.passes >= self.most

    def weight(self, fraction: float) -> float:
        """Its weight at a fraction of the steps; 0 once it is exhausted."""
        return 0.0 if self.exhausted else self.config.weight_at(fraction)

    def peek(self, fraction: float, want: int, unbounded: bool) -> Lookahead:
        """At most about `want` samples; see `BlendNode.peek`."""
        if isinstance(self.node, BlendNode):
            return self.node.peek(fraction, want, unbounded=False)
        left = (self.least if self.most is None else self.most) - self.passes
        bounded = self.most is not None or (left > 0 and not unbounded)
        reader, pass_, position = self.node.reader, self.node.pass_, self.node.position
        parts: list[Samples] = []
        found = completed = 0
        while found < want and not (bounded and completed == left):
            parts.append(reader.read(pass_, position, want - found))
            found += len(parts[-1])
            position += len(parts[-1])
            if position == reader.samples:
                pass_, position, completed = pass_ + 1, 0, completed + 1
        return Lookahead(Samples.joined(parts), changes=bounded and completed == left)

    def advance(self, lookahead: Lookahead, fraction: float, count: int) -> None:
        """Give the first `count` samples of a lookahead."""
        if isinstance(self.node, BlendNode):
            if count:
                self.node.advance(lookahead, fraction, count)
            return
        passes, self.node.position = divmod(self.node.position + count, self.node.reader.samples)
        self.node.pass_ += passes
        self.passes += passes

    def restart(self) -> None:
        """Begin the blend's next epoch: a shard set begins a new pass, but with the rule `repeat` it continues where it
        is, so that all its samples are seen equally often."""
        self.passes = self.applied_passes = 0
        if isinstance(self.node, BlendNode):
            self.node.restart()
        elif self.node.position and self.rule != "repeat":
            self.node.pass_, self.node.position = self.node.pass_ + 1, 0


@dataclass
class BlendNode:
    """A blend: the unit of its weights, and its sources."""

    unit: Unit
    children: tuple[SourceNode, ...]

    def leaves(self) -> Iterator[ShardSetNode]:
        """The shard sets below."""
        for child in self.children:
            yield from child.node.leaves()

    def per_sample(self, unit: Unit) -> float:
        """The mean amount of a sample in a unit, at the weights of the beginning."""
        samples = amount = 0.0
        for child in self.children:
            count = child.config.weight_at(0.0) / child.node.per_sample(self.unit)
            samples += count
            amount += count * child.node.per_sample(unit)
        return amount / samples if samples else 1.0

    def edges(self, top: bool = True) -> Iterator[Edge]:
        """Every source below, each before those inside it."""
        siblings = tuple(leaf.number for leaf in self.leaves())
        for child in self.children:
            inside = tuple(leaf.number for leaf in child.node.leaves())
            number = child.node.number if isinstance(child.node, ShardSetNode) else None
            yield Edge(child.label, child.path, self.unit, number, inside, siblings, top)
            if isinstance(child.node, BlendNode):
                yield from child.node.edges(top=False)

    def target_shares(self, fraction: float) -> list[float]:
        """The current target share of every source, in the order of `edges`."""
        weights = [child.weight(fraction) for child in self.children]
        total = sum(weights)
        found = []
        for child, weight in zip(self.children, weights, strict=True):
            found.append(weight / total if total else 0.0)
            if isinstance(child.node, BlendNode):
                found += child.node.target_shares(fraction)
        return found

    def peek(self, fraction: float, want: int, unbounded: bool) -> Lookahead:
        """At most about `want` samples in order, none of them after the next change.

        unbounded: repeating sources continue after their minimum of passes without a change.
        """
        weights = [child.weight(fraction) for child in self.children]
        expected = [
            weight / child.node.per_sample(self.unit) if weight else 0.0
            for child, weight in zip(self.children, weights, strict=True)
        ]
        total = sum(expected)
        parts: list[tuple[Lookahead, NDArray[np.int64]] | None] = []
        due = []
        for child, weight, samples in zip(self.children, weights, expected, strict=True):
            if not weight:
                parts.append(None)
                continue
            lookahead = child.peek(fraction, _enough(want * samples / total), unbounded)
            units = lookahead.samples.units(self.unit)
            running = np.cumsum(units)
            parts.append((lookahead, running))
            due.append((child.ahead + (running - units / 2)) / weight)
        return _merged(parts, due, want)

    def advance(self, lookahead: Lookahead, fraction: float, count: int) -> None:
        """Give the first `count` (at least one) samples of a lookahead."""
        assert lookahead.child is not None and lookahead.due is not None
        counts = np.bincount(lookahead.child[:count], minlength=len(self.children)).tolist()
        now = float(lookahead.due[count - 1])
        for child, part, taken in zip(self.children, lookahead.parts, counts, strict=True):
            if part is not None:
                given = int(part[1][taken - 1]) if taken else 0
                child.ahead = child.ahead + given - child.config.weight_at(fraction) * now
                child.advance(part[0], fraction, taken)

    def apply_exhaustion(self, fraction: float, unbounded: bool, add_event: AddEvent) -> str | None:
        """Apply the consequences of completed passes; the reason why the blend's epoch is over, or None.

        unbounded: total_packs ends the epoch, and repeating sources do not.
        """
        for child in self.children:
            if isinstance(child.node, BlendNode) and child.node.apply_exhaustion(fraction, False, add_event):
                child.passes += 1
                child.node.restart()
        for child in self.children:
            self._add_events(child, unbounded, add_event)
        for child in self.children:
            child.applied_passes = child.passes
        reason = self._over(fraction, unbounded)
        if reason is not None:
            self.add_missed_minimums(add_event)
        return reason

    def add_missed_minimums(self, add_event: AddEvent) -> None:
        """Add an event for each source that has not completed its minimum of passes, when an epoch ends."""
        for child in self.children:
            if child.passes < child.least:
                missed = f"the epoch ends before it completed its minimum of {child.least} pass" + "es" * (
                    child.least > 1
                )
                add_event("minimum_missed", child.label, child.passes, missed)

    def _add_events(self, child: SourceNode, unbounded: bool, add_event: AddEvent) -> None:
        if child.passes == child.applied_passes:
            return
        if child.exhausted and child.rule == "stop":
            add_event("stopped", child.label, child.passes, "the epoch ends")
        elif child.exhausted:
            others = ", ".join(other.label for other in self.children if not other.exhausted)
            followed = f"its weight is redistributed to {others}" if others else "no sources remain"
            add_event("removed", child.label, child.passes, followed)
        else:
            if child.applied_passes == 0:
                add_event("repeats", child.label, child.passes, "it continues from its start")
            if child.rule == "repeat" and child.applied_passes < child.least <= child.passes and not unbounded:
                add_event(
                    "minimum_reached", child.label, child.passes, "minimum reached; it no longer extends the epoch"
                )

    def _over(self, fraction: float, unbounded: bool) -> str | None:
        for child in self.children:
            if child.rule == "stop" and child.exhausted:
                return f"{child.label} completed its " + ("pass" if child.passes == 1 else f"{child.passes} passes")
        remaining = [child for child in self.children if not child.exhausted]
        if not remaining:
            return "all sources completed their passes"
        if not unbounded and all(child.rule == "repeat" and child.passes >= child.least for child in remaining):
            return "every repeating source completed its minimum of passes"
        if not any(child.weight(fraction) for child in remaining):
            return "no remaining source has a weight above 0"
        return None

    def restart(self) -> None:
        """Begin the next epoch of a nested blend."""
        for child in self.children:
            child.restart()

    def state(self) -> list[Any]:
        """Nested lists: [passes, applied passes, ahead, pass, position] of a shard set,
        [passes, applied passes, ahead, [...]] of a blend."""
        return [
            [child.passes, child.applied_passes, child.ahead]
            + ([child.node.state()] if isinstance(child.node, BlendNode) else [child.node.pass_, child.node.position])
            for child in self.children
        ]

    def restore(self, state: list[Any]) -> None:
        """Return to a `state` of a blend like this; ValueError, TypeError or IndexError if it is not one."""
        for child, entry in zip(self.children, state, strict=True):
            child.passes, child.applied_passes, child.ahead = int(entry[0]), int(entry[1]), float(entry[2])
            if isinstance(child.node, BlendNode):
                child.node.restore(entry[3])
            else:
                child.node.pass_, child.node.position = int(entry[3]), int(entry[4])


def _enough(expected: float) -> int:
    """Samples to look at when `expected` are needed; if they are too few, the block becomes shorter."""
    return int(1.05 * expected + 4 * math.sqrt(expected)) + 16


def _merged(
    parts: list[tuple[Lookahead, NDArray[np.int64]] | None], due: list[NDArray[np.float64]], want: int
) -> Lookahead:
    giving = [(index, part[0]) for index, part in enumerate(parts) if part is not None]
    times = np.concatenate(due)
    order = np.argsort(times, kind="stable")
    sizes = [len(lookahead.samples) for _, lookahead in giving]
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    reach = position[np.cumsum(sizes) - 1] + 1  # what comes after a source's last known sample may be its next one
    first = int(np.argmin(reach))
    count = min(int(reach[first]), want)
    changes = giving[first][1].changes and count == int(reach[first])
    order = order[:count]
    child = np.repeat(np.asarray([index for index, _ in giving], np.int16), sizes)
    samples = Samples.joined([lookahead.samples for _, lookahead in giving]).take(order)
    return Lookahead(samples, changes, child[order], times[order], tuple(parts))


def build_tree(config: InnerBlend, lengths: Sequence[Lengths], *, seed: int, epoch: int, capacity: int) -> BlendNode:
    """The tree over `lengths`, one for each of `config.leaves()`.

    Raises:
        UsageError: a source has no sample in the stream, or nothing in its blend's unit.
        DataError: a sample is longer than `capacity` tokens.
    """
    leaves = list(config.leaves())
    if len(leaves) != len(lengths):
        raise UsageError(f"blend: expected lengths of {len(leaves)} shard sets, found {len(lengths)}")
    nodes = []
    for number, (leaf, held) in enumerate(zip(leaves, lengths, strict=True)):
        _check_set(leaf.source.name, held, capacity)
        nodes.append(ShardSetNode(number, PassReader(held, number, seed, epoch)))
    return _build(config, (), iter(nodes), source_labels(config))


def _build(
    config: InnerBlend, location: Location, leaves: Iterator[ShardSetNode], labels: Mapping[str, str]
) -> BlendNode:
    children = []
    for index, source in enumerate(config.sources):
        here = (*location, "sources", index)
        path = ".".join(map(str, here))
        node = _build(source.blend, (*here, "blend"), leaves, labels) if source.blend else next(leaves)
        unit = config.weight_unit
        if not any(getattr(leaf.reader.lengths.totals, unit) for leaf in node.leaves()):
            raise UsageError(
                f"blend.{path} ({source.name}): weight_unit is {unit}, but the source has no {unit}; use weight_unit: "
                "samples or tokens, or move the source into a nested blend with one of these units"
            )
        least, most = config.passes(source)
        children.append(SourceNode(labels[path], path, source, config.rule(source), least, most, node))
    return BlendNode(config.weight_unit, tuple(children))


def _check_set(name: str, lengths: Lengths, capacity: int) -> None:
    if lengths.totals.samples == 0:
        held = len(lengths.tokens)
        why = (
            "none of its samples fits into a sequence; increase pack.sequence_length"
            if held
            else "every record of its corpus, or every image, was dropped or failed; relax the rule responsible"
        )
        raise UsageError(
            f"blend: set {name} contributes no samples (its shards have {held:,}): {why}, or remove the set from the "
            "blend. `vila-data preview RUN --out page.html` shows what happened to its records."
        )
    longest = int(lengths.tokens.argmax())
    if int(lengths.tokens[longest]) > capacity:
        shard = int((lengths.ends <= longest).sum())
        row = longest - (int(lengths.ends[shard - 1]) if shard else 0)
        raise DataError(
            f"blend: {name}, shard {shard}, row {row}: {int(lengths.tokens[longest])} tokens, but a sequence holds "
            f"{capacity}"
        )
