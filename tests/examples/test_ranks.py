"""Two ranks under FSDP2 (gloo, CPU) train what one rank trains, and another number of ranks goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.trainings import ranks, train

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def alone(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    log = tmp_path_factory.mktemp("alone") / "log.jsonl"
    return train(made_folder, log, "--batch-size", "2", "--num-workers", "0")


@pytest.mark.slow
@pytest.mark.parametrize("switch", [("--fsdp",), ()], ids=["sharded", "copies"])
def test_losses_of_two_ranks_are_those_of_one(
    made_folder: Path, tmp_path: Path, alone: list[dict[str, float]], switch: tuple[str, ...]
) -> None:
    options = ("--batch-size", "1", "--num-workers", "1", *switch)
    together = train(made_folder, tmp_path / "log.jsonl", *options, launcher=ranks(2))
    assert len(together) == len(alone) > 10
    for two, one in zip(together, alone, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=TOLERANCE)
        assert [two[name] for name in ("tokens", "images", "packs")] == [
            one[name] for name in ("tokens", "images", "packs")
        ]
    assert sum(one["images"] for one in alone) > 0


@pytest.mark.slow
def test_one_rank_goes_on_where_two_were(made_folder: Path, tmp_path: Path, alone: list[dict[str, float]]) -> None:
    log, saving = tmp_path / "log.jsonl", ("--checkpoints", str(tmp_path / "checkpoints"), "--num-workers", "0")
    half = len(alone) // 2
    train(made_folder, log, "--batch-size", "1", "--fsdp", "--stop-after", str(half), *saving, launcher=ranks(2))
    steps = train(made_folder, log, "--batch-size", "2", "--resume", *saving)
    for found, expected in zip(steps, alone, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=TOLERANCE)
        assert found["packs"] == expected["packs"]


@pytest.mark.slow
def test_another_step_size_consumes_the_packs_that_were_left(
    made_folder: Path, tmp_path: Path, alone: list[dict[str, float]]
) -> None:
    log, saving = tmp_path / "log.jsonl", ("--checkpoints", str(tmp_path / "checkpoints"), "--num-workers", "0")
    train(made_folder, log, "--batch-size", "2", "--stop-after", "5", *saving)
    steps = train(made_folder, log, "--batch-size", "3", "--resume", *saving, launcher=ranks(2))
    for total in ("packs", "images", "tokens", "trained"):
        assert sum(step[total] for step in steps) == sum(step[total] for step in alone)
    assert [step["packs"] for step in steps[:5]] == [2] * 5 and steps[5]["packs"] == 6
