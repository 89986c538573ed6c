"""Exact search: the parts that have embeddings, rows of them, and the ranking one would compute in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.store import Store
from vila_data.explore.search.exact import Ranking, find_parts, read_rows, search_exact

from .made_embeddings import made, memory_store, unit, whole, write_part

PARTS = [made.part(index, "docs") for index in (4, 5)]
VECTORS = unit(np.random.default_rng(1).normal(size=(3000, 64))).astype(np.float16)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, int, int, int]:
    """(vectors per part, query, count, bytes per block, one of how many rows is allowed); many vectors are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.sampled_from([2, 3, 16, 33, 128]))
    pool = unit(rng.normal(size=(draw(st.integers(1, 40)), dim))).astype(np.float16)
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    parts = [pool[rng.integers(0, len(pool), size)] for size in sizes]
    query = unit(pool[:1]) if draw(st.booleans()) else unit(rng.normal(size=(1, dim)))
    block_bytes = draw(st.sampled_from([1, 2 * dim * 7, 1 << 20]))
    return parts, query[0], draw(st.integers(1, 80)), block_bytes, draw(st.integers(1, 3))


@given(questions())
@settings(max_examples=150, deadline=None)
def test_as_by_brute_force(question: tuple[list[np.ndarray], np.ndarray, int, int, int]) -> None:
    vectors, query_D, count, block_bytes, every = question
    store = memory_store()
    made.write_embeddings(store, iter(vectors))
    parts = made.embedded(store)
    assert [part.rows for part in parts] == [len(entry) for entry in vectors]
    ranking = Ranking(query_D, count)
    judged: list[int] = []
    search_exact(
        store, whole(parts), ranking, lambda part: np.arange(part.rows) % every == 0, judged.append, block_bytes
    )
    exact = query_D.astype(np.float64)
    true = sorted(
        (-float((row.astype(np.float64) * exact).sum()), group, number)
        for group, rows in enumerate(vectors)
        for number, row in enumerate(rows)
        if number % every == 0
    )[:count]
    found = zip((-ranking.scores).tolist(), ranking.groups.tolist(), ranking.rows.tolist(), strict=True)
    assert list(found) == true
    assert sum(judged) == sum(map(len, vectors))


def test_a_damaged_vector_is_not_found_and_hides_no_other() -> None:
    store, rng = memory_store(), np.random.default_rng(1)
    vectors = unit(rng.normal(size=(50, 8))).astype(np.float16)
    vectors[10], vectors[20] = np.nan, np.inf
    made.write_embeddings(store, iter([vectors]))
    ranking = Ranking(unit(rng.normal(size=(1, 8)))[0], 100)
    search_exact(store, whole(made.embedded(store)), ranking)
    assert set(ranking.rows.tolist()) == set(range(50)) - {10, 20}
    assert np.isfinite(ranking.scores).all()


@given(st.lists(st.integers(0, 2999), unique=True, max_size=30).map(sorted))
@settings(deadline=None)
def test_some_rows(rows: list[int]) -> None:
    store = memory_store()
    made.write_embeddings(store, iter([VECTORS]))
    (part,) = made.embedded(store, "captions")
    np.testing.assert_array_equal(read_rows(store, part, rows), VECTORS[rows])


def test_parts_without_vectors_are_skipped(tmp_path: Path) -> None:
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
    with pytest.raises(
        DataError, match=r"img_emb_00004.npy: found 1,277 bytes, but its receipt says 1,280 .*part-00004.json"
    ):
        find_parts(store, PARTS, "clip", "images")
    assert find_parts(store, PARTS, "clip", "captions")[0].rows == 9
    path.unlink()
    with pytest.raises(DataError, match=r"img_emb_00004.npy: the file is missing"):
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
    with pytest.raises(DataError, match=r"vectors of different lengths: \[32, 64\]"):
        find_parts(store, PARTS, "clip", "images")
