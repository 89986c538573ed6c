"""Columns of a shard for a subset's condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vila_data.core.errors import DataError
from vila_data.core.tables import LENGTHS, SHARD_INDEX
from vila_data.mix.columns import COLUMNS, index_columns, subset_columns
from vila_data.mix.config import Subset
from vila_data.mix.subset import SubsetFilter


def tables() -> tuple[pa.Table, pa.Table]:
    similarities = [[], [0.5, 0.25], [None], [0.75, None, -0.5], [1.0]]
    index = {
        "key": [f"k{row}" for row in range(5)],
        "record_id": [f"r{row // 2}" for row in range(5)],
        "n_images": [len(entry) for entry in similarities],
        "text_chars": [10 * row for row in range(5)],
        **{name: [[]] * 5 for name in ("members", "offsets", "sizes", "crc32c", "widths", "heights")},
        "similarities": similarities,
    }
    zeros = {field.name: [0 if field.type == pa.int32() else []] * 5 for field in LENGTHS}
    lengths = zeros | {"row": range(5), "tokens": [3, 4, 5, 6, 0], "images": [0, 2, 1, 2, 1], "fate": ["ok"] * 5}
    return pa.table(index, schema=SHARD_INDEX), pa.table(lengths, schema=LENGTHS)


def test_every_column_is_there() -> None:
    found = subset_columns(*tables(), COLUMNS)
    assert set(found) == set(COLUMNS) and {len(values) for values in found.values()} == {5}
    assert np.array_equal(found["min_similarity"], [np.nan, 0.25, np.nan, -0.5, 1.0], equal_nan=True)
    assert np.array_equal(found["max_similarity"], [np.nan, 0.5, np.nan, 0.75, 1.0], equal_nan=True)
    assert found["record_id"].tolist() == ["r0", "r0", "r1", "r1", "r2"] and found["tokens"].tolist() == [3, 4, 5, 6, 0]


def test_a_subset_of_a_shard(tmp_path: Path) -> None:
    chosen = SubsetFilter(Subset(where="min_similarity > 0.2 or (tokens == 5 and record_id == 'r1')"))
    assert chosen.keep(subset_columns(*tables(), chosen.columns)).tolist() == [False, True, True, False, True]
    (tmp_path / "ids").write_text("r1\n")
    listed = SubsetFilter(Subset(ids=str(tmp_path / "ids")))
    assert listed.keep(subset_columns(*tables(), listed.columns)).tolist() == [False, False, True, True, False]


def test_shards_of_two_lengths() -> None:
    index, lengths = tables()
    with pytest.raises(DataError, match="index has 5 rows, its lengths 4"):
        subset_columns(index, lengths.slice(1), ["tokens"])


def test_no_similarities_at_all() -> None:
    index, lengths = (table.slice(0, 1) for table in tables())
    assert np.isnan(subset_columns(index, lengths, ["max_similarity"])["max_similarity"]).all()


def test_which_columns_of_an_index_are_needed() -> None:
    assert index_columns(["tokens", "images", "text_tokens"]) == []
    assert index_columns(["text_chars", "max_similarity", "min_similarity", "tokens"]) == ["similarities", "text_chars"]
