"""webdataset, the two lines of it that are in use: every sample and image, as bytes and decoded."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest

from tests.conformance.clients.read_webdataset import read
from tests.conformance.conftest import Client
from tests.conformance.shard_sets import OpenedSet, cases, digests, sizes_of
from tests.conformance.table import Table


def check(found: dict[str, Any], opened: OpenedSet) -> tuple[int, int]:
    """Samples and images of what was read, which is what we have."""
    assert found["bytes"] == [digests(sample) for sample in opened.ours]
    images = 0
    for (key, values), mine in zip(found["values"], opened.ours, strict=True):
        assert key == mine.key
        assert json.loads(json.dumps(values["json"])) == mine.json
        shapes = [value for suffix, value in values.items() if suffix.endswith("jpg")]
        assert [(width, height) for height, width in shapes] == sizes_of(mine.json)[: len(shapes)]
        if "txt" in values:
            assert values["txt"] == mine.json["caption"]
        images += len(shapes)
    return len(found["values"]), images


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_webdataset_0_reads_every_sample(opened: OpenedSet, table: Table) -> None:
    facts = opened.manifest
    assert version("webdataset").startswith("0.2.")
    with table.reading(
        "webdataset", version("webdataset"), "shards", *source(opened), facts.samples, facts.images
    ) as row:
        row.samples_read, row.images_read = check(read(opened.tars), opened)


@pytest.mark.slow
@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_webdataset_1_reads_every_sample(opened: OpenedSet, table: Table, client: Client) -> None:
    facts = opened.manifest
    with table.reading("webdataset", "1.0.2", "shards", *source(opened), facts.samples, facts.images) as row:
        found = client("webdataset", "read_webdataset.py", *opened.tars)
        assert found["version"] == row.version
        row.samples_read, row.images_read = check(found, opened)


def source(opened: OpenedSet) -> tuple[str, str]:
    return opened.case.source, opened.case.name


@pytest.mark.parametrize("opened", cases("interleaved"), indirect=True)
def test_documents_decode_by_the_names_in_their_json(opened: OpenedSet) -> None:
    import webdataset

    found = list(webdataset.WebDataset(opened.tars, shardshuffle=False, empty_check=False).decode("pil"))
    assert len(found) == opened.manifest.samples
    for sample in found:
        names = [name for name in sample["json"]["images"] if name is not None]
        pictures = [sample[name.removeprefix(f"{sample['__key__']}.")] for name in names]
        assert [picture.size for picture in pictures] == sizes_of(sample["json"])
