"""Records of a run, whatever became of them: fates and scores from columns, texts and pictures as downloaded."""

from __future__ import annotations

import re
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
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.filter.rules import OUTCOMES, RECORD_OUTCOMES
from vila_data.shard.evidence import Evidence
from vila_data.view.preview.packs import PackLegend, ShownPack
from vila_data.view.preview.values import Fate, ShownImage, ShownRecord, ShownTokens
from vila_data.view.recipe_text import shown_message
from vila_data.workflow.lock import read_lock
from vila_data.workflow.plan import committed_plan
from vila_data.workflow.previewing.faults import TokenFaults
from vila_data.workflow.previewing.packs import first_packs
from vila_data.workflow.previewing.source import Asked, Columns, Place, bounds_of, clipped, finite
from vila_data.workflow.previewing.tokens import TokenFiles
from vila_data.workflow.previewing.why import image_value, record_value
from vila_data.workflow.recipe import Recipe
from vila_data.workflow.report import corpus_funnel

_PARTS: Final = 4
_PART: Final = re.compile(r"part-(\d+)\.parquet")
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


def recipe_of(store: Store) -> Recipe:
    """The recipe that a run was made from, as its lock has it."""
    lock = read_lock(store)
    if lock is None:
        raise DataError(f"{store.url}: no run")
    return Recipe.model_validate(lock["recipe"], strict=False)


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

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recipe = recipe_of(store)
        self.corpora = tuple(self._recipe.corpora)
        self.title = self._recipe.name
        self._scorer = self._recipe.scores().similarity
        self._tokens = TokenFiles(store, self._recipe)
        rules = {name: self._recipe.rules_for(name).images.min_similarity for name in self.corpora}
        self.thresholds = {name: limit for name, limit in rules.items() if limit is not None}
        self._parts = {name: self._filtered(name) for name in self.corpora}
        if not any(self._parts.values()):
            raise UsageError(f"{store.url}: no part is filtered yet: run the recipe, or vila-data run --only filter")
        self._evidence = {name: Evidence(store, name) for name in self.corpora}
        self._tables = lru_cache(maxsize=_PARTS)(self._read)
        self._files = lru_cache(maxsize=None)(self._metadata_files)

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
        return self._parts[self.corpora[corpus]]

    def check_reason(self, reason: str) -> None:
        """Assert that a record or image may have a reason, whether or not one of this run has it.

        Raises:
            UsageError: it is none; says those that this run has.
        """
        if reason in _REASONS:
            return
        found: set[str] = set()
        for name in self.corpora:
            plan = committed_plan(self._store, name)
            if plan is not None:
                stages = {
                    stage: [read_receipt(self._store, part.receipt(stage)) for part in plan.parts]
                    for stage in ("download", "filter")
                }
                funnel = corpus_funnel(plan, stages).as_dict()
                found |= {
                    fate.partition(":")[2] for units in funnel.values() for counts in units.values() for fate in counts
                }
        if reason not in found:
            names = sorted(found - {""}, key=lambda name: (-SequenceMatcher(None, reason, name).ratio(), name))
            raise UsageError(f"--reason {reason}: there is no such reason; this run has {', '.join(names) or 'none'}")

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        where = self._part(corpus, part)
        fates = self._table(where.fates_table(), ["row", "image_index", "fate", "reason"])
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
        return self._table(self._part(corpus, part).records_table(), ["record_id"]).column("record_id")

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
        return first_packs(self._store, self._recipe, self._tokens.tokenizer, count, self._tokens.faults)

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
            problem = shown_message(row["detail"] or "", self._files(name)[place.part : place.part + 1])
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
        path = self._scores_table(part)
        if path is None:
            return np.full(count, np.nan)
        name = "assigned_similarity" if self._recipe.rules_for(part.corpus).documents.reassign else "similarity"
        column = self._table(path, [name]).column(name)
        values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy().astype(np.float64)
        if len(values) != count:
            raise DataError(
                f"{self._store.location(path)}: {len(values)} images where there are {count} fates: "
                "run the recipe again"
            )
        return values

    def _scores_table(self, part: Part) -> str | None:
        """Path of the part's table of similarities; None where there is none."""
        path = None if self._scorer is None else part.scores_table(self._scorer)
        return path if path is not None and self._store.size(path) is not None else None

    def _read(self, corpus: int, index: int) -> _Tables:
        part = self._part(corpus, index)
        fates = self._table(
            part.fates_table(), ["row", "image_index", "fate", "reason", "stage", "text_index", "similarity"]
        )
        is_image = pc.is_valid(fates.column("image_index"))
        images = self._table(part.images_table(), _IMAGE_FACTS)
        records = self._table(part.records_table(), ["record_id", "detail"])
        path = self._scores_table(part)
        scores = None if path is None else self._table(path, _SCORES)
        image_fates = fates.filter(is_image)
        counts = {table.num_rows for table in (images, image_fates, scores) if table is not None}
        if len(counts) != 1 or fates.num_rows - image_fates.num_rows != records.num_rows:
            where = self._store.location(part.fates_table())
            raise DataError(f"{where}: its rows are not those of the part's other tables: run the recipe again")
        firsts = np.searchsorted(images.column("row").to_numpy(), np.arange(records.num_rows + 1))
        return _Tables(records, fates.filter(pc.invert(is_image)), image_fates, images, scores, firsts)

    def _filtered(self, name: str) -> list[int]:
        """Numbers of the parts that have fates."""
        found = (_PART.fullmatch(path.rsplit("/", 1)[-1]) for path in self._store.files(f"filter/{name}"))
        return sorted(int(match.group(1)) for match in found if match)

    def _metadata_files(self, name: str) -> tuple[str, ...]:
        """The metadata file of each of a corpus's parts."""
        plan = committed_plan(self._store, name)
        return () if plan is None else tuple(part.file for part in plan.parts)

    def _part(self, corpus: int, index: int) -> Part:
        return Part(self.corpora[corpus], index, "", "", 0, 0, 0, "")

    def _table(self, path: str, columns: list[str]) -> pa.Table:
        try:
            with self._store.open_read(path) as stream:
                return read_parquet(stream, columns=columns)
        except pa.ArrowException as error:
            raise DataError(f"{self._store.location(path)}: cannot be read: {error}; run check on the run") from error


def _better(score: Any, text_index: int | None, similarity: float | None) -> tuple[int, float] | None:
    """The text that an image fits best, where that is another one."""
    values = score.get("similarities")
    if not values or similarity is None or text_index is None:
        return None
    best = max(range(len(values)), key=values.__getitem__)
    return (best, values[best]) if best != text_index and values[best] > similarity + _BETTER else None
