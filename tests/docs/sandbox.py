"""The folder in which a page's commands run: the repository's recipes and sample, and a finished run of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import vila_data as vd
from tests.conftest import REPO, SAMPLE

PORT = "8765"
TIMEOUT_S = 600
LINKED = ("benchmarks", "examples", "tests", "vila_data", "pyproject.toml", "constraints.txt", "README.md")


def make_home(folder: Path, web: str) -> Path:
    """A folder with `recipes/`, `shards/`, `docs/` and the finished run `runs/demo`, all for the sample at `web`."""
    import rebase

    host = web.removeprefix("http://")
    for name in LINKED:
        (folder / name).symlink_to(REPO / name)
    shutil.copytree(REPO / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPO / "recipes", folder / "recipes")
    (folder / "shards" / "sample").mkdir(parents=True)
    shutil.copy(REPO / "shards" / "FORMAT.md", folder / "shards")
    for entry in SAMPLE.iterdir():
        if entry.name not in ("meta", "corpora.yaml", "__pycache__"):
            (folder / "shards" / "sample" / entry.name).symlink_to(entry)
    rebase.rebase(SAMPLE / "meta", folder / "shards" / "sample" / "meta", web)
    (folder / "shards" / "sample" / "corpora.yaml").write_text(_served(SAMPLE / "corpora.yaml", host))
    (folder / "recipes" / "sample.yaml").write_text(_served(REPO / "recipes" / "sample.yaml", host))
    (folder / "out").mkdir()
    vd.run(folder / "recipes" / "sample.yaml", folder / "runs" / "demo", runner="local")
    return folder


def _served(file: Path, host: str) -> str:
    text = file.read_text(encoding="utf-8")
    assert f"127.0.0.1:{PORT}" in text
    return text.replace(f"127.0.0.1:{PORT}", host)


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def programs() -> str:
    """PATH with the programs of this interpreter's environment first, as where a user has activated it."""
    return str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]


def run_sh(script: str, folder: Path, where: str, extra: dict[str, str] | None = None) -> str:
    """Run a block; its output. Ports are free ones, and programs are those of this interpreter's environment."""
    script = script.replace(f"--port {PORT}", f"--port {free_port()}")
    environment = os.environ | {
        "PATH": programs(),
        "PYTHONPATH": str(folder),
        "RAY_ADDRESS": "local",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "200",
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environment | (extra or {}), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, (
        f"{where}: exit {done.returncode}\n{script}\n{done.stdout[-3000:]}{done.stderr[-5000:]}"
    )
    return done.stdout
