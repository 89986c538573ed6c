"""What other rules would do: columns to counts, for many settings at once. No fate is written.

Parts are streamed, each column is read once whatever the number of settings, and the rules are those of `filter_part`:
without unknown images a tally is what the receipts of a run with that setting say.

An image that a setting asks a score of, and that has none since an earlier rule dropped it before scoring, is unknown. What
hangs on it is counted as `unknown:not_scored`: its own fate, and those of its record, of the other images there, of
equal pictures, wherever they would differ with the score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.filter.config import Rules
from vila_data.filter.duplicates import Copies, FirstOnly, digests, find_copies
from vila_data.filter.rules import (
    KEPT,
    OUTCOMES,
    RECORD_OUTCOMES,
    RULE_COLUMNS,
    PartColumns,
    image_outcomes,
    read_columns,
    record_outcomes,
    settle,
    worth_scoring,
)

UNKNOWN: Final = "unknown:not_scored"
Read = TypeVar("Read")
_READERS: Final = 4
"""Parts that are read at once; each takes some 100 bytes an image meanwhile."""

IMAGE_FATES: Final = (*OUTCOMES, UNKNOWN)
RECORD_FATES: Final = (*RECORD_OUTCOMES, UNKNOWN)
_DUPLICATE: Final = OUTCOMES.index("exact_duplicate")
_RECORD_DROPPED: Final = OUTCOMES.index("record_dropped")
_NO_TEXT: Final = OUTCOMES.index("no_matched_text")
_DISSIMILAR: Final = OUTCOMES.index("min_similarity")
_OPEN_IMAGE: Final = IMAGE_FATES.index(UNKNOWN)
_OPEN_RECORD: Final = RECORD_FATES.index(UNKNOWN)

_IMAGE_COLUMNS: Final = [*RULE_COLUMNS, "image_index"]
_SCORES: Final = ["scored", "matched_text_index", "similarity"]
_FRESH_SCORES: Final = ["assigned_text_index", "assigned_similarity"]


@dataclass(frozen=True)
class Scope:
    """What of a corpus the rules are about. scored: it has score tables; conversations: its records are such."""

    parts: Sequence[Part]
    scored: bool
    conversations: bool = False


@dataclass(frozen=True)
class Tally:
    """Fates under one setting, over all parts.

    images, records: {"kept": n, "dropped:<rule>": n, "unknown:not_scored": n}, as the filter receipts count them, and
    what is unknown; unscored: images that a run would score before it filters.
    """

    images: dict[str, int]
    records: dict[str, int]
    unscored: int


@dataclass(frozen=True)
class Settled:
    """The outcomes of one part under one setting: indices into IMAGE_FATES int8[n] and RECORD_FATES int8[m]."""

    images: NDArray[np.int8]
    records: NDArray[np.int8]


@dataclass(frozen=True)
class Sizes:
    """What a part's samples are made of: image_bytes int64[n]; json_bytes and n_texts int64[m]."""

    image_bytes: NDArray[np.int64]
    json_bytes: NDArray[np.int64]
    n_texts: NDArray[np.int64]


@dataclass(frozen=True)
class PartTable:
    """One part's columns as the rules read them.

    fresh: the columns of `reassign: true`; None where no setting asks for them.
    image_index: int64[n], an image's number in its record.
    lacking: bool[n], images that are there and have no score; None where there are none, or nothing is scored.
    """

    part: Part
    published: PartColumns
    fresh: PartColumns | None
    image_index: NDArray[np.int64]
    lacking: NDArray[np.bool_] | None
    sizes: Sizes | None = None
    _worth: dict[Rules, NDArray[np.bool_]] = field(default_factory=dict)

    def under(self, rules: Rules) -> PartColumns:
        """The columns that a setting reads."""
        return self.fresh if rules.documents.reassign and self.fresh is not None else self.published

    def worth(self, rules: Rules) -> NDArray[np.bool_]:
        """`worth_scoring`, once for all settings that differ in what it does not read."""
        images = rules.images.model_copy(update={"min_similarity": None, "exact_duplicates": "keep"})
        documents = rules.documents.model_copy(update={"max_images": None, "reassign": False})
        key = Rules(images=images, documents=documents)
        if key not in self._worth:
            self._worth[key] = worth_scoring(self.published, rules)
        return self._worth[key]


