"""What happened to the sources of a blend: nothing that changes shares is silent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

EventKind = Literal["repeats", "least_done", "left", "stopped", "weights", "short", "ended"]

_LISTED: Final = 8


@dataclass(frozen=True)
class BlendEvent:
    """One thing that happened between two blocks.

    source: label of the source, empty for the whole blend; passes: passes over it that were done; sample, pack: samples
    and packs of the epoch before it (a `repeats` may lie up to a block earlier); followed: what followed, in words.
    """

    kind: EventKind
    source: str
    passes: int
    block: int
    sample: int
    pack: int
    followed: str

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


class EventLog:
    """Events in order; of the same kind and source the first some, and how many more there were."""

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
        """{``kind source``: events beyond those listed}, where there are any."""
        found = {f"{kind} {source}".rstrip(): count - _LISTED for (kind, source), count in self._counts.items()}
        return {name: count for name, count in found.items() if count > 0}
