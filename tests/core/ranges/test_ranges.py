"""Byte ranges come right and whole, from a disk and from stores that fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from tests.core.ranges.faulty_proxy import ERRORS, TRANSIENT, FaultyProxy
from vila_data.core.errors import StorageError
from vila_data.core.ranges.prefetch import RangeCounters, RangeError
from vila_data.core.ranges.reader import RangeReader, ReadOptions, Span, open_ranges
from vila_data.core.ranges.remote import RangeFetch
from vila_data.core.store import Store

CONTENT = {"a.tar": Random(1).randbytes(300_000), "b.tar": Random(2).randbytes(70_001), "empty.tar": b""}
QUICK = {"backoff_s": 0.001, "io_threads": 4}


def part(span: Span) -> bytes:
    return CONTENT[span.path][span.offset : span.offset + span.size]


@pytest.fixture
def local(tmp_path: Path) -> Store:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    return Store(str(tmp_path))


@pytest.fixture(scope="module")
def memory() -> Iterator[Store]:
    store = Store(f"memory://ranges-{uuid.uuid4().hex}")
    for name, content in CONTENT.items():
        store.commit_bytes(content, name)
    yield store
    store.remove("")


# A local store.


def test_what_was_read_is_the_file_and_outlives_it(local: Store) -> None:
    reader = open_ranges(local, ReadOptions(open_files=1))
    first, second = Span("a.tar", 70_000, 5_000), Span("b.tar", 1, 70_000)
    view = reader.read(first)
    assert reader.read(second) == part(second)
    Path(local.location("a.tar")).unlink()
    reader.close()
    assert view == part(first)
    assert (reader.counters.reads, reader.counters.bytes) == (2, 75_000)
    with pytest.raises(StorageError, match=r"a\.tar: no such file"):
        reader.read(first)


def test_a_local_file_cut_short_is_an_error_and_no_signal(local: Store) -> None:
    reader = open_ranges(local, ReadOptions())
    span = Span("a.tar", 200_000, 100_000)
    assert reader.read(span) == part(span)
    os.truncate(local.location("a.tar"), 250_000)
    with pytest.raises(StorageError, match=r"a\.tar: 100000 bytes at offset 200000 .* the file has 250000 bytes"):
        reader.read(span)
    assert reader.read(Span("a.tar", 200_000, 50_000)) == CONTENT["a.tar"][200_000:250_000]
    fresh = open_ranges(local, ReadOptions())
    fresh.want([span, Span("nothing.tar", 0, 5), Span("a.tar", -1, 5), Span("empty.tar", 0, 5)])
    for wrong in (span, Span("empty.tar", 0, 1), Span("a.tar", -1, 5), Span("a.tar", 5, -1), Span("gone.tar", 0, 1)):
        with pytest.raises(StorageError, match=wrong.path):
            fresh.read(wrong)
    assert fresh.read(Span("empty.tar", 0, 0)) == b""


def test_a_local_folder_in_place_of_a_file_is_an_error(local: Store) -> None:
    Path(local.location("c.tar")).mkdir()
    reader = open_ranges(local, ReadOptions())
    for call in (lambda: reader.read(Span("c.tar", 0, 1)), lambda: reader.local_copy("c.tar")):
        with pytest.raises(StorageError, match=r"c\.tar: "):
            call()


def test_open_files_are_bounded_by_the_limit_of_descriptors(local: Store) -> None:
    paths = [f"{number}.tar" for number in range(40)]
    for path in paths:
        Path(local.location(path)).write_bytes(path.encode())
    probe = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from vila_data.core.store import Store; from vila_data.core.ranges.reader import *\n"
        "reader = open_ranges(Store(sys.argv[1]), ReadOptions())\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for path in sys.argv[2:]: assert reader.read(Span(path, 0, len(path))) == path.encode()\n"
        "print(len(os.listdir('/proc/self/fd')) - before, sorted({'torch', 's3fs', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe, local.url, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16", "[]"], "files held open, and what a reader of a local store must not import"


def test_a_local_copy_is_the_file_itself(local: Store) -> None:
    assert str(open_ranges(local, ReadOptions()).local_copy("a.tar")) == local.location("a.tar")
    with pytest.raises(StorageError, match="no such file"):
        open_ranges(local, ReadOptions()).local_copy("gone.tar")


# Any spans, in any order.

spans = st.sampled_from(["a.tar", "b.tar"]).flatmap(
    lambda path: st.integers(0, len(CONTENT[path])).flatmap(
        lambda offset: st.builds(
            Span, st.just(path), st.just(offset), st.integers(0, min(50_000, len(CONTENT[path]) - offset))
        )
    )
)
pool = st.lists(spans, min_size=1, max_size=12)


def follow(reader: RangeReader, wanted: list[Span], steps: list[tuple[bool, int, int]]) -> None:
    for is_want, start, count in steps:
        chosen = [wanted[number % len(wanted)] for number in range(start, start + count)]
        if is_want:
            reader.want(chosen)
        else:
            for span in chosen:
                assert reader.read(span) == part(span)
    for span in wanted:
        assert reader.read(span) == part(span)


steps_of = st.lists(st.tuples(st.booleans(), st.integers(0, 11), st.integers(1, 12)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(wanted=pool, steps=steps_of, ahead=st.sampled_from([1, 30_000, 1 << 20]), threads=st.integers(1, 4))
def test_any_order_gives_the_files_bytes(
    memory: Store, wanted: list[Span], steps: list[tuple[bool, int, int]], ahead: int, threads: int
) -> None:
    reader = open_ranges(memory, ReadOptions(ahead_bytes=ahead, io_threads=threads))
    follow(reader, wanted, steps)
    assert reader.counters.retries == 0
    reader.close()


@settings(max_examples=30, deadline=None)
@given(wanted=pool, steps=steps_of)
def test_any_order_through_a_cache(
    memory: Store, tmp_path_factory: pytest.TempPathFactory, wanted: list[Span], steps: list[tuple[bool, int, int]]
) -> None:
    options = ReadOptions(cache_dir=str(tmp_path_factory.mktemp("cache")), cache_bytes=64 << 20)
    for expected_hits in (False, True):
        reader = open_ranges(memory, options)
        follow(reader, wanted, steps)
        if expected_hits:
            assert reader.counters.cache_hits >= len({span for span in wanted if span.size})
        reader.close()


def settle(reader: Any) -> None:
    """Wait until the reader's threads have nothing more to do."""
    with reader._state:
        assert reader._state.wait_for(
            lambda: not reader._has_room() and len(reader._pending) == len(reader._queued), 20
        )


