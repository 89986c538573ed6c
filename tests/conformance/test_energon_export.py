"""Exports to Megatron-Energon: what its own `prepare` would have made, read, linted, restored, and blended."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from braceexpand import braceexpand

from tests.conformance.conftest import Client
from tests.conformance.shard_sets import OpenedSet, cases, runs
from tests.conformance.table import Table
from tests.conformance.test_energon import VERSION, energon, images_of, prepare, wanted
from vila_data.export.exporting import export
from vila_data.shard.read import open_shards

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(opened: OpenedSet, tmp_path: Path) -> Path:
    """The set as `export --to energon` lays it down, in tars of its own."""
    shards = max(2, len(opened.tars) + 1) if opened.manifest.samples > 10 else None
    export(opened.folder, "energon", tmp_path / "out", shards=shards)
    return tmp_path / "out" / opened.case.name


def rows_of(folder: Path) -> dict[str, list[Any]]:
    """All rows of Energon's index, by table."""
    with sqlite3.connect(folder / ".nv-meta" / "index.sqlite") as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f"SELECT * FROM {name}")) for name in names}


def tars_of(folder: Path) -> list[str]:
    """The tars of the split `train`."""
    parts = yaml.safe_load((folder / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    assert not parts["val"] and not parts["test"]
    return sorted(name for pattern in parts["train"] for name in braceexpand(pattern))


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_energon_reads_the_export(opened: OpenedSet, exported: Path, client: Client, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    with table.reading(
        "Megatron-Energon", VERSION, "export --to energon", case.source, case.name, facts.samples, facts.images
    ) as row:
        found = client("energon", "read_energon.py", exported, 2)
        assert sorted(found["samples"]) == wanted(open_shards(opened.folder))
        row.samples_read, row.images_read = len(found["samples"]), images_of(found["samples"])


@pytest.mark.parametrize("opened", cases(sources=("made",)), indirect=True)
def test_the_export_is_what_prepare_makes(opened: OpenedSet, exported: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(exported, tmp_path / "again"))
    (again / ".nv-meta" / "index.sqlite").unlink()
    for index in again.glob("*.idx"):
        index.unlink()
    prepare(again, "--non-interactive", "--force-overwrite", "--split-ratio", "1,0,0", "--skip-dataset-yaml")
    ours, theirs = rows_of(exported), rows_of(again)
    assert ours and {name: ours.get(name) for name in theirs} == theirs
    for index in exported.glob("*.idx"):
        assert index.read_bytes() == (again / index.name).read_bytes()
    info, info_again = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (exported, again))
    assert info["shard_counts"] == info_again["shard_counts"]
    assert tars_of(exported) == tars_of(again) == sorted(path.name for path in exported.glob("*.tar"))
    if opened.case.view != "conversations":  # of crude data these two know nothing
        energon("lint", exported)
        energon("info", exported)


@pytest.mark.parametrize("run", runs("sample"), indirect=True)
def test_energon_blends_the_sets_of_a_run(run: tuple[str, Path], client: Client, table: Table, tmp_path: Path) -> None:
    """MetadatasetV2: drawn until each set has been through, all samples are there, in the shares of the file."""
    source, folder = run
    report = export(folder, "energon", tmp_path / "out")
    assert report.blend is not None and report.blend.file is not None
    shares = dict(report.blend.shares)
    sets = {name: open_shards(folder / "shards" / name) for name in shares}
    draws = int(1.6 * max(len(reader) / shares[name] for name, reader in sets.items()))
    samples, images = (
        sum(getattr(reader.manifest, what) for reader in sets.values()) for what in ("samples", "images")
    )
    with table.reading(
        "Megatron-Energon", VERSION, "blend of export --to energon", source, "blend", samples, images
    ) as row:
        blend = tmp_path / "out" / report.blend.file
        found = client("energon", "read_energon.py", blend, 2, "--repeat", "--take", draws)["samples"]
        once = {key: [key, kind, pieces] for key, kind, pieces in found}
        assert sorted(once.values()) == sorted(one for reader in sets.values() for one in wanted(reader))
        row.samples_read, row.images_read = len(once), images_of(list(once.values()))
    assert len(found) == draws
    owner = {sample.key: name for name, reader in sets.items() for sample in reader}
    drawn = Counter(owner[key] for key, *_ in found)
    for name, share in shares.items():
        assert abs(drawn[name] / draws - share) < 0.05
