"""A sample's columns, against a plain reading: one column a token, `tokens_per_image` an image, cut at its length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.encode.image_tokens import Fixed
from vila_data.encode.token_set import TokenSample
from vila_data.loader.assemble import Expansion


def sample(ids: list[int], trained: list[tuple[int, int]], tokens: int) -> TokenSample:
    images = ids.count(IMAGE_ID)
    place = np.arange(images, dtype=np.int64)
    spans = np.asarray(trained, np.int32).reshape(-1, 2)
    marks = [place for place, one in enumerate(ids) if one == IMAGE_ID]
    numbers, checksums = place.astype(np.int32), place.astype(np.uint32)
    of_images = (numbers, place, place, checksums, numbers, numbers)
    return TokenSample("key", "record", np.asarray(ids, np.int32), spans, *of_images, tokens, marks)


@given(st.data())
def test_columns_are_those_of_a_plain_reading(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.one_of(st.just(IMAGE_ID), st.integers(0, 50)), min_size=1, max_size=30))
    wide = data.draw(st.integers(1, 9))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6, unique=True)))
    trained = list(zip(cuts[::2], cuts[1::2], strict=False))
    inside = {place for first, last in trained for place in range(first, last)}
    columns, labels, places = [], [], []
    for place, one in enumerate(ids):
        times = wide if one == IMAGE_ID else 1
        if one == IMAGE_ID:
            places.append(len(columns))
        columns += [one] * times
        labels += [one if place in inside and one != IMAGE_ID else IGNORED] * times
    tail = wide - 1 if ids[-1] == IMAGE_ID else 0
    tokens = len(columns) - data.draw(st.integers(0, tail))
    made = Expansion.of(sample(ids, trained, tokens), Fixed(tokens=wide), tokens=tokens, images=len(places))
    out = np.full((2, tokens), 777, np.int64)
    found = made.write(out[0], out[1])
    assert out.tolist() == [columns[:tokens], labels[:tokens]]
    assert found == [(first, min(wide, tokens - first)) for first in places]


@pytest.mark.parametrize(
    ("said", "tokens", "images", "message"),
    [
        (12, 11, 1, r"12 tokens and 1 images, but lengths\.parquet says 11 and 1"),
        (12, 12, 2, r"12 tokens and 1 images, but lengths\.parquet says 12 and 2"),
        (3, 3, 1, "12 columns and 1 image placeholders, but 3 and 1 were planned"),
        (13, 13, 1, "12 columns and 1 image placeholders, but 13 and 1 were planned"),
    ],
)
def test_what_was_not_planned_so_is_refused(said: int, tokens: int, images: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Expansion.of(sample([1, 2, IMAGE_ID, 3], [], said), Fixed(tokens=9), tokens=tokens, images=images)
