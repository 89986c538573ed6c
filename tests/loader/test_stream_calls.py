"""Wrong calls of `vila_data.stream`: one sentence each, before anything is opened; and values of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vila_data as vd
from tests.loader.made_stream import opened
from vila_data.core.errors import UsageError
from vila_data.loader.faults import FaultBudget
from vila_data.loader.pixels import Normalization

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size must be greater than or equal to 1, found 0$"),
    ({"batch_size": 2.5}, "batch_size must be a valid integer, .*found 2.5$"),
    ({"batch_size": 2.0}, "batch_size must be a valid integer, found 2.0$"),
    ({"batch_size": True}, "batch_size must be a valid integer, found True$"),
    ({"batch_size": None}, "batch_size must be a valid integer, found None$"),
    ({"batch_size": np.array([1, 2])}, "batch_size must be a valid integer, found \\[1, 2\\]$"),
    ({"num_workers": "2"}, "num_workers must be a valid integer, found '2'$"),
    ({"epoch": 1.5}, "epoch must be a valid integer, .*found 1.5$"),
    ({"seed": 1.5}, "seed must be a valid integer, .*found 1.5$"),
    ({"prefetch_mb": -1}, "prefetch_mb must be greater than or equal to 0, found -1$"),
    ({"rank": "0", "world_size": 2}, "rank must be a valid integer, found '0'$"),
    ({"rank": 0, "world_size": 0}, "world_size must be greater than or equal to 1, found 0$"),
    ({"rank": 2, "world_size": 2}, "rank 2 is out of range for world_size 2"),
    ({"rank": 0}, "rank and world_size must be passed together, found only one of them$"),
    ({"report_every_s": "60"}, "report_every_s must be a valid number, found '60'$"),
    ({"report_every_s": float("nan")}, "report_every_s must be .*, found nan$"),
    ({"restart": 1}, "restart must be a valid boolean, found 1$"),
    ({"image": 224}, "image must be a mapping of size_px, fit, background, mean, std, processor, found 224$"),
    ({"image": {"size": 224}}, r"image: unknown key 'size'; did you mean size_px\?$"),
    ({"image": {"fit": "padd"}}, "image.fit must be 'pad', 'resize' or 'crop', found 'padd'$"),
    ({"image": {"mean": 0.5}}, "image: found mean without std; pass both$"),
    ({"image": {"std": 0.5}}, "image: found std without mean; pass both$"),
    ({"image": {"mean": [0.5, 0.5], "std": 1}}, "image.mean must be one number or three, found \\[0.5, 0.5\\]$"),
    ({"image": {"mean": "clip", "std": 1}}, "image.mean must be one number or three, found 'clip'$"),
    ({"image": {"mean": 0.5, "std": [1, 0, 1]}}, "image: mean must be one number or three, and std one positive"),
    (
        {"image": {"mean": 0.5, "std": 1, "processor": "x"}},
        "image: found processor along with mean or std; pass either",
    ),
    ({"image": {"processor": "/no/such"}}, "image: processor /no/such: it is neither a directory nor a repository"),
    ({"image": {("a", "b"): 1}}, "mappings must have text keys and plain values, found "),
    ({"fault_budget": {"fraction": 2}}, "fault_budget.fraction must be less than or equal to 1, found 2$"),
    ({"read": {"cachedir": "x"}}, r"read: unknown key 'cachedir'; did you mean cache_dir\?$"),
    ({"timeout": {"warn": 3}}, r"timeout: unknown key 'warn'; did you mean warn_s\?$"),
    ({"timeout": {"warn_s": "x"}}, "timeout.warn_s must be a valid number, found 'x'$"),
    ({"timeout": {"fail_s": -1}}, "timeout.fail_s must be greater than or equal to 0, found -1$"),
    ({"timeout": 30}, "timeout must be a mapping of warn_s, fail_s, found 30$"),
    ({"device": "cuba"}, "device must be a device that torch knows .*, found 'cuba'$"),
    (
        {"device": "cuda:99"},
        "device must be an available device \\(torch .* finds .* GPUs on this machine\\), found 'cuda:99'$",
    ),
    ({"tokenizer": 3}, "tokenizer must be a path, a hub id or a fast tokenizer, found one of type int$"),
]


@pytest.mark.parametrize(("call", "said"), WRONG, ids=[said[:30] for _, said in WRONG])
def test_a_wrong_call_is_refused_in_one_line(made_folder: Path, call: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^stream: {said}") as found:
        vd.stream(made_folder / "recipe.yaml", made_folder / "run", **call)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("rank", "world_size"),
    [(None, "2"), ("1", None), ("x", "2"), ("0", "-1")],
    ids=["no rank", "no size", "word", "sign"],
)
def test_half_an_environment_is_refused(
    made_folder: Path, monkeypatch: pytest.MonkeyPatch, rank: str | None, world_size: str | None
) -> None:
    """All processes would read the first rank's packs otherwise."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="set both"):
        vd.stream(made_folder / "recipe.yaml", made_folder / "run")


