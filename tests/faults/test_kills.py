"""Kill -9 anywhere, relaunch the same command: the bytes of a run that was left alone."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.kills import command, finish, run_and_kill, tree
from vila_data.workflow.inspection import check

KILLS = 20


@pytest.fixture(scope="module")
def alone(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], float]:
    out = tmp_path_factory.mktemp("alone") / "run"
    start = time.monotonic()
    finish(sample_recipe, out, "local")
    return out, tree(out), time.monotonic() - start


def test_run_left_alone_is_whole(alone: tuple[Path, dict[str, str], float]) -> None:
    out, files, _ = alone
    assert list(check(out)) == []
    assert any(path.endswith(".tar") and path.startswith("shards/") for path in files)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_killed_at_random_moments(
    sample_recipe: Path, alone: tuple[Path, dict[str, str], float], tmp_path: Path, runner: str
) -> None:
    """20 kills that hit the run at work; a run that ends before its kill is compared, and begun anew."""
    out = tmp_path / "run"
    _, expected, seconds = alone
    rng = random.Random(17)
    span = seconds + (12 if runner == "ray" else 0)
    hits = attempts = 0
    while hits < KILLS:
        attempts += 1
        assert attempts <= 5 * KILLS, "the kills do not hit the run: this proves nothing"
        if run_and_kill(sample_recipe, out, runner, rng.uniform(0.5, span)):
            hits += 1
        else:
            assert tree(out) == expected
            shutil.rmtree(out)
    finish(sample_recipe, out, runner)
    assert tree(out) == expected
    print(f"\n{runner}: {hits} kills in {attempts} launches")


def _busy_workers() -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if "ray::download" in " ".join(process.info["cmdline"] or ()):
            yield process


@pytest.mark.slow
def test_a_ray_worker_killed_in_mid_part(
    sample_recipe: Path, alone: tuple[Path, dict[str, str], float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(command(sample_recipe, out, "ray"), stdout=subprocess.DEVNULL) as process:
        killed = 0
        while process.poll() is None and not killed:
            for worker in _busy_workers():
                worker.send_signal(signal.SIGKILL)
                killed += 1
        assert process.wait() == 0
    assert killed, "no worker was killed: this proves nothing"
    assert tree(out) == alone[1]
