"""Where a blend is between two blocks: for each source its passes, its place, and how far it is ahead of its share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vila_data.mix.tree import Child, Leaf, Mix


@dataclass(frozen=True)
class LeafState:
    """The next sample of a shard set: passes begun over it so far, from 0, and samples of this one done."""

    pass_: int = 0
    position: int = 0


@dataclass(frozen=True)
class ChildState:
    """A source below a blend.

    made: passes done in the blend's epoch; settled: those whose consequences were drawn; ahead: units that it gave
    beyond its share, below 0 for those that it owes.
    """

    made: int
    settled: int
    ahead: float
    node: LeafState | MixState


@dataclass(frozen=True)
class MixState:
    """A blend's sources, in order."""

    children: tuple[ChildState, ...]


def begin(node: Leaf | Mix) -> LeafState | MixState:
    """The state before the first sample."""
    return LeafState() if isinstance(node, Leaf) else begin_mix(node)


def begin_mix(mix: Mix) -> MixState:
    """The state of a blend before its first sample."""
    return MixState(tuple(ChildState(0, 0, 0.0, begin(child.node)) for child in mix.children))


def restarted(mix: Mix, state: MixState) -> MixState:
    """A blend's next epoch: sources from the start of a pass; those that repeat go on where they are, so that none of
    their samples is seen more often than others."""
    return MixState(tuple(map(_restarted_source, mix.children, state.children)))


def _restarted_source(child: Child, state: ChildState) -> ChildState:
    node = state.node
    if isinstance(child.node, Mix) and isinstance(node, MixState):
        node = restarted(child.node, node)
    elif isinstance(node, LeafState) and node.position and child.rule != "repeat":
        node = LeafState(node.pass_ + 1, 0)
    return ChildState(0, 0, state.ahead, node)


def to_json(state: MixState) -> list[Any]:
    """Nested lists: [made, settled, ahead, pass, position] for a shard set, [made, settled, ahead, [...]] for a blend."""
    return [
        [child.made, child.settled, child.ahead]
        + ([to_json(child.node)] if isinstance(child.node, MixState) else [child.node.pass_, child.node.position])
        for child in state.children
    ]


def from_json(mix: Mix, value: list[Any]) -> MixState:
    """The state that `to_json` gave of a blend like `mix`; ValueError, TypeError or IndexError where it is none."""
    children = []
    for child, entry in zip(mix.children, value, strict=True):
        made, settled, ahead = int(entry[0]), int(entry[1]), float(entry[2])
        if isinstance(child.node, Mix):
            children.append(ChildState(made, settled, ahead, from_json(child.node, entry[3])))
        else:
            children.append(ChildState(made, settled, ahead, LeafState(int(entry[3]), int(entry[4]))))
    return MixState(tuple(children))
