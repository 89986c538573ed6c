"""One sample a sequence, and the released code's micro-batches against a plain reading of the rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.packs import Packs, micro_batches, one_each


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
    packs = micro_batches(ints(lengths), ints([0] * len(lengths)), micro_batch=micro_batch)
    assert as_lists(packs) == plainly(lengths, micro_batch)


def test_a_micro_batch_by_hand() -> None:
    packs = micro_batches(ints([3, 10, 6, 4, 5, 1, 1]), ints([0] * 7), micro_batch=5)
    assert as_lists(packs) == [[1], [2], [4, 3], [0], [5], [6]]


@pytest.mark.parametrize("n", [0, 1, 9])
def test_one_each(n: int) -> None:
    packs = one_each(ints([7] * n), ints([1] * n))
    assert as_lists(packs) == [[position] for position in range(n)]


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="micro_batch is 0"):
        micro_batches(ints([1]), ints([0]), micro_batch=0)
    with pytest.raises(DataError, match="sample 0 has 0 tokens"):
        one_each(ints([0]), ints([0]))
