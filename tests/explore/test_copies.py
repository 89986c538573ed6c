"""An index of a remote store is fetched once, and what is kept of it is never another one."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.made_requests import counted_ranges
from vila_data.core.errors import DataError, StorageError
from vila_data.core.ranges import cache, prefetch
from vila_data.core.ranges.prefetch import Span
from vila_data.core.receipts import committing
from vila_data.core.store import Store
from vila_data.explore.search import copies
from vila_data.explore.search.copies import copies_folder, local_index

from .made_embeddings import memory_store

PATH, RECEIPT = "search/web/images/segment-00000.faiss", "search/web/images/.receipts/segment-00000.json"
CONTENT = Random(6).randbytes(30_000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    assert kept(home) and {path.parent for path in kept(home)} == {copies_folder()} == {
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
    with pytest.raises(DataError, match=r"segment-00000\.faiss: not the index of its receipt; delete it and build"):
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


def test_without_a_folder_for_copies_it_is_a_temporary_file(
    store: Store, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_bytes(b"no folder")
    with caplog.at_level(logging.WARNING), local_index(store, PATH, RECEIPT) as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists() and "is not kept" in caplog.text


def test_no_more_is_kept_than_the_bound(store: Store, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "BOUND", 100_000)
    monkeypatch.setattr(cache, "GRACE_S", 0.0)
    for number in range(8):
        build(store, bytes([number]) * 30_000)
        assert read(store) == bytes([number]) * 30_000
        assert sum(path.stat().st_size for path in kept(home)) <= 100_000
    assert len(kept(home)) > 1


def _read_and_count(url: str, started: Any, told: Any) -> None:
    """Of a disk that is told it is none."""
    store = Store(url)
    store.is_local = False
    with pytest.MonkeyPatch.context() as patch:
        asked = counted_ranges(patch)
        started.wait()
        told.put((read(store) == CONTENT, len(asked)))


def test_processes_that_want_it_at_once_fetch_it_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    build(store, CONTENT)
    spawn = multiprocessing.get_context("spawn")
    started, told = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_read_and_count, args=(store.url, started, told)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [told.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == [(True, 0), (True, 1)]