class Watcher(Protocol):
    """Shown each part and what became of it under each setting, in the corpus's order."""

    def see(self, table: PartTable, settled: Sequence[Settled]) -> None:
        """One part."""
        ...


def tally(
    store: Store,
    scope: Scope,
    settings: Sequence[Rules],
    *,
    sizes: bool = False,
    watchers: Sequence[Watcher] = (),
    progress: Callable[[int], None] = lambda images: None,
) -> list[Tally]:
    """The fates of a corpus under each of `settings`. Equal settings are worked out once.

    sizes: read also what samples are made of, for the watchers. progress: called after each part with its images.

    Raises:
        DataError: tables of a part do not fit together.
        StorageError: one is missing or cannot be read.
    """
    distinct = list(dict.fromkeys(settings))
    copies = read_copies(store, scope) if any(_drops_copies(rules) for rules in distinct) else None
    walks = [Walk(rules, scope, copies) for rules in distinct]
    fresh = scope.scored and any(rules.documents.reassign for rules in distinct)
    for number, table in enumerate(read_tables(store, scope, fresh=fresh, sizes=sizes)):
        settled = {walk.rules: walk.step(number, table) for walk in walks}
        for watcher in watchers:
            watcher.see(table, [settled[rules] for rules in settings])
        progress(len(table.image_index))
    found = {walk.rules: walk.tally() for walk in walks}
    return [found[rules] for rules in settings]


def read_tables(store: Store, scope: Scope, *, fresh: bool = False, sizes: bool = False) -> Iterator[PartTable]:
    """Each part's columns, one part at a time. fresh: also the matches of `reassign: true`; sizes: also `Sizes`."""
    published, reassigned = Rules(), Rules.model_validate({"documents": {"reassign": True}})

    def read(part: Part) -> PartTable:
        images = _columns(store, part.images_table(), _IMAGE_COLUMNS + ["bytes"] * sizes)
        records = _columns(store, part.records_table(), ["status"] + ["json_bytes", "n_texts"] * sizes)
        scores = None
        if scope.scored:
            scores = _columns(store, part.scores_table(), _SCORES + _FRESH_SCORES * fresh)
        columns = read_columns(images, records, scores, published)
        lacking = None if scores is None else columns.ok & ~scores.column("scored").to_numpy()
        return PartTable(
            part,
            columns,
            read_columns(images, records, scores, reassigned) if fresh else None,
            _ints(images, "image_index"),
            lacking if lacking is not None and lacking.any() else None,
            Sizes(_ints(images, "bytes"), _ints(records, "json_bytes"), _ints(records, "n_texts")) if sizes else None,
        )

    return _ahead(read, scope.parts)


def read_copies(store: Store, scope: Scope) -> Copies:
    """The corpus's pictures that are there more than once; holds 16 bytes a picture while it looks for them."""

    def read(part: Part) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        column = _columns(store, part.images_table(), ["sha256"]).column("sha256")
        there: NDArray[np.bool_] = pc.is_valid(column).to_numpy()
        return digests(column, there), np.flatnonzero(there)

    found = list(_ahead(read, scope.parts))
    return find_copies([one for one, _ in found], [places for _, places in found])