def test_what_is_ahead_stays_within_its_bound(memory: Store) -> None:
    reader: Any = open_ranges(memory, ReadOptions(ahead_bytes=60_000, io_threads=3))
    fetched: list[int] = []
    load, gate = reader._load, threading.Lock()

    def watched(request: Any) -> Any:
        with gate:
            fetched.append(reader._ahead)
        return load(request)

    reader._load = watched
    wanted = [Span("a.tar", 20_000 * number, 10_000) for number in range(14)]
    for span in wanted:
        reader.want([span])
    settle(reader)
    assert len(fetched) == 6, "six spans fill the bound, and nothing was read"
    for span in wanted:
        assert reader.read(span) == part(span)
    assert len(fetched) == 14 and max(fetched) <= 60_000
    reader.close()


def test_wanting_what_is_never_read_does_not_end_the_fetching(memory: Store) -> None:
    reader: Any = open_ranges(memory, ReadOptions(ahead_bytes=50_000, io_threads=2))
    for number in range(0, 28, 2):
        passed_over, wanted = (Span("a.tar", 10_000 * at, 9_000) for at in (number, number + 1))
        reader.want([passed_over])
        settle(reader)
        reader.want([wanted])
        assert reader.read(wanted) == part(wanted)
        assert sum(len(found) for found in reader._ready.values()) <= 50_000
    assert len(reader._uses) <= 6
    reader.close()


def test_neighbours_share_a_request(memory: Store) -> None:
    reader: Any = open_ranges(memory, ReadOptions(io_threads=1))
    asked: list[tuple[str, int, int]] = []
    get = reader._fetch.get
    reader._fetch.get = lambda *request: asked.append(request) or get(*request)
    wanted = [Span("a.tar", 0, 100), Span("b.tar", 5, 10), Span("a.tar", 60_000, 500), Span("a.tar", 200_000, 9)]
    reader.want(wanted)
    assert [reader.read(span) for span in wanted] == [part(span) for span in wanted]
    assert sorted(asked) == [("a.tar", 0, 60_500), ("a.tar", 200_000, 9), ("b.tar", 5, 10)]
    reader.close()


