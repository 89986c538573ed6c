"""Every benchmark of the project's own environment still finds what it measures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO

PEERS = {"stream_energon", "stream_spdl"}
"""They run in the peers' environment."""


def test_benchmarks_import_what_is_there() -> None:
    names = sorted({path.stem for path in (REPO / "benchmarks").glob("*.py")} - PEERS)
    assert {"download", "stream", "workers"} <= set(names)
    paths = os.pathsep.join([str(REPO), str(REPO / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_run_of_the_stream_benchmarks_is_made(tmp_path: Path) -> None:
    """Its sets, token files and lock, by the project's own stages, and the other tools' formats; then it streams."""
    made = (
        "import sys, pathlib, stream_data, vila_data as vd; folder = pathlib.Path(sys.argv[1]); "
        "stream_data.made_run(folder, None, dict.fromkeys(stream_data.SAMPLES, 6)); "
        "print(sum(batch.ids.shape[0] for batch in vd.stream(folder, rank=0, world_size=1, batch_size=1)))"
    )
    paths = os.pathsep.join([str(REPO), str(REPO / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", made, str(tmp_path / "made")],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
