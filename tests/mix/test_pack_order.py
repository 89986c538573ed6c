"""The order of a block's packs: a permutation, even in every source, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.mix.lengths import Samples
from vila_data.mix.pack_order import sample_kinds, shuffle_within_kinds, spread_packs


def made(packs: int, sources: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    units = rng.poisson(rng.gamma(0.7, 3.0, (packs, sources)))
    return units, np.repeat(units.sum(axis=1, keepdims=True), sources, axis=1)


@given(st.integers(0, 60), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_every_pack_once_and_the_same_again(packs: int, sources: int, seed: int) -> None:
    units, totals = made(packs, sources, seed)
    order = spread_packs(units, totals, seed, 1)
    assert sorted(order.tolist()) == list(range(packs))
    assert np.array_equal(order, spread_packs(units.copy(), totals.copy(), seed, 1))


@pytest.mark.parametrize("sources", [2, 4, 6, 16])
def test_running_sums_stay_near_the_share_of_the_block(sources: int) -> None:
    units, totals = made(3000, sources, 3)
    lag = units - totals * (units.sum(axis=0) / totals.sum(axis=0))
    order = spread_packs(units, totals, 0)
    largest = np.abs(lag).max()
    assert np.abs(np.cumsum(lag[order], axis=0)).max() <= 2 * largest
    assert np.abs(np.cumsum(lag, axis=0)).max() > 3 * largest, "by chance they do not, or this proves nothing"


def test_alike_packs_are_far_apart_and_come_by_chance() -> None:
    kind = np.repeat([0, 1, 2, 3], [1000, 500, 400, 100])
    units = np.asarray([[4, 0], [0, 4], [1, 3], [4, 4]])[kind]
    totals = np.repeat(units.sum(axis=1, keepdims=True), 2, axis=1)
    order = spread_packs(units, totals, 7)
    for number, count in enumerate([1000, 500, 400, 100]):
        running = np.cumsum(kind[order] == number)
        assert np.abs(running - np.arange(1, 2001) * count / 2000).max() < 12
    assert not np.array_equal(order, spread_packs(units, totals, 8))
    rare = order[kind[order] == 3]
    assert not np.array_equal(rare, np.sort(rare))


def test_the_order_never_changes() -> None:
    order = spread_packs(*made(500, 3, 1), 17, 0, 4)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "7b36658b6371a453"


def test_a_blend_that_counts_what_no_pack_of_a_block_has() -> None:
    nothing = np.zeros((10, 2), np.int64)
    assert sorted(spread_packs(nothing, nothing, 0).tolist()) == list(range(10))


@pytest.mark.parametrize("kinds", [1, 3, 1_000])
def test_samples_change_places_within_their_kind(kinds: int) -> None:
    kind = np.random.default_rng(0).integers(0, kinds, 500)
    found = shuffle_within_kinds(kind, 1, 2)
    assert np.array_equal(np.sort(found), np.arange(500)) and np.array_equal(kind[found], kind)
    assert not np.array_equal(found, shuffle_within_kinds(kind, 1, 3)) and np.array_equal(
        found, shuffle_within_kinds(kind, 1, 2)
    )


def test_samples_that_are_alike() -> None:
    tokens = np.arange(1, 9_000, dtype=np.int32)
    nothing = np.zeros(len(tokens), np.int32)
    kind = sample_kinds(Samples(nothing.astype(np.int16), nothing, nothing, nothing, tokens, nothing))
    assert (np.diff(kind) >= 0).all()
    first = np.flatnonzero(np.diff(kind, prepend=-1))
    last = np.append(first[1:], len(kind)) - 1
    assert (tokens[last] <= tokens[first] * (1 + 1 / 16)).all() and len(first) < 250
    other = sample_kinds(Samples(nothing.astype(np.int16) + 1, nothing, nothing, nothing, tokens, nothing + 1))
    assert not set(kind.tolist()) & set(other.tolist())
