"""How long a blend of many shards takes to open, and what that costs in memory.

    python benchmarks/opening.py --json benchmarks/results/opening.json

Makes the part of a run that opening reads: manifests and lengths of one set of 10,000 shards of 1,000 samples, by seed, no
tars and no token files. Then, in a process of its own each time, opens it from cached files: `read_blended_sets`,
`PackSequence`, its first block. Seconds are those of the clock, imports aside, the best and the median of five. The
tokenizer's fingerprint is given, so that none is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.cpus import cpu_count
from vila_data.core.layout import tokens_folder
from vila_data.core.store import Store
from vila_data.core.tables import LENGTHS, SCHEMA_VERSION
from vila_data.encode.config import PackConfig
from vila_data.encode.tokens import TokenManifest, encoding_fingerprint
from vila_data.mix.config import BlendConfig
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import read_blended_sets
from vila_data.shard.manifest import manifest_path

SEED = 17
NAME = "pairs"
SHARDS = 10_000
SAMPLES_A_SHARD = 1_000
REPEATS = 5
PACK = PackConfig(tokenizer="none", sequence_length=4096, tokens_per_image=576)


@dataclass(frozen=True)
class NotedTokenizer:
    """What token files are named by, without the tokenizer."""

    fingerprint: str = "0123456789abcdef"
    chat_template: str | None = None


def make_run(url: str, shards: int, samples_a_shard: int) -> None:
    """Write a set's manifest, its lengths and its token manifest."""
    store, rng, samples = Store(url), np.random.default_rng(SEED), shards * samples_a_shard
    facts = [
        {
            "name": f"{NAME}-{shard:06d}.tar",
            "samples": samples_a_shard,
            "images": samples_a_shard,
            "bytes": 100_000_000 + shard,
            "sha256": rng.bytes(32).hex(),
            "index_bytes": 100_000,
            "index_sha256": rng.bytes(32).hex(),
        }
        for shard in range(shards)
    ]
    manifest = {"schema": SCHEMA_VERSION, "set": NAME, "corpus": NAME, "view": "pairs", "recipe": "-", "inputs": "-"}
    store.commit_bytes(json.dumps(manifest | {"shards": facts}, indent=1).encode(), manifest_path(NAME))
    text = np.maximum(rng.lognormal(np.log(24), 0.45, samples), 3).astype(np.int32) + 2
    nothing, ones = np.zeros(samples, np.int32), np.ones(samples, np.int32)
    bounds = np.arange(samples + 1, dtype=np.int32)
    columns = {
        "shard": np.repeat(np.arange(shards, dtype=np.int32), samples_a_shard),
        "row": np.tile(np.arange(samples_a_shard, dtype=np.int32), shards),
        "tokens": text + PACK.tokens_per_image,
        "images": ones,
        "widths": pa.ListArray.from_arrays(bounds, 448 * ones),
        "heights": pa.ListArray.from_arrays(bounds, 336 * ones),
        "text_tokens": text,
        "images_left_out": nothing,
        "tokens_cut": nothing,
        "fate": pa.DictionaryArray.from_arrays(nothing, ["ok"]).cast(pa.string()),
    }
    tokenizer = NotedTokenizer()
    encoding = encoding_fingerprint(PACK, tokenizer)
    where = tokens_folder(tokenizer.fingerprint, NAME, encoding)
    with store.scratch() as scratch:
        table = pa.Table.from_arrays([pa.array(columns[field.name]) for field in LENGTHS], schema=LENGTHS)
        pq.write_table(table, scratch / "lengths", compression="zstd")
        store.commit_file(scratch / "lengths", f"{where}/lengths.parquet")
    tokens = TokenManifest(NAME, tokenizer.fingerprint, encoding, "-", shards, {"samples": samples})
    store.commit_bytes(json.dumps(asdict(tokens)).encode(), f"{where}/manifest.json")


def open_run(folder: Path) -> dict[str, float]:
    """Seconds of each step, and the most memory that the process had."""
    blend = BlendConfig.model_validate_json(
        json.dumps({"weight_unit": "samples", "sources": [{"shards": NAME, "weight": 1}]})
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    sets = read_blended_sets(Store(str(folder)), blend, PACK, NotedTokenizer())
    read = time.perf_counter()
    sequence = PackSequence(blend, PACK, sets.lengths, seed=SEED, epoch=0)
    made = time.perf_counter()
    block = next(iter(sequence))
    done = time.perf_counter()
    (lengths,) = sets.lengths
    held = lengths.tokens.nbytes + lengths.images.nbytes + lengths.ends.nbytes
    return {
        "read_blended_sets_s": read - start,
        "pack_sequence_s": made - read,
        "first_block_s": done - made,
        "total_s": done - start,
        "samples": len(lengths.tokens),
        "first_block_packs": len(block),
        "lengths_bytes_a_sample": held / len(lengths.tokens),
        "peak_bytes_a_sample_over_imports": 1024
        * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        / len(lengths.tokens),
    }


def measure(folder: Path) -> dict[str, Any]:
    """The best and the median of several processes."""
    found = []
    for _ in range(REPEATS):
        command = [sys.executable, __file__, "--open", str(folder)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {
        key: round(values[0], 3)
        if len(set(values)) == 1
        else {"best": round(min(values), 3), "median": round(statistics.median(values), 3)}
        for key in found[0]
        for values in [[entry[key] for entry in found]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--open", type=Path, help="open a made run once and print its figures")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.open:
        print(json.dumps(open_run(args.open)))
        return
    conditions = {
        "shards": args.shards,
        "samples_a_shard": SAMPLES_A_SHARD,
        "repeats": REPEATS,
        "files": "local, cached",
        "cpus": cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        make_run(folder, args.shards, SAMPLES_A_SHARD)
        results = {"conditions": conditions, "opening": measure(Path(folder))}
    print(json.dumps(results["opening"], indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
