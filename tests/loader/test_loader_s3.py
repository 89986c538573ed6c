"""A whole epoch from S3 (moto's server on loopback, behind a proxy that spoils answers): nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs

import vila_data as vd
from tests.core.ranges.faulty_proxy import FaultyProxy
from tests.loader.made_stream import IMAGE, opened
from tests.loader.test_loader import same
from tests.made_s3 import served_s3


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, made_folder: Path) -> Iterator[FaultyProxy]:
    with served_s3(monkeypatch) as (host, port):
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        run = made_folder / "run"
        for path in run.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "runs", f"made/{path.relative_to(run)}")
        faulty = FaultyProxy(host, port, share=0.0, streak=2)
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        s3fs.S3FileSystem.clear_instance_cache()  # it remembers the endpoint of another test
        yield faulty
        faulty.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_a_store_that_fails_is_that_from_a_disk(
    proxy: FaultyProxy, made_folder: Path, tmp_path: Path, workers: int
) -> None:
    read = {"cache_dir": str(tmp_path / "cache"), "backoff_s": 0.001, "io_threads": 8}
    options = {"rank": 0, "world_size": 1, "batch_size": 4, "num_workers": workers, "image": IMAGE, "read": read}
    loader = vd.stream(made_folder / "recipe.yaml", "s3://runs/made", **options)  # type: ignore[arg-type]
    proxy.share = 0.4
    with loader:
        found = list(loader)
        first = loader.metrics()
        expected = list(opened(made_folder, batch_size=4))
        assert len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))
        assert not sum(first.faults.values()) and first.cache_hits == 0
        assert sum(proxy.faults.values()) > 20 and first.retries > 10
        assert {"503", "500", "reset"} <= {kind.removeprefix("HEAD ") for kind in proxy.faults}
        again = list(loader)
    metrics = loader.metrics()
    assert metrics.cache_hits > 0.9 * first.reads, "a second epoch comes from the cache"
    assert sum(len(batch.pixels) for batch in again) == sum(len(batch.pixels) for batch in found)


@pytest.mark.slow
def test_a_store_that_goes_away_ends_the_run_with_one_message(
    proxy: FaultyProxy, made_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    read = {"backoff_s": 0.001, "retries": 0}
    loader = vd.stream(
        made_folder / "recipe.yaml", "s3://runs/made", num_workers=1, batch_size=2, image=IMAGE, read=read
    )
    batches = iter(loader)
    next(batches)
    assert list(tmp_path.iterdir()), "copies of token files, where no cache keeps them"
    proxy.share = 1.0
    with pytest.raises(vd.DataError, match="samples are broken, more than fault_budget allows"):
        list(batches)
    loader.close()
    assert not list(tmp_path.iterdir())
