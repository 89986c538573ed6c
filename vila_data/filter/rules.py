"""The rules, as array operations over the columns of one part.

An image's outcome is an index into `image_names`, a record's into `record_names`; rules are tried in order, and
the first that fails names the reason. The order is that in which their columns become known (`core.scores.Scores.rank`),
so that what a rule drops need not be measured further. Before columns that a scorer measures are read, the records that
are lost already are dropped: no value decides about an image or record that a new run would not have scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.expression import Condition, parse
from vila_data.core.scores import PartTables, Scores, Unit, Values
from vila_data.filter.config import Rules
from vila_data.filter.named import NamedCondition, named_condition

FATES_VERSION: Final = 2
"""Raised when the same rules give other fates on the same columns."""

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
"""Columns of the images' table that `read_columns` always reads."""

RECORD_OUTCOMES = ("kept", "failed", "missing_image", "min_images", "max_images", "dropped_image")
"""Fates of records: kept, failed in the metadata, or the rule that dropped it."""

UNKNOWN: Final = "unknown:not_scored"
"""Of what hangs on a score that is not there (whatif.py); no run gives it."""

_RECORD_DROPPED: Final = OUTCOMES.index("record_dropped")


def image_names(rules: Rules) -> tuple[str, ...]:
    """What an image's outcome may be: OUTCOMES, UNKNOWN, and the text of each rule."""
    return (*OUTCOMES, UNKNOWN, *rules.rules)


def record_names(rules: Rules) -> tuple[str, ...]:
    """What a record's outcome may be: RECORD_OUTCOMES, UNKNOWN, and the text of each rule."""
    return (*RECORD_OUTCOMES, UNKNOWN, *rules.rules)


@dataclass(frozen=True)
class Rule:
    """One of `filter.rules`. number: its place there.

    unit:    what it decides about: a record where all its columns are a record's.
    rank:    of the last scorer that measures a column of it; 0: download's columns are enough.
    scorers: whose columns it names; joint: those of them of which it names a column that is joint (core.scores).
    """

    number: int
    condition: Condition | NamedCondition
    unit: Unit
    rank: int
    scorers: frozenset[str]
    joint: frozenset[str]


@lru_cache(maxsize=256)
def parse_rules(texts: tuple[str, ...], scores: Scores) -> tuple[Rule, ...]:
    """The rules, checked, in the order in which they are tried.

    Raises:
        ValueError: (number, problem) of the first that cannot be parsed, names a column that is not there, or compares
            it with what it is not.
    """
    found = []
    for number, text in enumerate(texts):
        if text in texts[:number]:
            continue
        try:
            condition = named_condition(text, scores.kinds()) or parse(text, scores.kinds())
        except ValueError as error:
            raise ValueError(number, str(error)) from None
        names = {name: name.split(".") for name in condition.names if "." in name}
        scorers = frozenset(scorer for scorer, _ in names.values())
        joint = frozenset(scorer for scorer, column in names.values() if column in scores.table(scorer).joint)
        of_records = all(scores.unit(name) == "record" for name in condition.names)
        rank = max(map(scores.rank, scorers), default=0)
        found.append(Rule(number, condition, "record" if of_records else "image", rank, scorers, joint))
    return tuple(sorted(found, key=lambda rule: rule.rank))


def scorers_read(rules: Rules, scores: Scores) -> tuple[str, ...]:
    """The scorers whose tables fates are made from: those that the rules name, and that of similarities."""
    named = {name for rule in parse_rules(rules.rules, scores) for name in rule.scorers}
    return tuple(table.name for table in scores.tables if table.name in named or table.name == scores.similarity)


def columns_read(rules: Sequence[Rules], scores: Scores) -> tuple[set[str], set[str], dict[str, set[str]]]:
    """The columns that `filter.rules` of some settings name: of images, of records, and of each scorer's table."""
    images, records = set[str](), set[str]()
    of_scorers: dict[str, set[str]] = {}
    for name in {name for one in rules for rule in parse_rules(one.rules, scores) for name in rule.condition.names}:
        scorer, _, column = name.rpartition(".")
        if scorer:
            of_scorers.setdefault(scorer, set()).add(column)
        elif scores.unit(name) == "image":
            images.add(name)
        else:
            records.add(name)
    return images, records, of_scorers


