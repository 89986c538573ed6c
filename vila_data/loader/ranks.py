"""The rank and world size of a loader: as given, and as torch.distributed has them when an iteration begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch

from vila_data.core.errors import UsageError

_LAUNCHERS: Final = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", ""),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
"""Variables of launchers that do not set RANK: the rank and the world size (empty: there is none)."""
_ACCELERATE_LOADERS: Final = ("DataLoaderShard", "DataLoaderDispatcher")


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world_size`, and where they come from.

    source: "launcher": its process group exists only later. checked: whether torch.distributed must agree.
    """

    rank: int
    world_size: int
    source: Literal["arguments", "environment", "torch.distributed", "launcher", "default"] = "arguments"
    checked: bool = True

    def current(self) -> Ranks:
        """As it is now, when an iteration begins: ranks may have been launched since the loader was made.

        Raises:
            UsageError: torch.distributed has another rank or world size than the loader was given, or the rank is unknown.
        """
        group = _group()
        if group is None:
            if self.source == "launcher":
                raise UsageError(
                    f"stream: WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, but RANK is not set and torch.distributed is not "
                    "initialized; initialize it before the iteration, or pass rank and world_size"
                )
            return self
        if self.source not in ("arguments", "environment"):
            return replace(self, rank=group[0], world_size=group[1])
        if self.checked and group != (self.rank, self.world_size):
            advice = (
                "pass neither to use those of torch.distributed, or check_ranks=False if several ranks read the same data"
                if self.source == "arguments"
                else "create the loader after init_process_group, or pass rank and world_size"
            )
            raise UsageError(
                f"stream: the loader reads as rank {self.rank} of {self.world_size} (from {self.source}), but this "
                f"process is rank {group[0]} of {group[1]} in torch.distributed; {advice}"
            )
        return self

    def warning(self, environment: Mapping[str, str]) -> str:
        """A sentence if this process seems to be one of several that the loader does not know of; otherwise empty."""
        if self.source != "default" or self.world_size != 1:
            return ""
        for rank, size in _LAUNCHERS:
            if rank in environment and environment.get(size) != "1":
                among = f" of {size}={environment[size]}" if size in environment else ""
                return (
                    f"stream: {rank}={environment[rank]}{among} is set, but RANK is not and torch.distributed is not "
                    "initialized, so every process reads all packs; set RANK and WORLD_SIZE, or pass rank and world_size"
                )
        return ""


def ranks_here(environment: Mapping[str, str]) -> Ranks:
    """The rank and world size of torch.distributed if it is initialized, else of RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        UsageError: one of the two variables is missing, or is not an integer.
    """
    if group := _group():
        return Ranks(*group, "torch.distributed")
    values = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
    rank, size = values.values()
    if rank is None and size in (None, "1"):
        return Ranks(0, 1, "default")
    if rank is None and size is not None and size.isdecimal() and "LOCAL_RANK" in environment:
        return Ranks(0, int(size), "launcher")  # Lightning's launcher: the rank is known when the group is made
    if rank is None or size is None or not rank.isdecimal() or not size.isdecimal():
        found = ", ".join(f"{name}={value}" if value is not None else f"no {name}" for name, value in values.items())
        raise UsageError(
            f"stream: RANK and WORLD_SIZE must both be integers (found {found}); set both, or pass rank and world_size"
        )
    return Ranks(int(rank), int(size), "environment")


def refuse_prepared() -> None:
    """Raise UsageError where a DataLoader that accelerate has prepared begins to iterate.

    It reads a batch in advance, so that a state taken between two steps misses one; it sets its own epoch number; and
    with several processes it distributes batches that are already distributed.
    """
    module = sys.modules.get("accelerate.data_loader")
    frame = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            kind = type(frame.f_locals.get("self")).__name__
            if kind in _ACCELERATE_LOADERS:
                raise UsageError(
                    f"stream: the loader is inside a {kind} of accelerate, which would resume at another batch and "
                    "distribute packs twice; do not pass it to accelerator.prepare, iterate it directly "
                    "(docs/training/accelerate.md)"
                )
        frame = frame.f_back


def _group() -> tuple[int, int] | None:
    """(rank, world size) of torch.distributed, if it is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None
