"""Speeds of a launch, from run.json, as rows for the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vila_data.core.readable import many

_FIRST: Final = ("images", "samples", "records")


@dataclass(frozen=True)
class SpeedRow:
    """A stage: what its tasks did. A rate is that of one task at work; several at a time add up."""

    stage: str
    launch: str
    tasks: str
    work: str
    seconds: str
    rates: str


def speed_rows(totals: Mapping[str, Any]) -> list[SpeedRow]:
    """A row a stage that has done something."""
    rows = []
    for stage, found in totals.get("speed", {}).items():
        seconds = found["task_seconds"]
        unit = next((name for name in _FIRST if found.get(name)), "images")
        work = [many(int(found.get(unit, 0)), unit)]
        rates = [f"{found.get(unit, 0) / seconds:,.0f} {unit}/s"] if seconds else []
        for key, name, scale in (("tokens", "tokens", 1.0), ("bytes", "MB", 1e6)):
            if found.get(key):
                amount = found[key] / scale
                work.append(f"{amount:,.1f} {name}" if scale > 1 else f"{int(amount):,} {name}")
                rates += [f"{amount / seconds:,.1f} {name}/s" if scale > 1 else f"{amount / seconds:,.0f} {name}/s"] * (
                    seconds > 0
                )
        launch = "this launch" if found["launch"] == "this" else "an earlier launch"
        rows.append(
            SpeedRow(stage, launch, f"{int(found['tasks']):,}", ", ".join(work), f"{seconds:,.2f}", ", ".join(rates))
        )
    return rows
