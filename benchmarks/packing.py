"""How full sequences get: vila_data's packer against other projects' and against the linear program's bound, in one run.

    python benchmarks/packing.py [--shared DIR] [--samples N] [--json FILE]

Lengths are real: Debian's gimp-help-en (documents), Flickr8k captions (pairs), T0, ShareGPT and LLaVA rows
(conversations) under DIR/realdata (or VILA_DATA_SHARED), counted by Mistral's SentencePiece tokenizer and replicated
to N samples with seeded jitter. A document keeps its first 6 images and, whole sentences from the front, as much text
as a sequence holds; a sentence's tokens are counted alone, so a document's length is approximate by a few tokens.
Streams differ in tokens an image and in the limit of images: at 576 tokens 6 images a sequence, which binds for pairs,
since 7 short ones would fit; at 144 tokens 24, where 25 or 26 would; and pairs once more without a limit.

The bound is exact for the first samples of each stream (packing_bound.py). Its prices give a bound for the whole
stream too: a sample is worth what the dearest of the priced types is that needs no more tokens and images. Where the program has not converged in time, its prices are
still a proof. Samples a second are those of one core: the CPU time of the thread that plans, so that neighbours on a
shared machine don't count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from packing_bound import lifted, lower_bound
from packing_peers import PEERS, longest_that_fits
from packing_streams import (
    CAPACITY,
    CONVERSATION_SHARE,
    JITTER,
    SEED,
    VISUAL_SHARE,
    Lengths,
    make_streams,
    read_corpora,
)

from vila_data.mix.packing import BLOCK_SAMPLES, best_sequence_length, pack_block
from vila_data.mix.packs import PackReport, Packs

LIMITS = {576: 6, 144: 24}
BOUND_SAMPLES = {"pairs": 16_000}  # few types: more samples cost nothing, and one pack more matters less
OTHER_BOUND_SAMPLES = 3_000
BOUND_GAP, BOUND_SECONDS = 2e-4, 12.0
SPEED_RUNS = 3
MEMORY_SAMPLES = (50_000, 65_520, 200_000, 800_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=os.environ.get("VILA_DATA_SHARED"))
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of jitter, draw and order; another than the default is held out"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.shared is None:
        sys.exit("benchmarks/packing.py: name the folder of real data by --shared or VILA_DATA_SHARED")
    corpora = read_corpora(Path(arguments.shared))
    streams: dict[str, Any] = {}
    for tokens_per_image, limit in LIMITS.items():
        for name, lengths in make_streams(corpora, arguments.samples, tokens_per_image, arguments.seed).items():
            for max_images in (limit, None) if name == "pairs" else (limit,):
                label = f"{name}, {tokens_per_image} tokens an image, " + (
                    f"{limit} images" if max_images else "no limit"
                )
                streams[label] = compare(name, lengths, max_images)
                print_stream(label, streams[label])
                if name == "blended" and tokens_per_image == min(LIMITS):
                    memory = {str(n): peak_bytes(lengths, max_images, n) for n in MEMORY_SAMPLES}
    result = {
        "streams": streams,
        "planning_peak_bytes": memory,
        "conditions": conditions(arguments.samples, arguments.seed),
    }
    print(json.dumps({key: result[key] for key in ("planning_peak_bytes", "conditions")}, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(name: str, lengths: Lengths, max_images: int | None) -> dict[str, Any]:
    n = min(BOUND_SAMPLES.get(name, OTHER_BOUND_SAMPLES), len(lengths.tokens))
    first = Lengths(lengths.tokens[:n], lengths.images[:n])
    packs = pack_block(first.tokens, first.images, capacity=CAPACITY, max_images=max_images)
    bound = lower_bound(
        first.tokens, first.images, CAPACITY, max_images, np.split(packs.members, packs.ends[:-1]),
        gap=BOUND_GAP, seconds=BOUND_SECONDS,
    )  # fmt: skip
    whole = max(sums_bound(lengths, max_images), lifted(bound, lengths.tokens, lengths.images, max_images))
    report, speed = planned(lengths, max_images)
    best = best_sequence_length(lengths.tokens, lengths.images, current=CAPACITY, max_images=max_images, seed=SEED)
    rows = {"vila_data": row(report.packs, report.tokens, 0, whole, len(packs), bound.lower, speed)}
    limit = math.inf if max_images is None else max_images
    for peer, packer in PEERS.items():
        started = time.thread_time()
        plan = packer(lengths.tokens.tolist(), lengths.images.tolist(), CAPACITY, limit)
        seconds = time.thread_time() - started
        small = packer(first.tokens.tolist(), first.images.tolist(), CAPACITY, limit)
        rows[peer] = checked_row(plan, small, lengths, first, limit, whole, bound.lower, seconds)
    started = time.thread_time()
    plan = greedy_blocks(lengths, limit)
    seconds = time.thread_time() - started
    small = longest_that_fits(range(n), first.tokens.tolist(), first.images.tolist(), CAPACITY, limit)
    rows["LLaMA-Factory's rule, our blocks"] = checked_row(
        plan, small, lengths, first, limit, whole, bound.lower, seconds
    )
    return {
        "mean_tokens": round(float(lengths.tokens.mean()), 1),
        "mean_images": round(float(lengths.images.mean()), 3),
        "bound": {
            "samples": n,
            "packs_at_least": round(bound.lower, 3),
            "program_value": round(bound.upper, 3),
            "reduced_cost": bound.reduced_cost,
            "converged": bound.reduced_cost >= -1e-6,
            "rounds": bound.rounds,
            "fill_at_most": round(float(first.tokens.sum()) / CAPACITY / bound.lower, 5),
            "whole_stream_fill_at_most": round(float(lengths.tokens.sum()) / CAPACITY / whole, 5),
        },
        "packers": rows,
        "report": report.as_dict(),
        "best_sequence_length": {
            "tokens": best.best,
            "fill": {str(length): round(fill, 5) for length, fill in best.fill},
        },
    }


def sums_bound(lengths: Lengths, max_images: int | None) -> float:
    by_tokens = float(lengths.tokens.sum()) / CAPACITY
    return by_tokens if max_images is None else max(by_tokens, float(lengths.images.sum()) / max_images)


def planned(lengths: Lengths, max_images: int | None) -> tuple[PackReport, float]:
    """The report over all blocks, and samples planned a second: the best of SPEED_RUNS runs."""
    report, best = PackReport(), math.inf
    for _ in range(SPEED_RUNS):
        report, seconds = PackReport(), 0.0
        for tokens, images in blocks(lengths, len(lengths.tokens)):
            started = time.thread_time()
            packs = pack_block(tokens, images, capacity=CAPACITY, max_images=max_images)
            seconds += time.thread_time() - started
            check(packs, tokens, images, max_images)
            report += PackReport.of(packs, tokens, images, capacity=CAPACITY, max_images=max_images)
        best = min(best, seconds)
    return report, len(lengths.tokens) / best


def blocks(lengths: Lengths, n: int) -> Any:
    whole = len(lengths.tokens)
    for start in range(0, n, BLOCK_SAMPLES):
        chosen = np.arange(start, min(start + BLOCK_SAMPLES, n)) % whole
        yield lengths.tokens[chosen], lengths.images[chosen]


def check(packs: Packs, tokens: Any, images: Any, max_images: int | None) -> None:
    assert np.array_equal(np.sort(packs.members), np.arange(len(tokens)))
    assert packs.sums(tokens).max() <= CAPACITY
    assert max_images is None or packs.sums(images).max() <= max_images


def greedy_blocks(lengths: Lengths, limit: float) -> list[list[int]]:
    tokens, images = lengths.tokens.tolist(), lengths.images.tolist()
    found = []
    for start in range(0, len(tokens), BLOCK_SAMPLES):
        found += longest_that_fits(
            range(start, min(start + BLOCK_SAMPLES, len(tokens))), tokens, images, CAPACITY, limit
        )  # fmt: skip
    return found


def checked_row(
    plan: list[list[int]],
    small: list[list[int]],
    lengths: Lengths,
    first: Lengths,
    limit: float,
    whole: float,
    bound: float,
    seconds: float,
) -> dict[str, Any]:
    tokens, images = lengths.tokens.tolist(), lengths.images.tolist()
    placed = [position for pack in plan for position in pack]
    assert len(set(placed)) == len(placed)
    assert all(sum(tokens[p] for p in pack) <= CAPACITY and sum(images[p] for p in pack) <= limit for pack in plan)
    dropped = len(tokens) - len(placed)
    complete = sum(len(pack) for pack in small) == len(first.tokens)
    return row(
        len(plan), sum(tokens[p] for p in placed), dropped, whole, len(small) if complete else None, bound,
        len(tokens) / seconds,
    )  # fmt: skip


def row(
    packs: int, tokens: int, dropped: int, whole: float, small_packs: int | None, bound: float, speed: float
) -> dict[str, Any]:
    """Shares of the bound are left out where samples were dropped: the bound is for all of them."""
    return {
        "packs": packs,
        "fill": round(tokens / CAPACITY / packs, 5),
        "share_of_bound": None if small_packs is None else round(bound / small_packs, 5),
        "packs_for_bound_samples": small_packs,
        "share_of_whole_stream_bound": None if dropped else round(whole / packs, 5),
        "dropped": dropped,
        "split": 0,
        "samples_per_s": round(speed),
    }


def peak_bytes(lengths: Lengths, max_images: int | None, n: int) -> int:
    """Most memory that planning `n` samples block by block takes beyond the stream itself."""
    tracemalloc.start()
    report = PackReport()
    for tokens, images in blocks(lengths, n):
        packs = pack_block(tokens, images, capacity=CAPACITY, max_images=max_images)
        report += PackReport.of(packs, tokens, images, capacity=CAPACITY, max_images=max_images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.samples == n
    return peak


def print_stream(label: str, found: dict[str, Any]) -> None:
    bound = found["bound"]
    print(
        f"\n{label}: bound for {bound['samples']} samples {bound['packs_at_least']} packs (program {bound['program_value']},"
    )
    print(
        f"  reduced cost {bound['reduced_cost']:.1g}), fill at most {bound['fill_at_most']}; whole stream at most",
        end=" ",
    )
    best = found["best_sequence_length"]
    print(
        f"{bound['whole_stream_fill_at_most']}; {best['tokens']} tokens would waste least ({best['fill'][str(best['tokens'])]})"
    )
    print(f"  {'':34}{'packs':>8}{'fill':>9}{'of bound':>10}{'of whole':>10}{'dropped':>9}{'samples/s':>11}")
    for name, values in found["packers"].items():
        shares = [values["share_of_bound"], values["share_of_whole_stream_bound"]]
        shown = "".join(f"{'-' if share is None else share:>10}" for share in shares)
        print(
            f"  {name:34}{values['packs']:>8}{values['fill']:>9}{shown}{values['dropped']:>9}{values['samples_per_s']:>11}"
        )
    print("", end="", flush=True)


def conditions(samples: int, seed: int) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    packages = ("numpy", "scipy", "sentencepiece", "mistral-common")
    return {
        "samples": samples,
        "capacity": CAPACITY,
        "block_samples": BLOCK_SAMPLES,
        "seed": seed,
        "text_jitter": JITTER,
        "conversations": {"with_images": VISUAL_SHARE, "share_of_blended_samples": CONVERSATION_SHARE},
        "cores": len(os.sched_getaffinity(0)),
        "threads_planning": 1,
        "cpu": cpu.partition(":")[2].strip(),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
