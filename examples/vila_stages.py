"""VILA's stages: what is trained, how fast, on how much at a time (docs/sources.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW
from vila_model import Vila

WARM_UP = 0.03


@dataclass(frozen=True)
class Stage:
    """llm: whether the language model is trained beside the projector; packs: a step's, as published."""

    learning_rate: float
    llm: bool
    packs: int


STAGES = {
    "align": Stage(1e-3, False, 256),
    "pretrain": Stage(5e-5, True, 1024),
    "sft": Stage(2e-5, True, 128),
}
"""The vision tower is frozen in all of them."""


def freeze(model: Vila, stage: Stage, *, train_tower: bool = False) -> None:
    """Leave gradients to what the stage trains. train_tower: the vision tower too, which VILA never does."""
    model.projector.requires_grad_(True)
    model.llm.requires_grad_(stage.llm)
    model.tower.requires_grad_(train_tower)


def optimizer_of(model: nn.Module) -> AdamW:
    """AdamW without weight decay over what is trained; its rate is set at every step.

    Its moments are made now, as AdamW would make them at a weight's first gradient: some weights never have one (the
    last layer of the tower, a projector before the first image), and a checkpoint has to hold what the next one reads.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AdamW(weights, lr=0.0, weight_decay=0.0)
    for weight in weights:
        moments = {
            name: torch.zeros_like(weight, memory_format=torch.preserve_format) for name in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[weight] = {"step": torch.zeros((), dtype=torch.float32), **moments}
    return optimizer


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rate of step 0, 1, …: up to `peak` over 3% of the steps, then down along a cosine."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
