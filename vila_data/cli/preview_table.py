"""What `vila-data preview` says of the page that it wrote."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_preview(console: Console, value: dict[str, Any]) -> None:
    """Records by corpus, the page's size and what was left out of it."""
    table = Table(title=value["out"], title_justify="left")
    table.add_column("corpus")
    for name in ("records", "that match", "shown"):
        table.add_column(name, justify="right")
    for name, counts in value["corpora"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in ("records", "matching", "shown")))
    console.print(table)
    fates = ", ".join(f"{count:,} {fate}" for fate, count in value["fates"].items()) or "none"
    lines = [
        f"records: {fates}; packs: {value['packs']:,}",
        f"{value['bytes'] / 1e6:,.1f} MB, {value['pictures']:,} pictures of at most {value['side_px']} pixels a side",
    ]
    for key, words in (
        ("pictures_left_out", "pictures left out for want of room"),
        ("pictures_broken", "pictures whose stored bytes cannot be decoded: run check"),
        ("characters_cut", "characters of texts cut"),
    ):
        if value[key]:
            lines.append(f"{value[key]:,} {words}")
    for line in (*lines, *value["notes"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
