"""Why something was not kept, by the value that failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vila_data.filter.config import Rules


def image_value(reason: str, facts: Mapping[str, Any], similarity: float | None, rules: Rules) -> str:
    """What failed of an image, as ``found < wanted``; "" where the reason says it all. Locks of earlier versions
    do not tell every rule of a corpus: the value then stands alone.

    facts: its row of core.tables.DOWNLOAD_IMAGES.
    """
    width, height, images = facts["original_width"], facts["original_height"], rules.images
    if reason == "min_side_px":
        return _below(str(min(width, height)), images.min_side_px)
    if reason == "aspect_ratio":
        low, high = images.aspect_ratio or (0.0, 0.0)
        outside = f" outside {low:g} to {high:g}" if images.aspect_ratio else ""
        return f"{_short(width / height, low, high)}{outside}"
    if reason == "min_similarity":
        limit = images.min_similarity
        if similarity is None:
            return "not scored"
        return _below(
            _short(similarity, similarity + 1 if limit is None else limit), None if limit is None else f"{limit:.2f}"
        )
    if reason == "http_status" and facts["http_code"] is not None:
        return str(facts["http_code"])
    if reason == "no_matched_text" and rules.documents.reassign:
        return "no text was assigned to it"
    return {
        "exact_duplicate": "an equal picture stands earlier in the corpus",
        "no_matched_text": "no text was published for it",
        "record_dropped": "with its record",
    }.get(reason, "")


def record_value(reason: str, fates: Mapping[str, int], rules: Rules) -> str:
    """What failed of a record. fates: how many of its images have which."""
    documents = rules.documents
    images = sum(fates.values())
    kept = fates.get("kept", 0)
    if reason == "missing_image":
        return f"{fates.get('failed', 0)} of {images} images failed"
    if reason == "dropped_image":
        return f"{fates.get('dropped', 0)} of {images} images dropped"
    if reason == "min_images":
        return f"{kept} < {documents.min_images}"
    if reason == "max_images":
        return f"{kept} > {documents.max_images}"
    return ""


def _below(value: str, limit: object) -> str:
    return value if limit is None else f"{value} < {limit}"


def _short(value: float, *limits: float) -> str:
    """Two decimals, or as many as tell the value from the limits."""
    for places in range(2, 8):
        text = f"{value:.{places}f}"
        if all((float(text) < limit) == (value < limit) and float(text) != limit for limit in limits):
            return text
    return f"{value:.7f}"
