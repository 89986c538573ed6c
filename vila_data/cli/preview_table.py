"""Print the summary of a preview page."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from vila_data.core.readable import many


def print_preview(console: Console, value: dict[str, Any]) -> None:
    """Records by corpus, the page's size and what was omitted from it. value: as `--json` gives it."""
    table = Table(title=value["out"], title_justify="left")
    table.add_column("corpus")
    for name in ("records", "matching", "shown"):
        table.add_column(name, justify="right")
    for name, counts in value["corpora"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in ("records", "matching", "shown")))
    console.print(table)
    fates = ", ".join(f"{count:,} {fate}" for fate, count in value["fates"].items()) or "none"
    lines = [
        f"records: {fates}; packs: {value['packs']:,}",
        f"{value['bytes'] / 1e6:,.1f} MB, {many(value['pictures'], 'images')}, at most {value['side_px']} pixels on the longer side",
    ]
    for key, what, why in (
        ("pictures_left_out", "images", "omitted to limit the page size"),
        ("pictures_broken", "images", "that cannot be decoded; run vila-data check"),
        ("characters_cut", "characters", "of texts cut"),
    ):
        if value[key]:
            lines.append(f"{many(value[key], what)} {why}")
    for line in (*lines, *value["notes"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
