"""How fast the stages of a launch were: what its tasks did, and the seconds that they took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vila_data.core.receipts import Receipt


class Speeds:
    """What was done in this launch, by stage; what an earlier launch had committed is not counted."""

    def __init__(self, stages: Iterable[str]) -> None:
        self._stages = tuple(stages)
        self._done: dict[str, dict[str, float]] = {}

    def note(self, stage: str, receipt: Receipt, seconds: float, counts: Mapping[str, int]) -> None:
        """Count a task that has ended, with what its receipt says was done, unless it found the receipt there."""
        if receipt.earlier:
            return
        total = self._done.setdefault(stage, {"tasks": 0, "task_seconds": 0.0})
        for key, count in {"tasks": 1, "task_seconds": seconds, **counts}.items():
            total[key] = total.get(key, 0) + count

    def value(self, earlier: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        """{stage: {"launch": "this" | "earlier", "tasks", "task_seconds", and what was counted}}.

        A stage that did nothing in this launch keeps the figures of the one that did.
        """
        found: dict[str, dict[str, Any]] = {}
        for stage in self._stages:
            if stage in self._done:
                counts = self._done[stage]
                found[stage] = {"launch": "this", **counts, "task_seconds": round(counts["task_seconds"], 3)}
            elif earlier and stage in earlier:
                found[stage] = {**earlier[stage], "launch": "earlier"}
        return found
