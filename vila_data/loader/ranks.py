"""Which rank of how many a loader reads for: as it was told, and as torch.distributed says when an iteration begins."""

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
"""Variables of launchers that do not set RANK: the rank, and how many there are (empty: not said)."""
_PREPARED: Final = ("DataLoaderShard", "DataLoaderDispatcher")


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world_size`, and who said so.

    told_by: "unfinished": a launcher that has not said the rank yet. checked: whether torch.distributed must agree.
    """

    rank: int
    world_size: int
    told_by: Literal["arguments", "environment", "torch.distributed", "unfinished", "nobody"] = "arguments"
    checked: bool = True

    def current(self) -> Ranks:
        """As it is now, when an iteration begins: ranks may have been launched since the loader was made.

        Raises:
            UsageError: torch.distributed has another rank or world size than the loader was told, or the rank is unknown.
        """
        group = _group()
        if group is None:
            if self.told_by == "unfinished":
                raise UsageError(
                    f"stream: the environment has WORLD_SIZE={os.environ.get('WORLD_SIZE')} and no RANK, and "
                    "torch.distributed is not initialized: initialize it before the iteration, or give rank and world_size"
                )
            return self
        if self.told_by not in ("arguments", "environment"):
            return replace(self, rank=group[0], world_size=group[1])
        if self.checked and group != (self.rank, self.world_size):
            advice = (
                "give neither, and both are taken from there; check_ranks=False where several ranks read the same part of the data"
                if self.told_by == "arguments"
                else "make the loader after init_process_group, or give rank and world_size"
            )
            raise UsageError(
                f"stream: the loader reads as rank {self.rank} of {self.world_size} (from {self.told_by}), but this "
                f"process is rank {group[0]} of {group[1]} of torch.distributed: {advice}"
            )
        return self

    def doubt(self, environment: Mapping[str, str]) -> str:
        """A sentence where this process seems to be one of many that nobody told the loader of; else empty."""
        if self.told_by != "nobody" or self.world_size != 1:
            return ""
        for rank, size in _LAUNCHERS:
            if rank in environment and environment.get(size) != "1":
                among = f" of {size}={environment[size]}" if size in environment else ""
                return (
                    f"stream: {rank}={environment[rank]}{among} is set, but neither RANK nor torch.distributed is: this "
                    "process reads all packs, as every other one does; set RANK and WORLD_SIZE, or give rank and world_size"
                )
        return ""


def ranks_here(environment: Mapping[str, str]) -> Ranks:
    """The rank and world size of torch.distributed where it is initialized, else of RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        UsageError: one of the two variables is missing, or is not a whole number.
    """
    if group := _group():
        return Ranks(*group, "torch.distributed")
    said = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
    rank, size = said.values()
    if rank is None and size in (None, "1"):
        return Ranks(0, 1, "nobody")
    if rank is None and size is not None and size.isdecimal() and "LOCAL_RANK" in environment:
        return Ranks(0, int(size), "unfinished")  # Lightning's launcher: the rank is known when the group is made
    if rank is None or size is None or not rank.isdecimal() or not size.isdecimal():
        found = ", ".join(f"{name}={value}" if value is not None else f"no {name}" for name, value in said.items())
        raise UsageError(f"stream: the environment has {found}: set both to whole numbers, or give rank and world_size")
    return Ranks(int(rank), int(size), "environment")


def refuse_prepared() -> None:
    """Raise UsageError where a DataLoader that accelerate has prepared begins to iterate.

    It reads a batch ahead, so that a state taken between two steps misses one; goes to the epoch that it counts itself;
    and with several processes deals out again what is dealt out already.
    """
    module = sys.modules.get("accelerate.data_loader")
    frame = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            kind = type(frame.f_locals.get("self")).__name__
            if kind in _PREPARED:
                raise UsageError(
                    f"stream: the loader is inside a {kind} of accelerate, which would resume at another batch and deal "
                    "packs out twice: leave it out of accelerator.prepare and iterate it itself (docs/training/accelerate.md)"
                )
        frame = frame.f_back


def _group() -> tuple[int, int] | None:
    """(rank, world size) of torch.distributed, where it is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None
