"""A store gives back what was committed, whole or not at all, on a disk and at an object store alike."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from vila_data.core.errors import StorageError
from vila_data.core.store import SCRATCH_DIR, Store


@pytest.fixture(params=["local", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    urls = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid4().hex}"}
    yield Store(urls[request.param])


def test_bytes_come_back_whole_and_by_range(store: Store) -> None:
    store.commit_bytes(b"0123456789", "a/b.bin")
    assert store.exists("a/b.bin") and store.size("a/b.bin") == 10
    assert store.read("a/b.bin") == b"0123456789"
    assert [store.read_range("a/b.bin", *at) for at in ((0, 3), (4, 6), (10, 0))] == [b"012", b"456789", b""]
    with store.open_read("a/b.bin") as stream:
        stream.seek(7)
        assert stream.read() == b"789"


def test_a_commit_replaces_what_was_there(store: Store, tmp_path: Path) -> None:
    store.commit_bytes(b"old", "x")
    with store.scratch() as directory:
        (directory / "new").write_bytes(b"new")
        store.commit_file(directory / "new", "x")
    assert store.read("x") == b"new" and store.files("") == ["x"]


def test_files_are_listed_sorted_by_path_without_scratch(store: Store) -> None:
    for path in ("b/2", "a", "b/1"):
        store.commit_bytes(b"", path)
    with store.scratch() as directory:
        (directory / "half").write_bytes(b"half")
        assert store.files("") == ["a", "b/1", "b/2"]
    assert store.files("b") == ["b/1", "b/2"] and store.files("c") == []


def test_what_is_missing(store: Store) -> None:
    assert store.size("x") is None and not store.exists("x")
    store.remove("x")
    for read in (lambda: store.read("x"), lambda: store.read_range("x", 0, 1), lambda: store.sha256("x")):
        with pytest.raises(StorageError, match="x: no such file"):
            read()


def test_a_range_past_the_end_is_an_error_with_both_numbers(store: Store) -> None:
    store.commit_bytes(b"0123", "x")
    with pytest.raises(StorageError, match=r"x: short read at offset 2: got 2 of 5 bytes"):
        store.read_range("x", 2, 5)


def test_a_directory_is_removed_with_its_files(store: Store) -> None:
    for path in ("a/1", "a/b/2", "c"):
        store.commit_bytes(b"x", path)
    store.remove("a")
    assert store.files("") == ["c"]


def test_the_scratch_directory_ends_with_its_block_even_after_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError), store.scratch() as directory:
        (directory / "half").write_bytes(b"half")
        raise RuntimeError
    assert not directory.exists() and store.files("") == []


def test_other_processes_open_the_same_store(store: Store) -> None:
    store.commit_bytes(b"x", "a")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.location("a") == store.location("a") and copy.read("a") == b"x"


def test_a_local_url_is_its_path(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}"):
        store = Store(url)
        assert store.is_local and store.location("a/b") == f"{tmp_path}/a/b" and store.location("") == str(tmp_path)
    assert SCRATCH_DIR not in Store(str(tmp_path)).location("a")


def test_a_url_that_no_library_knows_is_one_error() -> None:
    with pytest.raises(StorageError, match="nowhere://x: cannot be opened as a store"):
        Store("nowhere://x")


def test_sha256(store: Store) -> None:
    store.commit_bytes(b"abc", "x")
    assert store.sha256("x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
