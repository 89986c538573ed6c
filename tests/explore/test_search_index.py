"""The index: what it finds, with which scores, that one of other vectors is never used, and copies of remote ones."""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_requests import counted_ranges
from vila_data.core.errors import DataError, StorageError
from vila_data.core.ranges import cache, prefetch
from vila_data.core.ranges.prefetch import Span
from vila_data.core.receipts import committing
from vila_data.core.store import Store
from vila_data.explore.search import index
from vila_data.explore.search.exact import EmbeddedPart, Ranking, search_exact
from vila_data.explore.search.index import copies_directory, local_index

from .made_embeddings import made, memory_store, whole

needs_faiss = pytest.mark.skipif(not index.has_faiss(), reason="faiss is not installed")
PATH, RECEIPT = "search/web/images/segment-00000.faiss", "search/web/images/.receipts/segment-00000.json"
CONTENT = Random(6).randbytes(30_000)

ROWS, DIM, SEGMENT = 24_000, 48, 10_000
SIZES = (7_000, 1, 9_999, 7_000)
CLOUD = made.Cloud(DIM, 100)
LEAST_RECALL = {"vectors": 0.97, "texts": 0.85}
"""Of the true best ten: of queries like the vectors, and of queries that are near to none of them."""


def write(store: Store) -> None:
    made.write_embeddings(store, (CLOUD.vectors(size, number) for number, size in enumerate(SIZES)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory, where copies of remote indexes are kept."""
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


@needs_faiss
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


@needs_faiss
def test_every_cell_is_exact(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PROBED_SHARE", 1.0)
    monkeypatch.setattr(index, "CANDIDATES", SEGMENT)
    for query_D in CLOUD.texts(5, 98):
        quick, exact = both(built, query_D, 50)
        assert quick.rows.tolist() == exact.rows.tolist() and quick.groups.tolist() == exact.groups.tolist()
        assert quick.scores.tolist() == exact.scores.tolist()


@needs_faiss
def test_only_what_is_allowed(built: Store) -> None:
    parts, segments = planned(built)
    query_D = CLOUD.vectors(1, 97)[0]
    quick, exact = Ranking(query_D, 10), Ranking(query_D, 10)
    for segment in segments:
        index.search_segment(built, segment, quick, lambda part: np.arange(part.rows) % 5 == 3)
    search_exact(built, whole(parts), exact, lambda part: np.arange(part.rows) % 5 == 3)
    assert set((quick.rows % 5).tolist()) == {3}
    assert quick.rows.tolist() == exact.rows.tolist()


@needs_faiss
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


@needs_faiss
def test_a_kept_copy_that_is_damaged_is_fetched_again_by_the_next_search(home: Path) -> None:
    store = memory_store()
    write(store)
    segment = planned(store)[1][2]
    index.build_segment(store, segment)
    query_D = CLOUD.vectors(1, 95)[0]
    index.search_segment(store, segment, Ranking(query_D, 3))
    (copy,) = (home / "vila-data-1" / "indexes").glob("*.faiss")
    copy.write_bytes(b"no index")
    with pytest.raises(DataError, match=r"segment-00002\.faiss: does not match its receipt"):
        index.search_segment(store, segment, Ranking(query_D, 3))
    index.search_segment(store, segment, Ranking(query_D, 3))


@needs_faiss
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


@needs_faiss
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


@needs_faiss
def test_no_room_for_an_index(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    segment = planned(store)[1][0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(
            StorageError, match=r"segment-00000\.json: the index cannot be written; check whether the disk is full"
        ):
            index.build_segment(store, segment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not index.is_built(store, segment)


@needs_faiss
def test_a_damaged_index(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    segment = planned(store)[1][0]
    store.commit_bytes(b"no index", segment.path)
    with pytest.raises(DataError, match=r"segment-00000.faiss: does not match its receipt; delete it"):
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


# Copies of remote indexes


@pytest.fixture
def store() -> Iterator[Store]:
    made = memory_store()
    build(made, CONTENT)
    yield made
    made.remove("")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    monkeypatch.setattr(prefetch, "LARGEST", 8_000)
    return counted_ranges(monkeypatch)


def build(store: Store, content: bytes) -> None:
    with committing(store, RECEIPT, "made") as outputs:
        outputs.path(PATH).write_bytes(content)


def read(store: Store) -> bytes:
    with local_index(store, PATH, RECEIPT) as path:
        return path.read_bytes()


def kept(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*.faiss*") if path.is_file())


def test_it_is_fetched_once(store: Store, asked: list[Span], home: Path) -> None:
    assert [read(store) for _ in range(3)] == [CONTENT] * 3
    assert sum(span.size for span in asked) == len(CONTENT)
    assert kept(home) and {path.parent for path in kept(home)} == {copies_directory()} == {
        home / "vila-data-1" / "indexes"
    }


def test_an_index_built_again_is_another_one(store: Store, asked: list[Span], home: Path) -> None:
    read(store)
    build(store, CONTENT[::-1])
    assert read(store) == CONTENT[::-1]
    build(store, CONTENT)
    asked.clear()
    assert read(store) == CONTENT and not asked and len(kept(home)) == 2


def test_bytes_that_are_not_the_receipts_are_not_kept(store: Store, home: Path) -> None:
    store.commit_bytes(CONTENT[:-1] + b"?", PATH)
    with pytest.raises(DataError, match=r"segment-00000\.faiss: does not match its receipt; delete it and rebuild"):
        read(store)
    store.commit_bytes(CONTENT[:-1], PATH)
    with pytest.raises(StorageError, match=r"segment-00000\.faiss: "):
        read(store)
    store.commit_bytes(json.dumps({"inputs": "x", "counts": {}, "outputs": {}}).encode(), RECEIPT)
    with pytest.raises(DataError, match="not the receipt of"):
        read(store)
    assert not kept(home)


def test_a_copy_that_cannot_be_used_is_deleted(store: Store, asked: list[Span], home: Path) -> None:
    read(store)
    with pytest.raises(DataError, match="broken"), local_index(store, PATH, RECEIPT):
        raise DataError("broken")
    assert not kept(home)
    asked.clear()
    assert read(store) == CONTENT and asked


def test_a_local_index_is_itself_and_never_deleted(tmp_path: Path, home: Path) -> None:
    store = Store(str(tmp_path / "run"))
    build(store, CONTENT)
    with pytest.raises(DataError), local_index(store, PATH, RECEIPT) as path:
        assert path == tmp_path / "run" / PATH
        raise DataError("broken")
    assert path.is_file() and not home.exists()


def test_without_a_directory_for_copies_it_is_a_temporary_file(
    store: Store, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_bytes(b"not a directory")
    with caplog.at_level(logging.WARNING), local_index(store, PATH, RECEIPT) as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists() and "no copy of" in caplog.text


def test_no_more_is_kept_than_the_bound(store: Store, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_COPIES_BYTES", 100_000)
    monkeypatch.setattr(cache, "GRACE_S", 0.0)
    for number in range(8):
        build(store, bytes([number]) * 30_000)
        assert read(store) == bytes([number]) * 30_000
        assert sum(path.stat().st_size for path in kept(home)) <= 100_000
    assert len(kept(home)) > 1


def _read_and_count(url: str, started: Any, results: Any) -> None:
    """With a local disk treated as a remote store."""
    store = Store(url)
    store.is_local = False
    with pytest.MonkeyPatch.context() as patch:
        asked = counted_ranges(patch)
        started.wait()
        results.put((read(store) == CONTENT, len(asked)))


def test_processes_that_want_it_at_once_fetch_it_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    build(store, CONTENT)
    spawn = multiprocessing.get_context("spawn")
    started, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_read_and_count, args=(store.url, started, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == [(True, 0), (True, 1)]
