"""The rules, as array operations over the columns of one part.

An image's outcome is an index into OUTCOMES; rules are tried in the order below
and the first that fails names the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.filter.config import ImageRules, Rules

KEPT = 0
FAILED = 1
OUTCOMES = (
    "kept",
    "failed",
    "min_side_px",
    "aspect_ratio",
    "no_matched_text",
    "min_similarity",
    "exact_duplicate",
    "record_dropped",
)
"""Fates of images: kept, failed in download, or the rule that dropped it."""

RULE_COLUMNS = ("row", "status", "original_width", "original_height", "matched_text_index")
"""Columns of the images' table that `read_columns` reads."""

RECORD_OUTCOMES = ("kept", "failed", "missing_image", "min_images", "max_images", "dropped_image")
"""Fates of records: kept, failed in the metadata, or the rule that dropped it."""


@dataclass(frozen=True)
class PartColumns:
    """The columns of one part that the rules read, one entry an image (n) or a record (m).

    row int64[n]: the record of each image; ok bool[n]: downloaded; side, aspect float64[n];
    text_index int64[n]: the sentence it stands before, -1 for none; similarity float64[n], NaN for none;
    record_ok bool[m]; is_document bool: whether the document rules apply.
    """

    row: NDArray[np.int64]
    ok: NDArray[np.bool_]
    side: NDArray[np.float64]
    aspect: NDArray[np.float64]
    text_index: NDArray[np.int64]
    similarity: NDArray[np.float64]
    record_ok: NDArray[np.bool_]


def read_columns(images: pa.Table, records: pa.Table, scores: pa.Table | None, rules: Rules) -> PartColumns:
    """The rules' columns from a part's tables; `scores` is None before, or without, scoring."""
    if scores is not None and scores.num_rows != images.num_rows:
        raise DataError(f"score table has {scores.num_rows} rows, download table {images.num_rows}")
    width, height = _floats(images, "original_width"), _floats(images, "original_height")
    text_index, similarity = _matches(images, scores, rules)
    return PartColumns(
        row=images.column("row").to_numpy().astype(np.int64),
        ok=_is(images, "status", "ok"),
        side=np.minimum(width, height),
        aspect=width / height,
        text_index=text_index,
        similarity=similarity,
        record_ok=_is(records, "status", "ok"),
    )


def cheap_image_outcomes(columns: PartColumns, rules: ImageRules) -> NDArray[np.int8]:
    """Outcomes int8[n] by what `download` measured."""
    outcome = np.where(columns.ok, KEPT, FAILED).astype(np.int8)
    if rules.min_side_px is not None:
        _drop(outcome, columns.side < rules.min_side_px, "min_side_px")
    if rules.aspect_ratio is not None:
        low, high = rules.aspect_ratio
        _drop(outcome, (columns.aspect < low) | (columns.aspect > high), "aspect_ratio")
    return outcome


def image_outcomes(columns: PartColumns, rules: ImageRules) -> NDArray[np.int8]:
    """Outcomes int8[n] by all rules but the duplicates', which need the whole corpus."""
    outcome = cheap_image_outcomes(columns, rules)
    _drop(outcome, columns.text_index < 0, "no_matched_text")
    if rules.min_similarity is not None:
        _drop(outcome, ~(columns.similarity >= np.float32(rules.min_similarity)), "min_similarity")
    return outcome


def record_outcomes(columns: PartColumns, outcome: NDArray[np.int8], rules: Rules) -> NDArray[np.int8]:
    """Outcomes int8[m] of records, from their images' outcomes."""
    kept, missing, dropped = _counts(columns, outcome)
    result = np.where(columns.record_ok, KEPT, FAILED).astype(np.int8)
    documents = rules.documents
    if documents.on_missing_image == "drop_document":
        _drop(result, missing > 0, "missing_image", RECORD_OUTCOMES)
    if documents.on_dropped_image == "drop_document":
        _drop(result, dropped > 0, "dropped_image", RECORD_OUTCOMES)
    _drop(result, kept < documents.min_images, "min_images", RECORD_OUTCOMES)
    if documents.max_images is not None:
        _drop(result, kept > documents.max_images, "max_images", RECORD_OUTCOMES)
    return result


def settle(columns: PartColumns, outcome: NDArray[np.int8], rules: Rules) -> NDArray[np.int8]:
    """Outcomes int8[m] of records; images that pass in a record that does not become `record_dropped`, in place."""
    records = record_outcomes(columns, outcome, rules)
    outcome[(outcome == KEPT) & (records[columns.row] != KEPT)] = OUTCOMES.index("record_dropped")
    return records


def count_fates(outcomes: NDArray[np.int8], names: tuple[str, ...]) -> dict[str, int]:
    """{"kept": count, "dropped:<rule>": count …}: those that reached the rules, by fate."""
    counts = np.bincount(outcomes, minlength=len(names)).tolist()
    return {
        ("kept" if code == KEPT else f"dropped:{name}"): counts[code]
        for code, name in enumerate(names)
        if code != FAILED and (counts[code] or code == KEPT)
    }


def worth_scoring(columns: PartColumns, rules: Rules) -> NDArray[np.bool_]:
    """bool[n]: the images that no cheap rule drops, alone or with their record."""
    outcome = cheap_image_outcomes(columns, rules.images)
    kept, missing, dropped = _counts(columns, outcome)
    lost = kept < rules.documents.min_images
    if rules.documents.on_missing_image == "drop_document":
        lost |= missing > 0
    if rules.documents.on_dropped_image == "drop_document":
        lost |= dropped > 0
    worth: NDArray[np.bool_] = (outcome == KEPT) & ~lost[columns.row]
    return worth


def _counts(columns: PartColumns, outcome: NDArray[np.int8]) -> tuple[NDArray[np.int64], ...]:
    """int64[m] each: a record's images that are kept, that failed, that a rule dropped."""
    m = len(columns.record_ok)
    kept, failed = (np.bincount(columns.row[outcome == fate], minlength=m) for fate in (KEPT, FAILED))
    return kept, failed, np.bincount(columns.row, minlength=m) - kept - failed


def _matches(images: pa.Table, scores: pa.Table | None, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if scores is None:
        return _ints(images, "matched_text_index"), np.full(images.num_rows, np.nan)
    if rules.documents.reassign:
        return _ints(scores, "assigned_text_index"), _floats(scores, "assigned_similarity")
    return _ints(scores, "matched_text_index"), _floats(scores, "similarity")


def _drop(outcome: NDArray[np.int8], mask: NDArray[np.bool_], rule: str, names: tuple[str, ...] = OUTCOMES) -> None:
    outcome[(outcome == KEPT) & mask] = names.index(rule)


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    column = table.column(name).cast(pa.float64())
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return values


def _ints(table: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = table.column(name).fill_null(-1).to_numpy().astype(np.int64)
    return values


def _is(table: pa.Table, name: str, value: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.equal(table.column(name), value).to_numpy()
    return found
