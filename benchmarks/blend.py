"""Target and actual shares of a blend of four corpora of very unequal size, one of them exhausted; planning speed.

    python benchmarks/blend.py --json benchmarks/results/blend.json

Every unit of weights with every rule on exhaustion, then a nested blend with weights that change. Lengths are drawn from a
seed; everything else is real: blocks, packs and their order are those that training would see. The deviation is the
largest difference between a source's target and actual share over any 1,000 consecutive global steps of one pack each,
including those across an exhaustion, which are measured against the targets before and after it. No GPU, no files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from vila_data.core.cpus import cpu_count
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.planner import BlendPlanner
from vila_data.mix.sequence import PackSequence

SEED = 17
SEQUENCE_LENGTH = 4096
TOKENS_PER_IMAGE = 576
TOTAL_PACKS = 100_000
SAMPLES_A_SHARD = 5_000
WEIGHTS = {"pairs": 50, "documents": 42, "conversations": 7.75, "chats": 0.25}
CORPORA = {  # samples, images of a sample and their odds, median text tokens, spread of their logarithm
    "pairs": (2_000_000, [1], [1.0], 24, 0.45),
    "documents": (300_000, [1, 2, 3, 4, 5, 6], [0.25, 0.25, 0.18, 0.12, 0.1, 0.1], 420, 0.75),
    "conversations": (20_000, [1], [1.0], 260, 0.6),
    "chats": (1_000, [1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1], 600, 0.6),
}


def corpus(number: int, name: str) -> Lengths:
    """A corpus's lengths by seed: images by their odds, text log-normal, a sample cut to a sequence."""
    samples, images, odds, median, sigma = CORPORA[name]
    rng = np.random.default_rng([SEED, number])
    shown = rng.choice(images, samples, p=odds).astype(np.int32)
    text = np.maximum(rng.lognormal(np.log(median), sigma, samples), 3).astype(np.int32) + 2
    tokens = np.minimum(text + shown * TOKENS_PER_IMAGE, SEQUENCE_LENGTH).astype(np.int32)
    ends = np.minimum(np.arange(1, -(-samples // SAMPLES_A_SHARD) + 1) * SAMPLES_A_SHARD, samples)
    return Lengths(tokens, shown, ends.astype(np.int64))


def flat(unit: str, rule: str) -> BlendConfig:
    sources = [{"shards": name, "weight": weight} for name, weight in WEIGHTS.items()]
    return read({"weight_unit": unit, "on_exhaustion": rule, "total_packs": TOTAL_PACKS, "sources": sources})


def nested() -> BlendConfig:
    inner = {"weight_unit": "samples", "on_exhaustion": "repeat"}
    inner["sources"] = [{"shards": "conversations", "weight": 9}, {"shards": "chats", "weight": 1}]
    sources = [
        {"shards": "pairs", "weight": {"0.0": 3, "0.5": 1}},
        {"shards": "documents", "weight": 3},
        {"blend": inner, "weight": 2, "on_exhaustion": "repeat"},
    ]
    # the sources stand in the order of CORPORA
    return read({"weight_unit": "images", "on_exhaustion": "stop", "total_packs": TOTAL_PACKS, "sources": sources})


def read(value: dict[str, Any]) -> BlendConfig:
    return BlendConfig.model_validate_json(json.dumps(value))


def measure(config: BlendConfig, lengths: list[Lengths]) -> dict[str, Any]:
    """Plan one epoch; figures of its report, and samples planned a second of CPU, blend alone and with packing."""
    pack = PackConfig(tokenizer="none", sequence_length=SEQUENCE_LENGTH, tokens_per_image=TOKENS_PER_IMAGE)
    sequence = PackSequence(config, pack, lengths, seed=SEED, epoch=0)
    start = time.process_time()
    samples = sum(len(planned.samples) for planned in sequence)
    planning_s = time.process_time() - start
    alone = BlendPlanner(config, lengths, seed=SEED, epoch=0, capacity=SEQUENCE_LENGTH)
    start, blended = time.process_time(), 0
    while (block := alone.next_block()) is not None:
        blended += len(block.samples)
    blend_s = time.process_time() - start
    report = sequence.report()
    return {
        "packs": report.packs.packs,
        "samples": samples,
        "fill": round(report.packs.fill, 4),
        "sources": {
            source.label: {
                "unit": source.unit,
                "target_percent": round(100 * source.target, 4),
                "actual_percent": round(100 * source.actual, 4),
                "worst_window_percent": round(100 * source.worst_window, 4),
                "samples": source.samples,
                "passes": None if source.passes is None else round(source.passes, 4),
            }
            for source in report.sources
        },
        "windows": report.windows,
        "worst_window_percent": round(100 * report.worst_window, 4),
        "events": [f"{event.kind} {event.source} at pack {event.pack}: {event.followed}" for event in report.events],
        "samples_per_s": round(samples / planning_s),
        "blend_alone_samples_per_s": round(blended / blend_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    conditions = {
        "corpora": {name: values[0] for name, values in CORPORA.items()},
        "weights": WEIGHTS,
        "sequence_length": SEQUENCE_LENGTH,
        "tokens_per_image": TOKENS_PER_IMAGE,
        "total_packs": TOTAL_PACKS,
        "packs_per_step": 1,
        "seed": SEED,
        "cpus": cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    lengths = [corpus(number, name) for number, name in enumerate(CORPORA)]
    cases = {
        f"{unit}, {rule}": flat(unit, rule)
        for unit in ("samples", "images", "tokens")
        for rule in ("stop", "repeat", "renormalize")
    }
    results: dict[str, Any] = {"conditions": conditions}
    for name, config in (cases | {"nested, weights that change": nested()}).items():
        results[name] = found = measure(config, lengths)
        print(f"{name}: worst window {found['worst_window_percent']} points, {found['samples_per_s']} samples/s")
        for label, source in found["sources"].items():
            print(f"  {label:14} target {source['target_percent']:8.4f} %  actual {source['actual_percent']:8.4f} %")
        print("  " + "; ".join(found["events"]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
