"""The index: what it finds, with which scores, and that one of other vectors is never used."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.core.errors import DataError, StorageError
from vila_data.core.store import Store
from vila_data.explore.search import index
from vila_data.explore.search.exact import search_exact
from vila_data.explore.search.ranking import Ranking
from vila_data.explore.search.vectors import EmbeddedPart

from .made_embeddings import made, memory_store, whole

pytest.importorskip("faiss")

ROWS, DIM, SEGMENT = 24_000, 48, 10_000
SIZES = (7_000, 1, 9_999, 7_000)
CLOUD = made.Cloud(DIM, 100)
LEAST_RECALL = {"vectors": 0.97, "texts": 0.85}
"""Of the true best ten: of queries like the vectors, and of queries that are near to none of them."""


def write(store: Store) -> None:
    made.write_embeddings(store, (CLOUD.vectors(size, number) for number, size in enumerate(SIZES)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of remote indexes are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def planned(store: Store) -> tuple[list[EmbeddedPart], list[index.Segment]]:
    parts = made.embedded(store)
    return parts, index.plan_segments(list(enumerate(parts)), "images", SEGMENT)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("built")))
    write(store)
    for segment in planned(store)[1]:
        index.build_segment(store, segment)
    return store


def both(store: Store, query_D: np.ndarray, count: int = 10) -> tuple[Ranking, Ranking]:
    """Through the index, and exactly."""
    parts, segments = planned(store)
    quick, exact = Ranking(query_D, count), Ranking(query_D, count)
    for segment in segments:
        index.search_segment(store, segment, quick)
    search_exact(store, whole(parts), exact)
    return quick, exact


@pytest.mark.parametrize("kind", ["vectors", "texts"])
def test_recall_and_scores(built: Store, kind: str) -> None:
    found = 0
    for query_D in getattr(CLOUD, kind)(40, 99):
        quick, exact = both(built, query_D)
        scores = dict(zip(zip(exact.groups, exact.rows, strict=True), exact.scores, strict=True))
        for place in zip(quick.groups, quick.rows, quick.scores, strict=True):
            if place[:2] in scores:
                found += 1
                assert place[2] == scores[place[:2]]
        assert (np.diff(quick.scores) <= 0).all()
    assert found >= LEAST_RECALL[kind] * 400


def test_every_cell_is_exact(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SHARE_LOOKED_INTO", 1.0)
    monkeypatch.setattr(index, "CANDIDATES", SEGMENT)
    for query_D in CLOUD.texts(5, 98):
        quick, exact = both(built, query_D, 50)
        assert quick.rows.tolist() == exact.rows.tolist() and quick.groups.tolist() == exact.groups.tolist()
        assert quick.scores.tolist() == exact.scores.tolist()


def test_only_what_is_allowed(built: Store) -> None:
    parts, segments = planned(built)
    query_D = CLOUD.vectors(1, 97)[0]
    quick, exact = Ranking(query_D, 10), Ranking(query_D, 10)
    for segment in segments:
        index.search_segment(built, segment, quick, lambda part: np.arange(part.rows) % 5 == 3)
    search_exact(built, whole(parts), exact, lambda part: np.arange(part.rows) % 5 == 3)
    assert set((quick.rows % 5).tolist()) == {3}
    assert quick.rows.tolist() == exact.rows.tolist()


def test_the_same_bytes_and_answers_in_another_store(built: Store, home: Path) -> None:
    store = memory_store()
    write(store)
    parts, segments = planned(store)
    for segment in segments:
        index.build_segment(store, segment)
        assert store.read(segment.path) == built.read(segment.path)
        assert store.read(segment.receipt) == built.read(segment.receipt)
    assert [part.rows for part in parts] == list(SIZES)
    for query_D in CLOUD.texts(2, 96):
        assert both(store, query_D)[0].rows.tolist() == both(built, query_D)[0].rows.tolist()
    assert len(list((home / "vila-data-1" / "indexes").glob("*.faiss"))) == len(segments)


def test_a_kept_copy_that_is_damaged_is_fetched_again_by_the_next_search(home: Path) -> None:
    store = memory_store()
    write(store)
    segment = planned(store)[1][2]
    index.build_segment(store, segment)
    query_D = CLOUD.vectors(1, 95)[0]
    index.search_segment(store, segment, Ranking(query_D, 3))
    (copy,) = (home / "vila-data-1" / "indexes").glob("*.faiss")
    copy.write_bytes(b"no index")
    with pytest.raises(DataError, match=r"segment-00002\.faiss: not the index of its receipt"):
        index.search_segment(store, segment, Ranking(query_D, 3))
    index.search_segment(store, segment, Ranking(query_D, 3))


def test_an_index_of_other_vectors_is_not_used(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    segments = planned(store)[1]
    assert not any(index.is_built(store, segment) for segment in segments)
    for segment in segments:
        index.build_segment(store, segment)
    assert all(index.is_built(store, segment) for segment in planned(store)[1])
    made.write_embeddings(
        store, (CLOUD.vectors(size, 50 if number == 3 else number) for number, size in enumerate(SIZES))
    )
    assert [index.is_built(store, segment) for segment in planned(store)[1]] == [True, False, False]


def test_a_killed_build_leaves_nothing_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    write(store)
    first = planned(store)[1][0]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vila_data.core.receipts.write_receipt", killed)
        with pytest.raises(KeyboardInterrupt):
            index.build_segment(store, first)
    assert store.size(first.path) is not None and not index.is_built(store, first)


def test_no_room_for_an_index(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    segment = planned(store)[1][0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(StorageError, match=r"segment-00000\.json: the index cannot be written: is the disk full\?"):
            index.build_segment(store, segment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not index.is_built(store, segment)


def test_a_damaged_index(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    segment = planned(store)[1][0]
    store.commit_bytes(b"no index", segment.path)
    with pytest.raises(DataError, match=r"segment-00000.faiss: not the index of its receipt; delete it"):
        index.search_segment(store, segment, Ranking(CLOUD.vectors(1, 1)[0], 3))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_segments_hold_each_row_once_in_order(sizes: list[int], room: int) -> None:
    parts = [
        EmbeddedPart(made.part(2 * n, "c"), "clip", f"{n}.npy", "", rows, 4, str(n)) for n, rows in enumerate(sizes)
    ]
    segments = index.plan_segments(list(enumerate(parts)), "images", room)
    rows = [(piece.group, row) for one in segments for piece in one.slices for row in range(piece.start, piece.stop)]
    assert rows == [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    assert all(segment.rows == room for segment in segments[:-1]) and segments[-1].rows <= room
    assert len({segment.inputs for segment in segments}) == len(segments)
