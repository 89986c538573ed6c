"""Which parts have embeddings, and rows of them; what is broken is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.store import Store
from vila_data.explore.search.vectors import find_parts, read_rows

from .made_embeddings import made, memory_store, unit, write_part

PARTS = [made.part(index, "docs") for index in (4, 5)]
VECTORS = unit(np.random.default_rng(1).normal(size=(3000, 64))).astype(np.float16)


@given(st.lists(st.integers(0, 2999), unique=True, max_size=30).map(sorted))
@settings(deadline=None)
def test_some_rows(rows: list[int]) -> None:
    store = memory_store()
    made.write_embeddings(store, iter([VECTORS]))
    (part,) = made.embedded(store, "captions")
    np.testing.assert_array_equal(read_rows(store, part, rows), VECTORS[rows])


def test_parts_without_vectors_are_passed_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for index in (0, 3, 12):
        write_part(store, "docs", index, VECTORS[: index + 2])
    parts = [made.part(index, "docs") for index in range(20)]
    store.commit_bytes(b'{"inputs": "made", "counts": {}, "outputs": {}}', "score/docs/clip/part-00001.json")
    store.commit_bytes(
        store.read("score/docs/clip/embeddings/img_emb/img_emb_00000.npy"),
        "score/docs/clip/embeddings/img_emb/img_emb_00002.npy",
    )
    found = find_parts(store, parts, "clip", "images")
    assert [(one.part.index, one.rows, one.dim) for one in found] == [(0, 2, 64), (3, 5, 64), (12, 14, 64)]
    assert find_parts(store, [made.part(0, "other")], "clip", "images") == []


def broken(tmp_path: Path) -> tuple[Store, Path]:
    store = Store(str(tmp_path))
    write_part(store, "docs", 4, VECTORS[:9])
    return store, tmp_path / "score/docs/clip/embeddings/img_emb/img_emb_00004.npy"


def test_a_truncated_file(tmp_path: Path) -> None:
    store, path = broken(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"img_emb_00004.npy: 1,277 bytes, its receipt says 1,280 .*part-00004.json"):
        find_parts(store, PARTS, "clip", "images")
    assert find_parts(store, PARTS, "clip", "captions")[0].rows == 9
    path.unlink()
    with pytest.raises(DataError, match=r"img_emb_00004.npy: missing"):
        find_parts(store, PARTS, "clip", "images")


def test_another_kind_of_file(tmp_path: Path) -> None:
    store, path = broken(tmp_path)
    size = path.stat().st_size
    for data in (b"x" * size, path.read_bytes().replace(b"<f2", b"<f4")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"img_emb_00004.npy: not a"):
            find_parts(store, PARTS, "clip", "images")


def test_vectors_of_two_models(tmp_path: Path) -> None:
    store, _ = broken(tmp_path)
    write_part(store, "docs", 5, VECTORS[:9, :32])
    with pytest.raises(DataError, match=r"vectors of \[32, 64\] values"):
        find_parts(store, PARTS, "clip", "images")
