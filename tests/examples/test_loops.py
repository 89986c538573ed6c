"""Programs of docs/training under their launchers train what one process trains; `python -m tests.examples.loops` has the whole table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.loops import LOOPS, Made, Noted, compared, reference, wrong


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.at(tmp_path_factory.mktemp("loops"))


@pytest.fixture(scope="module")
def expected(made_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Noted:
    return reference(made_run, tmp_path_factory.mktemp("reference"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Lightning, its own launcher", "HF Trainer"])
def test_two_ranks_train_what_one_process_trains(name: str, made_run: Made, expected: Noted, tmp_path: Path) -> None:
    (loop,) = (loop for loop in LOOPS if loop.name == name)
    found = compared(loop, 2, made_run, tmp_path / "work", expected)
    assert not wrong(found), found
    assert len(expected.samples) == 7 and min(map(len, expected.samples)) > 5, "otherwise this test proves nothing"
