"""A blend as a tree over shard sets with lengths, checked: what each source holds in each unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.config import AtExhaustion, BlendSource, InnerBlend, Location, Unit
from vila_data.mix.labels import labels
from vila_data.mix.lengths import Lengths, SourceReader

UNITS: Final[tuple[Unit, ...]] = ("samples", "images", "tokens")
Amounts = tuple[float, float, float]
"""In the order of UNITS."""


@dataclass(frozen=True)
class Leaf:
    """A shard set; `number` counts through the blend as the recipe has them."""

    number: int
    reader: SourceReader

    def a_sample(self) -> Amounts:
        """What a sample holds on average."""
        samples, images, tokens = self.reader.lengths.totals
        return 1.0, images / samples, tokens / samples


@dataclass(frozen=True)
class Child:
    """A source below a blend: its label, its place in the recipe, and its rule."""

    label: str
    path: str
    source: BlendSource
    rule: AtExhaustion
    least: int
    most: int | None
    node: Leaf | Mix


@dataclass(frozen=True)
class Mix:
    """A blend: its unit, and its sources."""

    unit: Unit
    children: tuple[Child, ...]

    def a_sample(self) -> Amounts:
        """What a sample of the mixture holds on average, at the weights of the beginning."""
        sums = [0.0, 0.0, 0.0]
        for child in self.children:
            held = child.node.a_sample()
            samples = child.source.weight_at(0.0) / held[UNITS.index(self.unit)]
            for index in range(3):
                sums[index] += samples * held[index]
        return (1.0, sums[1] / sums[0], sums[2] / sums[0]) if sums[0] else (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Edge:
    """A source and what its share is a share of.

    unit: what the blend above it counts; leaf: its number if it is a shard set, else None; leaves: numbers of the shard
    sets below it; siblings: of all shard sets of the blend above it; top: whether that is the outermost blend.
    """

    label: str
    path: str
    unit: Unit
    leaf: int | None
    leaves: tuple[int, ...]
    siblings: tuple[int, ...]
    top: bool


def grow(config: InnerBlend, lengths: Sequence[Lengths], *, seed: int, epoch: int, capacity: int) -> Mix:
    """The tree over `lengths`, one for each of `config.leaves()`.

    Raises:
        UsageError: a source has no sample in the stream, or nothing of what its blend counts.
        DataError: a sample is longer than `capacity` tokens.
    """
    leaves = list(config.leaves())
    if len(leaves) != len(lengths):
        raise UsageError(f"blend: lengths of {len(lengths)} shard sets for a blend of {len(leaves)}")
    nodes = []
    for number, (leaf, held) in enumerate(zip(leaves, lengths, strict=True)):
        _check(leaf.source.name, held, capacity)
        nodes.append(Leaf(number, SourceReader(held, number, seed, epoch)))
    return _mix(config, (), iter(nodes), labels(config))


def _mix(config: InnerBlend, location: Location, leaves: Iterator[Leaf], names: Mapping[str, str]) -> Mix:
    children = []
    for index, source in enumerate(config.sources):
        here = (*location, "sources", index)
        path = ".".join(str(step) for step in here)
        if source.blend is not None:
            node: Leaf | Mix = _mix(source.blend, (*here, "blend"), leaves, names)
        else:
            node = next(leaves)
        unit = UNITS.index(config.weight_counts)
        if not any(leaf.reader.lengths.totals[unit] for leaf in _leaves(node)):
            raise UsageError(
                f"blend.{path} ({source.name}): weight_counts is {config.weight_counts} and it has none; count samples "
                "or tokens, or put it with a source that has some into a blend of its own that counts samples or tokens"
            )
        least, most = config.passes(source)
        children.append(Child(names[path], path, source, config.rule(source), least, most, node))
    return Mix(config.weight_counts, tuple(children))


def _check(name: str, lengths: Lengths, capacity: int) -> None:
    if lengths.totals[0] == 0:
        held = len(lengths.tokens)
        why = (
            "none of them has a training sequence that fits: raise pack.sequence_length"
            if held
            else "all records of its corpus, or all their images, were dropped or failed: loosen the rule that does it"
        )
        raise UsageError(
            f"blend: set {name} has no sample in the stream, of {held:,} in the shards: {why}, or take the set out of the "
            "blend (vila-data preview RUN --out page.html shows what became of them, and why)"
        )
    place = int(lengths.tokens.argmax())
    if int(lengths.tokens[place]) > capacity:
        shard = int((lengths.ends <= place).sum())
        row = place - (int(lengths.ends[shard - 1]) if shard else 0)
        raise DataError(
            f"blend: {name}, shard {shard}, row {row}: {int(lengths.tokens[place])} tokens, a sequence holds {capacity}"
        )


def _leaves(node: Leaf | Mix) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    else:
        for child in node.children:
            yield from _leaves(child.node)


def edges(mix: Mix, top: bool = True) -> Iterator[Edge]:
    """Every source below a blend, itself before those inside it."""
    siblings = tuple(leaf.number for leaf in _leaves(mix))
    for child in mix.children:
        inside = tuple(leaf.number for leaf in _leaves(child.node))
        number = child.node.number if isinstance(child.node, Leaf) else None
        yield Edge(child.label, child.path, mix.unit, number, inside, siblings, top)
        if isinstance(child.node, Mix):
            yield from edges(child.node, top=False)
