"""Ranges come in the order asked for, whatever is read together; and neighbours cost one request."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import StorageError
from vila_data.core.ranges import prefetch, reader
from vila_data.core.ranges.prefetch import Span, merged
from vila_data.core.ranges.reader import Blocks, read_shuffled, read_spans
from vila_data.core.store import Store

CONTENT = {"a.tar": Random(1).randbytes(9_000), "b.tar": Random(2).randbytes(4_000)}
Read = Callable[[Store, Iterator[Span]], Iterator[bytes]]


class Counting(Store):
    """A store that notes which ranges it was asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[Span] = []

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        self.asked.append(Span(path, offset, size))
        return super().read_range(path, offset, size)


@pytest.fixture(scope="module")
def remote() -> Iterator[Counting]:
    store = Counting(f"memory://nearby-{uuid.uuid4().hex}")
    for name, content in CONTENT.items():
        store.commit_bytes(content, name)
    yield store
    store.remove("")


@contextmanager
def small_bounds() -> Iterator[None]:
    """Bounds as small as the files of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (reader, "GAP", 64),
            (reader, "LARGEST", 1_000),
            (prefetch, "LARGEST", 1_000),
            (reader, "_AHEAD", 6_000),
            (prefetch, "_WINDOW", 2_000),
            (prefetch, "_WINDOW_SPANS", 9),
        ):
            patch.setattr(module, name, value)
        yield


def part(span: Span) -> bytes:
    return CONTENT[span.path][span.offset : span.offset + span.size]


def some_spans() -> st.SearchStrategy[list[Span]]:
    def of(path: str) -> st.SearchStrategy[Span]:
        size = len(CONTENT[path])
        return st.tuples(st.integers(0, size), st.one_of(st.integers(0, 40), st.integers(0, size))).map(
            lambda entry: Span(path, entry[0], min(entry[1], size - entry[0]))
        )

    return st.lists(st.sampled_from(sorted(CONTENT)).flatmap(of), max_size=40)


@pytest.mark.parametrize("read", [read_spans, read_shuffled])
@settings(max_examples=60, deadline=None)
@given(spans=some_spans())
def test_any_spans_in_any_order(remote: Counting, read: Read, spans: list[Span]) -> None:
    remote.asked.clear()
    with small_bounds():
        assert list(read(remote, iter(spans))) == [part(span) for span in spans]
    asked = [span for span in spans if span.size]
    assert len(remote.asked) <= len(asked)
    assert all(request.size <= max([1_000, *(span.size for span in asked)]) for request in remote.asked)


@given(spans=some_spans(), gap=st.integers(0, 200), largest=st.integers(1, 5_000))
@settings(deadline=None)
def test_requests_hold_every_span_and_no_more_than_they_may(spans: list[Span], gap: int, largest: int) -> None:
    requests = merged(spans, gap, largest)
    assert sorted(span for request in requests for span in request.spans) == sorted(set(spans))
    first = [min(map(spans.index, request.spans)) for request in requests]
    assert first == sorted(first)
    for request in requests:
        ends = [span.offset + span.size for span in request.spans]
        assert (request.offset, request.offset + request.size) == (request.spans[0].offset, max(ends))
        assert request.size <= largest or len(request.spans) == 1
        reach = [max(ends[: number + 1]) for number in range(len(ends))]
        assert all(span.offset - before <= gap for span, before in zip(request.spans[1:], reach, strict=False))


def test_neighbours_in_any_order_take_as_few_requests_as_their_file(remote: Counting) -> None:
    spans = [Span("a.tar", offset, 50) for offset in range(0, 9_000, 100)]
    Random(3).shuffle(spans)
    remote.asked.clear()
    with small_bounds():
        assert list(read_shuffled(remote, spans)) == [part(span) for span in spans]
        assert len(remote.asked) == 9
        remote.asked.clear()
        assert list(read_spans(remote, sorted(spans))) == [part(span) for span in sorted(spans)]
        assert len(remote.asked) == 9, "a window ends where a request ends"


def test_what_lies_far_apart_is_asked_for_apart_and_not_put_on_a_disk(
    remote: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "scratch", lambda: pytest.fail("a temporary folder"))
    spans = [Span("a.tar", offset, 50) for offset in (8_000, 0, 4_000, 2_000, 6_000)]
    remote.asked.clear()
    with small_bounds():
        assert list(read_shuffled(remote, spans)) == [part(span) for span in spans]
    assert sorted(remote.asked) == sorted(spans)


def test_who_takes_slowly_is_not_read_ahead_for_without_bound(remote: Counting) -> None:
    spans = [Span("a.tar", offset, 500) for offset in [*range(0, 8_500, 1_000), *range(500, 8_500, 1_000)]]
    left = iter(spans)
    remote.asked.clear()
    with small_bounds():
        found = read_spans(remote, left)
        assert next(found) == part(spans[0])
        found.close()  # type: ignore[attr-defined]
    assert len(list(left)) == len(spans) - 9, (
        "taken: two windows of 2,000 bytes, and the span that they have no room for"
    )
    assert len(remote.asked) <= 8


@pytest.mark.parametrize("read", [read_spans, read_shuffled])
@pytest.mark.parametrize(
    "wrong", [Span("a.tar", 8_990, 11), Span("a.tar", -1, 5), Span("a.tar", 5, -1), Span("c", 0, 1)]
)
def test_what_is_not_there_is_an_error(remote: Counting, read: Read, wrong: Span) -> None:
    with pytest.raises(StorageError, match=rf"{wrong.path}: "):
        list(read(remote, iter([Span("a.tar", 8_900, 10), Span("a.tar", 8_950, 10), wrong])))
    with pytest.raises(StorageError, match="not a valid range"):
        list(read(remote, iter([Span("a.tar", -5, 5)])))


@pytest.mark.parametrize("read", [read_spans, read_shuffled])
def test_a_local_store_is_read_one_by_one(tmp_path: Path, read: Read) -> None:
    store = Counting(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(CONTENT["a.tar"])
    spans = [Span("a.tar", 10, 20), Span("a.tar", 0, 20), Span("a.tar", 30, 0)]
    assert list(read(store, iter(spans))) == [part(span) for span in spans]
    assert store.asked == spans


@pytest.mark.parametrize("held", [1, 2])
def test_a_block_is_asked_for_once_while_it_is_held(remote: Counting, held: int) -> None:
    blocks = Blocks(remote, held)
    remote.asked.clear()
    ones = [Span("a.tar", 1_000, 3_000), Span("b.tar", 0, 2_000)]
    for block in (*ones, *ones):
        for offset in range(block.offset, block.offset + block.size, 500):
            span = Span(block.path, offset, 500)
            assert blocks.read(span, block) == part(span)
    assert remote.asked == ones * (3 - held)


def test_a_block_that_is_cut_short_or_large_does_not_take_its_spans_along(remote: Counting) -> None:
    blocks, span = Blocks(remote), Span("b.tar", 3_900, 100)
    assert blocks.read(span, Span("b.tar", 3_000, 5_000)) == part(span)
    assert blocks.read(span, Span("b.tar", 0, 1 << 40)) == part(span)
    with pytest.raises(StorageError, match=r"b\.tar: "):
        blocks.read(Span("b.tar", 3_950, 100), Span("b.tar", 3_000, 5_000))


def test_a_local_block_is_not_read_whole(tmp_path: Path) -> None:
    store = Counting(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(CONTENT["a.tar"])
    span = Span("a.tar", 10, 20)
    assert Blocks(store).read(span, Span("a.tar", 0, 5_000)) == part(span) and store.asked == [span]
