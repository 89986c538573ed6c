"""What a run did: the funnel of each corpus, its sets, and run.json."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.fates import Funnel
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.corpora.source import PIPE
from vila_data.runs.plan import CorpusPlan
from vila_data.runs.token_rows import left_out
from vila_data.shard.manifest import Manifest

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
    made_from: {gathering stage, as filter: {corpus: fingerprint of its receipts and of what they were made from}}
              (workflow.engine.Basis).
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


def corpus_funnel(plan: CorpusPlan, receipts: Mapping[str, Sequence[Receipt | None]], stages: Sequence[str]) -> Funnel:
    """The funnel of a corpus from its receipts; each stage's fates sum to what entered it.

    stages: those that decide fates, the first of them the one that reads the metadata.

    Raises:
        DataError: they do not.
    """
    funnel = Funnel()
    committed = {stage: [receipt for receipt in receipts.get(stage, ()) if receipt is not None] for stage in stages}
    if len(committed[stages[0]]) < len(plan.parts):
        return funnel
    read = _sum(committed[stages[0]], "records")
    entered = sum(read.values())
    funnel.add("select", "records", "kept", entered)
    rows = plan.rows
    for part, receipt in zip(plan.parts, committed[stages[0]], strict=True):
        if part.file.startswith(PIPE):  # its rows were not counted before
            rows += sum(receipt.counts["records"].values()) - (part.stop - part.start)
    if rows > entered:
        funnel.add("select", "records", "dropped:preselect", rows - entered)
    funnel.check("select", "records", rows)
    _add(funnel, stages[0], "records", read)
    funnel.check(stages[0], "records", funnel.kept("select", "records"))
    _add(funnel, stages[0], "images", _sum(committed[stages[0]], "images"))
    for before, stage in itertools.pairwise(stages):
        if len(committed[stage]) < len(plan.parts):
            break
        for unit in ("images", "records"):
            _add(funnel, stage, unit, _sum(committed[stage], unit))
            funnel.check(stage, unit, funnel.kept(before, unit))
    return funnel


def write_run_json(store: Store, report: RunReport) -> None:
    """Write the totals. It and report.html are the only files of a run that hold times."""
    store.commit_bytes(json.dumps(report.totals(), indent=1).encode() + b"\n", RUN_JSON)


def read_run_json(store: Store) -> dict[str, Any] | None:
    """The totals of a run, or None where it has none yet.

    Raises:
        DataError: the file is damaged.
    """
    if store.size(RUN_JSON) is None:
        return None
    try:
        value = json.loads(store.read(RUN_JSON))
        if isinstance(value, dict):
            return value
        problem = f"a {type(value).__name__}, expected a mapping"
    except ValueError as error:
        problem = str(error)
    raise DataError(
        f"{store.location(RUN_JSON)}: not the totals of a run: {problem}; delete it and run the recipe again: what is "
        "committed is skipped"
    )


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
