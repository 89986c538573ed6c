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
    FAILED,
    KEPT,
    OUTCOMES,
    RECORD_OUTCOMES,
    RULE_COLUMNS,
    PartColumns,
    Verdict,
    asks_for,
    columns_read,
    image_names,
    image_outcomes,
    named_counts,
    parse_rules,
    read_columns,
    record_names,
    record_outcomes,
    scorers_read,
    settle,
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
_DISSIMILAR: Final = OUTCOMES.index("min_similarity")

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
        missing = self._missing(table)
        if missing:
            images, unknown = self._judge(columns, missing)
        else:
            images, unknown = image_outcomes(columns, self.rules, self._scores), None
        open_images = self._drop_copies(number, images, unknown)
        found = self._settle(columns, images, open_images, self._open_records(columns, missing))
        self._images += np.bincount(found.images, minlength=len(self._names[0]))
        self._records += np.bincount(found.records, minlength=len(self._names[1]))
        return found

    def tally(self) -> Tally:
        """The counts of the parts so far."""
        return Tally(
            named_counts(self._images, self._names[0]), named_counts(self._records, self._names[1]), self._unscored
        )

    def _missing(self, table: PartTable) -> dict[str, NDArray[np.bool_]]:
        """By scorer, what a run with this setting would have it score first; no entry where that is nothing."""
        missing = {}
        units: dict[str, NDArray[np.bool_]] = {}
        for name in self._scored:
            if name in table.lacking:
                lacking = table.lacking[name] & table.worth(self.rules, self._scores, name)
                if lacking.any():
                    missing[name] = lacking
                    unit = self._scores.table(name).rows
                    units[unit] = units[unit] | lacking if unit in units else lacking
        self._unscored += sum(int(lacking.sum()) for lacking in units.values())
        return missing

    def _judge(
        self, columns: PartColumns, missing: Mapping[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_] | None]:
        """(`image_outcomes`, bool[n] images whose own outcome hangs on a score that a run would make first)."""
        outcome = np.where(columns.ok, KEPT, FAILED).astype(np.int8)
        unknown = np.zeros(len(outcome), np.bool_)
        for verdict in verdicts(columns, self.rules, self._scores):
            passing = outcome == KEPT
            for name in verdict.scorers & missing.keys():
                unknown |= passing & self._hangs(columns, verdict, name, missing[name])
            outcome[passing & verdict.drops] = verdict.code
        return outcome, unknown if unknown.any() else None

    def _hangs(
        self, columns: PartColumns, verdict: Verdict, name: str, missing: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """bool[n]: images of which a verdict may be another once a scorer has scored what is missing."""
        if name in verdict.joint:  # one more picture to assign may move the others of its record
            touched = np.zeros(len(columns.record_ok), dtype=bool)
            touched[columns.row[missing]] = True
            moved: NDArray[np.bool_] = touched[columns.row]
            return moved
        own = missing if self._scores.table(name).rows == "image" else missing[columns.row]
        return own if verdict.hangs is None else own & verdict.hangs

    def _open_records(self, columns: PartColumns, missing: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
        """bool[m]: records whose own rules hang on a score that is not there; None: none do."""
        found = None
        for rule in parse_rules(self.rules.rules, self._scores) if missing else ():
            if rule.unit == "record":
                holds = (columns.holds(rule, self._scores, unknown=unknown) for unknown in (True, False))
                hangs = np.not_equal(*holds)
                for name in rule.scorers & missing.keys():
                    found = hangs & missing[name] if found is None else found | (hangs & missing[name])
        return found

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

    def _settle(
        self,
        columns: PartColumns,
        images: NDArray[np.int8],
        open_images: NDArray[np.bool_] | None,
        open_records: NDArray[np.bool_] | None,
    ) -> Settled:
        if (open_images is None or not open_images.any()) and open_records is None:
            return Settled(images, settle(columns, images, self.rules, self._scores))
        # A record's fate hangs on how many images it keeps: the fewest and the most that it can have say whether it is open.
        fewest, most = images.copy(), images
        if open_images is not None:
            fewest[open_images], most[open_images] = _DISSIMILAR, KEPT
        records = record_outcomes(columns, fewest, self.rules, self._scores)
        records[records != record_outcomes(columns, most, self.rules, self._scores)] = _OPEN_RECORD
        if open_records is not None:
            records[open_records] = _OPEN_RECORD
        passed = (fewest == KEPT) & (records[columns.row] != KEPT)
        fewest[passed] = np.where(records[columns.row[passed]] == _OPEN_RECORD, OPEN_IMAGE, _RECORD_DROPPED)
        if open_images is not None:
            fewest[open_images] = OPEN_IMAGE
        return Settled(fewest, records)


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
