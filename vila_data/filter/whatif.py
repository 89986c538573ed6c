"""What other rules would do: columns to counts, for many settings at once. No fate is written.

Parts are streamed, each column is read once whatever the number of settings, and the rules are those of `filter_part`:
without unknown images a tally is what the receipts of a run with that setting say.

An image that a setting asks a score of, and that has none since an earlier rule dropped it before scoring, is unknown. What
hangs on it is counted as `unknown:not_scored`: its own fate, and those of its record, of the other images there, of
equal pictures, wherever they would differ with the score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.scores import PartTables, Scores
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
    Verdict,
    asks_for,
    columns_read,
    image_names,
    named_counts,
    outcomes,
    parse_rules,
    read_columns,
    record_names,
    scorers_read,
    settle,
    undecided,
    verdicts,
    worth_scoring,
)

Read = TypeVar("Read")
_READERS: Final = 4
"""Parts that are read at once; each takes some 100 bytes an image meanwhile."""

OPEN_IMAGE: Final = len(OUTCOMES)
"""Outcome of an image that is UNKNOWN."""
_OPEN_RECORD: Final = len(RECORD_OUTCOMES)
_DUPLICATE: Final = OUTCOMES.index("exact_duplicate")
_RECORD_DROPPED: Final = OUTCOMES.index("record_dropped")

_IMAGE_COLUMNS: Final = [*RULE_COLUMNS, "image_index"]
_SCORES: Final = ["scored", "matched_text_index", "similarity"]
_FRESH_SCORES: Final = ["assigned_text_index", "assigned_similarity"]


@dataclass(frozen=True)
class Scope:
    """A corpus that rules are tried on. scores: the scorers of its recipe; conversations: whether its records are conversations."""

    parts: Sequence[Part]
    scores: Scores
    conversations: bool = False


@dataclass(frozen=True)
class Tally:
    """Fates under one setting, over all parts.

    images, records: {"kept": n, "dropped:<rule>": n, "unknown:not_scored": n}, as the filter receipts count them, and
    what is unknown; unscored: images (of a scorer of records: records) that a run would score before it filters, at
    most: what a cheap scorer finds may spare them a later one.
    """

    images: dict[str, int]
    records: dict[str, int]
    unscored: int


@dataclass(frozen=True)
class Settled:
    """The outcomes of one part under one setting: indices into `image_names` int8[n] and `record_names` int8[m]."""

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
    lacking: by scorer, the images bool[n] or records bool[m] that are there and have no score of it; no entry where there
             are none.
    """

    part: Part
    published: PartColumns
    fresh: PartColumns | None
    image_index: NDArray[np.int64]
    lacking: Mapping[str, NDArray[np.bool_]]
    sizes: Sizes | None = None
    _worth: dict[tuple[str, Rules], NDArray[np.bool_]] = field(default_factory=dict)

    def under(self, rules: Rules) -> PartColumns:
        """The columns that a setting reads."""
        return self.fresh if rules.documents.reassign and self.fresh is not None else self.published

    def worth(self, rules: Rules, scores: Scores, scorer: str) -> NDArray[np.bool_]:
        """`worth_scoring`, once for all settings that differ in what it does not read."""
        rank = scores.rank(scorer)
        early = scores.similarity is None or rank <= scores.rank(scores.similarity)
        unread = {"min_similarity": None} if early else {}
        kept = tuple(rules.rules[rule.number] for rule in parse_rules(rules.rules, scores) if rule.rank < rank)
        reassign = rules.documents.reassign and not early
        key = Rules(
            rules=kept,
            images=rules.images.model_copy(update={"exact_duplicates": "keep", **unread}),
            documents=rules.documents.model_copy(update={"max_images": None, "reassign": reassign}),
        )
        if (scorer, key) not in self._worth:
            self._worth[scorer, key] = worth_scoring(self.under(key), key, scores, scorer)
        return self._worth[scorer, key]


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
    for number, table in enumerate(read_tables(store, scope, distinct, sizes=sizes)):
        settled = {walk.rules: walk.step(number, table) for walk in walks}
        for watcher in watchers:
            watcher.see(table, [settled[rules] for rules in settings])
        progress(len(table.image_index))
    found = {walk.rules: walk.tally() for walk in walks}
    return [found[rules] for rules in settings]


