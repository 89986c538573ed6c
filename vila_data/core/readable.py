"""Format numbers and texts for people: short, counted, in percent, and safe to display."""

from __future__ import annotations

import math
import re
from typing import Final

_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_POWERS: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))


def short(value: float) -> str:
    """A number for an axis: at most five characters or so (12,500 becomes 12.5k)."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else ""
    for power, suffix in _POWERS:
        if abs(value) >= power:
            power = 1e3 if suffix == "k" else power
            return f"{value / power:.4g}{suffix}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def many(count: int, noun: str) -> str:
    """A count and its noun, given in the plural: 1 image, 2 images."""
    one = noun[:-3] + "y" if noun.endswith("ies") else noun.removesuffix("s")
    return f"{count:,} {one if count == 1 else noun}"


def share(part: int, whole: int) -> str:
    """A part of a whole in percent; 0.0% means nothing and 100.0% all, however many there are. "" of nothing."""
    if not whole:
        return ""
    words = f"{part / whole:.1%}"
    if words == "0.0%" and part:
        return "<0.1%"
    return ">99.9%" if words == "100.0%" and part != whole else words


def size_text(size: int) -> str:
    """Bytes as kB, MB, GB … (powers of ten)."""
    for power, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= power:
            return f"{size / power:.3g} {unit}"
    return f"{size} B"


def plain(text: str) -> str:
    """The text with U+FFFD for each character that XML forbids."""
    return _NOT_XML.sub("\ufffd", text)


def cut(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis: `length` characters at most."""
    text = plain(text)
    return text if len(text) <= length else text[: length - 1] + "…"