def test_a_span_behind_the_end_does_not_take_its_neighbours_along(memory: Store) -> None:
    reader = open_ranges(memory, ReadOptions(retries=3))
    good, bad = Span("b.tar", 69_000, 1_000), Span("b.tar", 70_000, 500)
    reader.want([bad, good])
    with pytest.raises(
        StorageError, match=r"b\.tar: 500 bytes at offset 70000 cannot be read: the file has 70001 bytes \(1 att"
    ):
        reader.read(bad)
    assert reader.read(good) == part(good)
    for wrong in (Span("b.tar", -1, 5), Span("b.tar", 0, -1), Span("gone.tar", 0, 1)):
        reader.want([wrong])
        with pytest.raises(StorageError, match=wrong.path):
            reader.read(wrong)
    assert reader.counters.retries == 0
    reader.close()
    with pytest.raises(StorageError, match="closed"):
        reader.read(good)


class StuckFileSystem(MemoryFileSystem):
    """A store whose calls never come back."""

    protocol = "stuck"
    release = threading.Event()

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self.release.wait(60)
        return b""


def test_a_store_that_never_answers_is_an_error_in_bounded_time() -> None:
    fsspec.register_implementation("stuck", StuckFileSystem, clobber=True)
    reader = open_ranges(Store("stuck://there"), ReadOptions(retries=1, timeout_s=0.05, backoff_s=0.0))
    span = Span("a.tar", 0, 10)
    reader.want([span])
    try:
        with pytest.raises(StorageError, match=r"there/a\.tar: 10 bytes at offset 0 .* within 0\.05 s \(2 attempts\)"):
            reader.read(span)
    finally:
        StuckFileSystem.release.set()
        reader.close()
    assert reader.counters.retries == 1 and reader.counters.seconds > 0


class BrokenFileSystem(MemoryFileSystem):
    """A store whose library has a bug."""

    protocol = "broken"

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        raise TypeError("a bug")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_is_neither_tried_again_nor_hidden() -> None:
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    reader = open_ranges(Store("broken://there"), ReadOptions())
    reader.want([Span("a.tar", 0, 10)])
    with pytest.raises(TypeError, match="a bug"):
        reader.read(Span("a.tar", 0, 10))
    assert reader.counters.retries == 0
    reader.close()


# S3, and what goes wrong there.


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="ranges")
        for name, content in CONTENT.items():
            client.put_object(Bucket="ranges", Key=f"run/{name}", Body=content)
        yield host, port
    server.stop()


