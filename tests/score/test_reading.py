"""Vectors, feed, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from vila_data.score.reading import Feed, FeedStats
from vila_data.score.similarities import Vectors


def test_vectors_by_slot(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    with Vectors(tmp_path / "v", 5) as vectors:
        vectors.append(data[:7])
        vectors.append(data[7:])
        assert vectors.count == 20
        for slots in ([], [3], [3, 4, 5], [5, 3, 4, 19, 0, 0]):
            np.testing.assert_array_equal(vectors.take(slots), data[slots])
        with pytest.raises(IndexError, match="slots from 19"):
            vectors.take([19, 20])


def test_feed_keeps_order_and_bound() -> None:
    outstanding, most, lock = 0, 0, threading.Lock()

    def read(feed: Feed[Future[int]]) -> Iterator[Future[int]]:
        nonlocal outstanding, most
        for number in range(100):
            future = feed.submit(lambda number=number: number)
            with lock:
                outstanding += 1
                most = max(most, outstanding)
            yield future

    seen = []
    with Feed[Future[int]](read, threads=3, ahead=8) as feed:
        for future in feed.events(FeedStats()):
            seen.append(future.result())
            with lock:
                outstanding -= 1
            feed.release(1)
    assert seen == list(range(100))
    assert 1 < most <= 8


def test_feed_raises_what_the_reader_raised_after_its_events() -> None:
    def read(feed: Feed[int]) -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    seen = []
    with pytest.raises(KeyError, match="broken"), Feed[int](read, 1, 2) as feed:
        seen.extend(feed.events(FeedStats()))
    assert seen == [] or seen == [1]


def test_feed_can_be_left_early() -> None:
    read_on = []

    def read(feed: Feed[int]) -> Iterator[int]:
        for number in range(10**9):
            read_on.append(number)
            feed.submit(lambda: None)
            yield number

    with Feed[int](read, 2, 4) as feed:
        assert next(feed.events(FeedStats())) == 0
    assert len(read_on) < 100  # the reading thread has ended: leaving the block joins it


def test_stats_share() -> None:
    assert FeedStats().waiting_share == 0
    assert FeedStats(waiting=1, model=3, total=4).waiting_share == 0.25


def test_importing_the_stage_loads_no_model_library() -> None:
    code = (
        "import sys, vila_data.score.part, vila_data.score.kinds, vila_data.score.clip, vila_data.score.model;"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
