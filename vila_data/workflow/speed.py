"""How fast the stages of a launch were: what its tasks did, and the seconds that they took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vila_data.core.receipts import Receipt
from vila_data.workflow.runner import Done

STAGES: Final = ("download", "score", "filter", "shard", "encode")
_COUNTS: Final = {
    "download": {"bytes": "bytes_fetched"},
    "score": {"images": "images_scored"},
    "shard": {"images": "images", "samples": "samples"},
    "encode": {"images": "images", "samples": "samples", "tokens": "tokens"},
}


class Speeds:
    """What was done in this launch, by stage; what an earlier launch had committed is not counted."""

    def __init__(self) -> None:
        self._done: dict[str, dict[str, float]] = {}

    def note(self, done: Done) -> None:
        """Count a finished task that has written a receipt just now."""
        receipt = done.result
        stage = done.stage.partition(" ")[0]  # all scorers count as one
        if not isinstance(receipt, Receipt) or receipt.earlier or stage not in STAGES:
            return
        counts: dict[str, float] = {key: receipt.counts.get(name, 0) for key, name in _COUNTS.get(stage, {}).items()}
        if stage in ("download", "filter"):
            counts["images"] = sum(receipt.counts["images"].values())
            counts["records"] = sum(receipt.counts["records"].values())
        if stage == "shard":
            counts["bytes"] = sum(facts["bytes"] for path, facts in receipt.outputs.items() if path.endswith(".tar"))
        total = self._done.setdefault(stage, {"tasks": 0, "task_seconds": 0.0})
        for key, count in {"tasks": 1, "task_seconds": done.seconds, **counts}.items():
            total[key] = total.get(key, 0) + count

    def value(self, earlier: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        """{stage: {"launch": "this" | "earlier", "tasks", "task_seconds", and what was counted}}.

        A stage that did nothing in this launch keeps the figures of the one that did.
        """
        found: dict[str, dict[str, Any]] = {}
        for stage in STAGES:
            if stage in self._done:
                counts = self._done[stage]
                found[stage] = {"launch": "this", **counts, "task_seconds": round(counts["task_seconds"], 3)}
            elif earlier and stage in earlier:
                found[stage] = {**earlier[stage], "launch": "earlier"}
        return found
