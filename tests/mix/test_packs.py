"""The packers of the paper and of the released code against a plain reading of the rule; packing reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.packing import pack_block
from vila_data.mix.packs import PackReport, Packs, pack_micro_batches, pack_singly


def ints(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def as_lists(packs: Packs) -> list[list[int]]:
    return [members.tolist() for members in np.split(packs.members, packs.ends[:-1])] if len(packs) else []


def plainly(lengths: list[int], micro_batch: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for start in range(0, len(lengths), micro_batch):
        batch = list(range(start, min(start + micro_batch, len(lengths))))
        batch.sort(key=lambda position: -lengths[position])
        longest = lengths[batch[0]]
        current: list[int] = []
        for position in batch:
            if current and sum(lengths[member] for member in current) + lengths[position] > longest:
                packs.append(current)
                current = []
            current.append(position)
        packs.append(current)
    return packs


@given(st.lists(st.integers(1, 40), max_size=70), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_micro_batches_as_plainly_written(lengths: list[int], micro_batch: int) -> None:
    packs = pack_micro_batches(ints(lengths), ints([0] * len(lengths)), micro_batch=micro_batch)
    assert as_lists(packs) == plainly(lengths, micro_batch)


def test_a_micro_batch_by_hand() -> None:
    packs = pack_micro_batches(ints([3, 10, 6, 4, 5, 1, 1]), ints([0] * 7), micro_batch=5)
    assert as_lists(packs) == [[1], [2], [4, 3], [0], [5], [6]]


@pytest.mark.parametrize("n", [0, 1, 9])
def test_one_each(n: int) -> None:
    packs = pack_singly(ints([7] * n), ints([1] * n))
    assert as_lists(packs) == [[position] for position in range(n)]


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="micro_batch must be at least 1, found 0"):
        pack_micro_batches(ints([1]), ints([0]), micro_batch=0)
    with pytest.raises(DataError, match="sample 0 has 0 tokens"):
        pack_singly(ints([0]), ints([0]))


samples = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), max_size=60)


def report_of(block: list[tuple[int, int]], limit: int | None) -> PackReport:
    tokens, images = ints([tokens for tokens, _ in block]), ints([images for _, images in block])
    packs = pack_block(tokens, images, capacity=100, max_images=limit)
    return PackReport.of(packs, tokens, images, capacity=100, max_images=limit)


@given(samples, samples, st.sampled_from([None, 4, 9]))
@settings(max_examples=100, deadline=None)
def test_sums(first: list[tuple[int, int]], second: list[tuple[int, int]], limit: int | None) -> None:
    one, two = report_of(first, limit), report_of(second, limit)
    both = one + two
    assert both.samples == len(first) + len(second)
    assert both.tokens == sum(tokens for tokens, _ in first + second)
    assert both.images == sum(images for _, images in first + second)
    assert sum(both.unfilled_tokens) == both.capacity_tokens - both.tokens == both.packs * 100 - both.tokens
    for histogram, total in ((both.images_per_pack, both.images), (both.samples_per_pack, both.samples)):
        assert sum(count for _, count in histogram) == both.packs
        assert sum(value * count for value, count in histogram) == total
    assert json.loads(json.dumps(both.as_dict()))["images_per_pack"]["mean"] * both.packs == pytest.approx(both.images)
    assert both == two + one and both + PackReport() == both


def test_reasons_by_hand() -> None:
    tokens, images = ints([50, 50, 95, 60, 30, 7]), ints([2, 2, 0, 0, 1, 0])
    packs = Packs(np.array([2, 3, 6]), np.arange(6))
    found = PackReport.of(packs, tokens, images, capacity=101, max_images=4)
    assert found.as_dict()["unfilled_tokens"] == {"image_limit": 1, "no_sample_fits": 6 + 4, "end_of_block": 0}
    found = PackReport.of(pack_singly(tokens, images), tokens, images, capacity=101, max_images=4)
    assert found.as_dict()["unfilled_tokens"]["end_of_block"] == 606 - found.tokens - 6
    assert found.fill == found.tokens / 606


def test_nothing() -> None:
    assert report_of([], 4) == PackReport() and PackReport().fill == 1.0
