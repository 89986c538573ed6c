"""`inspect` and `check`: what is at a path, and whether it is intact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import EXPORT_JSON, RUN_DIRECTORIES
from vila_data.core.receipts import read_receipt
from vila_data.core.samples import SampleContent, decode_foreign
from vila_data.core.store import Store
from vila_data.core.tarcodec import TarFault, sample_key, walk_foreign
from vila_data.encode.tokens import check_tokens
from vila_data.export.format import RECEIPTS
from vila_data.runs.plan_summary import summarize_plan
from vila_data.runs.run import Kind, Run, kind_of, open_run
from vila_data.shard.check import check_set, check_tar
from vila_data.shard.manifest import parse_manifest

_SAMPLES_SHOWN: Final = 50
_TEXT_SHOWN: Final = 60


def inspect(path: str | os.PathLike[str]) -> tuple[Kind, dict[str, Any]]:
    """What is at `path`, as a kind and JSON values."""
    text = os.fspath(path)
    if _is_export(text):
        return "export", _inspect_export(Store(text))
    kind = kind_of(text)
    if kind == "recipe":
        return kind, summarize_plan(text, None)
    if kind == "run":
        return kind, _inspect_run(open_run(text))
    if kind == "set":
        store = Store(text)
        parse_manifest(store.read("manifest.json"), store.location("manifest.json"))
        value: dict[str, Any] = json.loads(store.read("manifest.json"))
        return kind, value
    return kind, _inspect_shard(text)


def check(path: str | os.PathLike[str]) -> Iterator[str]:
    """One sentence for each thing that is wrong at `path`: a run, a set, a shard or an export."""
    text = os.fspath(path)
    if _is_export(text):
        yield from _check_export(Store(text))
        return
    kind = kind_of(text)
    if kind == "recipe":
        raise UsageError(f"{text}: is a recipe; check works on runs, shard sets and shards. Use plan for recipes.")
    if kind == "shard":
        folder, name = os.path.split(text)
        yield from check_tar(Store(folder or "."), name)
    elif kind == "set":
        yield from check_set(Store(text), "")
    else:
        yield from _check_run(open_run(text))


def _inspect_run(run: Run) -> dict[str, Any]:
    totals = run.totals
    if totals is not None:
        return totals
    return {
        "name": run.recipe.name,
        "recipe": run.lock["fingerprints"]["recipe"],
        "finished": False,
        "funnel": {},
        "sets": {},
        "seconds": {},
        "committed": {
            stage.name: sum(len(run.committed(stage.kept_as or stage.name, corpus)) for corpus in run.recipe.corpora)
            for stage in run.stages.parts
        },
    }


def _inspect_shard(path: str) -> dict[str, Any]:
    folder, name = os.path.split(path)
    store = Store(folder or ".")
    samples: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    with store.open_read(name) as stream:
        for member in list(walk_foreign(stream, path)):
            if isinstance(member, TarFault):
                faults.append(member.text)
                continue
            key, suffix = sample_key(member.name)
            sample = samples.setdefault(key, {"key": key, "record_id": "", "members": {}, "text": ""})
            sample["members"][suffix] = member.size
            if suffix == "json" and len(samples) <= _SAMPLES_SHOWN:
                stream.seek(member.offset)
                data = stream.read(member.size)
                try:
                    sample.update(
                        _words(decode_foreign(key, ("json",), {"json": data}.__getitem__, f"{path}: {member.name}"))
                    )
                except DataError as error:
                    faults.append(str(error))
    shown = list(samples.values())[:_SAMPLES_SHOWN]
    more = len(samples) - len(shown)
    found = {"shard": path, "n_samples": len(samples), "samples": shown, "more": more}
    return {**found, "n_faults": len(faults), "faults": faults[:_SAMPLES_SHOWN]}


def _words(sample: SampleContent) -> dict[str, str]:
    text = next(filter(None, sample.texts), "")
    return {
        "record_id": "" if sample.record_id == sample.key else sample.record_id,
        "text": text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…",
    }


def _check_run(run: Run) -> Iterator[str]:
    store = run.store
    files = [path for path in store.files("") if path.split("/", 1)[0] in RUN_DIRECTORIES]
    for path in files:
        if path.endswith(".json") and (path.split("/")[-1].startswith("part-") or "/.receipts/" in path):
            yield from _check_receipt(store, path)
    sets = {path.split("/")[1] for path in files if path.startswith("shards/") and path.count("/") >= 2}
    for name in sorted(sets):
        yield from check_set(store, f"shards/{name}")
    for path in files:
        if path.startswith("tokens/") and path.endswith("/manifest.json"):
            yield from check_tokens(store, path.removesuffix("/manifest.json"))


def _is_export(path: str) -> bool:
    if path.endswith((".yaml", ".yml", ".tar")) or os.path.isfile(path):
        return False
    return Store(path).size(EXPORT_JSON) is not None


def _inspect_export(store: Store) -> dict[str, Any]:
    """The export's receipt as `export` reports it.

    Raises:
        DataError: it is none.
    """
    try:
        value = json.loads(store.read(EXPORT_JSON))
        return {
            "to": value["format"],
            "out": store.url,
            "finished": value["finished"],
            "sets": [{"name": name, **facts} for name, facts in value["sets"].items()] if value["finished"] else [],
            "not_exported": value["not_exported"],
            "blend": value.get("blend"),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{store.location(EXPORT_JSON)}: is not the receipt of an export: {error!r}") from error


def _check_export(store: Store) -> Iterator[str]:
    """Every file of every receipt by its sha256; lines that parts left for a finished set's own files are gone."""
    if not _inspect_export(store)["finished"]:
        yield f"{store.location(EXPORT_JSON)}: the export is not finished; rerun it"
        return
    for path in store.files(RECEIPTS):
        receipt = read_receipt(store, path)
        if receipt is None:
            yield f"{store.location(path)}: not a receipt"
            continue
        for output, facts in receipt.outputs.items():
            if not output.startswith(RECEIPTS + "/"):
                size = store.size(output)
                if size is None or size != facts["bytes"] or store.sha256(output) != facts["sha256"]:
                    state = "missing" if size is None else "does not match its receipt"
                    yield f"{store.location(output)}: {state}; delete it and rerun the export"


def _check_receipt(store: Store, path: str) -> Iterator[str]:
    receipt = read_receipt(store, path)
    if receipt is None:
        yield f"{store.location(path)}: not a receipt"
        return
    for output, facts in receipt.outputs.items():
        size = store.size(output)
        if size is None:
            yield f"{store.location(output)}: missing, but listed in {Path(path).name}"
        elif size != facts["bytes"]:
            yield f"{store.location(output)}: {size} bytes; its receipt says {facts['bytes']}"
        elif not output.startswith("shards/") and store.sha256(output) != facts["sha256"]:
            yield f"{store.location(output)}: sha256 does not match its receipt, so its bytes have changed; delete it and rerun the recipe"
