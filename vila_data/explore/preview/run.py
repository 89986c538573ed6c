"""Records of a run, whatever became of them: fates and scores from columns, texts and pictures as downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
from vila_data.explore.preview.drawn_packs import PackLegend, ShownPack
from vila_data.explore.preview.faults import TokenFaults
from vila_data.explore.preview.packs import first_packs
from vila_data.explore.preview.source import Asked, Columns, Place, bounds_of, clipped, finite
from vila_data.explore.preview.tokens import TokenFiles
from vila_data.explore.preview.values import Fate, ShownImage, ShownRecord, ShownTokens
from vila_data.explore.preview.why import image_value, record_value
from vila_data.explore.recipe_text import shown_message
from vila_data.filter.rules import OUTCOMES, RECORD_OUTCOMES
from vila_data.runs.run import Run

_PARTS: Final = 4
_IMAGE_FACTS: Final = [
    "row",
    "url",
    "http_code",
    "original_width",
    "original_height",
    "matched_text_index",
]
_SCORES: Final = ["scored", "similarity", "assigned_text_index", "assigned_similarity", "similarities"]
_REASONS: Final = {*RECORD_REASONS, *IMAGE_ERRORS, *OUTCOMES[2:], *RECORD_OUTCOMES[2:]}
_NOT_KEPT: Final = "record_dropped"
_BETTER: Final = 0.005  # what another text must fit better by to be named


@dataclass(frozen=True)
class _Tables:
    """A part's tables; the image rows of `fates`, `images` and `scores` are the same rows."""

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
        self._tokens = TokenFiles(run)
        rules = {name: self._recipe.rules_for(name).images.min_similarity for name in self.corpora}
        self.thresholds = {name: limit for name, limit in rules.items() if limit is not None}
        self._parts = {name: {part.index: part for part in run.committed("filter", name)} for name in self.corpora}
        if not any(self._parts.values()):
            raise UsageError(f"{run.url}: no part is filtered yet: run the recipe, or vila-data run --only filter")
        self._evidence = {name: run.evidence(name) for name in self.corpora}
        self._tables = lru_cache(maxsize=_PARTS)(self._read)

    @property
    def notes(self) -> Sequence[str]:
        """See `Source`."""
        empty = [name for name, parts in self._parts.items() if not parts]
        waiting = (f"Not filtered yet, so not shown: {', '.join(empty)}.",) if empty else ()
        return (*waiting, *self._tokens.notes)

    @property
    def faults(self) -> TokenFaults:
        """See `Source`."""
        return self._tokens.faults

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return list(self._parts[self.corpora[corpus]])

    def check_reason(self, reason: str) -> None:
        """Assert that a record or image may have a reason, whether or not one of this run has it.

        Raises:
            UsageError: it is none; says those that this run has.
        """
        if reason in _REASONS:
            return
        found: set[str] = set()
        for name in self.corpora:
            stages = self._run.funnel(name).values()
            found |= {fate.partition(":")[2] for units in stages for counts in units.values() for fate in counts}
        if reason not in found:
            names = sorted(found - {""}, key=lambda name: (-SequenceMatcher(None, reason, name).ratio(), name))
            raise UsageError(f"--reason {reason}: there is no such reason; this run has {', '.join(names) or 'none'}")

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        where = self._part(corpus, part)
        fates = self._run.part_table(where, "fates", ["row", "image_index", "fate", "reason"])
        is_image = pc.is_valid(fates.column("image_index"))
        owner = fates.column("row").to_numpy().astype(np.int64)
        count = len(owner) - int(is_image.to_numpy().sum())
        wanted = np.ones(len(owner), np.bool_)
        for name, value in (("fate", fate), ("reason", reason)):
            if value is not None:
                wanted &= pc.fill_null(pc.equal(fates.column(name), value), False).to_numpy()
        allowed = np.zeros(count, np.bool_)
        allowed[owner[wanted]] = True
        values = self._similarities(where, int(is_image.to_numpy().sum()))
        return Columns(allowed, *bounds_of(owner[is_image.to_numpy()], values, count))

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        return self._run.part_table(self._part(corpus, part), "records", ["record_id"]).column("record_id")

    def words(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        for row, record in zip(rows, self._evidence[self.corpora[corpus]].records(part, rows), strict=True):
            if record is not None:
                yield record.texts if record.system is None else (record.system, *record.texts)
            else:
                about = self._tables(corpus, part).records.slice(row, 1).to_pylist()[0]
                yield about["record_id"], about["detail"] or ""

    def packs(self, count: int) -> tuple[tuple[ShownPack, ...], PackLegend, str]:
        """The run's first packs, their legend and, where there are none, why."""
        return first_packs(self._run.store, self._recipe, self._tokens.tokenizer, count, self._tokens.faults)

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """See `Source`."""
        return self._tokens.find(places, self.corpora)

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """See `Source`."""
        name = self.corpora[place.corpus]
        tables = self._tables(place.corpus, place.part)
        row = tables.records.slice(place.row, 1).to_pylist()[0]
        fate = tables.fates.slice(place.row, 1).to_pylist()[0]
        images = self._images(name, place, tables, asked.image_index)
        found = self._evidence[name].record(place.part, place.row)
        reason = fate["reason"] or ""
        counts: Counter[str] = Counter("kept" if image.reason == _NOT_KEPT else image.fate for image in images)
        if found is None:
            problem = shown_message(row["detail"] or "", [self._parts[name][place.part].file])
            return ShownRecord(name, row["record_id"], "", fate["fate"], reason, problem, asked.note)
        value = record_value(reason, counts, self._recipe.rules_for(name))
        texts, lengths = clipped(found.texts)
        return ShownRecord(
            corpus=name,
            record_id=found.record_id,
            kind=found.kind,
            fate=fate["fate"],
            reason=reason,
            value=value,
            note=asked.note,
            source_url=found.source_url,
            texts=texts,
            lengths=lengths,
            roles=found.roles,
            system=found.system,
            images=images,
            tokens=tokens,
        )

    def _images(self, name: str, place: Place, tables: _Tables, asked: int | None) -> tuple[ShownImage, ...]:
        first, last = tables.firsts[place.row : place.row + 2].tolist()
        facts = tables.images.slice(first, last - first).to_pylist()
        fates = tables.image_fates.slice(first, last - first).to_pylist()
        scores = [{}] * len(facts) if tables.scores is None else tables.scores.slice(first, last - first).to_pylist()
        rules = self._recipe.rules_for(name)
        images = []
        for number, (fact, fate, score) in enumerate(zip(facts, fates, scores, strict=True)):
            text_index, similarity = self._match(fact, fate, score, rules.documents.reassign)
            reason = fate["reason"] or ""
            images.append(
                ShownImage(
                    index=number,
                    jpeg=partial(self._evidence[name].jpeg, place.part, place.row, number),
                    fate=cast(Fate, fate["fate"]),
                    reason=reason,
                    value=image_value(reason, fact, similarity, rules),
                    text_index=text_index,
                    similarity=similarity,
                    other=_better(score, text_index, similarity),
                    width=fact["original_width"],
                    height=fact["original_height"],
                    url=fact["url"],
                    asked=number == asked,
                )
            )
        return tuple(images)

    @staticmethod
    def _match(fact: Any, fate: Any, score: Any, reassign: bool) -> tuple[int | None, float | None]:
        """The text that an image stands before, or would; and its similarity to it."""
        if fate["fate"] == "kept":
            return fate["text_index"], finite(fate["similarity"])
        if reassign and score.get("scored"):
            return score["assigned_text_index"], finite(score["assigned_similarity"])
        return fact["matched_text_index"], finite(score.get("similarity"))

    def _similarities(self, part: Part, count: int) -> NDArray[np.float64]:
        """float64[images]: the similarity that the rules judge, NaN where there is none."""
        name = "assigned_similarity" if self._recipe.rules_for(part.corpus).documents.reassign else "similarity"
        scores = self._run.scores(part, [name])
        if scores is None:
            return np.full(count, np.nan)
        values: NDArray[np.float64] = scores.column(name).cast(pa.float64()).to_numpy().astype(np.float64)
        if len(values) != count:
            raise DataError(
                f"{self._run.store.location(self._run.scores_path(part) or '')}: {len(values)} images where there are {count} fates: "
                "run the recipe again"
            )
        return values

    def _read(self, corpus: int, index: int) -> _Tables:
        part = self._part(corpus, index)
        columns = ["row", "image_index", "fate", "reason", "stage", "text_index", "similarity"]
        fates = self._run.part_table(part, "fates", columns)
        is_image = pc.is_valid(fates.column("image_index"))
        images = self._run.part_table(part, "images", _IMAGE_FACTS)
        records = self._run.part_table(part, "records", ["record_id", "detail"])
        scores = self._run.scores(part, _SCORES)
        image_fates = fates.filter(is_image)
        counts = {table.num_rows for table in (images, image_fates, scores) if table is not None}
        if len(counts) != 1 or fates.num_rows - image_fates.num_rows != records.num_rows:
            where = self._run.store.location(part.fates_table())
            raise DataError(f"{where}: its rows are not those of the part's other tables: run the recipe again")
        firsts = np.searchsorted(images.column("row").to_numpy(), np.arange(records.num_rows + 1))
        return _Tables(records, fates.filter(pc.invert(is_image)), image_fates, images, scores, firsts)

    def _part(self, corpus: int, index: int) -> Part:
        return self._parts[self.corpora[corpus]][index]


def _better(score: Any, text_index: int | None, similarity: float | None) -> tuple[int, float] | None:
    """The text that an image fits best, where that is another one."""
    values = score.get("similarities")
    if not values or similarity is None or text_index is None:
        return None
    best = max(range(len(values)), key=values.__getitem__)
    return (best, values[best]) if best != text_index and values[best] > similarity + _BETTER else None
