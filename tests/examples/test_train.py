"""What each stage trains, how fast, and that losses fall."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from train_vila import Options, Step, Trainer, main, parse
from vila_model import model_config
from vila_stages import STAGES, learning_rate


def options(folder: Path, **changes: Any) -> Options:
    defaults = {"recipe": str(folder / "recipe.yaml"), "run_dir": str(folder / "run"), "stage": "pretrain",
                "batch_size": 4, "num_workers": 0, "learning_rate": 3e-3}  # fmt: skip
    return Options(**(defaults | changes))


def trained(folder: Path, **changes: Any) -> tuple[list[Step], dict[str, torch.Tensor]]:
    trainer = Trainer(options(folder, **changes))
    steps = list(trainer.steps())
    trainer.close()
    return steps, trainer.model.state_dict()


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"stage": "align"}, {"projector"}),
        ({"stage": "pretrain"}, {"projector", "llm"}),
        ({"stage": "sft"}, {"projector", "llm"}),
        ({"stage": "sft", "train_tower": True}, {"projector", "llm", "tower"}),
    ],
    ids=["align", "pretrain", "sft", "sft with its tower"],
)
def test_a_stage_trains_what_vila_trains(made_folder: Path, changes: dict[str, Any], moved: set[str]) -> None:
    untrained = Trainer(options(made_folder, **changes))
    before = {name: weight.clone() for name, weight in untrained.model.state_dict().items()}
    untrained.close()
    _, after = trained(made_folder, stop_after=2, **changes)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == moved


def test_the_loss_falls(made_folder: Path) -> None:
    steps, _ = trained(made_folder, stop_after=12)
    assert steps[0].loss == pytest.approx(math.log(1500), rel=0.05)
    assert max(step.loss for step in steps[-3:]) < 0.85 * steps[0].loss


def test_accumulated_steps_are_those_of_one_large_batch(made_folder: Path) -> None:
    large, weights = trained(made_folder, batch_size=4, stop_after=4)
    small, others = trained(made_folder, batch_size=1, accumulate=4, stop_after=4)
    assert [step.packs for step in small] == [4] * 4
    for one, other in zip(large, small, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=2e-5)
        assert (one.tokens, one.trained, one.images) == (other.tokens, other.trained, other.images)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=2e-3, rtol=0)


SWITCHES: list[dict[str, Any]] = [{}, {"train_tower": True}, {"accumulate": 2}, {"recompute": True}, {"bf16": True}]


@pytest.mark.parametrize(
    ("stage", "switch"),
    [
        *(("align", switch) for switch in SWITCHES[:2]),
        *(("pretrain", switch) for switch in SWITCHES[:1]),
        *(("sft", switch) for switch in [*SWITCHES[1:], {"fsdp": True}, {"fsdp": True, "train_tower": True}]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_every_stage_and_switch_resumes(made_folder: Path, tmp_path: Path, stage: str, switch: dict[str, Any]) -> None:
    """Some trained weights never get a gradient: the last layer of the tower, which the features do not come from."""
    whole, _ = trained(made_folder, stage=stage, stop_after=3, **switch)
    saved = {"stage": stage, "checkpoints": tmp_path, "stop_after": 2} | switch
    before, _ = trained(made_folder, **saved)
    after, _ = trained(made_folder, **saved | {"stop_after": 1, "resume": True})
    assert [step.loss for step in [*before, *after]] == [step.loss for step in whole]


def test_the_next_stage_takes_the_weights_of_the_last(made_folder: Path, tmp_path: Path) -> None:
    _, weights = trained(made_folder, stage="align", checkpoints=tmp_path, stop_after=1)
    trainer = Trainer(options(made_folder, stage="sft", init=tmp_path, seed=99))
    found = trainer.model.state_dict()
    trainer.close()
    assert all(torch.equal(weight, found[name]) for name, weight in weights.items())


def test_other_tokens_an_image_are_refused(made_folder: Path) -> None:
    with pytest.raises(SystemExit, match="makes 16 tokens of an image, the recipe counts 20"):
        Trainer(options(made_folder, set=("pack.tokens_per_image=20",)))


def test_rates_warm_up_and_fall_along_a_cosine() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and max(rates) == 1.0
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 0.01
    assert {name: stage.learning_rate for name, stage in STAGES.items()} == {
        "align": 1e-3,
        "pretrain": 5e-5,
        "sft": 2e-5,
    }


def test_every_option_can_be_said() -> None:
    asked = ["--recipe", "r", "--run-dir", "x", "--stage", "sft", "--set", "a=1", "--set", "b=2", "--bf16"]
    said = parse([*asked, "--clip", "0.5", "--log-file", "l", "--stop-after", "3"])
    assert (said.set, said.bf16, said.clip, said.log_file, said.stop_after) == (("a=1", "b=2"), True, 0.5, Path("l"), 3)
    assert said.fsdp is False and said.learning_rate is None


@pytest.mark.parametrize(
    "wrong",
    ["--batch-size 0", "--accumulate 0", "--epochs 0", "--save-every 0", "--stop-after 0", "--num-workers -1",
     "--learning-rate -1.0", "--learning-rate nan"],
)  # fmt: skip
def test_numbers_that_train_nothing_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--recipe", "r", "--run-dir", "x", "--stage", "sft", *wrong.split()])
    assert f"{wrong}: give " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there a GPU takes them")
@pytest.mark.parametrize("attention", ["flex", "flash"])
def test_attention_that_cpus_cannot_train_is_refused(made_folder: Path, attention: str) -> None:
    with pytest.raises(SystemExit, match=f"--attention {attention}: needs a GPU"):
        Trainer(options(made_folder, attention=attention))


def test_another_training_does_not_write_among_checkpoints(made_folder: Path, tmp_path: Path) -> None:
    """Its first steps would count as older than those that are there, and be removed as soon as written."""
    trained(made_folder, checkpoints=tmp_path, stop_after=1)
    with pytest.raises(SystemExit, match=r"step-000001: of an earlier training: .*--resume"):
        Trainer(options(made_folder, checkpoints=tmp_path))
    assert [step.step for step in trained(made_folder, checkpoints=tmp_path, stop_after=1, resume=True)[0]] == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tower: a\nllm: b\nlayers: 3", "has tower, llm, layers: give"),
        ("tower: a", "has tower: give"),
        ("- 1", "has list: give"),
        ("tower: a\nllm: b\nprojector: mlp", "projector 'mlp': one of linear, mlp2x_gelu, downsample_2x2"),
    ],
    ids=["unknown key", "no language model", "a list", "unknown projector"],
)
def test_a_wrong_model_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(SystemExit, match=said):
        model_config(str(tmp_path / "model.yaml"))


def test_an_error_of_the_data_is_one_sentence(made_folder: Path, tmp_path: Path) -> None:
    called = ["--recipe", str(made_folder / "recipe.yaml"), "--run-dir", str(tmp_path), "--stage", "sft"]
    with pytest.raises(SystemExit, match=r"is not a run .*recipe.lock.yaml"):
        main(called)
