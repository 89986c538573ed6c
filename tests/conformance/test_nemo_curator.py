"""NeMo Curator's interleaved reader, without a GPU: every text and image at its place."""

from __future__ import annotations

import json

import pytest

from tests.conformance.conftest import Client
from tests.conformance.shard_sets import OpenedSet, cases, jpegs, sha256
from tests.conformance.table import Table

pytestmark = pytest.mark.slow

VERSION = "1.4.0"


@pytest.mark.parametrize("opened", cases("interleaved"), indirect=True)
def test_nemo_curator_reads_every_document(opened: OpenedSet, client: Client, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    with table.reading(
        "NeMo Curator", VERSION, "InterleavedWebdatasetReader", case.source, case.name, facts.samples, facts.images
    ) as row:
        found = client("nemo-curator", "read_nemo_curator.py", opened.folder)
        assert found["version"] == VERSION
        samples = dict(found["samples"])
        assert sorted(samples) == sorted(sample.key for sample in opened.ours)
        for sample in opened.ours:
            value, read = sample.json, samples[sample.key]
            assert [json.loads(source) for source in read["source"]] == [value["source"]]
            assert read["texts"] == [[place, text] for place, text in enumerate(value["texts"]) if text is not None]
            places = [place for place, name in enumerate(value["images"]) if name is not None]
            digests = map(sha256, jpegs(sample))
            assert read["images"] == [[place, "image/jpeg", one] for place, one in zip(places, digests, strict=True)]
            row.images_read += len(read["images"])
        row.samples_read = len(found["samples"])
