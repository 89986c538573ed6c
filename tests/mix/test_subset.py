"""Subsets: conditions mean what Python means, nothing else can be said in them; lists of ids are met or counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError, UsageError
from vila_data.core.expression import parse
from vila_data.mix.columns import COLUMNS
from vila_data.mix.config import Subset
from vila_data.mix.subset import SubsetFilter

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
    keep, leave = SubsetFilter(Subset(ids=str(file))), SubsetFilter(Subset(without_ids=str(file)))
    first = {"record_id": np.asarray(["a", "c"])}
    second = {"record_id": np.asarray(["b", "b", "zz"])}
    assert [keep.keep(shard).tolist() for shard in (first, second)] == [[True, False], [True, True, False]]
    assert [leave.keep(shard).tolist() for shard in (first, second)] == [[False, True], [False, False, True]]
    assert (keep.kept, keep.samples, keep.unmatched_ids()) == (3, 5, 1)
    assert (leave.kept, leave.samples, leave.unmatched_ids()) == (2, 5, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("[]", "is empty"),
        ("[1]", "texts only"),
        ('["a"', "not a JSON list"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "ids"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        SubsetFilter(Subset(ids=str(file)))


def test_a_column_that_a_shard_lacks() -> None:
    with pytest.raises(DataError, match="no column tokens"):
        SubsetFilter(Subset(where="tokens > 3")).keep(COLUMNS_OF_ROWS)
