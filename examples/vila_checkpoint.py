"""Checkpoints by torch.distributed.checkpoint: weights, optimizer, schedule, and the loader's place in the data.

One folder a step; PyTorch writes `.metadata` last, so a folder without it is none.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer


class Learned:
    """A model and its optimizer as one Stateful, whatever way they are sharded."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Weights and moments by name."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


class Progress:
    """steps: optimizer steps done; total: those of the schedule, 0 until known; plan: what the total comes from."""

    def __init__(self, plan: str) -> None:
        self.steps, self.total, self.plan = 0, 0, plan

    def state_dict(self) -> dict[str, Any]:
        """All three."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the steps; the total too, unless the plan is now another one."""
        self.steps = state["steps"]
        self.total = state["total"] if state["plan"] == self.plan else 0


def save(folder: Path, learned: Learned, progress: Progress, loader: Any, *, keep: int = 2) -> None:
    """Write a checkpoint of all ranks, then remove all but the newest `keep`."""
    state = {"learned": learned, "progress": progress, "loader": loader}
    dcp.save(state, checkpoint_id=folder / f"step-{progress.steps:06d}", no_dist=not dist.is_initialized())
    if not dist.is_initialized() or dist.get_rank() == 0:
        for old in _whole(folder)[:-keep]:
            (old / ".metadata").unlink()
            shutil.rmtree(old)


def refuse_used(folder: Path) -> None:
    """End where a folder has another training's checkpoints: a new one's would be taken for older ones and removed."""
    if found := _whole(folder):
        raise SystemExit(f"{found[-1]}: of an earlier training: go on from it with --resume, or give another folder")


def resume(folder: Path, learned: Learned, progress: Progress, loader: Any) -> bool:
    """Go on from the newest whole checkpoint, under any number of ranks; False where there is none."""
    found = _whole(folder)
    if found:
        state = {"learned": learned, "progress": progress, "loader": loader}
        dcp.load(state, checkpoint_id=found[-1], no_dist=not dist.is_initialized())
    return bool(found)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Take the weights, and nothing else, of the newest checkpoint of another stage."""
    found = _whole(folder)
    if not found:
        raise SystemExit(f"{folder}: no checkpoint (a folder step-… with .metadata) to take weights from")
    state = {"learned": {"model": get_model_state_dict(model)}}
    dcp.load(state, checkpoint_id=found[-1], no_dist=not dist.is_initialized())
    set_model_state_dict(model, state["learned"]["model"], options=StateDictOptions(strict=True))


def _whole(folder: Path) -> list[Path]:
    return sorted(step for step in folder.glob("step-*") if (step / ".metadata").is_file())
