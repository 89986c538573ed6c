"""How good the shuffle over a whole set is: are neighbours in an epoch's packs from the same shard?

    python benchmarks/shuffle.py --json benchmarks/results/shuffle.json

Pairs and a tenth as many documents by seed, in 20, 200 and 10,000 shards each; lengths alone, no files. For the samples of a source in the order in which an epoch's packs hold them:
- neighbours_same_shard: the share of samples that come from the shard of the sample before, beside that of a perfect
  shuffle of the source's samples, and, as the bound of any order inside a block, that of perfectly shuffled blocks;
- neighbours_correlation: Pearson's, of their shards' numbers; a perfect shuffle has 0 within a few standard errors, a
  shuffled block what its same_shard is beyond that of a perfect shuffle;
- in_pack_…: the same for neighbours of a source in one pack, where packs hold several samples;
- in_pack_same_chunk: the share of those from the same run of rows that was read together, beside that of shuffled blocks.
A difference between an order and a shuffle is given in standard errors too. No GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vila_data.core.cpus import cpu_count
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import CHUNK_ROWS, Lengths
from vila_data.mix.sequence import PackSequence, PlannedPacks

SEED = 17
TOKENS_PER_IMAGE = 576
SEQUENCE_LENGTH = 4096
SHARDS = {20: 5_000, 200: 2_000, 10_000: 100}
"""Shards of a set, and samples of a shard."""


class Order:
    """One source's samples in an epoch's order: shard, row, and numbers of their block and pack."""

    def __init__(self, planned: Iterable[PlannedPacks], source: int) -> None:
        columns: list[list[np.ndarray]] = [[], [], [], []]
        first_pack = 0
        for packs in planned:
            held = packs.samples.source == source
            pack = np.repeat(np.arange(len(packs.ends)), np.diff(packs.ends, prepend=0)) + first_pack
            first_pack += len(packs.ends)
            values = (packs.samples.shard, packs.samples.row, np.full(len(pack), packs.block), pack)
            for column, value in zip(columns, values, strict=True):
                column.append(value[held].astype(np.int64))
        self.shard, self.row, self.block, self.pack = map(np.concatenate, columns)
        self.chunk = self.shard * (1 << 32) + self.row // CHUNK_ROWS


def neighbours(order: Order) -> dict[str, float]:
    """The figures of the file's head for one source."""
    together = order.pack[1:] == order.pack[:-1]
    every = np.ones_like(together)
    found: dict[str, float] = {"samples": len(order.shard)}
    found |= _rate("neighbours_same_shard", order.shard, order.block, every)
    found |= _correlation("neighbours_correlation", order.shard, every)
    found["in_pack_pairs"] = int(together.sum())
    if not together.any():
        return found
    found |= _rate("in_pack_same_shard", order.shard, order.block, together)
    found |= _correlation("in_pack_correlation", order.shard, together)
    found |= _rate("in_pack_same_chunk", order.chunk, order.block, together)
    return found


def _rate(name: str, label: np.ndarray, block: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """How often both of a pair have one label: here, in perfectly shuffled blocks, and in a perfect shuffle."""
    inside = pairs & (block[1:] == block[:-1])
    count = int(inside.sum())
    same = float((label[1:] == label[:-1])[inside].mean()) if count else 0.0
    by_block = 0.0
    for number in np.unique(block):
        chance = _chance(label[block == number])
        by_block += chance * np.count_nonzero(inside & (block[1:] == number)) / max(count, 1)
    error = np.sqrt(max(by_block * (1 - by_block), 1e-12) / max(count, 1))
    return {
        name: same,
        f"{name}_shuffled_blocks": by_block,
        f"{name}_perfect": _chance(label),
        f"{name}_errors_from_shuffled_blocks": (same - by_block) / error,
    }


def _chance(label: np.ndarray) -> float:
    """Of two different samples drawn at random, how often both have one label."""
    counts = np.unique(label, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / max(len(label) * (len(label) - 1), 1))


def _correlation(name: str, shard: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    before, after = shard[:-1][pairs], shard[1:][pairs]
    value = float(np.corrcoef(before, after)[0, 1]) if len(before) > 2 else 0.0
    return {name: value, f"{name}_errors_from_0": value * np.sqrt(max(len(before), 1))}


def corpora(shards: int, samples_a_shard: int) -> list[Lengths]:
    """Pairs, and a tenth as many documents, in as many shards each."""
    made = []
    for number, (samples, images, median) in enumerate([(samples_a_shard, 1, 24), (samples_a_shard // 10, 4, 300)]):
        rng = np.random.default_rng([SEED, shards, number])
        n = shards * samples
        shown = rng.integers(1, images + 1, n).astype(np.int32)
        text = np.maximum(rng.lognormal(np.log(median), 0.5, n), 3).astype(np.int32) + 2
        tokens = np.minimum(text + shown * TOKENS_PER_IMAGE, SEQUENCE_LENGTH).astype(np.int32)
        made.append(Lengths(tokens, shown, np.arange(1, shards + 1, dtype=np.int64) * samples))
    return made


def measure(shards: int, samples_a_shard: int, semantics: str) -> dict[str, Any]:
    """One epoch, to the end of the pairs."""
    sources = [{"shards": "pairs", "weight": 10}, {"shards": "documents", "weight": 1}]
    blend = {"weight_unit": "samples", "on_exhaustion": "stop", "sources": sources}
    pack = PackConfig(
        tokenizer="none",
        sequence_length=SEQUENCE_LENGTH,
        tokens_per_image=TOKENS_PER_IMAGE,
        semantics=semantics,  # type: ignore[arg-type]
    )
    sequence = PackSequence(
        BlendConfig.model_validate_json(json.dumps(blend)), pack, corpora(shards, samples_a_shard), seed=SEED, epoch=0
    )
    start = time.process_time()
    planned = list(sequence)
    seconds = time.process_time() - start
    found: dict[str, Any] = {"fill": sequence.report().packs.fill, "samples_per_s": round(len_of(planned) / seconds)}
    for number, name in enumerate(("pairs", "documents")):
        found[name] = {key: float(f"{value:.4g}") for key, value in neighbours(Order(planned, number)).items()}
    return found


def len_of(planned: list[PlannedPacks]) -> int:
    return sum(len(packs.samples) for packs in planned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    results: dict[str, Any] = {
        "conditions": {
            "shards": {str(shards): samples for shards, samples in SHARDS.items()},
            "chunk_rows": CHUNK_ROWS,
            "sequence_length": SEQUENCE_LENGTH,
            "tokens_per_image": TOKENS_PER_IMAGE,
            "seed": SEED,
            "cpus": cpu_count(),
            "load_average_before": round(os.getloadavg()[0], 1),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
    }
    for shards, samples in SHARDS.items():
        for semantics in ("improved", "paper"):
            results[f"{shards} shards, {semantics}"] = found = measure(shards, samples, semantics)
            print(f"{shards} shards of {samples}, {semantics}:")
            print(json.dumps(found, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