def read_tables(store: Store, scope: Scope, settings: Sequence[Rules], *, sizes: bool = False) -> Iterator[PartTable]:
    """Each part's columns that some settings read, one part at a time. sizes: also `Sizes`."""
    scores = scope.scores
    published, reassigned = Rules(), Rules.model_validate({"documents": {"reassign": True}})
    fresh = scores.similarity is not None and any(rules.documents.reassign for rules in settings)
    of_images, of_records, of_scorers = columns_read(settings, scores)
    asked = {name for rules in settings for name in scorers_read(rules, scores)}
    matched = {scores.similarity: _SCORES + _FRESH_SCORES * fresh}

    def read(part: Part) -> PartTable:
        images = _columns(store, part.images_table(), [*_IMAGE_COLUMNS, *["bytes"] * sizes, *of_images])
        records = _columns(store, part.records_table(), ["status", *["json_bytes", "n_texts"] * sizes, *of_records])
        tables = {
            name: _columns(store, part.scores_table(name), [*matched.get(name, ["scored"]), *of_scorers.get(name, ())])
            for name in asked
        }
        whole = PartTables(images, records, tables)
        columns = read_columns(whole, published, scores, settings)
        lacking = {}
        for name, table in tables.items():
            there = columns.ok if scores.table(name).rows == "image" else columns.record_ok
            lacks = there & ~table.column("scored").to_numpy()
            if lacks.any():
                lacking[name] = lacks
        return PartTable(
            part,
            columns,
            read_columns(whole, reassigned, scores, settings) if fresh else None,
            _ints(images, "image_index"),
            lacking,
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
        self._scores = scope.scores
        self._scored = [
            table.name
            for table in scope.scores.tables
            if not (scope.conversations and table.on_demand and not asks_for(rules, scope.scores, table.name))
        ]
        self._first = FirstOnly(copies) if copies is not None and _drops_copies(rules) else None
        self._first_possible: FirstOnly | None = None  # apart from `_first` once something is unknown
        self._names = (image_names(rules), record_names(rules))
        self._images, self._records = (np.zeros(len(names), np.int64) for names in self._names)
        self._unscored = 0

    def step(self, number: int, table: PartTable) -> Settled:
        """The outcomes of part `number`, and count them."""
        columns = table.under(self.rules)
        lacking = {name: table.lacking[name] for name in self._scored if name in table.lacking}
        if any((lacks & table.worth(self.rules, self._scores, name)).any() for name, lacks in lacking.items()):
            images, records = self._judge(columns, lacking)
        else:
            images, records = outcomes(columns, self.rules, self._scores)
        self._drop_copies(number, images)
        self._settle(columns, images, records, last=True)
        self._images += np.bincount(images, minlength=len(self._names[0]))
        self._records += np.bincount(records, minlength=len(self._names[1]))
        return Settled(images, records)

    def tally(self) -> Tally:
        """The counts of the parts so far."""
        return Tally(
            named_counts(self._images, self._names[0]), named_counts(self._records, self._names[1]), self._unscored
        )

    def _judge(
        self, columns: PartColumns, lacking: Mapping[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """`outcomes`; open where they hang on a score that a run would make first. What is open stays so."""
        images, records = undecided(columns)
        missing: dict[str, NDArray[np.bool_]] = {}
        rank = 0
        for verdict in verdicts(columns, self.rules, self._scores):
            if verdict.rank > rank:
                self._settle(columns, images, records)
                missing |= self._missing(lacking, range(rank + 1, verdict.rank + 1), images, records)
                rank = verdict.rank
            for name in verdict.scorers & missing.keys():
                hangs = self._hangs(columns, verdict, name, missing[name])
                if verdict.unit == "record":
                    records[(records == KEPT) & hangs] = _OPEN_RECORD
                    hangs = (records == _OPEN_RECORD)[columns.row]
                images[(images == KEPT) & hangs] = OPEN_IMAGE
            verdict.apply(columns, images, records)
        left = images.copy(), records.copy()
        self._settle(columns, *left)
        missing |= self._missing(lacking, range(rank + 1, len(self._scores.tables) + 1), *left)
        for unit in ("image", "record"):
            of_unit = [rows for name, rows in missing.items() if self._scores.table(name).rows == unit]
            self._unscored += int(np.any(of_unit, axis=0).sum())
        return images, records

    def _missing(
        self,
        lacking: Mapping[str, NDArray[np.bool_]],
        ranks: range,
        images: NDArray[np.int8],
        records: NDArray[np.int8],
    ) -> dict[str, NDArray[np.bool_]]:
        """By scorer of some ranks, what a run would have it score first, at most. images, records: before its rank's verdicts."""
        worth = {
            "image": (images == KEPT) | (images == OPEN_IMAGE),
            "record": (records == KEPT) | (records == _OPEN_RECORD),
        }
        return {
            name: lacks & worth[self._scores.table(name).rows]
            for name, lacks in lacking.items()
            if self._scores.rank(name) in ranks
        }

    def _hangs(
        self, columns: PartColumns, verdict: Verdict, name: str, missing: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """bool, as the verdict's: where it may be another once a scorer has scored what is missing."""
        of_images = self._scores.table(name).rows == "image"
        if of_images and name in verdict.joint:  # one more picture to assign may move the others of its record
            touched = np.zeros(len(columns.record_ok), dtype=bool)
            touched[columns.row[missing]] = True
            moved: NDArray[np.bool_] = touched[columns.row]
            return moved
        own = missing if of_images or verdict.unit == "record" else missing[columns.row]
        return own if verdict.hangs is None or name in verdict.joint else own & verdict.hangs

    def _drop_copies(self, number: int, images: NDArray[np.int8]) -> None:
        """Drop later copies, in place; one that stays only if an open one before it does not is open."""
        if self._first is None:
            return
        possible = images == OPEN_IMAGE
        if self._first_possible is None and possible.any():
            self._first_possible = self._first.copy()
        possible |= images == KEPT
        images[self._first.later(number, images == KEPT)] = _DUPLICATE
        if self._first_possible is not None:
            later = self._first_possible.later(number, possible)
            images[later[images[later] == KEPT]] = OPEN_IMAGE

    def _settle(
        self, columns: PartColumns, images: NDArray[np.int8], records: NDArray[np.int8], *, last: bool = False
    ) -> None:
        """`settle`, in place; open where it hangs on images that are open."""
        open_images = images == OPEN_IMAGE
        if not open_images.any():
            settle(columns, images, records, self.rules, last=last)
            return
        # A record's fate hangs on how many images it keeps: the fewest and the most that it can have say whether it is open.
        fewest, most = records.copy(), records.copy()
        settle(columns, images.copy(), fewest, self.rules, last=last)
        settle(columns, np.where(open_images, KEPT, images).astype(np.int8), most, self.rules, last=last)
        records[:] = np.where(fewest == most, most, _OPEN_RECORD)
        passing = images == KEPT
        images[passing & (records[columns.row] != KEPT)] = _RECORD_DROPPED
        images[passing & (records[columns.row] == _OPEN_RECORD)] = OPEN_IMAGE


def _drops_copies(rules: Rules) -> bool:
    return rules.images.exact_duplicates == "drop"


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
            return read_parquet(stream, columns=list(dict.fromkeys(names)))
    except pa.ArrowException as error:
        raise DataError(
            f"{store.location(path)}: not the table that a run leaves: {error}; run check on the run"
        ) from error


def _ints(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column, 0 where it is null."""
    values: NDArray[np.int64] = table.column(name).fill_null(0).to_numpy().astype(np.int64)
    return values
