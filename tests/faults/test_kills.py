"""Kill -9 anywhere, relaunch the same command: the bytes of a run that was left alone."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.kills import Launches, command, finish, tree
from vila_data.explore.inspection import check

KILLS = 20
UNDISTURBED_S = 600
"""No run takes as long."""


@pytest.fixture(scope="module")
def alone(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(sample_recipe, out, "local")
    return out, tree(out)


def test_run_left_alone_is_whole(alone: tuple[Path, dict[str, str]]) -> None:
    out, files = alone
    assert list(check(out)) == []
    assert any(path.endswith(".tar") and path.startswith("shards/") for path in files)


@pytest.fixture(scope="module")
def launches() -> Iterator[Launches]:
    found = Launches()
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_killed_at_random_moments(
    sample_recipe: Path, alone: tuple[Path, dict[str, str]], launches: Launches, tmp_path: Path, runner: str
) -> None:
    """20 kills that hit the run at work; a run that ends before its kill is compared, and begun anew."""
    out = tmp_path / "run"
    _, expected = alone
    rng = random.Random(17)
    span = UNDISTURBED_S
    hits = attempts = 0
    while hits < KILLS:
        attempts += 1
        assert attempts <= 5 * KILLS, "the kills do not hit the run: this proves nothing"
        anew, start = not out.exists(), time.monotonic()
        if launches.run_and_kill(sample_recipe, out, runner, rng.uniform(0, span) if attempts > 1 else span):
            hits += 1
        else:
            if anew:
                span = time.monotonic() - start  # as fast as this machine is now
            assert tree(out) == expected
            shutil.rmtree(out)
    finish(sample_recipe, out, runner)
    assert tree(out) == expected
    print(f"\n{runner}: {hits} kills in {attempts} launches")


def _busy_workers(driver: psutil.Process) -> Iterator[psutil.Process]:
    """The driver's own: another run may be at work on this machine."""
    for process in driver.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::download" in " ".join(process.cmdline()):
                yield process


@pytest.mark.slow
def test_a_ray_worker_killed_in_mid_part(
    sample_recipe: Path, alone: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(command(sample_recipe, out, "ray"), stdout=subprocess.DEVNULL) as process:
        killed = 0
        while process.poll() is None and not killed:
            for worker in _busy_workers(psutil.Process(process.pid)):
                worker.send_signal(signal.SIGKILL)
                killed += 1
        assert process.wait() == 0
    assert killed, "no worker was killed: this proves nothing"
    assert tree(out) == alone[1]
