"""Exact search is what one would compute with all vectors in memory, bit for bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.explore.search.exact import search_exact
from vila_data.explore.search.ranking import Ranking

from .made_embeddings import made, memory_store, unit, whole


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, int, int, int]:
    """(vectors a part, query, count, bytes a block, every how many rows one is allowed); many vectors are equal."""
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
