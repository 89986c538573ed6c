"""The loaders that people have, over sets as this project writes them."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.made_run import SETS, MadeRun
from vila_data.shard.read import Sample, open_shards


def ours(made: MadeRun, name: str) -> list[Sample]:
    return list(open_shards(made.store.location(f"shards/{name}")))


def tars(made: MadeRun, name: str) -> list[str]:
    return [made.store.location(f"shards/{name}/{shard.name}") for shard in made.sets[name].shards]


def decoded(jpeg: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(jpeg))
    image.load()
    return image.size


def sizes_of(value: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, height) of a sample's images, as its JSON has them."""
    return [(one["width"], one["height"]) for one in value.get("image_info", [value])]


@pytest.mark.parametrize("name", list(SETS))
def test_webdataset_reads_every_sample_and_image(made: MadeRun, name: str) -> None:
    import webdataset

    manifest = made.sets[name]
    found = list(webdataset.WebDataset(tars(made, name), shardshuffle=False, empty_check=False))
    assert len(found) == manifest.samples
    images = 0
    for sample, mine in zip(found, ours(made, name), strict=True):
        members = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
        assert sample["__key__"] == mine.key
        assert members == mine.members
        jpegs = [data for suffix, data in members.items() if suffix.endswith("jpg")]
        assert [decoded(jpeg) for jpeg in jpegs] == sizes_of(json.loads(sample["json"]))
        images += len(jpegs)
    assert images == manifest.images >= manifest.samples


@pytest.mark.parametrize("name", ["pairs", "docs_pairs"])
def test_webdataset_decodes_pairs(made: MadeRun, name: str) -> None:
    import webdataset

    dataset = webdataset.WebDataset(tars(made, name), shardshuffle=False, empty_check=False)
    found = list(dataset.decode("rgb8").to_tuple("jpg", "txt", "json"))
    assert len(found) == made.sets[name].samples
    for pixels, text, value in found:
        assert pixels.shape == (value["height"], value["width"], 3)
        assert text == value["caption"]


def test_webdataset_decodes_documents(made: MadeRun) -> None:
    import webdataset

    dataset = webdataset.WebDataset(tars(made, "docs"), shardshuffle=False, empty_check=False)
    found = list(dataset.decode("pil"))
    assert len(found) == made.sets["docs"].samples
    for sample in found:
        names = [name for name in sample["json"]["images"] if name is not None]
        pictures = [sample[name.removeprefix(f"{sample['__key__']}.")] for name in names]
        assert [picture.size for picture in pictures] == sizes_of(sample["json"])


@pytest.fixture
def wids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids"))
    return importlib.import_module("wids")


@pytest.mark.parametrize("name", list(SETS))
def test_wids_reads_any_sample_by_number(made: MadeRun, name: str, wids: ModuleType) -> None:
    """Through the file alone: its shards are named relative to it."""
    dataset = wids.ShardListDataset(made.store.location(f"shards/{name}/wids-meta.json"), transformations=[], keep=True)
    mine = ours(made, name)
    assert len(dataset) == made.sets[name].samples == len(mine)
    for number in reversed(range(len(dataset))):
        sample = dataset[number]
        assert sample["__key__"] == mine[number].key
        members = {key[1:]: value for key, value in sample.items() if key.startswith(".")}
        assert {key: stream.read() for key, stream in members.items()} == mine[number].members


def test_wids_decodes_pairs(made: MadeRun, wids: ModuleType) -> None:
    dataset = wids.ShardListDataset(made.store.location("shards/pairs/wids-meta.json"), keep=True)
    for number in range(len(dataset)):
        sample = dataset[number]
        assert sample[".jpg"].size == (sample[".json"]["width"], sample[".json"]["height"])
        assert sample[".txt"] == sample[".json"]["caption"]


def test_wids_meta_is_what_vila_reads(made: MadeRun) -> None:
    """NVlabs/VILA's own loader takes this file for a dataset by these keys."""
    for name, manifest in made.sets.items():
        meta = json.loads(made.store.read(f"shards/{name}/wids-meta.json"))
        assert (meta["name"], meta["__kind__"], meta["wids_version"]) == (name, "VILA-WebDataset", 1)
        assert [(one["url"], one["nsamples"], one["filesize"]) for one in meta["shardlist"]] == [
            (shard.name, shard.samples, Path(made.store.location(f"shards/{name}/{shard.name}")).stat().st_size)
            for shard in manifest.shards
        ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["pairs", "docs_pairs"])
def test_datasets_reads_every_pair(made: MadeRun, name: str, streaming: bool, tmp_path: Path) -> None:
    import datasets

    files = made.store.location(f"shards/{name}/{name}-*.tar")
    dataset = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", streaming=streaming, cache_dir=str(tmp_path)
    )
    rows = list(dataset)
    mine = ours(made, name)
    assert len(rows) == made.sets[name].samples
    for row, sample in zip(rows, mine, strict=True):
        assert row["__key__"] == sample.key
        assert row["jpg"].size == (sample.json["width"], sample.json["height"])
        assert row["jpg"].convert("RGB").tobytes() == Image.open(io.BytesIO(sample.members["jpg"])).tobytes()
        assert row["txt"] == sample.json["caption"]
        assert row["json"]["source"] == sample.json["source"]
        assert row["json"]["sha256"] == sample.json["sha256"]