@dataclass(frozen=True)
class PartColumns:
    """The columns of one part that the rules read, one entry an image (n) or a record (m).

    row int64[n]: the record of each image; ok bool[n]: downloaded; side, aspect float64[n];
    text_index int64[n]: the sentence it stands before, -1 for none; similarity float64[n], NaN for none;
    record_ok bool[m]; named: the columns that `filter.rules` name, of images [n] and of records [m].
    """

    row: NDArray[np.int64]
    ok: NDArray[np.bool_]
    side: NDArray[np.float64]
    aspect: NDArray[np.float64]
    text_index: NDArray[np.int64]
    similarity: NDArray[np.float64]
    record_ok: NDArray[np.bool_]
    named: Mapping[str, Values] = field(default_factory=dict)

    def holds(self, rule: Rule, scores: Scores, *, unknown: bool) -> NDArray[np.bool_]:
        """bool[n] or [m]: for which images or records a rule holds; `unknown` is what hangs on a null."""
        found = {name: self.named[name] for name in rule.condition.names}
        if rule.unit == "image":
            found = {
                name: values.of_images(self.row) if scores.unit(name) == "record" else values
                for name, values in found.items()
            }
        nulls = {name: values.null for name, values in found.items() if values.null is not None}
        return rule.condition.holds({name: values.values for name, values in found.items()}, nulls, unknown=unknown)


def read_columns(tables: PartTables, rules: Rules, scores: Scores, names: Sequence[Rules] = ()) -> PartColumns:
    """The rules' columns from a part's tables; a score table that is not among them is not read.

    names: settings of which the columns that `filter.rules` name are read, as far as their tables are there; none: `rules`.
    """
    tables.check(scores)
    images, records = tables.images, tables.records
    width, height = _floats(images, "original_width"), _floats(images, "original_height")
    text_index, similarity = _matches(images, tables.scores.get(scores.similarity or ""), rules)
    of_images, of_records, of_scorers = columns_read(names or [rules], scores)
    named = {*of_images, *of_records}
    named |= {f"{name}.{column}" for name in of_scorers.keys() & tables.scores for column in of_scorers[name]}
    return PartColumns(
        row=images.column("row").to_numpy().astype(np.int64),
        ok=_is(images, "status", "ok"),
        side=np.minimum(width, height),
        aspect=width / height,
        text_index=text_index,
        similarity=similarity,
        record_ok=_is(records, "status", "ok"),
        named={name: tables.values(name, scores.unit(name)) for name in sorted(named)},
    )


@dataclass(frozen=True)
class Verdict:
    """What one rule says of a part's images, or of its records where `unit` is "record".

    drops:   bool[n] or [m] which it drops if nothing before it did, and code: as what.
    rank:    when its columns are known; scorers: which measure them, joint: as of a Rule.
    hangs:   bool[n] or [m] where a score that is not there decides; None: wherever one is not there.
    text:    of one of `filter.rules`, else None.
    """

    drops: NDArray[np.bool_]
    code: int
    rank: int = 0
    scorers: frozenset[str] = frozenset()
    joint: frozenset[str] = frozenset()
    hangs: NDArray[np.bool_] | None = None
    unit: Unit = "image"
    text: str | None = None

    def apply(self, columns: PartColumns, images: NDArray[np.int8], records: NDArray[np.int8]) -> None:
        """Drop what it drops of what passes, in place; images of a record that it drops are `record_dropped`."""
        outcome = images if self.unit == "image" else records
        outcome[(outcome == KEPT) & self.drops] = self.code
        if self.unit == "record":
            _drop_with_records(columns, images, records)


def verdicts(columns: PartColumns, rules: Rules, scores: Scores, below: int | None = None) -> Iterator[Verdict]:
    """Each of `filter.rules` and each rule on images but the duplicates', which need the whole corpus, in the order in
    which they are tried.

    below: only those whose columns are known before the scorer of that rank runs.
    """
    images = rules.images
    if images.min_side_px is not None:
        yield Verdict(columns.side < images.min_side_px, OUTCOMES.index("min_side_px"))
    if images.aspect_ratio is not None:
        low, high = images.aspect_ratio
        outside = (columns.aspect < low) | (columns.aspect > high)
        yield Verdict(outside, OUTCOMES.index("aspect_ratio"))
    later = [rule for rule in parse_rules(rules.rules, scores) if below is None or rule.rank < below]
    rank = scores.rank(scores.similarity) if scores.similarity is not None else 0
    yield from (_verdict(columns, rule, scores) for rule in later if rule.rank < max(rank, 1))
    if below is None or rank < below:
        yield from _match_verdicts(columns, rules, scores, rank)
    yield from (_verdict(columns, rule, scores) for rule in later if rule.rank >= max(rank, 1))


def _match_verdicts(columns: PartColumns, rules: Rules, scores: Scores, rank: int) -> Iterator[Verdict]:
    """The rules on an image's sentence."""
    by = frozenset({scores.similarity}) if scores.similarity is not None else frozenset[str]()
    fresh = by if rules.documents.reassign else frozenset[str]()
    yield Verdict(columns.text_index < 0, OUTCOMES.index("no_matched_text"), rank, fresh, fresh)
    if rules.images.min_similarity is not None:
        below = ~(columns.similarity >= np.float32(rules.images.min_similarity))
        yield Verdict(below, OUTCOMES.index("min_similarity"), rank, by, fresh)


