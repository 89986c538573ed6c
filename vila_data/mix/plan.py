"""What the plan of an epoch consists of: blocks of samples, events, and a state to resume from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.mix.config import Unit
from vila_data.mix.lengths import Lengths, Samples

BLOCK_SAMPLES: Final = 65_536
_LISTED: Final = 8
"""Events of one kind and source that are listed; further ones are only counted."""

EventKind = Literal["repeats", "minimum_reached", "removed", "stopped", "weights", "minimum_missed", "omitted", "ended"]


@dataclass(frozen=True)
class Edge:
    """A source and the blend that its share refers to.

    unit: the unit of that blend's weights; leaf: the source's number if it is a shard set, else None; leaves: numbers of
    the shard sets below the source; siblings: of all shard sets of the blend; top: whether it is the outermost blend.
    """

    label: str
    path: str
    unit: Unit
    leaf: int | None
    leaves: tuple[int, ...]
    siblings: tuple[int, ...]
    top: bool


@dataclass(frozen=True)
class Block:
    """Some thousand samples in the blend's order.

    index: from 0; targets: the current target share of each of the planner's edges; micro_batches int64[m]: number k is
    samples micro_batches[k - 1] (0 for the first) to micro_batches[k], in a fixed order; None: the samples may be packed
    in any order.
    """

    index: int
    samples: Samples
    targets: tuple[float, ...]
    micro_batches: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class BlendEvent:
    """One event between two blocks.

    source: label of the source, empty for the whole blend; passes: completed passes over it; sample, pack: samples and
    packs of the epoch before it (a `repeats` may have happened up to a block earlier); followed: the consequence, as
    text.
    """

    kind: EventKind
    source: str
    passes: int
    block: int
    sample: int
    pack: int
    followed: str


class EventLog:
    """Events in order: the first few of each kind and source, and the number of further ones."""

    def __init__(self) -> None:
        self.events: list[BlendEvent] = []
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, event: BlendEvent) -> None:
        """List an event, or count it."""
        key = (event.kind, event.source)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= _LISTED:
            self.events.append(event)

    def unlisted(self) -> dict[str, int]:
        """{``kind source``: number of events that are not listed}, without zeros."""
        found = {f"{kind} {source}".rstrip(): count - _LISTED for (kind, source), count in self._counts.items()}
        return {name: count for name, count in found.items() if count > 0}


def plan_fingerprint(values: Sequence[Any], lengths: Sequence[Lengths], version: int) -> str:
    """16 hex digits over everything that a plan depends on."""
    found = json.dumps([values, [held.fingerprint for held in lengths], version])
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def check_state(state: Mapping[str, Any], version: int, fingerprint: str) -> None:
    """Raise UsageError unless a planner's state has this version and fingerprint."""
    if state.get("version") != version:
        raise UsageError(
            f"blend state: it has version {state.get('version')!r}, but this version of vila-data reads {version}; "
            "start the epoch again"
        )
    if state.get("fingerprint") != fingerprint:
        raise UsageError(
            f"blend state: it was saved by plan {state.get('fingerprint')!r}, but this is plan {fingerprint}; the recipe, "
            "the shards, the seed or the epoch differ"
        )