class Walk:
    """One setting on its way over a corpus's parts, in order."""

    def __init__(self, rules: Rules, scope: Scope, copies: Copies | None) -> None:
        self.rules = rules
        self._asks_scores = not scope.conversations or rules.images.min_similarity is not None
        self._first = FirstOnly(copies) if copies is not None and _drops_copies(rules) else None
        self._first_possible: FirstOnly | None = None  # apart from `_first` once something is unknown
        self._images = np.zeros(len(IMAGE_FATES), np.int64)
        self._records = np.zeros(len(RECORD_FATES), np.int64)
        self._unscored = 0

    def step(self, number: int, table: PartTable) -> Settled:
        """The outcomes of part `number`, and count them."""
        columns = table.under(self.rules)
        images = image_outcomes(columns, self.rules.images)
        unknown = self._unknown(table, columns, images)
        open_images = self._drop_copies(number, images, unknown)
        found = self._settle(columns, images, open_images)
        self._images += np.bincount(found.images, minlength=len(IMAGE_FATES))
        self._records += np.bincount(found.records, minlength=len(RECORD_FATES))
        return found

    def tally(self) -> Tally:
        """The counts of the parts so far."""
        return Tally(_named(self._images, IMAGE_FATES), _named(self._records, RECORD_FATES), self._unscored)

    def _unknown(self, table: PartTable, columns: PartColumns, images: NDArray[np.int8]) -> NDArray[np.bool_] | None:
        """bool[n]: images whose own outcome hangs on a score that a run would make first; None: none does."""
        if table.lacking is None or not self._asks_scores:
            return None
        lacking = table.lacking & table.worth(self.rules)
        count = int(lacking.sum())
        self._unscored += count
        if not count:
            return None
        if self.rules.documents.reassign:  # one more picture to assign may move the others of its record
            touched = np.zeros(len(columns.record_ok), dtype=bool)
            touched[columns.row[lacking]] = True
            judged = (images == KEPT) | (images == _NO_TEXT) | (images == _DISSIMILAR)
            moved: NDArray[np.bool_] = touched[columns.row] & judged
            return moved
        own: NDArray[np.bool_] = lacking & (images == _DISSIMILAR)
        return own

    def _drop_copies(
        self, number: int, images: NDArray[np.int8], unknown: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_] | None:
        """Drop later copies, in place; bool[n]: images of which it is open whether they pass, None: none is."""
        if self._first is None:
            return unknown
        if unknown is not None and self._first_possible is None:
            self._first_possible = self._first.copy()
        passing = images == KEPT
        images[self._first.later(number, passing if unknown is None else passing & ~unknown)] = _DUPLICATE
        if self._first_possible is None:
            return None
        possible = np.zeros(len(images), dtype=bool)
        possible[self._first_possible.later(number, passing if unknown is None else passing | unknown)] = True
        possible &= images == KEPT  # a picture that stays only if an unknown one before it does not
        return possible if unknown is None else possible | unknown

    def _settle(self, columns: PartColumns, images: NDArray[np.int8], open_images: NDArray[np.bool_] | None) -> Settled:
        if open_images is None or not open_images.any():
            return Settled(images, settle(columns, images, self.rules))
        # A record's fate hangs on how many images it keeps: the fewest and the most that it can have say whether it is open.
        fewest, most = images.copy(), images
        fewest[open_images], most[open_images] = _DISSIMILAR, KEPT
        records = record_outcomes(columns, fewest, self.rules)
        records[records != record_outcomes(columns, most, self.rules)] = _OPEN_RECORD
        passed = (fewest == KEPT) & (records[columns.row] != KEPT)
        fewest[passed] = np.where(records[columns.row[passed]] == _OPEN_RECORD, _OPEN_IMAGE, _RECORD_DROPPED)
        fewest[open_images] = _OPEN_IMAGE
        return Settled(fewest, records)


def _drops_copies(rules: Rules) -> bool:
    return rules.images.exact_duplicates == "drop"


def _named(counts: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, int]:
    fates = {name: ("" if name in ("kept", UNKNOWN) else "dropped:") + name for name in names}
    return {
        fates[name]: count
        for name, count in zip(names, counts.tolist(), strict=True)
        if name != "failed" and (count or name == "kept")
    }


def _ahead(read: Callable[[Part], Read], parts: Sequence[Part]) -> Iterator[Read]:
    """Each part read, in order, a few ahead of the one that is asked for."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(read, part))
                if len(waiting) > _READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _columns(store: Store, path: str, names: list[str]) -> pa.Table:
    try:
        with store.open_read(path) as stream:
            return read_parquet(stream, columns=names)
    except pa.ArrowException as error:
        raise DataError(
            f"{store.location(path)}: not the table that a run leaves: {error}; run check on the run"
        ) from error


def _ints(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column, 0 where it is null."""
    values: NDArray[np.int64] = table.column(name).fill_null(0).to_numpy().astype(np.int64)
    return values
