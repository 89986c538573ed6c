"""docs/ray.md, run on a cluster of this machine that asks for a token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.docs.pages import blocks
from tests.docs.sandbox import run_sh
from tests.made_ray import RAY, started_ray

PAGE = REPO / "docs" / "ray.md"


@pytest.mark.slow
def test_the_page(sandbox: Path) -> None:
    """HEAD's ports are those of the cluster; the cluster itself is started as the page's first block says."""
    with started_ray() as cluster:
        ran = 0
        for block in blocks(PAGE):
            if block.language == "sh":
                text = block.text.replace("HEAD:6379", cluster["RAY_ADDRESS"])
                text = text.replace("http://HEAD:8265", cluster["JOBS"]).replace(
                    "http://HEAD:8080", cluster["METRICS"].removesuffix("/metrics")
                )
                said = run_sh(text, sandbox, f"docs/ray.md:{block.line}", cluster)
                ran += 1
                if "ray job submit" in text:
                    assert "succeeded" in said
        assert ran >= 3


@pytest.mark.slow
def test_a_second_machine_joins() -> None:
    """`ray start --address=HEAD:6379`, here as a second node of this machine."""
    with started_ray() as cluster:
        command = [RAY, "start", f"--address={cluster['RAY_ADDRESS']}", "--num-cpus=1", "--block"]
        environment = os.environ | cluster
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as node:
            assert node.stdout is not None
            assert any("Ray runtime started" in line for line in node.stdout)
            probe = "import ray; ray.init(log_to_driver=False); print('cpus', ray.cluster_resources()['CPU'])"
            done = subprocess.run(
                [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True
            )
            node.terminate()
        assert "cpus 3.0" in done.stdout
