"""A whole run on S3 (moto's server on loopback): the same bytes as on a disk, and resumed there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

import vila_data as vd
from tests.faults.kills import TIMED, tree
from vila_data.core.store import Store
from vila_data.workflow.inspection import check, inspect


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="corpora")
    yield "s3://corpora"
    server.stop()


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
