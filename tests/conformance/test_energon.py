"""Megatron-Energon over sets as this project writes them, and after its own `energon prepare`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.made_run import SETS, MadeRun
from vila_data.core.store import Store
from vila_data.shard.check import check_set
from vila_data.shard.read import open_shards

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("read_energon.py")
CLASSES = {"interleaved": "InterleavedSample", "pairs": "CaptioningSample", "conversations": "InterleavedSample"}
PREPARE = {
    "as written": None,
    "prepared for access by key": ["--tar-index-only"],
    "prepared afresh": ["--non-interactive", "--force-overwrite", "--split-ratio", "1,0,0", "--skip-dataset-yaml"],
}


@pytest.fixture(scope="module")
def python() -> str:
    path = os.environ.get("VILA_DATA_ENERGON_PYTHON")
    if not path:
        pytest.skip("VILA_DATA_ENERGON_PYTHON names no python with Megatron-Energon: see make_energon_env.sh")
    return path


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wanted(folder: Path) -> list[list[Any]]:
    """What the loader should give: [key, class, texts and image sizes in reading order]."""
    reader = open_shards(folder)
    samples: list[list[Any]] = []
    for sample in reader:
        value = sample.json
        if reader.manifest.view == "pairs":
            pieces = [[value["height"], value["width"]], value["caption"]]
        elif reader.manifest.view == "conversations":
            pieces = [turn["value"] for turn in value["conversations"]]
            pieces += [[one["height"], one["width"]] for one in value["image_info"]]
        else:
            sizes = iter([one["height"], one["width"]] for one in value["image_info"])
            pieces = [text if text is not None else next(sizes) for text in value["texts"]]
        samples.append([sample.key, CLASSES[reader.manifest.view], pieces])
    return sorted(samples)


@pytest.mark.parametrize("how", list(PREPARE))
@pytest.mark.parametrize("name", list(SETS))
def test_energon_reads_every_sample(made: MadeRun, name: str, how: str, python: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(made.store.location(f"shards/{name}"), folder)
    options = PREPARE[how]
    if options is not None:
        energon = str(Path(python).with_name("energon"))
        output(energon, "prepare", *options, "--no-progress", "--num-workers", "2", str(folder))
        assert (folder / ".nv-meta" / "index.sqlite").stat().st_size > 0
    found = json.loads(output(python, str(SCRIPT), str(folder), "2" if options else "0").splitlines()[-1])
    assert found["version"].startswith("7.")
    assert sorted(found["samples"]) == wanted(folder)
    assert len(found["samples"]) == made.sets[name].samples
    images = sum(isinstance(piece, list) for _, _, pieces in found["samples"] for piece in pieces)
    assert images == made.sets[name].images
    # prepare writes the tars' indexes anew: they are still those that we wrote
    assert list(check_set(Store(str(folder)), "")) == []
