"""What a run did: the funnel of each corpus, its sets, and run.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vila_data.core.fates import Funnel
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.shard.manifest import Manifest
from vila_data.view.token_rows import left_out
from vila_data.workflow.plan import CorpusPlan

RUN_JSON = "run.json"


@dataclass(frozen=True)
class RunReport:
    """A run's totals.

    funnel:  {corpus: {stage: {"records" | "images": {fate: count}}}}, asserted to sum.
    sets:    the finished shard sets' manifests.
    tokens:  counts of each encoded set: samples, sequences, tokens, images, what was cut, and fates.
    blend:   one epoch of the blend as planned (workflow.blending.plan_epoch); None without a blend.
    seconds: wall time of this launch by stage.
    measures: what the columns say (workflow.measures.run); None before there are sets.
    speed:   what the stages did, and how fast (workflow.speed).
    made_from: {"fates": {corpus: fingerprint of its fates and of what they were made from}} (workflow.standing).
    """

    name: str
    out: str
    finished: bool
    funnel: dict[str, dict[str, dict[str, dict[str, int]]]]
    sets: dict[str, Manifest]
    tokens: dict[str, dict[str, Any]]
    blend: dict[str, Any] | None
    seconds: dict[str, float]
    versions: dict[str, str]
    recipe: str
    measures: dict[str, Any] | None = None
    speed: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)

    def totals(self) -> dict[str, Any]:
        """JSON of the report: the content of run.json."""
        return {
            "name": self.name,
            "recipe": self.recipe,
            "finished": self.finished,
            "funnel": self.funnel,
            "sets": {
                name: {
                    "corpus": found.corpus,
                    "view": found.view,
                    "shards": len(found.shards),
                    "samples": found.samples,
                    "images": found.images,
                    "bytes": found.bytes,
                }
                for name, found in self.sets.items()
            },
            "tokens": {
                name: counts | {"left_out": [entry.as_dict() for entry in left_out(counts)]}
                for name, counts in self.tokens.items()
            },
            "blend": self.blend,
            "measures": self.measures,
            "seconds": self.seconds,
            "speed": self.speed,
            "made_from": self.made_from,
            "versions": self.versions,
        }


def corpus_funnel(plan: CorpusPlan, receipts: Mapping[str, Sequence[Receipt | None]]) -> Funnel:
    """The funnel of a corpus from its receipts; each stage's fates sum to what entered it.

    Raises:
        DataError: they do not.
    """
    funnel = Funnel()
    downloads = [receipt for receipt in receipts["download"] if receipt is not None]
    if len(downloads) < len(plan.parts):
        return funnel
    read = _sum(downloads, "records")
    entered = sum(read.values())
    funnel.add("select", "records", "kept", entered)
    if plan.rows > entered:
        funnel.add("select", "records", "dropped:preselect", plan.rows - entered)
    funnel.check("select", "records", plan.rows)
    _add(funnel, "download", "records", read)
    funnel.check("download", "records", funnel.kept("select", "records"))
    _add(funnel, "download", "images", _sum(downloads, "images"))
    filters = [receipt for receipt in receipts.get("filter", ()) if receipt is not None]
    if len(filters) < len(plan.parts):
        return funnel
    for unit in ("images", "records"):
        _add(funnel, "filter", unit, _sum(filters, unit))
        funnel.check("filter", unit, funnel.kept("download", unit))
    return funnel


def write_run_json(store: Store, report: RunReport) -> None:
    """Write the totals. It and report.html are the only files of a run that hold times."""
    store.commit_bytes(json.dumps(report.totals(), indent=1).encode() + b"\n", RUN_JSON)


def read_run_json(store: Store) -> dict[str, Any] | None:
    """The totals of a run, or None where it has none yet."""
    if store.size(RUN_JSON) is None:
        return None
    value: dict[str, Any] = json.loads(store.read(RUN_JSON))
    return value


def _sum(receipts: Sequence[Receipt], unit: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for receipt in receipts:
        for fate, count in receipt.counts[unit].items():
            total[fate] = total.get(fate, 0) + count
    return total


def _add(funnel: Funnel, stage: str, unit: Any, counts: dict[str, int]) -> None:
    funnel.add(stage, unit, "kept", 0)
    for fate, count in sorted(counts.items()):
        funnel.add(stage, unit, "kept" if fate == "ok" else fate, count)
