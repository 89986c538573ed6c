"""Read a run's records for a preview, whatever their fate: fates and scores from columns, texts and images as downloaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache, partial
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.fates import IMAGE_ERRORS, RECORD_REASONS
from vila_data.core.layout import Part
from vila_data.explore.preview.records import (
    Columns,
    DamagedTokenFiles,
    Fate,
    Highlight,
    PreviewImage,
    PreviewRecord,
    RecordLocation,
    TrainingSequence,
)
from vila_data.explore.preview.tokens import TokenFiles
from vila_data.explore.recipe_text import shown_message
from vila_data.filter.config import Rules
from vila_data.filter.rules import OUTCOMES, RECORD_OUTCOMES
from vila_data.runs.run import Run

_PARTS: Final = 4
"""Parts whose tables are in memory."""
_IMAGE_COLUMNS: Final = ["row", "url", "http_code", "original_width", "original_height", "matched_text_index"]
_SCORES: Final = ["scored", "similarity", "assigned_text_index", "assigned_similarity", "similarities"]
_REASONS: Final = {*RECORD_REASONS, *IMAGE_ERRORS, *OUTCOMES[2:], *RECORD_OUTCOMES[2:]}
_RECORD_DROPPED: Final = "record_dropped"
_MARGIN: Final = 0.005
"""Another text is named if it is more similar by more than this."""


@dataclass(frozen=True)
class _Tables:
    """A part's tables. The image rows of `fates`, `images` and `scores` are the same; firsts: where each record's begin."""

    records: pa.Table
    fates: pa.Table
    image_fates: pa.Table
    images: pa.Table
    scores: pa.Table | None
    firsts: NDArray[np.int64]


class RunSource:
    """The records of a run's filtered parts."""

    def __init__(self, run: Run) -> None:
        self._run, self._recipe = run, run.recipe
        self.corpora = tuple(self._recipe.corpora)
        self.title = self._recipe.name
        self.token_files = TokenFiles(run)
        rules = {name: self._recipe.rules_for(name).images.min_similarity for name in self.corpora}
        self.thresholds = {name: limit for name, limit in rules.items() if limit is not None}
        self._parts = {name: {part.index: part for part in run.committed("filter", name)} for name in self.corpora}
        if not any(self._parts.values()):
            raise UsageError(f"{run.url}: no part is filtered yet; run the recipe, or vila-data run --only filter")
        self._evidence = {name: run.evidence(name) for name in self.corpora}
        self._tables = lru_cache(maxsize=_PARTS)(self._read_tables)

    @property
    def notes(self) -> Sequence[str]:
        """See `Source`."""
        missing = [name for name, parts in self._parts.items() if not parts]
        unfiltered = [f"Not shown, because not filtered yet: {', '.join(missing)}."] if missing else []
        return [*unfiltered, *self.token_files.notes]

    @property
    def damaged(self) -> DamagedTokenFiles:
        """See `Source`."""
        return self.token_files.damaged

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return list(self._parts[self.corpora[corpus]])

    def check_reason(self, reason: str) -> None:
        """Check that a record or image can have a reason, whether or not one of this run has it.

        Raises:
            UsageError: there is no such reason; lists those of this run.
        """
        if reason in _REASONS:
            return
        found: set[str] = set()
        for name in self.corpora:
            stages = self._run.funnel(name).values()
            found |= {fate.partition(":")[2] for units in stages for counts in units.values() for fate in counts}
        if reason not in found:
            names = sorted(found - {""}, key=lambda name: (-SequenceMatcher(None, reason, name).ratio(), name))
            raise UsageError(f"--reason {reason}: no such reason; this run has {', '.join(names) or 'none'}")

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        where = self._part(corpus, part)
        fates = self._run.part_table(where, "fates", ["row", "image_index", "fate", "reason"])
        is_image = pc.is_valid(fates.column("image_index")).to_numpy()
        owner = fates.column("row").to_numpy().astype(np.int64)
        wanted = np.ones(len(owner), np.bool_)
        for name, value in (("fate", fate), ("reason", reason)):
            if value is not None:
                wanted &= pc.fill_null(pc.equal(fates.column(name), value), False).to_numpy()
        allowed = np.zeros(len(owner) - int(is_image.sum()), np.bool_)
        allowed[owner[wanted]] = True
        return Columns.of(allowed, owner[is_image], self._similarities(where, int(is_image.sum())))

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        return self._run.part_table(self._part(corpus, part), "records", ["record_id"]).column("record_id")

    def texts(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        for row, record in zip(rows, self._evidence[self.corpora[corpus]].records(part, rows), strict=True):
            if record is not None:
                yield record.texts if record.system is None else (record.system, *record.texts)
            else:
                metadata = self._tables(corpus, part).records.slice(row, 1).to_pylist()[0]
                yield metadata["record_id"], metadata["detail"] or ""

    def sequences(self, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """See `Source`."""
        return self.token_files.of_run(locations, self.corpora)

    def record(
        self, location: RecordLocation, highlight: Highlight, sequence: TrainingSequence | None
    ) -> PreviewRecord:
        """See `Source`."""
        name = self.corpora[location.corpus]
        tables = self._tables(location.corpus, location.part)
        metadata = tables.records.slice(location.row, 1).to_pylist()[0]
        fate = tables.fates.slice(location.row, 1).to_pylist()[0]
        reason = fate["reason"] or ""
        found = self._evidence[name].record(location.part, location.row)
        if found is None:
            error = shown_message(metadata["detail"] or "", [self._parts[name][location.part].file])
            return PreviewRecord(name, metadata["record_id"], "", fate["fate"], reason, error, highlight.note)
        images = self._images(name, location, tables, highlight.image_index)
        counts: Counter[str] = Counter("kept" if image.reason == _RECORD_DROPPED else image.fate for image in images)
        return PreviewRecord(
            corpus=name,
            record_id=found.record_id,
            kind=found.kind,
            fate=fate["fate"],
            reason=reason,
            detail=record_detail(reason, counts, self._recipe.rules_for(name)),
            note=highlight.note,
            source_url=found.source_url,
            texts=found.texts,
            roles=found.roles,
            system=found.system,
            images=images,
            sequence=sequence,
        )

    def _images(
        self, name: str, location: RecordLocation, tables: _Tables, highlighted: int | None
    ) -> tuple[PreviewImage, ...]:
        first, stop = tables.firsts[location.row : location.row + 2].tolist()
        columns = tables.images.slice(first, stop - first).to_pylist()
        fates = tables.image_fates.slice(first, stop - first).to_pylist()
        scores = [{}] * len(columns) if tables.scores is None else tables.scores.slice(first, stop - first).to_pylist()
        rules = self._recipe.rules_for(name)
        images = []
        for number, (image, fate, score) in enumerate(zip(columns, fates, scores, strict=True)):
            text_index, similarity = matched_text(image, fate, score, rules.documents.reassign)
            reason = fate["reason"] or ""
            images.append(
                PreviewImage(
                    index=number,
                    jpeg=partial(self._evidence[name].jpeg, location.part, location.row, number),
                    fate=cast(Fate, fate["fate"]),
                    reason=reason,
                    detail=image_detail(reason, image, similarity, rules),
                    text_index=text_index,
                    similarity=similarity,
                    better=_better_text(score.get("similarities"), text_index, similarity),
                    width=image["original_width"],
                    height=image["original_height"],
                    url=image["url"],
                    highlighted=number == highlighted,
                )
            )
        return tuple(images)

    def _similarities(self, part: Part, count: int) -> NDArray[np.float64]:
        """float64[images]: the similarity that the rules use, NaN if there is none."""
        name = "assigned_similarity" if self._recipe.rules_for(part.corpus).documents.reassign else "similarity"
        scores = self._run.scores(part, [name])
        if scores is None:
            return np.full(count, np.nan)
        values: NDArray[np.float64] = scores.column(name).cast(pa.float64()).to_numpy().astype(np.float64)
        if len(values) != count:
            where = self._run.store.location(self._run.scores_path(part) or "")
            raise DataError(f"{where}: found scores of {len(values)} images for {count} fates; run the recipe again")
        return values

    def _read_tables(self, corpus: int, index: int) -> _Tables:
        part = self._part(corpus, index)
        columns = ["row", "image_index", "fate", "reason", "text_index", "similarity"]
        fates = self._run.part_table(part, "fates", columns)
        is_image = pc.is_valid(fates.column("image_index"))
        images = self._run.part_table(part, "images", _IMAGE_COLUMNS)
        records = self._run.part_table(part, "records", ["record_id", "detail"])
        scores = self._run.scores(part, _SCORES)
        image_fates = fates.filter(is_image)
        counts = {table.num_rows for table in (images, image_fates, scores) if table is not None}
        if len(counts) != 1 or fates.num_rows - image_fates.num_rows != records.num_rows:
            where = self._run.store.location(part.fates_table())
            raise DataError(f"{where}: its rows do not match the part's other tables; run the recipe again")
        firsts = np.searchsorted(images.column("row").to_numpy(), np.arange(records.num_rows + 1))
        return _Tables(records, fates.filter(pc.invert(is_image)), image_fates, images, scores, firsts)

    def _part(self, corpus: int, index: int) -> Part:
        return self._parts[self.corpora[corpus]][index]


def matched_text(
    image: Mapping[str, Any], fate: Mapping[str, Any], score: Mapping[str, Any], reassign: bool
) -> tuple[int | None, float | None]:
    """The text that an image comes before, or would if it were kept, and its similarity to that text.

    image, fate, score: its rows of the part's tables; score is empty without one. reassign: the rule of documents.
    """
    if fate["fate"] == "kept":
        return fate["text_index"], _finite(fate["similarity"])
    if reassign and score.get("scored"):
        return score["assigned_text_index"], _finite(score["assigned_similarity"])
    return image["matched_text_index"], _finite(score.get("similarity"))


def _finite(similarity: float | None) -> float | None:
    return similarity if similarity is not None and math.isfinite(similarity) else None


def _better_text(
    values: Sequence[float] | None, text_index: int | None, similarity: float | None
) -> tuple[int, float] | None:
    """The text that an image is most similar to, if it is another one. values: similarities to all texts."""
    if not values or similarity is None or text_index is None:
        return None
    best = max(range(len(values)), key=values.__getitem__)
    return (best, values[best]) if best != text_index and values[best] > similarity + _MARGIN else None


def image_detail(reason: str, image: Mapping[str, Any], similarity: float | None, rules: Rules) -> str:
    """The number of an image that failed a rule, as ``found < limit``; "" if the reason says it all.

    Locks of earlier versions do not have every rule of a corpus: then the found number alone.

    image: its row of core.tables.DOWNLOAD_IMAGES.
    """
    width, height, limits = image["original_width"], image["original_height"], rules.images
    if reason == "min_side_px":
        limit = limits.min_side_px
        return f"{min(width, height)}" + (f" < {limit}" if limit is not None else "")
    if reason == "aspect_ratio":
        low, high = limits.aspect_ratio or (0.0, 0.0)
        outside = f" outside {low:g} to {high:g}" if limits.aspect_ratio else ""
        return f"{_decimals(width / height, low, high)}{outside}"
    if reason == "min_similarity":
        threshold = limits.min_similarity
        if similarity is None:
            return "not scored"
        if threshold is None:
            return f"{similarity:.2f}"
        return f"{_decimals(similarity, threshold)} < {threshold:.2f}"
    if reason == "http_status" and image["http_code"] is not None:
        return str(image["http_code"])
    if reason == "no_matched_text" and rules.documents.reassign:
        return "no text was assigned to it"
    return {
        "exact_duplicate": "an identical image occurs earlier in the corpus",
        "no_matched_text": "no text was published for it",
        _RECORD_DROPPED: "its record was dropped",
    }.get(reason, "")


def record_detail(reason: str, image_fates: Mapping[str, int], rules: Rules) -> str:
    """The number of a record that failed a rule. image_fates: counts of its images by fate."""
    images, kept = sum(image_fates.values()), image_fates.get("kept", 0)
    return {
        "missing_image": f"{image_fates.get('failed', 0)} of {images} images failed",
        "dropped_image": f"{image_fates.get('dropped', 0)} of {images} images dropped",
        "min_images": f"{kept} < {rules.documents.min_images}",
        "max_images": f"{kept} > {rules.documents.max_images}",
    }.get(reason, "")


def _decimals(value: float, *limits: float) -> str:
    """Two decimals, or as many as distinguish the value from the limits."""
    for places in range(2, 8):
        text = f"{value:.{places}f}"
        if all((float(text) < limit) == (value < limit) and float(text) != limit for limit in limits):
            return text
    return f"{value:.7f}"
