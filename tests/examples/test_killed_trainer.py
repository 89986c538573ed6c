"""A trainer that is killed goes on as if nothing had been: the same floats, not nearly the same."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.examples.trainings import command, environment, steps_of, train

EXACT = ("loss", "learning_rate", "tokens", "trained", "images", "packs", "epoch")
OPTIONS = ("--batch-size", "2", "--accumulate", "2", "--epochs", "2", "--num-workers", "1")


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_the_losses_are_the_same(made_folder: Path, tmp_path: Path) -> None:
    undisturbed = train(made_folder, tmp_path / "undisturbed.jsonl", *OPTIONS)
    log, checkpoints = tmp_path / "killed.jsonl", tmp_path / "checkpoints"
    saving = (*OPTIONS, "--checkpoints", str(checkpoints), "--save-every", "4")
    first_epoch = sum(step["epoch"] == 0 for step in undisturbed)
    last = first_epoch + 3  # past a checkpoint of the second epoch's middle, short of the next one
    assert 8 < last < len(undisturbed) - 4

    with subprocess.Popen(
        command(made_folder, Path("/dev/stdout"), *saving), env=environment(), stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None
        written = b""
        for line in trainer.stdout:
            written += line
            if written.count(b"\n") == last:
                os.kill(trainer.pid, signal.SIGKILL)
                break
    assert trainer.returncode == -signal.SIGKILL
    log.write_bytes(written)
    before = steps_of(log)
    assert len(before) == last

    resumed = train(made_folder, tmp_path / "resumed.jsonl", *saving, "--resume")
    start = resumed[0]["step"]
    assert 0 < start <= last and start % 4 == 0 and start < len(undisturbed)
    for steps in (before, resumed):
        for step in steps:
            expected = undisturbed[step["step"]]
            assert {name: step[name] for name in EXACT} == {name: expected[name] for name in EXACT}
    assert [step["step"] for step in resumed] == list(range(start, len(undisturbed)))


@pytest.mark.slow
def test_a_checkpoint_that_was_not_finished_is_none(made_folder: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    saving = (*OPTIONS, "--checkpoints", str(checkpoints), "--save-every", "2")
    whole = train(made_folder, tmp_path / "whole.jsonl", *saving, "--stop-after", "4")
    (checkpoints / "step-000004" / ".metadata").unlink()
    resumed = train(made_folder, tmp_path / "resumed.jsonl", *saving, "--stop-after", "2", "--resume")
    assert [step["step"] for step in resumed] == [2, 3]
    assert [step["loss"] for step in resumed] == [step["loss"] for step in whole[2:]]