def _verdict(columns: PartColumns, rule: Rule, scores: Scores) -> Verdict:
    holds = columns.holds(rule, scores, unknown=True)
    hangs = holds & ~columns.holds(rule, scores, unknown=False)
    code = len(OUTCOMES if rule.unit == "image" else RECORD_OUTCOMES) + 1 + rule.number
    return Verdict(~holds, code, rule.rank, rule.scorers, rule.joint, hangs, rule.unit, rule.condition.text)


def undecided(columns: PartColumns) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Outcomes of images int8[n] and of records int8[m] before any rule."""
    return np.where(columns.ok, KEPT, FAILED).astype(np.int8), np.where(columns.record_ok, KEPT, FAILED).astype(np.int8)


def outcomes(
    columns: PartColumns,
    rules: Rules,
    scores: Scores,
    below: int | None = None,
    nulls: dict[str, int] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Outcomes of images int8[n] and of records int8[m] by all `verdicts`, and by `settle` before those of each scorer.

    nulls: is given, by rule of `filter.rules`, how many images or records it judged and kept since a value is null.
    """
    images, records = undecided(columns)
    rank = 0
    for verdict in verdicts(columns, rules, scores, below):
        if verdict.rank > rank:
            rank = verdict.rank
            settle(columns, images, records, rules)
        if nulls is not None and verdict.text is not None and verdict.hangs is not None:
            judged = (images if verdict.unit == "image" else records) == KEPT
            if count := int((judged & verdict.hangs).sum()):
                nulls[verdict.text] = nulls.get(verdict.text, 0) + count
        verdict.apply(columns, images, records)
    return images, records


def settle(
    columns: PartColumns, images: NDArray[np.int8], records: NDArray[np.int8], rules: Rules, *, last: bool = False
) -> None:
    """Drop the records that are lost by what became of their images so far, and with them their images that pass, in place.

    last: nothing else drops images; now a record may also have too many.
    """

    def count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(columns.row[mask], minlength=len(records))

    documents = rules.documents
    if documents.on_missing_image == "drop_document":
        _drop(records, count(images == FAILED) > 0, "missing_image")
    if documents.on_dropped_image == "drop_document":
        _drop(records, count((images != KEPT) & (images != FAILED)) > 0, "dropped_image")
    kept = count(images == KEPT)
    _drop(records, kept < documents.min_images, "min_images")
    if last and documents.max_images is not None:
        _drop(records, kept > documents.max_images, "max_images")
    _drop_with_records(columns, images, records)


def count_fates(outcomes: NDArray[np.int8], names: tuple[str, ...]) -> dict[str, int]:
    """{"kept": count, "dropped:<rule>": count, UNKNOWN: count …}: those that reached the rules, by fate."""
    return named_counts(np.bincount(outcomes, minlength=len(names)), names)


def named_counts(counts: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, int]:
    """As `count_fates`, of counts by outcome."""
    found: dict[str, int] = {}
    for code, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        if code != FAILED and (count or code == KEPT):
            key = name if name in ("kept", UNKNOWN) else f"dropped:{name}"
            found[key] = found.get(key, 0) + count
    return found


def worth_scoring(columns: PartColumns, rules: Rules, scores: Scores, scorer: str) -> NDArray[np.bool_]:
    """bool[n] or, for a scorer of records, [m]: those that no rule drops, alone or with their record, whose columns are known
    before this scorer runs. Later rules judge no others."""
    images, records = outcomes(columns, rules, scores, scores.rank(scorer))
    settle(columns, images, records, rules)
    worth: NDArray[np.bool_] = (images if scores.table(scorer).rows == "image" else records) == KEPT
    return worth


def asks_for(rules: Rules, scores: Scores, scorer: str) -> bool:
    """Whether a rule judges by a scorer's columns, or by columns that are made from them."""
    read = {name for rule in parse_rules(rules.rules, scores) for name in rule.scorers}
    named = any(scorer in scores.made_from(name) for name in read)
    return named or (scorer == scores.similarity and rules.images.min_similarity is not None)


def _matches(images: pa.Table, scores: pa.Table | None, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if scores is None:
        return _ints(images, "matched_text_index"), np.full(images.num_rows, np.nan)
    if rules.documents.reassign:
        return _ints(scores, "assigned_text_index"), _floats(scores, "assigned_similarity")
    return _ints(scores, "matched_text_index"), _floats(scores, "similarity")


def _drop_with_records(columns: PartColumns, images: NDArray[np.int8], records: NDArray[np.int8]) -> None:
    images[(images == KEPT) & (records[columns.row] != KEPT)] = _RECORD_DROPPED


def _drop(outcome: NDArray[np.int8], mask: NDArray[np.bool_], rule: str) -> None:
    outcome[(outcome == KEPT) & mask] = RECORD_OUTCOMES.index(rule)


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
