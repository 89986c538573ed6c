"""`export`: shard sets in the form that other programs read, resumed where an earlier launch was killed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import EXPORT_JSON, RUN_DIRECTORIES
from vila_data.core.receipts import committing, fingerprint
from vila_data.core.store import Store
from vila_data.export.energon import Energon
from vila_data.export.format import RECEIPTS
from vila_data.export.formats import formats_for, open_format, views_of
from vila_data.export.frame import SetExport
from vila_data.export.metadataset import NotExpressible, SetTotals, metadataset_yaml, sample_blend
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.run import Run, kind_of, open_run
from vila_data.shard.manifest import parse_manifest

BLEND_YAML: Final = "blend.yaml"
_BLEND_RECEIPT: Final = f"{RECEIPTS}/blend.json"
_SCHEMA: Final = 1


@dataclass(frozen=True)
class SetReport:
    """One exported set.

    samples = exported + those of left_out, by reason; adapted: what was written in another way than it lies in the
    set, by what was done. bytes: of all its files. Of this launch: samples and seconds.
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
    """A run's blend for Energon: its file and the sets' shares of the samples, or why it is not written."""

    file: str | None
    shares: tuple[tuple[str, float], ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class ExportReport:
    """What an export gave.

    not_exported: sets of the run that it does not hold, with the reason; blend: None where the format or the path has none.
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
    """The sets to export, those that are not, and the run that they are of, if any."""

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
    """Write a shard set, or those of a run that the format takes, below `out`; the same call resumes.

    Args:
        path: folder or URL of a shard set or of a run.
        to: the format's name.
        out: folder or URL: empty, or that of this export.
        only: of a run, these sets alone.
        shards: files a set; None: the format's own choice.

    Raises:
        UsageError: no such format or set; a set's view is not the format's; `out` holds something else, or another
            export is writing there.
        DataError: a shard is not what its manifest says.
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
    for folder in RUN_DIRECTORIES:
        _refuse_inside(out, run.store, folder)
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


def _refuse_inside(out: Store, source: Store, folder: str) -> None:
    """Raise where the export would lie among the files that it is made of."""
    if f"{out.url}/".startswith(f"{source.location(folder)}/"):
        raise UsageError(
            f"{out.url}: is inside {source.location(folder)}, which belongs to the run; choose another --out"
        )


def _open(source: Store, to: str, out: Store, shards: int | None) -> SetExport | str:
    """The export of a set, or why there is none."""
    if source.size("manifest.json") is None:
        return "not finished: it has no manifest.json; run the recipe again"
    data = source.read("manifest.json")
    manifest = parse_manifest(data, source.location("manifest.json"))
    if not manifest.samples:
        return "empty: no record of it was kept; the run's funnel says why"
    made = open_format(to, manifest.view)  # type: ignore[arg-type]
    if made is None:
        fitting = ", ".join(formats_for(manifest.view))  # type: ignore[arg-type]
        takes = " and ".join(views_of(to))
        return f"its view is {manifest.view}, but {to} supports {takes}; formats for {manifest.view}: {fitting}"
    return SetExport(source, manifest, hashlib.sha256(data).hexdigest(), out, made, shards)


def _take_folder(store: Store, request: Mapping[str, Any]) -> None:
    """Make the folder this export's, or find that it is."""
    if store.size(EXPORT_JSON) is None:
        strangers = store.files("")
        if strangers:
            raise UsageError(f"{store.url}: not empty and no export ({strangers[0]} …): choose another --out")
    else:
        try:
            found = json.loads(store.read(EXPORT_JSON))
            differs = found["inputs"] != request["inputs"]
            holds = f"{found['format']} of {', '.join(found['sets'])}"
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{store.location(EXPORT_JSON)}: not the receipt of an export: {error!r}") from error
        if differs:
            raise UsageError(
                f"{store.url}: holds another export ({holds}, or of other shards, or cut otherwise): "
                "choose another --out, or delete that folder"
            )
    store.clear_scratch()
    _write(store, request, finished=False)


def _write(store: Store, request: Mapping[str, Any], *, finished: bool, **found: Any) -> None:
    value = {**request, "finished": finished, **found}
    store.commit_bytes(json.dumps(value, indent=1).encode() + b"\n", EXPORT_JSON)


def _receipt_entry(report: SetReport) -> dict[str, Any]:
    """What export.json says of a set: no times, so that the same export has the same bytes."""
    entry = asdict(report)
    for key in ("name", "launch_samples", "launch_seconds"):
        del entry[key]
    return entry


def _export_blend(chosen: _Chosen, out: Store) -> BlendReport | None:
    """Write the blend of the run's recipe for Energon; where there is none to write, that of an earlier recipe goes."""
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
