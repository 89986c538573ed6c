"""The table that `export` ends with: what went out, what did not, and how fast."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_export(console: Console, value: dict[str, Any]) -> None:
    """An export: a row a set, then what was left out or adapted, then sets that are not in it.

    One that is only looked at has no speed.
    """
    state = "" if value.get("finished", True) else " (not finished: run it again)"
    table = Table(title=escape(f"{value['to']}: {value['out']}{state}"), title_justify="left")
    launched = any("launch_samples" in one for one in value["sets"])
    headings = ("set", "view", "samples", "exported", "left out", "images", "files", "MB")
    for heading in (*headings, "samples/s") if launched else headings:
        table.add_column(heading, justify="left" if heading in ("set", "view") else "right")
    for one in value["sets"]:
        table.add_row(
            one["name"],
            one["view"],
            f"{one['samples']:,}",
            f"{one['exported']:,}",
            f"{sum(one['left_out'].values()):,}",
            f"{one['images']:,}",
            f"{one['files']:,}",
            f"{one['bytes'] / 1e6:,.1f}",
            *([_speed(one)] if launched else []),
        )
    console.print(table)
    for one in value["sets"]:
        for what in ("left_out", "adapted"):
            for reason, count in one[what].items():
                console.print(
                    f"{one['name']}: {what.replace('_', ' ')}: {reason}: {count:,}", highlight=False, markup=False
                )
    for reason in dict.fromkeys(value["not_exported"].values()):
        names = ", ".join(name for name, found in value["not_exported"].items() if found == reason)
        console.print(f"not exported: {names}: {reason}", highlight=False, markup=False, soft_wrap=True)
    blend = value["blend"]
    if blend is not None and blend["file"] is not None:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in blend["shares"])
        console.print(
            f"{blend['file']}: the run's blend by samples: {shares}", highlight=False, markup=False, soft_wrap=True
        )
    elif blend is not None:
        console.print(
            f"the run's blend is not written: {blend['reason']}", highlight=False, markup=False, soft_wrap=True
        )


def _speed(one: dict[str, Any]) -> str:
    return f"{one['launch_samples'] / one['launch_seconds']:,.0f}" if one["launch_samples"] else "there already"
