"""Subsets: conditions mean what they mean in Python and nothing else is allowed; lists of ids are found or counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError, UsageError
from vila_data.core.expression import parse
from vila_data.core.tables import LENGTHS, SHARD_INDEX
from vila_data.mix.config import Subset
from vila_data.mix.subset import COLUMNS, SubsetFilter, index_columns, subset_columns

ROWS: list[dict[str, Any]] = [
    {"key": "k0", "record_id": "a", "n_images": 0, "text_chars": 10, "min_similarity": math.nan},
    {"key": "k1", "record_id": "b", "n_images": 1, "text_chars": 4000, "min_similarity": 0.2},
    {"key": "k2", "record_id": "b", "n_images": 2, "text_chars": 3999, "min_similarity": 0.31},
    {"key": "k3", "record_id": "c", "n_images": 7, "text_chars": 0, "min_similarity": -0.1},
]
COLUMNS_OF_ROWS = {name: np.asarray([row[name] for row in ROWS]) for name in ROWS[0]}


@pytest.mark.parametrize(
    "text",
    [
        "n_images >= 2 and text_chars < 4000",
        "not n_images > 0",
        "1 <= n_images < 3",
        "n_images in [0, 7] or record_id in ('b', 'x')",
        "n_images not in [1]",
        "text_chars / 1000 - n_images * 2 > -3 + 1",
        "min_similarity >= 0.2",
        "not (min_similarity < 0.3) and key != 'k2'",
        "record_id > 'a'",
        "n_images in []",
        "1 < 2 and n_images == 2",
    ],
)
def test_conditions_mean_what_python_means(text: str) -> None:
    expected = [bool(eval(text, {}, row)) for row in ROWS]
    found = SubsetFilter(Subset(where=text)).keep(COLUMNS_OF_ROWS)
    assert found.dtype == np.bool_ and found.tolist() == expected


@given(
    st.recursive(
        st.tuples(
            st.sampled_from(["n_images", "text_chars", "n_images + 1", "2 * text_chars - n_images"]),
            st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
            st.integers(-3, 4001),
        ).map(lambda part: f"{part[0]} {part[1]} {part[2]}"),
        lambda inner: st.one_of(
            inner.map(lambda text: f"not ({text})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
                lambda part: f"({part[0]}) {part[1]} ({part[2]})"
            ),
        ),
        max_leaves=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_condition_agrees_with_python(text: str) -> None:
    found = parse(text, COLUMNS).holds(COLUMNS_OF_ROWS)
    assert found.tolist() == [bool(eval(text, {}, row)) for row in ROWS]


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("n_image > 1", "no column 'n_image'; nearest: n_images; there are key"),
        ("__import__('os').system('true') == 0", "__import__('os').system('true')"),
        ("len(key) > 3", "len(key)"),
        ("n_images[0] > 1", "n_images[0]"),
        ("key.upper() == 'K'", "key.upper()"),
        ("n_images ** 2 > 1", "n_images ** 2"),
        ("n_images if n_images > 1 else 2", "not allowed"),
        ("n_images > 'a'", "'a'"),
        ("key > 1", "is a number; expected a text"),
        ("n_images", "is not a condition"),
        ("n_images > True", "'True' is a flag"),
        ("n_images in 3", "takes a list"),
        ("n_images in [text_chars]", "takes a list"),
        ("n_images in ['a']", "is a text"),
        ("n_images is 3", "compare by"),
        ("(n_images > 1) > 2", "is a condition"),
        ("n_images and text_chars > 1", "'n_images' is a number"),
        ("1 < 2", "uses no column"),
        ("n_images >", "is not an expression"),
        ("", "is not an expression"),
        ("n_images > 1; key", "is not an expression"),
        ("lambda: n_images", "not allowed"),
    ],
)
def test_anything_else_is_one_clear_error(text: str, piece: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text, COLUMNS)
    assert piece in str(caught.value)


def test_every_column_can_be_named() -> None:
    for name, kind in COLUMNS.items():
        assert parse(f"{name} == {'0' if kind == 'number' else repr('x')}", COLUMNS).names == {name}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["lines", "json"])
def test_lists_of_ids(tmp_path: Path, form: str, mark: str) -> None:
    ids = ["b", "nowhere", "a"]
    file = tmp_path / "ids"
    file.write_text(mark + (json.dumps(ids) if form == "json" else "\n".join([*ids, "", "  a "]) + "\n"), "utf-8")
    keep, leave = SubsetFilter(Subset(include_ids=str(file))), SubsetFilter(Subset(exclude_ids=str(file)))
    first = {"record_id": np.asarray(["a", "c"])}
    second = {"record_id": np.asarray(["b", "b", "zz"])}
    assert [keep.keep(shard).tolist() for shard in (first, second)] == [[True, False], [True, True, False]]
    assert [leave.keep(shard).tolist() for shard in (first, second)] == [[False, True], [False, False, True]]
    assert (keep.kept, keep.samples, keep.unmatched_ids()) == (3, 5, 1)
    assert (leave.kept, leave.samples, leave.unmatched_ids()) == (2, 5, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the subset's list"),
        ("", "is empty"),
        ("[]", "is empty"),
        ("[1]", "only strings"),
        ('["a"', "not a JSON list"),
    ],
)
def test_invalid_lists_of_ids(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "ids"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        SubsetFilter(Subset(include_ids=str(file)))


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
    listed = SubsetFilter(Subset(include_ids=str(tmp_path / "ids")))
    assert listed.keep(subset_columns(*tables(), listed.columns)).tolist() == [False, False, True, True, False]


def test_shards_of_two_lengths() -> None:
    index, lengths = tables()
    with pytest.raises(DataError, match="index has 5 rows, but its lengths have 4"):
        subset_columns(index, lengths.slice(1), ["tokens"])


def test_no_similarities_at_all() -> None:
    index, lengths = (table.slice(0, 1) for table in tables())
    assert np.isnan(subset_columns(index, lengths, ["max_similarity"])["max_similarity"]).all()


def test_which_columns_of_an_index_are_needed() -> None:
    assert index_columns(["tokens", "images", "text_tokens"]) == []
    assert index_columns(["text_chars", "max_similarity", "min_similarity", "tokens"]) == ["similarities", "text_chars"]
