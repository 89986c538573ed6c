"""Print search results."""

from __future__ import annotations

import unicodedata
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CAPTION: Final = 72


def print_search(console: Console, value: dict[str, Any]) -> None:
    """One row per hit, best first, then how each corpus was searched. value: as `--json` gives it."""
    table = Table()
    for heading in ("rank", "score", "corpus", "record", "image", "fate", "caption"):
        table.add_column(heading, justify="right" if heading in ("rank", "score", "image") else "left")
    for hit in value["hits"]:
        fate = hit["fate"] or "not filtered yet"
        table.add_row(
            str(hit["rank"]),
            f"{hit['score']:.4f}",
            hit["corpus"],
            plain(hit["record_id"], 48),
            str(hit["image_index"]),
            f"{fate}: {hit['reason']}" if hit["reason"] else fate,
            plain(hit["caption"], _CAPTION),
        )
    console.print(table)
    for entry in value["searched"]:
        how = {0: "searched exactly", entry["vectors"]: "searched through the index"}.get(
            entry["indexed"], f"{entry['indexed']:,} of them searched through the index"
        )
        console.print(f"{entry['corpus']}: {entry['vectors']:,} vectors, {how}", highlight=False, markup=False)
    for note in value["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def print_built(console: Console, value: list[dict[str, Any]]) -> None:
    """One line per corpus: the size of its index."""
    for entry in value:
        if not entry["segments"]:
            line = f"{entry['vectors']:,} vectors: exact search; an index would not be faster"
        else:
            earlier = entry["segments"] - entry["made"]
            line = f"{entry['vectors']:,} vectors, {entry['segments']} segments, {entry['bytes'] / 1e6:,.1f} MB"
            line += f", {earlier} of the segments already built" if earlier else ""
        console.print(f"index of {entry['corpus']}: {line}", highlight=False, markup=False)


def plain(text: str, length: int | None = None) -> Text:
    """Untrusted text for a terminal: one line without markup, control or direction characters, at most `length` long."""
    shown = "".join(" " if unicodedata.category(letter) in _UNSAFE else letter for letter in text)
    shown = " ".join(shown.split())
    return Text(shown if length is None or len(shown) <= length else shown[: length - 1] + "…")


_UNSAFE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
