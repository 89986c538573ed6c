"""The reference trainer as a program of its own, as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.examples.conftest import EXAMPLES

TRAINER = EXAMPLES / "train_vila.py"
ALONE = [sys.executable]
TIMEOUT_S = 300


def ranks(count: int) -> list[str]:
    """What starts a program as `count` ranks of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


def command(folder: Path, log: Path, *options: str, launcher: list[str] | None = None) -> list[str]:
    """The trainer on a made run, writing its steps to `log`."""
    told = ["--recipe", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"), "--stage", "pretrain"]
    return [*(launcher or ALONE), str(TRAINER), *told, "--learning-rate", "3e-3", "--log-file", str(log), *options]


def environment() -> dict[str, str]:
    """One thread a process, since ranks and workers share few cores; and a Ray of its own.

    Without an address Ray joins the cluster that a file in its temporary folder names, which a killed test may have left.
    """
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_ADDRESS": "local"}


def train(folder: Path, log: Path, *options: str, launcher: list[str] | None = None) -> list[dict[str, Any]]:
    """Run it to its end; the steps in its log."""
    called = command(folder, log, *options, launcher=launcher)
    done = subprocess.run(called, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return steps_of(log)


def steps_of(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
