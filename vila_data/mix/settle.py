"""What follows when sources have made their passes: who leaves, who goes on, and when an epoch ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vila_data.mix.events import EventKind
from vila_data.mix.merge import exhausted, weight_now
from vila_data.mix.state import ChildState, MixState, restarted
from vila_data.mix.tree import Child, Mix

Note = Callable[[EventKind, str, int, str], None]
"""Called with an event's kind, source, passes, and what follows."""


def settle(mix: Mix, state: MixState, share: float, unbounded: bool, note: Note) -> tuple[MixState, str | None]:
    """Draw the consequences of passes done; the state, and why the blend's epoch is over, or None.

    unbounded: the epoch is as long as total_packs says, repeating sources do not end it.
    """
    children = []
    for child, held in zip(mix.children, state.children, strict=True):
        if isinstance(child.node, Mix) and isinstance(held.node, MixState):
            inner, reason = settle(child.node, held.node, share, False, note)
            if reason is not None:
                held = replace(held, made=held.made + 1, node=restarted(child.node, inner))
            else:
                held = replace(held, node=inner)
        children.append(held)
    for child, held in zip(mix.children, children, strict=True):
        _note_passes(mix, children, child, held, unbounded, note)
    state = MixState(tuple(replace(held, settled=held.made) for held in children))
    reason = _over(mix, state, share, unbounded)
    if reason is not None:
        note_short(mix, state, note)
    return state, reason


def note_short(mix: Mix, state: MixState, note: Note) -> None:
    """Note the sources whose least passes an epoch that ends now leaves undone."""
    for child, held in zip(mix.children, state.children, strict=True):
        if held.made < child.least:
            note("short", child.label, held.made, f"the epoch ends before its least passes, {child.least}, are done")


def _note_passes(
    mix: Mix, states: list[ChildState], child: Child, held: ChildState, unbounded: bool, note: Note
) -> None:
    if held.made == held.settled:
        return
    if exhausted(child, held):
        if child.rule == "stop":
            note("stopped", child.label, held.made, "the epoch ends")
            return
        others = [other.label for other, state in zip(mix.children, states, strict=True) if not exhausted(other, state)]
        followed = f"its weight goes to {', '.join(others)}" if others else "no source is left"
        note("left", child.label, held.made, followed)
        return
    if held.settled == 0:
        note("repeats", child.label, held.made, "it goes on from its start")
    if child.rule == "repeat" and held.settled < child.least <= held.made and not unbounded:
        note("least_done", child.label, held.made, "it no longer holds the epoch open")


def _over(mix: Mix, state: MixState, share: float, unbounded: bool) -> str | None:
    pairs = list(zip(mix.children, state.children, strict=True))
    for child, held in pairs:
        if child.rule == "stop" and exhausted(child, held):
            return f"{child.label} has made its {held.made} passes"
    left = [(child, held) for child, held in pairs if not exhausted(child, held)]
    if not left:
        return "every source has made its passes"
    if not unbounded and all(child.rule == "repeat" and held.made >= child.least for child, held in left):
        return "every repeating source has made its least passes"
    if not any(weight_now(child, held, share) for child, held in left):
        return "no source that is left has a weight above 0"
    return None
