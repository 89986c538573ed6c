"""The report of a run, run.json: the funnel of each corpus, its sets, speed, and what encoding omitted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vila_data.core.errors import DataError
from vila_data.core.fates import Funnel
from vila_data.core.readable import many
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.corpora.source import PIPE
from vila_data.runs.plan import CorpusPlan
from vila_data.shard.manifest import Manifest

RUN_JSON = "run.json"


@dataclass(frozen=True)
class RunReport:
    """A run's totals.

    funnel:  {corpus: {stage: {"records" | "images": {fate: count}}}}, asserted to sum.
    sets:    the finished shard sets' manifests.
    tokens:  counts of each encoded set: samples, sequences, tokens, images, what was cut, and fates.
    blend:   one epoch of the blend as planned (runs.epoch_plan.plan_epoch); None without a blend.
    seconds: wall time of this invocation by stage.
    measures: what the columns say (explore.measures); None before there are sets.
    speed:   what the stages did, and how fast (Speeds).
    made_from: {gathering stage, as filter: {corpus: fingerprint of its receipts and of what they were made from}}
              (runs.engine.Basis).
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
                name: counts | {"left_out": [entry.as_dict() for entry in omissions(counts)]}
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
    """Write run.json. It and report.html are the only files of a run that contain times."""
    store.commit_bytes(json.dumps(report.totals(), indent=1).encode() + b"\n", RUN_JSON)


def read_run_json(store: Store) -> dict[str, Any] | None:
    """The totals of a run, or None if it has none yet.

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
        f"{store.location(RUN_JSON)}: not the totals of a run: {problem}; delete it and rerun the recipe; completed "
        "work is skipped"
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


class Speeds:
    """What this invocation did, by stage; work completed by earlier ones is not counted."""

    def __init__(self, stages: Iterable[str]) -> None:
        self._stages = tuple(stages)
        self._done: dict[str, dict[str, float]] = {}

    def add(self, stage: str, receipt: Receipt, seconds: float, counts: Mapping[str, int]) -> None:
        """Count a finished task, unless its receipt is from an earlier invocation."""
        if receipt.earlier:
            return
        total = self._done.setdefault(stage, {"tasks": 0, "task_seconds": 0.0})
        for key, count in {"tasks": 1, "task_seconds": seconds, **counts}.items():
            total[key] = total.get(key, 0) + count

    def value(self, earlier: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        """{stage: {"launch": "this" | "earlier", "tasks", "task_seconds", and what was counted}}.

        A stage that did nothing in this invocation keeps the numbers of the last one that did.
        """
        found: dict[str, dict[str, Any]] = {}
        for stage in self._stages:
            if stage in self._done:
                counts = self._done[stage]
                found[stage] = {"launch": "this", **counts, "task_seconds": round(counts["task_seconds"], 3)}
            elif earlier and stage in earlier:
                found[stage] = {**earlier[stage], "launch": "earlier"}
        return found


NO_SEQUENCE: Final = "samples skipped"
_LENGTH: Final = "pack.sequence_length"
_LENGTHS: Final = f"{_LENGTH} or pack.tokens_per_image"
_TEMPLATE: Final = "the tokenizer's chat template, or pack.template"
_KEYS: Final = {
    "too_many_images": "pack.max_images_per_pack",
    "template_refused": _TEMPLATE,
    "answer_not_found": _TEMPLATE,
    "image_not_placed": _TEMPLATE,
    "no_text": "the data: nothing in these samples can be trained",
}


@dataclass(frozen=True)
class Omission:
    """Something that encoding omitted from a set: `count` of `of` `unit`.

    what: for people; reason: the fate of samples without a sequence, with the template's own words after a colon, "" else
    and for all of them together; change: which keys of the recipe change it, "" where the rows of the reasons say it.
    """

    what: str
    unit: str
    reason: str
    count: int
    of: int
    change: str

    def as_dict(self) -> dict[str, Any]:
        """The fields and `share`, for JSON."""
        return asdict(self) | {"share": self.count / self.of if self.of else 0.0}


def omissions(counts: Mapping[str, Any]) -> list[Omission]:
    """Tokens, images and samples of a set that are in no sequence; empty if there are none. counts: the set's entry under `tokens` in run.json.

    Tokens before the cut are those of samples that the template wrote, without images that were left out before.
    """
    failed = {key.split(":", 1)[1]: count for key, count in counts.items() if key.startswith("failed:") and count}
    found = []
    length = _LENGTHS if counts["images"] + counts["images_left_out"] else _LENGTH
    if counts["tokens_cut"]:
        samples = counts["samples_cut"] + sum(failed.get(fate, 0) for fate in ("too_long", "too_many_images"))
        change = length + " or pack.max_images_per_pack" * bool(failed.get("too_many_images"))
        cut, what = counts["tokens_cut"], f"tokens truncated, in {many(samples, 'samples')}"
        found.append(Omission(what, "tokens", "", cut, cut + counts["tokens"], change))
    if counts["images_left_out"]:
        images = counts["images_left_out"]
        change = f"pack.max_images_per_document, {_LENGTHS}"
        found.append(Omission("images omitted", "images", "", images, images + counts["images"], change))
    if len(failed) > 1:
        found.append(Omission(NO_SEQUENCE, "samples", "", sum(failed.values()), counts["samples"], ""))
    for reason, count in sorted(failed.items(), key=lambda entry: (-entry[1], entry[0])):
        fate = reason.split(":", 1)[0]
        change = length if fate == "too_long" else _KEYS.get(fate, "")
        found.append(Omission(f"{NO_SEQUENCE}: {reason}", "samples", reason, count, counts["samples"], change))
    return found


def keys_to_change(rows: Iterable[Omission]) -> Iterator[tuple[str, str]]:
    """(what was omitted, the recipe keys that change it), without duplicates."""
    yield from dict.fromkeys(
        (row.reason.split(":", 1)[0] or row.what.split(",", 1)[0], row.change) for row in rows if row.change
    )
