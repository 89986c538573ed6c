"""The packer: every sample once, within both limits, the same every time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.packing import best_sequence_length, pack_block
from vila_data.mix.packs import Packs


def ints(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.int32], int, int | None]:
    capacity = draw(st.sampled_from([1, 7, 64, 100, 4096]))
    max_images = draw(st.sampled_from([None, 0, 1, 3, 24]))
    n = draw(st.integers(0, 120))
    distinct = draw(st.integers(1, capacity))
    tokens = draw(st.lists(st.integers(1, distinct), min_size=n, max_size=n))
    images = draw(st.lists(st.integers(0, 9 if max_images is None else max_images), min_size=n, max_size=n))
    return ints(tokens), ints(images), capacity, max_images


def check(packs: Packs, tokens: NDArray[np.int32], images: NDArray[np.int32], capacity: int, limit: int | None) -> None:
    assert np.array_equal(np.sort(packs.members), np.arange(len(tokens)))
    assert packs.ends.dtype == packs.members.dtype == np.int64
    starts = [0, *packs.ends.tolist()]
    assert starts[-1] == len(tokens) and all(low < high for low, high in pairwise(starts))
    for low, high in pairwise(starts):
        members = packs.members[low:high]
        assert tokens[members].sum() <= capacity
        assert limit is None or images[members].sum() <= limit


@given(blocks())
@settings(max_examples=150, deadline=None)
def test_every_sample_once_within_both_limits(block: tuple) -> None:
    tokens, images, capacity, max_images = block
    packs = pack_block(tokens, images, capacity=capacity, max_images=max_images)
    check(packs, tokens, images, capacity, max_images)
    again = pack_block(tokens.copy(), images.copy(), capacity=capacity, max_images=max_images)
    assert np.array_equal(packs.ends, again.ends) and np.array_equal(packs.members, again.members)


@given(blocks())
@settings(max_examples=100, deadline=None)
def test_no_two_packs_could_be_one(block: tuple) -> None:
    tokens, images, capacity, max_images = block
    packs = pack_block(tokens, images, capacity=capacity, max_images=max_images)
    held, shown = packs.sums(tokens), packs.sums(images)
    for left in range(len(packs)):
        for right in range(left):
            fits = held[left] + held[right] <= capacity
            assert not (fits and (max_images is None or shown[left] + shown[right] <= max_images))


def test_nothing_makes_no_pack() -> None:
    packs = pack_block(ints([]), ints([]), capacity=4096, max_images=6)
    assert len(packs) == 0 and len(packs.members) == 0


def test_samples_of_all_of_a_sequence_are_alone() -> None:
    packs = pack_block(ints([64] * 50), ints([0] * 50), capacity=64, max_images=None)
    assert len(packs) == 50


@pytest.mark.parametrize(("max_images", "expected"), [(None, 10), (6, 167), (8, 125)])
def test_one_class_of_images_fills_up_to_its_limit(max_images: int | None, expected: int) -> None:
    packs = pack_block(ints([10] * 1000), ints([1] * 1000), capacity=1000, max_images=max_images)
    assert len(packs) == expected


def test_fillers_are_kept_for_packs_that_images_limit() -> None:
    tokens, images = ints([100] * 60 + [400] * 10), ints([1] * 60 + [0] * 10)
    packs = pack_block(tokens, images, capacity=1000, max_images=6)
    assert len(packs) == 10 and packs.sums(tokens).tolist() == [1000] * 10


@pytest.mark.parametrize("repeat", [1, 12])
def test_long_samples_are_spread_where_images_are_scarce(repeat: int) -> None:
    rng = np.random.default_rng(repeat)
    long, short = rng.integers(980, 1001, size=200 * repeat), rng.integers(582, 599, size=1000 * repeat)
    tokens = rng.permutation(np.concatenate([long, short])).astype(np.int32)
    packs = pack_block(tokens, np.ones_like(tokens), capacity=4096, max_images=6)
    assert len(packs) <= 202 * repeat


@pytest.mark.parametrize("seed", range(4))
def test_perfect_packs_cut_at_random_are_found_but_for_two_percent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cuts = [np.diff([0, *np.sort(rng.choice(np.arange(1, 4096), size=rng.integers(1, 6), replace=False)), 4096])
            for _ in range(400)]  # fmt: skip
    tokens = rng.permutation(np.concatenate(cuts)).astype(np.int32)
    packs = pack_block(tokens, np.zeros_like(tokens), capacity=4096, max_images=None)
    assert len(packs) <= 408


@pytest.mark.parametrize(
    ("tokens", "images", "capacity", "max_images", "error", "words"),
    [
        ([5, 101], [0, 0], 100, None, DataError, "sample 1 has 101 tokens, but a sequence holds 100"),
        ([5, 9], [0, 7], 100, 6, DataError, "sample 1 has 7 images, but a sequence holds 6"),
        ([5, 0], [0, 0], 100, None, DataError, "sample 1 has 0 tokens"),
        ([5, 5], [0, -1], 100, None, DataError, "sample 1 has -1 images"),
        ([5, 5], [0], 100, None, UsageError, "equally long"),
        ([5], [0], 0, None, UsageError, "pack.sequence_length must be at least 1, found 0"),
        ([5], [0], 10, -1, UsageError, "pack.max_images_per_pack must be at least 0, found -1"),
    ],
)
def test_bad_input_is_one_sentence(
    tokens: list[int], images: list[int], capacity: int, max_images: int | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pack_block(ints(tokens), ints(images), capacity=capacity, max_images=max_images)


def test_the_length_that_wastes_least() -> None:
    tokens, images = ints([96] * 400), ints([0] * 400)
    found = best_sequence_length(tokens, images, current=256, max_images=None, seed=3)
    assert [length for length, _ in found.fill] == [192, 256, 320]
    assert found.best == 192 and dict(found.fill)[192] == 1.0 and dict(found.fill)[256] == 0.75


def test_no_candidate_is_shorter_than_the_longest_sample() -> None:
    tokens, images = ints([100] * 90 + [200] * 10), ints([0] * 100)
    found = best_sequence_length(tokens, images, current=256, max_images=None, seed=3)
    assert [length for length, _ in found.fill] == [256, 320]


def test_a_bounded_draw_is_seeded() -> None:
    rng = np.random.default_rng(0)
    tokens, images = rng.integers(1, 500, size=3000).astype(np.int32), np.zeros(3000, np.int32)
    draws = [
        best_sequence_length(tokens, images, current=512, max_images=None, seed=seed, sample=200) for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_no_samples_to_choose_from() -> None:
    with pytest.raises(UsageError, match="no samples"):
        best_sequence_length(ints([]), ints([]), current=256, max_images=None, seed=0)
