"""Hugging Face datasets: pairs from their shards, rows of every set from their indexes."""

from __future__ import annotations

import io
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from tests.conformance.shard_sets import OpenedSet, cases, jpegs, sizes_of
from tests.conformance.table import Table
from vila_data.export.exporting import export


def rgb(jpeg: bytes) -> bytes:
    """Decoded pixels, of grey pictures too."""
    return Image.open(io.BytesIO(jpeg)).convert("RGB").tobytes()


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("opened", cases("pairs"), indirect=True)
def test_datasets_reads_every_pair(opened: OpenedSet, streaming: bool, tmp_path: Path, table: Table) -> None:
    import datasets

    facts, case = opened.manifest, opened.case
    reading = f'load_dataset("webdataset", …, streaming={streaming})'
    with table.reading(
        "datasets", version("datasets"), f"pairs: {reading}", case.source, case.name, facts.samples, facts.images
    ) as row:
        dataset = datasets.load_dataset(
            "webdataset",
            data_files={"train": opened.tars},
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path),
        )
        for found, sample in zip(dataset, opened.ours, strict=True):
            assert found["__key__"] == sample.key
            assert [found["jpg"].size] == sizes_of(sample.json)
            assert found["jpg"].convert("RGB").tobytes() == rgb(sample.members["jpg"])
            assert found["txt"] == sample.json["caption"]
            assert found["json"]["source"] == sample.json["source"]
            assert found["json"]["sha256"] == sample.json["sha256"]
            row.samples_read += 1
            row.images_read += 1


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_datasets_reads_every_row_of_the_indexes(opened: OpenedSet, tmp_path: Path) -> None:
    import datasets

    files = [tar.replace(".tar", ".parquet") for tar in opened.tars]
    dataset = datasets.load_dataset("parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path))
    assert dataset["key"][:] == [sample.key for sample in opened.ours]
    assert sum(dataset["n_images"]) == opened.manifest.images


@pytest.mark.parametrize("by", ["parquet", "folder"])
@pytest.mark.parametrize("opened", cases("interleaved", "pairs"), indirect=True)
def test_datasets_reads_the_obelics_export(opened: OpenedSet, by: str, tmp_path: Path, table: Table) -> None:
    """Documents too: rows of `texts` and `images`, ragged as they are, with decoded pictures."""
    import datasets

    facts, case = opened.manifest, opened.case
    export(opened.folder, "obelics", tmp_path / "out")
    folder = tmp_path / "out" / case.name
    where = {"path": str(folder)}
    if by == "parquet":
        where = {"path": "parquet", "data_files": str(folder / "*.parquet")}
    with table.reading(
        "datasets",
        version("datasets"),
        f"export --to obelics, by {by}",
        case.source,
        case.name,
        facts.samples,
        facts.images,
    ) as row:
        dataset = datasets.load_dataset(**where, split="train", cache_dir=str(tmp_path / "cache"))
        for found, sample in zip(dataset, opened.ours, strict=True):
            pictures = (
                [found["image"]] if case.view == "pairs" else [one for one in found["pictures"] if one is not None]
            )
            expected = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs(sample)]
            assert [one.size for one in pictures] == [one.size for one in expected] == sizes_of(sample.json)
            assert [one.tobytes() for one in pictures] == [one.tobytes() for one in expected]
            if case.view == "pairs":
                assert (found["text"], found["key"]) == (sample.json["caption"], sample.key)
            else:
                assert found["texts"] == sample.json["texts"]
                assert [one is None for one in found["pictures"]] == [name is None for name in sample.json["images"]]
                assert json.loads(found["general_metadata"])["sample_id"] == sample.key
            row.samples_read += 1
            row.images_read += len(pictures)
