"""On a cluster that was started beforehand: through RAY_ADDRESS, and as a submitted job."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import command, finish, tree

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head started with `ray start --head`, with a token; its addresses and what a client must set."""
    ports = {name: free_port() for name in ("gcs", "dashboard", "metrics")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    start = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={ports['gcs']}", "--include-dashboard=true"]
    start += [f"--dashboard-port={ports['dashboard']}", f"--metrics-export-port={ports['metrics']}"]
    with subprocess.Popen(
        start, env=os.environ | token, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as head:
        assert head.stdout is not None
        seen = []
        for line in head.stdout:
            seen.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("".join(seen))
        found = re.search(rf"(\d+\.\d+\.\d+\.\d+):{ports['gcs']}", "".join(seen))
        host = found.group(1) if found else "127.0.0.1"
        yield token | {
            "RAY_ADDRESS": f"{host}:{ports['gcs']}",
            "JOBS": f"http://127.0.0.1:{ports['dashboard']}",
            "METRICS": f"http://127.0.0.1:{ports['metrics']}/metrics",
        }
        head.terminate()


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
