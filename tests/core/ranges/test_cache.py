"""The disk cache: right bytes or none, within its bound, whoever writes there and however they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from vila_data.core.errors import StorageError
from vila_data.core.ranges import cache
from vila_data.core.ranges.cache import FileCache, RangeCache, cache_directory, digest
from vila_data.core.ranges.reader import ReadOptions, Span, open_ranges
from vila_data.core.scratch_locks import temporary_directory
from vila_data.core.store import Store

KIB = 1024
CONTENT = Random(5).randbytes(100_000)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(f"memory://cache-{uuid.uuid4().hex}")
    store.commit_bytes(CONTENT, "a.tar")
    yield store
    store.remove("")


def held(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


# Ranges.


def test_what_was_put_is_got(tmp_path: Path) -> None:
    made = RangeCache(tmp_path, 64 << 20)
    for size in (1, 100, 40_000):
        data = CONTENT[:size]
        made.put(digest("a", size), data)
        assert made.get(digest("a", size), size) == data
        assert made.get(digest("b", size), size) is None
        assert made.get(digest("a", size), size + 1) is None
    assert digest("a", 11) != digest("a", 1, 1) != digest("a1", 1)


@pytest.mark.parametrize("damage", ["short", "long", "zeros", "empty"])
def test_a_damaged_entry_is_fetched_again(store: Store, tmp_path: Path, damage: str) -> None:
    options, span = ReadOptions(cache_dir=str(tmp_path), cache_bytes=64 << 20), Span("a.tar", 500, 9_000)
    for hits in (0, 1):
        with_cache = open_ranges(store, options, lambda path: "1")
        assert with_cache.read(span) == CONTENT[500:9_500] and with_cache.counters.cache_hits == hits
        with_cache.close()
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    entry.write_bytes({"short": good[:-1], "long": good + b"x", "zeros": bytes(len(good)), "empty": b""}[damage])
    for hits in (0, 1):
        reader = open_ranges(store, options, lambda path: "1")
        assert reader.read(span) == CONTENT[500:9_500] and reader.counters.cache_hits == hits
        reader.close()


def test_a_file_written_again_is_not_taken_from_the_cache(store: Store, tmp_path: Path) -> None:
    options, span = ReadOptions(cache_dir=str(tmp_path), cache_bytes=64 << 20), Span("a.tar", 0, 1_000)
    for version_of in (None, lambda path: store.sha256(path)):
        store.commit_bytes(CONTENT, "a.tar")
        for content in (CONTENT, CONTENT[::-1]):
            store.commit_bytes(content, "a.tar")
            reader = open_ranges(store, options, version_of)
            assert reader.read(span) == content[:1_000]
            assert reader.local_copy("a.tar").read_bytes() == content
            reader.close()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    size = 16 * KIB - 4
    made = RangeCache(tmp_path, 64 * 64 * KIB)
    keys = [f"00{number:030x}" for number in range(5)]
    for age, key in enumerate(keys[:4]):
        made.put(key, CONTENT[:size])
        os.utime(tmp_path / "00" / key, (age + 1, age + 1))
    assert made.get(keys[0], size) is not None
    made.put(keys[4], CONTENT[:size])
    assert [made.get(key, size) is not None for key in keys] == [True, False, False, True, True]
    made.put("01" + keys[0][2:], CONTENT[: 64 * KIB])
    assert held(tmp_path / "01") == 0, "an entry above a folder's bound must not be stored"


def fill(folder: str, bound: int, seed: int) -> None:
    made, random = RangeCache(Path(folder), bound), Random(seed)
    for _ in range(600):
        number = random.randrange(400)
        data = Random(number).randbytes(2_000 + 5 * number)
        key = digest("x", number)
        found = made.get(key, len(data))
        if found is None:
            made.put(key, data)
        elif found != data:
            raise AssertionError(f"wrong bytes of {number}")


def test_many_processes_stay_right_and_within_the_bound(tmp_path: Path) -> None:
    bound, largest = 64 * 12 * KIB, 4_000
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=fill, args=(str(tmp_path), bound, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        seen = max(seen, held(tmp_path))
        writers[0].join(0.1)
    assert [writer.exitcode for writer in writers] == [0] * 3
    counters = 64 * 8
    assert seen <= bound + counters + largest * len(writers) and held(tmp_path) <= bound + counters
    assert held(tmp_path) > bound / 3, "if next to nothing was kept, this test proves nothing"
    fill(str(tmp_path), bound, 9)
    assert not list(tmp_path.rglob("*.part"))


HOLDER = """
import sys
from pathlib import Path
from vila_data.core.scratch_locks import locked_file
from vila_data.core.ranges import cache
folder = cache._BoundedDirectory(Path(sys.argv[1]), 100_000)
with locked_file(folder.path / ".total") as total:
    folder._make_room(total, 4096)
    (folder.path / "half.part").write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_killed_while_it_writes_blocks_nobody(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "00")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    made, key = RangeCache(tmp_path, 64 * 100_000), f"00{1:030x}"
    writer = threading.Thread(target=made.put, args=(key, CONTENT[:5_000]))
    writer.start()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    writer.join(20)
    assert made.get(key, 5_000) == CONTENT[:5_000]
    for number in range(2, 40):
        made.put(f"00{number:030x}", CONTENT[:5_000])
    assert held(tmp_path / "00") <= 100_000 + 8 and not (tmp_path / "00" / "half.part").exists()


