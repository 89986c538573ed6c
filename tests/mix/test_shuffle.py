"""The shuffle over a whole set, measured on the packs of an epoch: as good as perfectly shuffled blocks of chunks."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.benchmark_files import benchmark
from tests.mix.made_lengths import blend
from vila_data.encode.config import PackConfig
from vila_data.mix.lengths import CHUNK_ROWS, Lengths
from vila_data.mix.sequence import PackSequence, PlannedPacks

SHARDS, ROWS = 60, 1_000
ERRORS = 5.0
"""Standard errors by which a fair shuffle is off once in 1.7 million."""


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    """benchmarks/shuffle.py, whose measure this is."""
    return benchmark("shuffle")


def planned(semantics: str, *, text: int | None = None) -> list[PlannedPacks]:
    """An epoch of 60 shards of pairs and of documents; `text`: all pairs have as many tokens, one type to the packer."""
    rng = np.random.default_rng(3)
    made = []
    for images, rows in ((1, ROWS), (3, ROWS // 10)):
        n = SHARDS * rows
        shown = rng.integers(1, images + 1, n).astype(np.int32)
        tokens = 144 * shown + (rng.lognormal(3, 0.6, n).astype(np.int32) + 2 if text is None or images > 1 else text)
        made.append(Lengths(tokens.astype(np.int32), shown, np.arange(1, SHARDS + 1, dtype=np.int64) * rows))
    pack: dict[str, Any] = {"tokenizer": "none", "sequence_length": 1024, "tokens_per_image": 144}
    weights = (1, 1) if semantics == "released_code" else (10, 1)
    sources = [{"shards": name, "weight": weight} for name, weight in zip(("pairs", "docs"), weights, strict=True)]
    repeat = [source | {"repeat": 1} for source in sources]
    config = blend(weight_unit="samples", on_exhaustion="renormalize", sources=repeat)
    return list(PackSequence(config, PackConfig(**pack, semantics=semantics), made, seed=0, epoch=0))


@pytest.mark.parametrize("semantics", ["improved", "paper", "released_code"])
def test_neighbours_are_from_the_same_shard_as_often_as_in_shuffled_blocks(quality: ModuleType, semantics: str) -> None:
    packs = planned(semantics)
    for source in (0, 1):
        order = quality.Order(packs, source)
        if semantics == "released_code":  # it sorts eight samples at a time by their tokens
            order.pack = np.arange(len(order.pack)) // 8
        found = quality.neighbours(order)
        assert found["samples"] >= SHARDS * ROWS // 10 - 16
        assert abs(found["neighbours_same_shard_errors_from_shuffled_blocks"]) < ERRORS
        assert abs(found["neighbours_correlation_errors_from_0"]) < ERRORS
        assert (found["in_pack_pairs"] > 0) == (semantics != "paper")
        if semantics != "paper":
            assert abs(found["in_pack_same_shard_errors_from_shuffled_blocks"]) < ERRORS
            assert abs(found["in_pack_same_chunk_errors_from_shuffled_blocks"]) < ERRORS
            assert abs(found["in_pack_correlation_errors_from_0"]) < ERRORS
        least = np.unique(order.block, return_counts=True)[1][:-1].min(initial=len(order.block))
        beyond = found["neighbours_same_shard_shuffled_blocks"] - found["neighbours_same_shard_perfect"]
        assert beyond < 1.2 * CHUNK_ROWS / least, "a block is less mixed than its chunks explain"


def test_samples_of_equal_length_are_mixed_too(quality: ModuleType) -> None:
    """All pairs are one type to the packer, which takes samples of a type in the order in which they come."""
    found = quality.neighbours(quality.Order(planned("improved", text=12), 0))
    assert found["in_pack_pairs"] > 30_000
    assert abs(found["in_pack_same_chunk_errors_from_shuffled_blocks"]) < ERRORS
    assert abs(found["neighbours_same_shard_errors_from_shuffled_blocks"]) < ERRORS


def test_the_measure_sees_what_is_not_shuffled(quality: ModuleType) -> None:
    """Rows in the order of their shards within a block: the measure says so."""
    unshuffled = [
        replace(one, samples=one.samples.take(np.lexsort((one.samples.row, one.samples.shard))))
        for one in planned("paper")
    ]
    found = quality.neighbours(quality.Order(unshuffled, 0))
    assert found["neighbours_same_shard"] > 0.9 and found["neighbours_correlation"] > 0.9
    assert found["neighbours_same_shard_errors_from_shuffled_blocks"] > 100
    assert found["neighbours_correlation_errors_from_0"] > 100
