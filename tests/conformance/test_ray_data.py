"""Ray Data. Samples of other sizes are other columns to it, so a decoder makes each one row of the same columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conformance.shard_sets import OpenedSet, cases, digests, jpegs, sha256, sizes_of
from tests.conformance.table import Table
from vila_data.export.exporting import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Iterator[ModuleType]:
    import ray
    import ray.data

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


def one_row(sample: dict) -> dict:
    """A sample of any set as a row of four columns; tuples, since it unpacks lists of one."""
    names = [name for name in sample if name.endswith("jpg")]
    return {
        "key": sample["__key__"],
        "json": sample["json"].decode(),
        "names": tuple(names),
        "images": tuple(sample[name] for name in names),
    }


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_ray_data_reads_every_sample(opened: OpenedSet, data: ModuleType, table: Table) -> None:
    import ray

    facts, case = opened.manifest, opened.case
    reading = "read_webdataset with a decoder to fixed columns"
    with table.reading(
        "Ray Data", ray.__version__, reading, case.source, case.name, facts.samples, facts.images
    ) as row:
        rows = data.read_webdataset(opened.tars, decoder=one_row).take_all()
        found = {}
        for one in rows:
            members = {name: sha256(image) for name, image in zip(one["names"], one["images"], strict=True)}
            found[one["key"]] = {"json": sha256(one["json"].encode()), **members}
            assert json.loads(one["json"])["sample_id"] == one["key"]
            row.images_read += len(members)
        row.samples_read = len(rows)
        expected = {
            key: {suffix: digest for suffix, digest in members.items() if suffix != "txt"}
            for key, members in map(digests, opened.ours)
        }
        assert found == expected


@pytest.mark.parametrize("opened", cases("pairs"), indirect=True)
def test_ray_data_reads_pairs_as_they_are(opened: OpenedSet, data: ModuleType, table: Table) -> None:
    """Every pair has the same members. As PIL: as arrays, a grey picture beside coloured ones ends the read."""
    import ray

    facts, case = opened.manifest, opened.case
    with table.reading(
        "Ray Data",
        ray.__version__,
        'pairs: read_webdataset with decoder="PIL"',
        case.source,
        case.name,
        facts.samples,
        facts.images,
    ) as row:
        rows = {one["__key__"]: one for one in data.read_webdataset(opened.tars, decoder="PIL").iter_rows()}
        for sample in opened.ours:
            one = rows[sample.key]
            assert [one["jpg"].size] == sizes_of(sample.json)
            assert one["txt"] == sample.json["caption"] == one["json"]["caption"]
            assert one["json"]["sha256"] == sample.json["sha256"]
        row.samples_read = row.images_read = len(rows)


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_ray_data_reads_every_row_of_the_indexes(opened: OpenedSet, data: ModuleType) -> None:
    files = [tar.replace(".tar", ".parquet") for tar in opened.tars]
    rows = data.read_parquet(files).take_all()
    assert sorted(row["key"] for row in rows) == sorted(sample.key for sample in opened.ours)
    assert sum(row["n_images"] for row in rows) == opened.manifest.images


@pytest.mark.parametrize("opened", cases("interleaved"), indirect=True)
def test_ray_data_reads_the_obelics_export(opened: OpenedSet, data: ModuleType, table: Table, tmp_path: Path) -> None:
    """Documents as rows, for whoever wants no decoder of their own."""
    import ray

    facts, case = opened.manifest, opened.case
    export(opened.folder, "obelics", tmp_path)
    reading = "export --to obelics: read_parquet"
    with table.reading(
        "Ray Data", ray.__version__, reading, case.source, case.name, facts.samples, facts.images
    ) as row:
        read = data.read_parquet(str(tmp_path / case.name)).take_all()
        rows = {json.loads(one["general_metadata"])["sample_id"]: one for one in read}
        for sample in opened.ours:
            one = rows[sample.key]
            assert list(one["texts"]) == sample.json["texts"]
            found = [image["bytes"] for image in one["pictures"] if image is not None]
            assert found == jpegs(sample)
            row.images_read += len(found)
        row.samples_read = len(rows)
