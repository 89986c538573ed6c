"""What encoding left out of a set's sequences, in words: the same on the terminal, in the report and on the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LEFT_OUT: Final = ("images left out", "tokens cut", "without a sequence")
"""Headings of what `left_out` gives."""


def left_out(counts: Mapping[str, Any]) -> tuple[str, str, str]:
    """Images, tokens and samples of a set that are in no sequence. counts: the set's entry under `tokens` in run.json."""
    failed = {key.split(":", 1)[1]: count for key, count in counts.items() if key.startswith("failed:")}
    cut = counts["samples_cut"] + sum(failed.get(fate, 0) for fate in ("too_long", "too_many_images"))
    samples = "sample" if cut == 1 else "samples"
    return (
        f"{counts['images_left_out']:,}",
        f"{counts['tokens_cut']:,} of {cut:,} {samples}" if cut else "0",
        ", ".join(f"{count:,} {fate}" for fate, count in failed.items()) or "0",
    )
