"""`export`: shard sets in the formats that other programs read.

Each set is written part by part, and each part has a receipt (core.receipts): a rerun skips finished parts and ends
with the same bytes. Memory: one sample, and the index of one shard."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import EXPORT_JSON, RUN_DIRECTORIES
from vila_data.core.receipts import Receipt, committing, fingerprint, read_receipt, valid_receipt
from vila_data.core.store import Store
from vila_data.export.energon import Energon, NotExpressible, SetTotals, metadataset_yaml, sample_blend
from vila_data.export.format import RECEIPTS, Content, DonePart, ExportedSet, Format, Part, read_content
from vila_data.export.formats import formats_for, open_format, views_of
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, kind_of, open_run
from vila_data.shard.config import View
from vila_data.shard.manifest import Manifest, parse_manifest
from vila_data.shard.read import ShardSetReader


@dataclass(frozen=True)
class SetExport:
    """The export of one set. source: the set's directory; fingerprint: of its manifest; out: the export's directory."""

    source: Store
    manifest: Manifest
    fingerprint: str
    out: Store
    format: Format
    shards: int | None = None

    @property
    def view(self) -> View:
        """The set's view."""
        view: View = self.manifest.view  # type: ignore[assignment]
        return view

    @cached_property
    def parts(self) -> list[Part]:
        """The parts, in the order of the set's samples."""
        samples = [shard.samples for shard in self.manifest.shards]
        parts = self.format.cut(self.manifest.name, samples, self.shards)
        edges = [0, *(part.stop for part in parts)]
        assert [part.start for part in parts] == edges[:-1] and edges[-1] == sum(samples)
        return parts

    @property
    def receipt_path(self) -> str:
        """The set's receipt, written last."""
        return f"{RECEIPTS}/{self.manifest.name}/set.json"

    def finished(self) -> Receipt | None:
        """The set's receipt, if all its files exist with their sizes."""
        receipt = valid_receipt(self.out, self.receipt_path, self._inputs())
        if receipt is None:
            return None
        for part in self.parts:
            found = read_receipt(self.out, part.receipt)
            if found is None or found.inputs != self._part_inputs(part):
                return None
            for path, facts in found.outputs.items():
                if path != part.rows and self.out.size(path) != facts["bytes"]:
                    return None
        return receipt

    def written(self, part: Part) -> DonePart | None:
        """The part as an earlier run wrote it; None if it must be written."""
        receipt = valid_receipt(self.out, part.receipt, self._part_inputs(part))
        return _done(part, receipt) if receipt is not None else None

    def write(self, part: Part) -> DonePart:
        """Write one part.

        Raises:
            DataError: a sample cannot be read.
        """
        with committing(self.out, part.receipt, self._part_inputs(part)) as files:
            counts = self.format.write_part(part, self._contents(part), files)
            counted = counts.exported + sum(counts.left_out.values())
            if counted != part.stop - part.start:
                raise DataError(
                    f"{self.source.url}: samples {part.start} to {part.stop}: {counted} of {part.stop - part.start} "
                    "exported or omitted: the shards do not match the manifest; run check on the set"
                )
            files.counts = counts.counts()
        assert files.receipt is not None
        return _done(part, files.receipt)

    def finish(self, done: Sequence[DonePart]) -> Receipt:
        """Write the set's own files and its receipt, and remove what was needed only for them; done: every part.

        Raises:
            DataError: a run has rewritten the set meanwhile, so parts may be of two orders.
        """
        assert [one.part for one in done] == self.parts
        there = self.source.size("manifest.json") is not None
        if not there or hashlib.sha256(self.source.read("manifest.json")).hexdigest() != self.fingerprint:
            raise DataError(
                f"{self.source.url}: the set changed during the export; delete {self.out.url} and export again"
            )
        with committing(self.out, self.receipt_path, self._inputs()) as files:
            self.format.finish(ExportedSet(self.manifest.name, self.view, self.fingerprint, done, self.out), files)
            files.counts = self._totals(done)
        self.remove_rows()
        assert files.receipt is not None
        return files.receipt

    def remove_rows(self) -> None:
        """Remove the rows that were needed only for the set's own files, or what is left of them after a kill."""
        for path in self.out.files(f"{RECEIPTS}/{self.manifest.name}"):
            if path.endswith(".rows"):
                self.out.remove(path)

    def _totals(self, done: Sequence[DonePart]) -> dict[str, Any]:
        left_out, adapted = Counter[str](), Counter[str]()
        for one in done:
            left_out.update(one.counts["left_out"])
            adapted.update(one.counts["adapted"])
        return {
            "samples": self.manifest.samples,
            "exported": sum(one.counts["exported"] for one in done),
            "images": sum(one.counts["images"] for one in done),
            "left_out": dict(sorted(left_out.items())),
            "adapted": dict(sorted(adapted.items())),
            "parts": len(done),
            "files": sum(one.files for one in done),
            "bytes": sum(one.bytes for one in done),
        }

    def _contents(self, part: Part) -> Iterator[Content]:
        reader = ShardSetReader(self.source, self.manifest)
        for sample in reader.between(part.start, part.stop):
            yield read_content(sample, self.view)

    def _inputs(self) -> str:
        spans = [(part.start, part.stop) for part in self.parts]
        return fingerprint([self.format.name, self.format.revision, self.fingerprint, spans])

    def _part_inputs(self, part: Part) -> str:
        where = [part.index, part.of, part.start, part.stop]
        return fingerprint([self.format.name, self.format.revision, self.fingerprint, *where])