def test_patience_is_the_old_name_of_timeout(made_folder: Path) -> None:
    with pytest.warns(DeprecationWarning, match="patience is now timeout"):
        loader = opened(made_folder, patience={"say_s": 3, "end_s": 4.5})
    next(iter(loader))
    with (
        pytest.warns(DeprecationWarning, match="patience is now timeout"),
        pytest.raises(UsageError, match=r"^stream: timeout.fail_s must be a valid number, found 'x'$"),
    ):
        opened(made_folder, patience={"end_s": "x"})


def test_numbers_of_numpy_and_paths_are_taken(made_folder: Path, tmp_path: Path) -> None:
    given = vd.stream(
        made_folder / "recipe.yaml", made_folder / "run", batch_size=np.int64(2), num_workers=np.int64(0),
        seed=np.int64(17), image={"size_px": np.int64(32)}, read={"cache_dir": tmp_path / "cache"},
        timeout={"warn_s": np.float32(3), "fail_s": float("inf")}, prefetch_mb=torch.tensor(64), fault_budget=FaultBudget(count=1),
    )  # fmt: skip
    state = json.loads(json.dumps(given.state_dict()))
    opened(made_folder).load_state_dict(state)
    with given:
        assert next(iter(given)).pixels.shape[2:] == (32, 32)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_remember_the_normalization(made_folder: Path, tmp_path: Path, num_workers: int) -> None:
    """Given as arrays or read from a processor's file, with workers or without; or not known, then uint8 alone."""
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": [0.5, 0.25, 0.5]}')
    wanted = Normalization((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    given = {"mean": np.full(3, 0.5), "std": torch.tensor([0.5, 0.25, 0.5])}
    for told in ({"processor": tmp_path}, given, {}):
        image = {"size_px": 32, "fit": "pad", **told}
        with opened(made_folder, image=image, num_workers=num_workers, device="cpu") as loader:
            batch = next(batch for batch in loader if len(batch.pixels))
        if not told:
            assert batch.normalization is None
            assert batch.vila(dtype=torch.uint8).images.dtype == torch.uint8
            with pytest.raises(UsageError, match="the model's normalization is not known: pass image="):
                batch.vila()
            continue
        assert batch.normalization == wanted
        assert torch.equal(batch.vila().images, batch.normalized(mean=0.5, std=(0.5, 0.25, 0.5)))
        assert (batch.pixels == 127).all((1, 2)).any(), "padding is the mean"


@pytest.mark.parametrize("epoch", [-1, 1.5, "3", None])
def test_no_epoch_is_refused(made_folder: Path, epoch: Any) -> None:
    with opened(made_folder) as loader, pytest.raises(UsageError, match="set_epoch"):
        loader.set_epoch(epoch)
    assert loader.epoch == 0
