"""Imported by a training program: writes what it trains on and the gradients of every optimizer step, to compare loops.

LOOPS_OUT names the folder, each process writes a file there. Weights are not moved, so that gradients of any two loops can be
compared. Step number LOOPS_STOP ends the process: with status LOOPS_STATUS, 0 when all ranks are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vila_data.loader.batch import PackedBatch
from vila_data.loader.loader import StreamLoader

STOP, STATUS = int(os.environ.get("LOOPS_STOP", "0")), int(os.environ.get("LOOPS_STATUS", "0"))
_iterate, _view = StreamLoader.__iter__, PackedBatch.hugging_face
_held: dict[int, object] = {}
_fetched: list[list[Any]] = []
_steps = 0


def write(line: dict[str, Any]) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    with open(f"{os.environ['LOOPS_OUT']}/{rank}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def iterate(loader: StreamLoader) -> Iterator[PackedBatch]:
    for batch in _iterate(loader):
        if loader._options.restart:
            _held[id(batch.origins)] = batch.origins  # kept: the id stays its own
        yield batch


def view(batch: PackedBatch, *arguments: Any, **options: Any) -> Any:
    samples = [[batch.epoch, origin.key] for origin in batch.origins]
    if id(batch.origins) in _held:
        write({"held": samples})
    else:
        _fetched.extend(samples)
    return _view(batch, *arguments, **options)


def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    global _steps
    _steps += 1
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    norms = sorted(norm for weight in weights if (norm := float(weight.grad.norm())))
    write({"step": _steps, "samples": _fetched, "norms": norms})
    _fetched.clear()
    if _steps == STOP:
        if not STATUS and dist.is_initialized():
            dist.barrier()
        os._exit(STATUS)
    for group in optimizer.param_groups:
        group["lr"] = 0.0


StreamLoader.__iter__, PackedBatch.hugging_face = iterate, view  # type: ignore[method-assign]
register_optimizer_step_pre_hook(before_step)
