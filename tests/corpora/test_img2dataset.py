"""Pairs that the real img2dataset has downloaded, from its files to shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import vila_data as vd
from tests.conftest import SAMPLE

DOWNLOAD = """
import sys
from img2dataset import download
download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url", caption_col="text",
         output_format="webdataset", processes_count=1, thread_count=8, image_size=336, resize_mode="keep_ratio",
         resize_only_if_bigger=True, number_sample_per_shard=80, enable_wandb=False, timeout=5, retries=1)
"""

RECIPE = """
version: 1
name: mine
corpora:
  mine: {kind: img2dataset, files: ["downloaded/*.tar"], part_records: 60}
shards:
  mine: {corpus: mine, view: pairs, max_mb: 1}
"""


@pytest.fixture(scope="module")
def folder(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("img2dataset")
    metadata = sample_recipe.parent / "meta" / "coyo-sample-0000.parquet"
    subprocess.run(
        [sys.executable, "-c", DOWNLOAD, str(metadata), str(folder / "downloaded")],
        check=True,
        capture_output=True,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
    )
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_what_img2dataset_downloaded_becomes_shards(folder: Path, tmp_path: Path) -> None:
    report = vd.run(folder / "recipe.yaml", tmp_path / "run", runner="local")
    rows = [
        row for path in sorted((folder / "downloaded").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    good = sum(row["status"] == "success" for row in rows)
    assert len(rows) == 100 and 50 < good < 100
    assert report.funnel["mine"]["download"]["images"] == {"kept": good, "failed:upstream": len(rows) - good}
    truth = json.loads((SAMPLE / "meta" / "truth.json").read_text())["pairs"]
    captions = {facts["caption"] for facts in truth.values()}
    shards = vd.open_shards(tmp_path / "run" / "shards" / "mine")
    assert len(shards) == good
    assert {sample.json["caption"] for sample in shards} <= captions


@pytest.mark.slow
def test_a_tar_that_img2dataset_did_not_finish_is_an_error(folder: Path, tmp_path: Path) -> None:
    stats = folder / "downloaded" / "00001_stats.json"
    text = stats.read_text()
    stats.unlink()
    with pytest.raises(vd.DataError, match=r"00001\.tar: .*00001_stats\.json is missing"):
        vd.run(folder / "recipe.yaml", tmp_path / "run", runner="local")
    stats.write_text(text)
