"""Every benchmark of the project's own environment still finds what it measures."""

from __future__ import annotations

import os
import subprocess
import sys

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
