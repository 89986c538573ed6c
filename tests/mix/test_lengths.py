"""A pass over a shard set: each sample once, in chunks of rows whose order is over the whole set."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mix.made_lengths import lengths
from vila_data.core.errors import DataError
from vila_data.mix.lengths import CHUNK_ROWS, Lengths, PassReader, Samples


def chunks_of(run: Samples) -> list[tuple[int, int]]:
    """(shard, chunk in it) of every sample."""
    return list(zip(run.shard.tolist(), (run.row // CHUNK_ROWS).tolist(), strict=True))


@given(st.integers(1, 500), st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.95]), st.lists(st.integers(1, 30)))
@settings(max_examples=80, deadline=None)
def test_a_pass_holds_every_sample_in_the_stream_once(
    samples: int, shards: int, absent: float, steps: list[int]
) -> None:
    held = lengths(samples, shards=shards, absent=absent)
    reader = PassReader(held, 0, seed=1, epoch=2)
    whole = reader.read(3, 0, samples)
    assert len(whole) == reader.samples == int((held.tokens > 0).sum()) == held.totals.samples
    first = np.concatenate([[0], held.ends])
    place = first[whole.shard] + whole.row
    assert np.array_equal(np.sort(place), np.flatnonzero(held.tokens > 0))
    assert np.array_equal(held.tokens[place], whole.tokens) and np.array_equal(held.images[place], whole.images)
    chunks = chunks_of(whole)
    changes = np.flatnonzero([one != other for one, other in pairwise(chunks)]) + 1
    assert len(changes) + 1 == len(set(chunks)), "rows of a chunk come one after another"
    for rows in np.split(whole.row, changes):
        assert np.count_nonzero(np.diff(rows) < 0) <= 1 and (
            np.count_nonzero(np.diff(rows) < 0) == 0 or rows[0] > rows[-1]
        )
    at, pieces = 0, []
    for step in [*steps, samples]:
        pieces.append(reader.read(3, at, step))
        at += len(pieces[-1])
    assert np.array_equal(np.concatenate([piece.row for piece in pieces]), whole.row)


def test_the_order_of_chunks_is_of_seed_epoch_source_and_pass() -> None:
    held = lengths(2_000, shards=4)
    orders = {
        tuple(dict.fromkeys(chunks_of(PassReader(held, source, seed, epoch).read(pass_, 0, 2_000))))
        for source, seed, epoch, pass_ in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    }
    assert len(orders) == 5 and {len(order) for order in orders} == {4 * 8}
    again = PassReader(held, 0, 0, 0).read(0, 0, 2_000)
    assert tuple(dict.fromkeys(chunks_of(again))) in orders


def test_chunks_of_all_shards_are_mixed() -> None:
    """Any order of a set of c chunks is as likely as another: how far on a chunk of the same shard comes."""
    held = lengths(64 * 400, shards=20)
    shards = [shard for shard, _ in dict.fromkeys(chunks_of(PassReader(held, 0, 0, 0).read(0, 0, 64 * 400)))]
    same = sum(one == other for one, other in pairwise(shards))
    chance = 19 / 399
    assert len(shards) == 400 and abs(same - 399 * chance) < 5 * np.sqrt(399 * chance)


def test_a_pass_begins_anywhere_in_a_chunk() -> None:
    held = lengths(50)
    firsts = {int(PassReader(held, 0, 0, epoch).read(pass_, 0, 1).row[0]) for epoch in range(9) for pass_ in range(9)}
    assert len(firsts) > 25


def test_memory_is_some_bytes_per_chunk() -> None:
    chunks = 10_000
    reader = PassReader(lengths(CHUNK_ROWS * chunks, shards=10), 0, 0, 0)
    reader.read(0, 0, 1)
    tracemalloc.start()
    reader.read(1, 0, 1)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 13 * chunks <= held < 14 * chunks


def test_the_order_never_changes() -> None:
    held = lengths(150, shards=2, seed=4)
    whole = PassReader(held, 3, seed=17, epoch=1).read(2, 0, 150)
    chunks = chunks_of(whole)
    begins = [(chunk, int(whole.row[chunks.index(chunk)])) for chunk in dict.fromkeys(chunks)]
    assert begins == [((0, 0), 39), ((1, 1), 66), ((1, 0), 60), ((0, 1), 67)]


def test_from_a_table_of_lengths() -> None:
    rows = {"shard": [0, 0, 2], "row": [0, 1, 0], "tokens": [5, 0, 7], "images": [1, 1, 2]}
    held = Lengths.of_table(pa.table(rows), 3)
    assert held.ends.tolist() == [2, 2, 3] and held.chunk_samples.tolist() == [1, 1] and held.totals == (2, 3, 12)
    assert held.only(np.asarray([True, True, False])).totals == (1, 1, 5)
    with pytest.raises(DataError, match="once, in order"):
        Lengths.of_table(pa.table(rows | {"row": [1, 0, 0]}), 3)
    with pytest.raises(DataError, match="once, in order"):
        Lengths.of_table(pa.table(rows), 2)


def test_arrays_that_do_not_belong_together() -> None:
    one = np.ones(3, np.int32)
    with pytest.raises(DataError, match="differ in length"):
        Lengths(one, one[:2], np.asarray([3]))
    with pytest.raises(DataError, match="shards end at 2"):
        Lengths(one, one, np.asarray([2]))


def test_a_fingerprint_is_of_every_entry() -> None:
    """Not of totals: a list of ids that names other samples, as many and as long, must not resume the old plan."""
    tokens, images = np.asarray([5, 5, 5, 7], np.int32), np.asarray([1, 1, 1, 0], np.int32)
    lengths = Lengths(tokens, images, np.asarray([3, 4], np.int64))
    found = [
        lengths,
        Lengths(tokens, images, np.asarray([2, 4], np.int64)),
        Lengths(tokens, images[::-1], lengths.ends),
    ]
    found += [lengths.only(np.arange(4) != left_out) for left_out in range(3)]
    assert len({each.fingerprint for each in found}) == len(found)
    assert Lengths(tokens.copy(), images, lengths.ends).fingerprint == lengths.fingerprint
    assert len(Lengths.of_shards([]).fingerprint) == 16
