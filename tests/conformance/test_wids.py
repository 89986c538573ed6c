"""wids: any sample by its number, through wids-meta.json alone, whose shards are named relative to it."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from tests.conformance.shard_sets import OpenedSet, cases, sizes_of
from tests.conformance.table import Table


@pytest.fixture
def wids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids"))
    return importlib.import_module("wids")


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_wids_reads_any_sample_by_number(opened: OpenedSet, wids: ModuleType, table: Table) -> None:
    facts, mine = opened.manifest, opened.ours
    case = opened.case
    with table.reading(
        "wids", version("webdataset"), "any sample by number", case.source, case.name, facts.samples, facts.images
    ) as row:
        dataset = wids.ShardListDataset(str(opened.folder / "wids-meta.json"), transformations=[], keep=True)
        assert len(dataset) == facts.samples == len(mine)
        for number in reversed(range(len(dataset))):
            sample = dataset[number]
            assert sample["__key__"] == mine[number].key
            members = {key[1:]: stream.read() for key, stream in sample.items() if key.startswith(".")}
            assert members == mine[number].members
            row.samples_read += 1
            row.images_read += sum(suffix.endswith("jpg") for suffix in members)


@pytest.mark.parametrize("opened", cases("pairs"), indirect=True)
def test_wids_decodes_pairs(opened: OpenedSet, wids: ModuleType) -> None:
    dataset = wids.ShardListDataset(str(opened.folder / "wids-meta.json"), keep=True)
    assert len(dataset) == opened.manifest.samples
    for number in range(len(dataset)):
        sample = dataset[number]
        assert [sample[".jpg"].size] == sizes_of(sample[".json"])
        assert sample[".txt"] == sample[".json"]["caption"]


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_wids_meta_is_what_vila_reads(opened: OpenedSet) -> None:
    """NVlabs/VILA's own loader takes this file for a dataset by these keys."""
    meta = json.loads((opened.folder / "wids-meta.json").read_bytes())
    assert (meta["name"], meta["__kind__"], meta["wids_version"]) == (opened.case.name, "VILA-WebDataset", 1)
    assert [(one["url"], one["nsamples"], one["filesize"]) for one in meta["shardlist"]] == [
        (shard.name, shard.samples, (opened.folder / shard.name).stat().st_size) for shard in opened.manifest.shards
    ]
