"""A Ray cluster on this machine, started as its operator would, with a token."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started_ray() -> Iterator[dict[str, str]]:
    """A head started with `ray start --head`; its addresses and what a client must set.

    RAY_ADDRESS, and JOBS and METRICS with http://; programs of this interpreter's environment are in the workers' PATH.
    """
    ports = {name: free_port() for name in ("gcs", "dashboard", "metrics")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    path = {"PATH": str(Path(RAY).parent) + os.pathsep + os.environ["PATH"]}
    start = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={ports['gcs']}", "--include-dashboard=true"]
    start += [f"--dashboard-port={ports['dashboard']}", f"--metrics-export-port={ports['metrics']}"]
    with subprocess.Popen(
        start, env=os.environ | token | path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
