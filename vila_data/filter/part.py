"""The filter stage for one part: columns in, fates out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, committing
from vila_data.core.scores import PartTables, Scores
from vila_data.core.store import Store
from vila_data.core.tables import FATES, read_parquet
from vila_data.filter import duplicates
from vila_data.filter.config import Rules
from vila_data.filter.rules import (
    FAILED,
    KEPT,
    OUTCOMES,
    RULE_COLUMNS,
    PartColumns,
    columns_read,
    count_fates,
    image_names,
    outcomes,
    parse_rules,
    read_columns,
    record_names,
    scorers_read,
    settle,
    worth_scoring,
)

_IMAGE_COLUMNS = [*RULE_COLUMNS, "record_id", "image_index", "error", "sha256"]
_RECORD_COLUMNS = ["row", "record_id", "status", "error"]
_SCORE_COLUMNS = ["scored", "similarity", "matched_text_index", "assigned_text_index", "assigned_similarity"]


@dataclass(frozen=True)
class _Tables:
    images: pa.Table
    records: pa.Table
    columns: PartColumns


def rows_worth_scoring(store: Store, part: Part, rules: Rules, scores: Scores, scorer: str) -> NDArray[np.bool_]:
    """bool[images of the part], or of its records for a scorer of records: those that no rule drops whose columns are known
    before this scorer runs; it needs the tables of the scorers before it that rules name."""
    rank = scores.rank(scorer)
    early = tuple(rules.rules[rule.number] for rule in parse_rules(rules.rules, scores) if rule.rank < rank)
    known = {name for rule in parse_rules(early, scores) for name in rule.scorers}
    if scores.similarity is not None and scores.rank(scores.similarity) < rank:
        known.add(scores.similarity)
    earlier = rules.model_copy(update={"rules": early})
    return worth_scoring(_read(store, part, earlier, scores, known).columns, earlier, scores, scorer)


def part_digests(store: Store, part: Part, rules: Rules, scores: Scores) -> NDArray[np.void]:
    """Digests of the part's images that pass every rule but the duplicates'."""
    tables = _read(store, part, rules, scores, scorers_read(rules, scores))
    return duplicates.digests(tables.images.column("sha256"), outcomes(tables.columns, rules, scores)[0] == KEPT)


def filter_part(
    store: Store, part: Part, rules: Rules, scores: Scores, copies: NDArray[np.bool_] | None, inputs: str
) -> Receipt:
    """Write the part's fates and their counts; "null_values" counts by rule what it kept since a value is null.

    copies: of `duplicates.later_copies`, one entry an image of `part_digests`; None, or rules that
            keep duplicates, keeps them.

    Raises:
        DataError: the counts of fates do not sum to the part's rows.
    """
    tables = _read(store, part, rules, scores, scorers_read(rules, scores))
    nulls: dict[str, int] = {}
    images, records = outcomes(tables.columns, rules, scores, nulls=nulls)
    if copies is not None and rules.images.exact_duplicates == "drop":
        images[np.flatnonzero(images == KEPT)[copies]] = OUTCOMES.index("exact_duplicate")
    settle(tables.columns, images, records, rules, last=True)
    with committing(store, part.receipt("filter"), inputs) as outputs:
        table = _fates(tables, images, records, rules)
        pq.write_table(table, outputs.path(part.fates_table()), compression="zstd")
        outputs.counts = {
            "images": count_fates(images[images != FAILED], image_names(rules)),
            "records": count_fates(records[records != FAILED], record_names(rules)),
        }
        if rules.rules:
            outputs.counts["null_values"] = nulls
        if table.num_rows != len(images) + len(records):
            raise DataError(
                f"{part.fates_table()}: {table.num_rows} fates for {len(images)} images and {len(records)} records"
            )
    assert outputs.receipt is not None
    return outputs.receipt


def _read(store: Store, part: Part, rules: Rules, scores: Scores, scorers: Iterable[str]) -> _Tables:
    """The part's tables, those of some scorers among them."""
    of_images, of_records, of_scorers = columns_read([rules], scores)

    def read(path: str, names: Iterable[str]) -> pa.Table:
        with store.open_read(path) as stream:
            return read_parquet(stream, columns=list(dict.fromkeys(names)))

    images = read(part.images_table(), [*_IMAGE_COLUMNS, *of_images])
    records = read(part.records_table(), [*_RECORD_COLUMNS, *of_records])
    found = {}
    for name in scorers:
        head = _SCORE_COLUMNS if name == scores.similarity else ["scored"]
        found[name] = read(part.scores_table(name), [*head, *of_scorers.get(name, ())])
    return _Tables(images, records, read_columns(PartTables(images, records, found), rules, scores))


def _fates(tables: _Tables, images: NDArray[np.int8], records: NDArray[np.int8], rules: Rules) -> pa.Table:
    """FATES rows: each record, then its images."""
    n, m = len(images), len(records)
    kept = images == KEPT
    order = np.lexsort((np.r_[np.full(m, -1), np.arange(n)], np.r_[np.arange(m), tables.columns.row]))
    names = [
        _names(records, record_names(rules), tables.records),
        _names(images, image_names(rules), tables.images),
    ]
    similarity = np.where(kept, tables.columns.similarity, np.nan)
    table = pa.table(
        {
            "row": pa.concat_arrays([_whole(tables.records, "row"), _whole(tables.images, "row")]),
            "record_id": pa.concat_arrays([_whole(tables.records, "record_id"), _whole(tables.images, "record_id")]),
            "image_index": pa.concat_arrays([pa.nulls(m, pa.int32()), _whole(tables.images, "image_index")]),
            "fate": pa.concat_arrays([fate for fate, _, _ in names]),
            "reason": pa.concat_arrays([reason for _, reason, _ in names]),
            "stage": pa.concat_arrays([stage for _, _, stage in names]),
            "text_index": pa.concat_arrays(
                [pa.nulls(m, pa.int32()), pa.array(tables.columns.text_index.astype(np.int32), mask=~kept)]
            ),
            "similarity": pa.concat_arrays(
                [pa.nulls(m, pa.float32()), pa.array(similarity.astype(np.float32), mask=np.isnan(similarity))]
            ),
        },
        schema=FATES,
    )
    return table.take(pa.array(order))


def _names(outcomes: NDArray[np.int8], names: tuple[str, ...], table: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Fate, reason and stage of each outcome."""
    codes = pa.array(outcomes)
    fates = pa.array([name if name in ("kept", "failed") else "dropped" for name in names])
    rules = pa.array([None, None, *names[2:]], pa.string())
    stages = pa.array(["download" if name == "failed" else "filter" for name in names])
    failed = pa.array(outcomes == FAILED)
    return fates.take(codes), pc.if_else(failed, _whole(table, "error"), rules.take(codes)), stages.take(codes)


def _whole(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()
