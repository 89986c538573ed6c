"""The table of `vila-data bench`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_bench(console: Console, value: dict[str, Any]) -> None:
    """Rates, where the workers' time went, and what the consumer waited."""
    table = Table(title=f"{value['seconds']:.1f} s of streaming", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("a second", justify="right")
    for name in ("batches", "packs", "samples", "images", "tokens"):
        table.add_row(name, f"{value[name]:,}", f"{value[f'{name}_per_s']:,.1f}")
    table.add_row("MB read", f"{value['read_bytes'] / 1e6:,.1f}", f"{value['read_bytes_per_s'] / 1e6:,.1f}")
    console.print(table)
    stages = Table(title="workers' time", title_justify="left")
    stages.add_column("stage")
    stages.add_column("seconds", justify="right")
    stages.add_column("share", justify="right")
    total = sum(value["stage_seconds"].values()) or 1.0
    for stage, seconds in value["stage_seconds"].items():
        mark = "  < slowest" if stage == value["slowest_stage"] else ""
        stages.add_row(f"{stage}{mark}", f"{seconds:.2f}", f"{seconds / total:.1%}")
    console.print(stages)
    step = (
        f"with steps of {value['step_s'] * 1000:.0f} ms" if value["step_s"] else "taking batches as fast as they come"
    )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in value["sources"].items())
    for line in (
        f"the consumer, {step}, waited {value['waited_share']:.2%} of the time; slowest stage: {value['slowest_stage']}",
        f"fill {value['fill']:.2%}; tokens: {shares}",
        f"cache hits {value['cache_hits']:,} of {value['reads']:,} reads; retries {value['retries']:,}; faults "
        f"{sum(value['faults'].values()):,}; workers replaced {value['replaced_workers']:,}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    slowest = value["slowest_read"]
    if slowest["path"]:
        console.print(
            f"slowest read: {slowest['seconds'] * 1000:.1f} ms, {slowest['path']}", highlight=False, markup=False
        )
