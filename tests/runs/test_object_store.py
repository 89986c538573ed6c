"""A whole run on S3 (moto's server on loopback): the same bytes as on a disk, and resumed there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

import vila_data as vd
from tests.faults.kills import TIMED, tree
from tests.made_s3 import served_s3
from vila_data.core.store import Store
from vila_data.explore.inspection import check, inspect


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served_s3(monkeypatch):
        boto3.client("s3").create_bucket(Bucket="corpora")
        yield "s3://corpora"


def test_a_run_on_s3(bucket: str, sample_recipe: Path, tmp_path: Path) -> None:
    out = f"{bucket}/run"
    vd.run(sample_recipe, out, runner="local", only="download")
    report = vd.run(sample_recipe, out, runner="local")
    assert report.finished and list(check(out)) == []
    store = Store(out)
    there = {
        path: hashlib.sha256(store.read(path)).hexdigest()
        for path in store.files("")
        if path.rsplit("/", 1)[-1] not in TIMED
    }
    vd.run(sample_recipe, tmp_path / "run", runner="local")
    assert there == tree(tmp_path / "run")
    kind, value = inspect(f"{out}/shards/docs")
    assert (
        kind == "set" and value["samples"] == len(vd.open_shards(f"{out}/shards/docs")) == report.sets["docs"].samples
    )
