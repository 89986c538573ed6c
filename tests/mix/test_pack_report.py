"""Reports add up, survive JSON, and account for every token not filled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.mix.pack_report import PackReport
from vila_data.mix.packs import Packs, one_each
from vila_data.mix.plan import pack_block
from vila_data.mix.sequence_length import best_sequence_length


def ints(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


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
    for histogram, total in ((both.images_a_pack, both.images), (both.samples_a_pack, both.samples)):
        assert sum(count for _, count in histogram) == both.packs
        assert sum(value * count for value, count in histogram) == total
    assert PackReport.from_dict(json.loads(json.dumps(both.as_dict()))) == both
    assert both == two + one and both + PackReport() == both


def test_reasons_by_hand() -> None:
    tokens, images = ints([50, 50, 95, 60, 30, 7]), ints([2, 2, 0, 0, 1, 0])
    packs = Packs(np.array([2, 3, 6]), np.arange(6))
    found = PackReport.of(packs, tokens, images, capacity=101, max_images=4)
    assert found.as_dict()["unfilled_tokens"] == {"image_limit": 1, "no_sample_fits": 6 + 4, "end_of_block": 0}
    found = PackReport.of(one_each(tokens, images), tokens, images, capacity=101, max_images=4)
    assert found.as_dict()["unfilled_tokens"]["end_of_block"] == 606 - found.tokens - 6
    assert found.fill == found.tokens / 606


def test_nothing() -> None:
    assert report_of([], 4) == PackReport() and PackReport().fill == 1.0


def test_a_report_without_a_count() -> None:
    with pytest.raises(DataError, match="images_a_pack is absent"):
        PackReport.from_dict({key: value for key, value in PackReport().as_dict().items() if key != "images_a_pack"})


def test_the_length_that_wastes_least() -> None:
    tokens, images = ints([96] * 400), ints([0] * 400)
    found = best_sequence_length(tokens, images, current=256, max_images=None, seed=3)
    assert [length for length, _ in found.fill] == [192, 256, 320]
    assert found.best == 192 and dict(found.fill)[192] == 1.0 and dict(found.fill)[256] == 0.75
    assert found.cut == () and found.samples == 400


def test_candidates_below_the_longest_sample_say_how_many_would_be_cut() -> None:
    tokens, images = ints([100] * 90 + [200] * 10), ints([0] * 100)
    found = best_sequence_length(tokens, images, (128, 256), current=256, max_images=None, seed=3)
    assert found.cut == ((128, 10),)
    default = best_sequence_length(tokens, images, current=256, max_images=None, seed=3)
    assert min(length for length, _ in default.fill) >= 200 and default.cut == ()


def test_a_bounded_draw_is_seeded() -> None:
    rng = np.random.default_rng(0)
    tokens, images = rng.integers(1, 500, size=3000).astype(np.int32), np.zeros(3000, np.int32)
    draws = [
        best_sequence_length(tokens, images, (512,), current=512, max_images=None, seed=s, sample=200)
        for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2] and draws[0].samples == 200


def test_no_samples_to_choose_by() -> None:
    with pytest.raises(UsageError, match="no samples"):
        best_sequence_length(ints([]), ints([]), current=256, max_images=None, seed=0)