def test_a_disk_that_refuses_writes_is_warned_of_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = open_ranges(store, ReadOptions(cache_dir=str(tmp_path), cache_bytes=64 << 20), lambda path: "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with caplog.at_level(logging.WARNING):
            for number in range(5):
                span = Span("a.tar", number, 9_000)
                assert reader.read(span) == CONTENT[number : number + 9_000]
            with pytest.raises(StorageError, match=r"a\.tar: cannot be copied to the local disk: "):
                reader.local_copy("a.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        reader.close()
    assert [record.name for record in caplog.records] == ["vila_data.core.ranges.cache"]
    assert entries(tmp_path) == []


def test_a_cache_dir_that_cannot_be_used_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/vila-data-1: cannot be used as cache_dir"):
        open_ranges(store, ReadOptions(cache_dir=str(tmp_path / "file")))
    assert cache_directory(str(tmp_path / "new" / "folder")).is_dir()


# Whole files.


def test_a_file_is_copied_once_and_its_length_is_right(store: Store, tmp_path: Path) -> None:
    options = ReadOptions(cache_dir=str(tmp_path), cache_bytes=64 << 20)
    large = Random(8).randbytes((17 << 20) + 3)
    store.commit_bytes(large, "large")
    store.commit_bytes(b"", "none")
    paths = set()
    for _ in range(2):
        reader = open_ranges(store, options)
        paths.add(reader.local_copy("large"))
        assert reader.local_copy("none").read_bytes() == b""
        reader.close()
    (path,) = paths
    assert path.read_bytes() == large and path.name.endswith("-large")


COPIER = """
import os, sys
from pathlib import Path
from vila_data.core.ranges.cache import FileCache
def fetch(target):
    os.write(target, b"half of it")
    print("copying", flush=True)
    sys.stdin.read()
    os.write(target, b", and the rest")
FileCache(Path(sys.argv[1]), 1_000_000).get("0" * 32, "name", fetch)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_one_process_copies_while_others_wait(tmp_path: Path, killed: bool) -> None:
    copier = subprocess.Popen(
        [sys.executable, "-c", COPIER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert copier.stdout and copier.stdout.readline() == b"copying\n"
    own: list[int] = []
    got: list[bytes] = []

    def fetch(target: int) -> None:
        own.append(os.write(target, b"a second copy"))

    waiter = threading.Thread(
        target=lambda: got.append(FileCache(tmp_path, 1_000_000).get("0" * 32, "name", fetch).read_bytes())
    )
    waiter.start()
    assert not got and not own
    if killed:
        copier.send_signal(signal.SIGKILL)
    copier.communicate()
    waiter.join(20)
    assert got == ([b"a second copy"] if killed else [b"half of it, and the rest"])
    assert len(own) == (1 if killed else 0)
    assert [path.name for path in entries(tmp_path)] == ["0" * 32 + "-name"]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch(target: int) -> None:
        os.write(target, b"half")
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="gone"):
        FileCache(tmp_path, 1_000_000).get("0" * 32, "name", fetch)
    assert entries(tmp_path) == []


def test_whole_files_stay_within_the_bound_and_mapped_ones_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(made: FileCache, number: int) -> Path:
        return made.get(f"{number:032x}", "name", lambda target: os.pwrite(target, CONTENT[:20_000], 0) and None)

    recent = FileCache(tmp_path / "recent", 100_000)
    assert all(path.exists() for path in [get(recent, number) for number in range(12)]), "just asked for, yet evicted"
    monkeypatch.setattr(cache, "GRACE_S", 0.0)
    made = FileCache(tmp_path / "old", 100_000)
    first = get(made, 0)
    with first.open("rb") as opened:
        for number in range(1, 12):
            get(made, number)
            assert held(tmp_path / "old") <= 100_000 + 8
        assert not first.exists() and opened.read() == CONTENT[:20_000]
    assert get(made, 0).read_bytes() == CONTENT[:20_000]


def test_without_a_cache_copies_are_private_and_go_with_the_reader(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = open_ranges(store, ReadOptions()), open_ranges(store, ReadOptions())
    copies = [reader.local_copy("a.tar") for reader in (first, second)]
    assert copies[0] != copies[1] and all(copy.read_bytes() == CONTENT for copy in copies)
    first.close()
    assert not copies[0].exists() and copies[1].exists()
    second.close()
    assert not list(tmp_path.iterdir())


PRIVATE = """
import sys
from vila_data.core.scratch_locks import temporary_directory
with temporary_directory() as folder:
    (folder / "copy").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_private_folder_of_a_killed_process_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", PRIVATE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert other.stdout
    left = Path(other.stdout.readline().decode().strip())
    with temporary_directory() as mine:
        assert mine.is_dir() and (left / "copy").exists(), "the folder of a living process was deleted"
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert left.exists()
    with temporary_directory():
        assert not left.exists()


def test_entries_hold_the_bytes_as_they_are(store: Store, tmp_path: Path) -> None:
    reader = open_ranges(store, ReadOptions(cache_dir=str(tmp_path), cache_bytes=64 << 20), lambda path: "1")
    reader.read(Span("a.tar", 7, 1_000))
    (entry,) = entries(tmp_path)
    assert entry.read_bytes() == CONTENT[7:1_007] + zlib.crc32(CONTENT[7:1_007]).to_bytes(4, "little")
    reader.close()
