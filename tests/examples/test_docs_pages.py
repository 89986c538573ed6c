"""The program of every page of docs/training is run: once undisturbed, once stopped and resumed, and the losses compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import tiny_llava
from tests.examples.conftest import EXAMPLES
from tests.examples.loops import LOOPS
from tests.examples.trainings import TIMEOUT_S, environment

PAGES = EXAMPLES.parent / "docs" / "training"
STEP = re.compile(r"step (\d+) loss ([\d.e+-]+)")
TRAINED = re.compile(r'"step": (\d+), "loss": ([\d.e+-]+)')


def test_every_page_has_a_test() -> None:
    programs = {"plain_loop", "hf_trainer", "lightning", "accelerate", "ray_train"}
    assert {page.stem for page in PAGES.glob("*.md")} == programs | {"validation"}
    assert {loop.page for loop in LOOPS} == programs


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.write(tmp_path_factory.mktemp("llava"))


def program(page: str, folder: Path) -> Path:
    """The page's only program, in a file of its own."""
    (found,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / f"{page}.md").read_text(), re.M | re.S)
    path = folder / f"{page}_program.py"
    path.write_text(found)
    return path


def called(page: str, made: Path, llava: Path, work: Path, *more: str) -> list[str]:
    work.mkdir(exist_ok=True)
    recipe = made / "recipe.yaml"
    told = [recipe, recipe, made / "run", llava, work / "out"]
    return [sys.executable, str(program(page, work)), *map(str, told), *more]


def losses(text: str, line: re.Pattern[str] = STEP) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in line.findall(text)}


def run(command: list[str], line: re.Pattern[str] = STEP) -> dict[int, float]:
    done = subprocess.run(
        command, env=environment(), cwd=Path(command[1]).parent, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return losses(done.stdout, line)


def run_until(command: list[str], last: int) -> dict[int, float]:
    """Killed as soon as its step `last` is printed."""
    said = ""
    options = {"env": environment(), "cwd": Path(command[1]).parent, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as started:  # type: ignore[call-overload]
        for line in started.stdout:
            said += line
            if last in losses(said):
                os.kill(started.pid, signal.SIGKILL)
                break
    assert started.returncode == -signal.SIGKILL
    return losses(said)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["plain_loop", "lightning", "accelerate"])
def test_killed_and_started_again_it_goes_on(page: str, made_folder: Path, llava: Path, tmp_path: Path) -> None:
    undisturbed = run(called(page, made_folder, llava, tmp_path / "whole"))
    assert len(undisturbed) > 12
    command = called(page, made_folder, llava, tmp_path / "killed")
    before = run_until(command, 10)
    after = run(command)
    assert min(after) == 9 and max(after) == max(undisturbed)  # the last checkpoint was that of step 8
    assert before == {step: undisturbed[step] for step in before}
    assert after == {step: undisturbed[step] for step in after}


@pytest.mark.slow
def test_the_trainer_of_transformers_goes_on(made_folder: Path, llava: Path, tmp_path: Path) -> None:
    undisturbed = run(called("hf_trainer", made_folder, llava, tmp_path / "whole"))
    assert sorted(undisturbed) == list(range(1, 13))
    command = called("hf_trainer", made_folder, llava, tmp_path / "stopped")
    source = Path(command[1])
    whole = source.read_text()
    source.write_text(whole.replace("max_steps=12", "max_steps=8"))
    before = run(command)
    source.write_text(whole)
    after = run(command)
    assert before == {step: undisturbed[step] for step in range(1, 9)}
    assert after == undisturbed  # its log has the steps before the checkpoint too


@pytest.mark.slow
def test_ray_goes_on_with_another_number_of_workers(made_folder: Path, llava: Path, tmp_path: Path) -> None:
    two = run(called("ray_train", made_folder, llava, tmp_path / "whole", "2", "8"), TRAINED)
    assert sorted(two) == list(range(1, 9))
    before = run(called("ray_train", made_folder, llava, tmp_path / "stopped", "2", "5"), TRAINED)
    after = run(called("ray_train", made_folder, llava, tmp_path / "stopped", "1", "8"), TRAINED)
    assert sorted(before) == [1, 2, 3, 4, 5] and sorted(after) == [6, 7, 8]
    for step, loss in (before | after).items():
        assert loss == pytest.approx(two[step], abs=2e-4)
