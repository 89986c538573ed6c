"""On a cluster that was started beforehand: through RAY_ADDRESS, and as a submitted job."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import command, finish, tree
from tests.made_ray import RAY, started_ray

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with started_ray() as found:
        yield found


@pytest.fixture(scope="module")
def alone(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(sample_recipe, out, "local")
    return tree(out)


def test_ray_address(sample_recipe: Path, alone: dict[str, str], cluster: dict[str, str], tmp_path: Path) -> None:
    environment = os.environ | cluster
    done = subprocess.run(
        command(sample_recipe, tmp_path / "run", "ray"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "run") == alone
    metrics = urllib.request.urlopen(cluster["METRICS"]).read().decode()
    counted = [
        line for line in metrics.splitlines() if line.startswith("ray_vila_data_images_total") and "download" in line
    ]
    assert counted and float(counted[0].rsplit(" ", 1)[1]) > 0


def test_ray_job_submit(sample_recipe: Path, alone: dict[str, str], cluster: dict[str, str], tmp_path: Path) -> None:
    submit = [
        RAY,
        "job",
        "submit",
        "--address",
        cluster["JOBS"],
        "--",
        *command(sample_recipe, tmp_path / "run", "ray"),
    ]
    done = subprocess.run(submit, env=os.environ | cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert tree(tmp_path / "run") == alone