@pytest.fixture
def proxied(s3: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[FaultyProxy] = []

    def make(**plan: Any) -> tuple[FaultyProxy, Store]:
        proxy = FaultyProxy(*s3, **plan)
        made.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy, Store("s3://ranges/run")

    yield make
    for proxy in made:
        proxy.close()


def scattered(count: int) -> list[Span]:
    random = Random(7)
    found = []
    for _ in range(count):
        path = random.choice(["a.tar", "b.tar"])
        offset = random.randrange(len(CONTENT[path]) - 1)
        found.append(Span(path, offset, random.randint(1, min(9_000, len(CONTENT[path]) - offset))))
    return found


def test_nothing_is_lost_while_s3_fails(proxied: Any, tmp_path: Path) -> None:
    proxy, store = proxied(share=0.6)
    options = ReadOptions(**QUICK, cache_dir=str(tmp_path), cache_bytes=64 << 20)
    reader = open_ranges(store, options, version_of=lambda path: "1")
    wanted = scattered(40)
    for start in range(0, 40, 4):
        for span in wanted[start : start + 4]:
            reader.want([span])
    assert [reader.read(span) for span in wanted] == [part(span) for span in wanted]
    assert reader.local_copy("a.tar").read_bytes() == CONTENT["a.tar"]
    assert set(proxy.faults) >= set(TRANSIENT), "a kind of fault was never injected"
    # aiohttp asks once more by itself after a reset, and an attempt may fail at GET and at HEAD.
    assert sum(proxy.faults[kind] for kind in TRANSIENT if kind != "reset") <= reader.counters.retries
    assert reader.counters.retries <= proxy.faults.total()
    assert (reader.counters.reads, reader.counters.bytes) == (40, sum(span.size for span in wanted))
    reader.close()
    asked = proxy.requests
    again = open_ranges(store, options, version_of=lambda path: "1")
    again.want(wanted)
    assert [again.read(span) for span in wanted] == [part(span) for span in wanted]
    assert again.local_copy("a.tar").read_bytes() == CONTENT["a.tar"]
    assert again.counters.cache_hits == 40 and proxy.requests == asked
    again.close()


@pytest.mark.parametrize("kind", TRANSIENT)
def test_each_kind_of_fault_is_tried_again_and_in_the_end_an_error(proxied: Any, kind: str) -> None:
    proxy, store = proxied(share=1.0, streak=2, kinds=[kind])
    span = Span("b.tar", 100, 5_000)
    reader = open_ranges(store, ReadOptions(**QUICK, retries=2))
    assert reader.read(span) == part(span)
    assert proxy.faults[kind] == 2 and reader.counters.retries == (1 if kind == "reset" else 2)
    reader.close()
    proxy, store = proxied(share=1.0, streak=1_000, kinds=[kind])
    reader = open_ranges(store, ReadOptions(**QUICK, retries=1))
    with pytest.raises(
        StorageError, match=r"s3://ranges/run/b\.tar: 5000 bytes at offset 100 cannot be read: .+ \(2 attempts\)"
    ) as failure:
        reader.read(span)
    if kind in ERRORS:
        assert f"HTTP {kind}" in str(failure.value)
    assert proxy.requests == 2 or kind in ("short", "reset"), "the library below retries on its own"
    reader.close()


def test_what_no_retry_cures_is_asked_once(proxied: Any) -> None:
    proxy, store = proxied(share=1.0, streak=1_000, kinds=["403"])
    reader = open_ranges(store, ReadOptions(**QUICK))
    with pytest.raises(StorageError, match=r"ranges/run/a\.tar: 9 bytes at offset 0 .*403.*\(1 attempt\)"):
        reader.read(Span("a.tar", 0, 9))
    assert proxy.requests == 1 and reader.counters.retries == 0
    reader.close()
    proxy, store = proxied(share=0.0)
    reader = open_ranges(store, ReadOptions(**QUICK))
    for wrong, reason in ((Span("gone.tar", 0, 9), "no such file"), (Span("b.tar", 70_000, 9), "70001 bytes")):
        with pytest.raises(StorageError, match=reason):
            reader.read(wrong)
    with pytest.raises(StorageError, match=r"b\.tar: 5 bytes at offset 80000 .*\(1 attempt\)"):
        reader.read(Span("b.tar", 80_000, 5))
    with pytest.raises(StorageError, match=r"gone\.tar: cannot be read: no such file"):
        reader.local_copy("gone.tar")
    assert reader.counters.retries == 0
    reader.close()


def test_s3_that_stalls_is_an_error_in_bounded_time(proxied: Any) -> None:
    proxy, store = proxied(share=0.0, streak=1_000, kinds=["stall"])
    reader = open_ranges(store, ReadOptions(io_threads=1, backoff_s=0.0, retries=1, timeout_s=1.0))
    connected, stalled = Span("b.tar", 0, 9), Span("a.tar", 0, 9)
    assert reader.read(connected) == part(connected)
    proxy.share = 1.0
    reader.want([stalled])
    with pytest.raises(StorageError, match=r"no answer within 1 s \(2 attempts\)"):
        reader.read(stalled)
    assert reader.counters.slowest[0] == "a.tar" and proxy.faults["stall"] == 2
    reader.close()


def test_what_begins_while_the_fetcher_closes_is_broken_off(proxied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was let through just before `close` must not be waited for until all its attempts are over."""
    _, store = proxied(share=1.0, streak=1_000, kinds=["stall"])
    fetch = RangeFetch(store, ReadOptions(**QUICK), RangeCounters())
    begin = asyncio.run_coroutine_threadsafe
    closing = threading.Thread(target=fetch.close)

    def begun_late(*call: Any) -> Any:
        closing.start()
        closing.join(0.2)  # without a lock it is through by now, and has not seen what begins here
        return begin(*call)

    monkeypatch.setattr("vila_data.core.ranges.remote.asyncio.run_coroutine_threadsafe", begun_late)
    with pytest.raises(RangeError, match="closed"):
        fetch.get("a.tar", 0, 9)
    closing.join()


def test_closing_frees_a_reader_that_waits(proxied: Any) -> None:
    _, store = proxied(share=1.0, streak=1_000, kinds=["stall"])
    reader = open_ranges(store, ReadOptions(**QUICK))
    span = Span("a.tar", 0, 9)
    reader.want([span])
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            reader.read(span)
        except StorageError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    reader.close()
    waiting.join(20)
    assert not waiting.is_alive() and "closed" in str(raised[0])