def _done(part: Part, receipt: Receipt) -> DonePart:
    """Summarize a part's receipt, which has an entry per image where images are files."""
    sizes = {path: facts["bytes"] for path, facts in receipt.outputs.items() if path != part.rows}
    flat = {path: size for path, size in sizes.items() if path.count("/") == 1}
    return DonePart(part, receipt.counts, len(sizes), sum(sizes.values()), flat)


BLEND_YAML: Final = "blend.yaml"
_BLEND_RECEIPT: Final = f"{RECEIPTS}/blend.json"
_SCHEMA: Final = 1


@dataclass(frozen=True)
class SetReport:
    """One exported set.

    samples = exported + those of left_out, by reason; adapted: what was written differently from
    the set, by the change. bytes: of all its files. launch_samples, launch_seconds: of this invocation.
    """

    name: str
    view: str
    samples: int
    exported: int
    images: int
    left_out: dict[str, int]
    adapted: dict[str, int]
    parts: int
    files: int
    bytes: int
    manifest: str
    launch_samples: int = field(default=0, compare=False)
    launch_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class BlendReport:
    """A run's blend for Energon: its file and each set's share of the samples, or the reason why it is not written."""

    file: str | None
    shares: tuple[tuple[str, float], ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    not_exported: sets of the run that are not exported, with the reason; blend: None if the format or the path has none.
    """

    to: str
    out: str
    sets: tuple[SetReport, ...]
    not_exported: dict[str, str]
    blend: BlendReport | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Chosen:
    """The sets to export, those that are not, and their run, if any."""

    sets: tuple[SetExport, ...]
    not_exported: dict[str, str]
    run: Run | None


def export(
    path: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    shards: int | None = None,
    watch: Progress | None = None,
) -> ExportReport:
    """Write a shard set, or every set of a run whose view the format supports, to `out`; the same call resumes.

    Args:
        path: directory or URL of a shard set or of a run.
        to: the format's name.
        out: directory or URL: empty, or that of this export.
        only: only these sets of the run.
        shards: number of files per set; None: the format's own choice.

    Raises:
        UsageError: the format or set does not exist; the format does not support a set's view; `out` contains something else,
            or another export is writing there.
        DataError: a shard does not match its manifest.
    """
    watch = watch or NoProgress()
    store = Store(os.fspath(out))
    chosen = _choose(os.fspath(path), to, store, only, shards)
    request = {
        "schema": _SCHEMA,
        "format": to,
        "inputs": fingerprint(
            [to, shards, {one.manifest.name: [one.fingerprint, one.format.revision] for one in chosen.sets}]
        ),
        "sets": {one.manifest.name: {"manifest": one.fingerprint, "parts": len(one.parts)} for one in chosen.sets},
        "not_exported": chosen.not_exported,
    }
    with store.alone("export"):
        _take_folder(store, request)
        reports = tuple(_export_set(one, watch) for one in chosen.sets)
        blend = _export_blend(chosen, store) if to == Energon.name and chosen.run is not None else None
        sets = {one.name: _receipt_entry(one) for one in reports}
        _write(store, request, finished=True, sets=sets, blend=asdict(blend) if blend is not None else None)
        store.clear_scratch()
    return ExportReport(to, store.url, reports, chosen.not_exported, blend)


def _choose(path: str, to: str, out: Store, only: Sequence[str], shards: int | None) -> _Chosen:
    views_of(to)
    if shards is not None and shards < 1:
        raise UsageError(f"--shards must be at least 1, found {shards}")
    kind = kind_of(path)
    if kind == "set":
        if only:
            raise UsageError(f"{path}: is a single shard set; --only selects sets of a run")
        _refuse_inside(out, Store(path), "")
        one = _open(Store(path), to, out, shards)
        if isinstance(one, str):
            raise UsageError(f"{path}: {one}")
        return _Chosen((one,), {}, None)
    if kind != "run":
        raise UsageError(f"{path}: is a {kind}; export takes a run or a shard set")
    return _choose_of_run(path, to, out, only, shards)


def _choose_of_run(path: str, to: str, out: Store, only: Sequence[str], shards: int | None) -> _Chosen:
    run = open_run(path)
    for directory in RUN_DIRECTORIES:
        _refuse_inside(out, run.store, directory)
    names = list(run.recipe.shards)
    for name in only:
        if name not in names:
            raise UsageError(f"--only {name}: {path} has no such shard set; it has {', '.join(names)}")
    sets: list[SetExport] = []
    not_exported: dict[str, str] = {}
    for name in names:
        if only and name not in only:
            not_exported[name] = "not chosen by --only"
            continue
        one = _open(run.set_store(name), to, out, shards)
        if not isinstance(one, str):
            sets.append(one)
        elif only:
            raise UsageError(f"--only {name}: {one}")
        else:
            not_exported[name] = one
    if not sets:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_exported.items())
        raise UsageError(f"{path}: nothing to export to {to}: {reasons or 'it has no shard sets'}")
    return _Chosen(tuple(sets), not_exported, run)


def _refuse_inside(out: Store, source: Store, directory: str) -> None:
    """Raise if the export would be inside the directory that it reads."""
    if f"{out.url}/".startswith(f"{source.location(directory)}/"):
        raise UsageError(
            f"{out.url}: is inside {source.location(directory)}, which belongs to the run; choose another --out"
        )


def _open(source: Store, to: str, out: Store, shards: int | None) -> SetExport | str:
    """The export of a set, or the reason why there is none."""
    if source.size("manifest.json") is None:
        return "not finished: manifest.json is missing; run the recipe again"
    data = source.read("manifest.json")
    manifest = parse_manifest(data, source.location("manifest.json"))
    if not manifest.samples:
        return "empty: none of its records were kept; see the run's funnel"
    made = open_format(to, manifest.view)  # type: ignore[arg-type]
    if made is None:
        fitting = ", ".join(formats_for(manifest.view))  # type: ignore[arg-type]
        takes = " and ".join(views_of(to))
        return f"its view is {manifest.view}, but {to} supports {takes}; formats for {manifest.view}: {fitting}"
    return SetExport(source, manifest, hashlib.sha256(data).hexdigest(), out, made, shards)


def _take_folder(store: Store, request: Mapping[str, Any]) -> None:
    """Claim the directory for this export, or check that it already belongs to it."""
    if store.size(EXPORT_JSON) is None:
        strangers = store.files("")
        if strangers:
            raise UsageError(f"{store.url}: not empty, and not an export ({strangers[0]} …); choose another --out")
    else:
        try:
            found = json.loads(store.read(EXPORT_JSON))
            differs = found["inputs"] != request["inputs"]
            holds = f"{found['format']} of {', '.join(found['sets'])}"
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{store.location(EXPORT_JSON)}: is not the receipt of an export: {error!r}") from error
        if differs:
            raise UsageError(
                f"{store.url}: contains a different export ({holds}, possibly of other shards or with other --shards); "
                "choose another --out, or delete the directory"
            )
    store.clear_scratch()
    _write(store, request, finished=False)


def _write(store: Store, request: Mapping[str, Any], *, finished: bool, **found: Any) -> None:
    value = {**request, "finished": finished, **found}
    store.commit_bytes(json.dumps(value, indent=1).encode() + b"\n", EXPORT_JSON)


def _receipt_entry(report: SetReport) -> dict[str, Any]:
    """A set's entry in export.json: without times, so that the same export has the same bytes."""
    entry = asdict(report)
    for key in ("name", "launch_samples", "launch_seconds"):
        del entry[key]
    return entry


def _export_blend(chosen: _Chosen, out: Store) -> BlendReport | None:
    """Write the blend of the run's recipe for Energon; if there is none to write, remove that of an earlier recipe."""
    assert chosen.run is not None
    blend = chosen.run.recipe.blend
    if blend is None:
        _remove_blend(out)
        return None
    tokens = (chosen.run.totals or {}).get("tokens", {})
    totals = {
        name: SetTotals(one.manifest.samples, one.manifest.images, tokens.get(name, {}).get("tokens"))
        for one in chosen.sets
        for name in [one.manifest.name]
    }
    try:
        found = sample_blend(blend, totals)
    except NotExpressible as problem:
        _remove_blend(out)
        return BlendReport(None, reason=str(problem))
    data = metadataset_yaml(found, totals)
    with committing(out, _BLEND_RECEIPT, hashlib.sha256(data).hexdigest()[:16]) as files:
        files.path(BLEND_YAML).write_bytes(data)
    return BlendReport(BLEND_YAML, found.shares)


def _remove_blend(out: Store) -> None:
    for path in (_BLEND_RECEIPT, BLEND_YAML):
        out.remove(path)


def _export_set(one: SetExport, watch: Progress) -> SetReport:
    name, parts = one.manifest.name, one.parts
    start, samples = time.monotonic(), 0
    receipt = one.finished()
    if receipt is not None:
        watch.stage(name, len(parts), len(parts))
        one.remove_rows()
    else:
        written = [one.written(part) for part in parts]
        watch.stage(name, len(parts), sum(found is not None for found in written))
        done = []
        for part, found in zip(parts, written, strict=True):
            done.append(found or one.write(part))
            if found is None:
                samples += part.stop - part.start
                watch.advance(name, part.stop - part.start)
        receipt = one.finish(done)
    own = sum(facts["bytes"] for facts in receipt.outputs.values())
    counts = dict(receipt.counts)
    counts["files"] += len(receipt.outputs)
    counts["bytes"] += own
    return SetReport(
        name=name,
        view=one.view,
        manifest=one.fingerprint,
        launch_samples=samples,
        launch_seconds=time.monotonic() - start,
        **counts,
    )
