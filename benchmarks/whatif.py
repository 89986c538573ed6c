"""How long `vila-data whatif` takes on a run of a million images.

    python benchmarks/whatif.py --json benchmarks/results/whatif.json

Writes the part of a run that the command reads, by seed: lock, parts, receipts, and the tables of download and score with all
their columns, the lists of similarities to every sentence among them, which whatif does not read; then the fates, by the filter
stage itself, so that the command's own check against the run's receipts holds. Two corpora: documents of several images, and
pairs; one image in fifty is a copy. Then it times whole commands, the start of Python included, each several times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.layout import Part, parts_list
from vila_data.core.receipts import Receipt, write_receipt
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, SCORE_IMAGES
from vila_data.filter import duplicates
from vila_data.filter.part import filter_part, part_digests
from vila_data.recipe.lock import LOCK, lock_value, stage_fingerprints, write_lock
from vila_data.recipe.recipe import Recipe
from vila_data.runs.plan import CorpusPlan

SEED = 17
PARTS = 100
IMAGES_A_PART = 10_000
SENTENCES = 24
COPIES = 0.02
LOST = 0.12
REPEATS = 5
CORPORA = {"docs": ("mmc4", 5.7, 0.7), "pairs": ("coyo", 1.0, 0.3)}
"""Kind, images a record, share of the parts."""

RULES: dict[str, dict[str, Any]] = {
    "images": {"min_side_px": 64, "aspect_ratio": [0.5, 2.0], "min_similarity": 0.2, "exact_duplicates": "drop"},
    "documents": {"on_missing_image": "drop_image"},
}
COMMANDS = {
    "one setting": ["--set", "filter.images.min_similarity=0.26"],
    "two settings, for people": [
        "--set",
        "filter.images.min_similarity=0.26",
        "--set",
        "filter.documents.max_images=6",
    ],
    "fresh assignment": ["--set", "filter.documents.reassign=true"],
    "sweep of 16 values": ["--sweep", "filter.images.min_similarity=0.1:0.4:0.02"],
    "sweep of 101 values": ["--sweep", "filter.images.min_similarity=0:0.5:0.005"],
}


def recipe() -> Recipe:
    """The rules and sets of a VILA pre-training recipe over the two corpora."""
    text = {
        "version": 1,
        "name": "synthetic",
        "seed": SEED,
        "corpora": {name: {"kind": kind, "files": [f"{name}.x"]} for name, (kind, _, _) in CORPORA.items()},
        "score": {"clip": {"model": "none"}},
        "filter": RULES,
        "shards": {
            "docs": {"corpus": "docs", "view": "interleaved"},
            "docs_pairs": {"corpus": "docs", "view": "pairs"},
            "pairs": {"corpus": "pairs", "view": "pairs"},
        },
    }
    return Recipe.model_validate_json(json.dumps(text))


def make_run(url: str, parts: int, images_a_part: int) -> int:
    """Write the run; the number of its images."""
    store, made, images = Store(url), recipe(), 0
    inputs = {name: ["-"] for name in CORPORA}
    write_lock(
        store, lock_value(made, None, stage_fingerprints(made, None, inputs, {"clip": "-"}), inputs, {"clip": "-"})
    )
    for name, (_, images_a_record, share) in CORPORA.items():
        rows, of_corpus = 0, []
        for index in range(max(1, round(parts * share))):
            rng = np.random.default_rng([SEED, len(name), index])
            counts = np.full(images_a_part, 1) if images_a_record == 1 else 1 + rng.poisson(images_a_record - 1, 4000)
            counts = counts[: int(np.searchsorted(np.cumsum(counts), images_a_part)) + 1]
            part = Part(name, index, f"{name}.x", name, rows, rows + len(counts), len(counts), "-")
            images += write_part(store, part, counts, rng)
            rows += len(counts)
            of_corpus.append(part)
        plan = CorpusPlan(name, rows, rows, tuple(of_corpus))
        store.commit_bytes(json.dumps({"inputs": "-", **asdict(plan)}).encode(), parts_list(name))
        rules, scores = made.rules_for(name), made.scores()
        copies = duplicates.later_copies([part_digests(store, part, rules, scores) for part in of_corpus])
        for part, mask in zip(of_corpus, copies, strict=True):
            filter_part(store, part, rules, scores, mask, "-")
    return images


def write_part(store: Store, part: Part, counts: NDArray[np.int64], rng: np.random.Generator) -> int:
    """The tables and receipts that download and score leave of one part; its images."""
    n, m = int(counts.sum()), len(counts)
    row = np.repeat(np.arange(m), counts)
    ids = pa.array([record_id(part, value) for value in row.tolist()])
    head = {
        "row": row,
        "record_id": ids,
        "image_index": np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts),
        "matched_text_index": rng.integers(0, SENTENCES if part.corpus == "docs" else 1, n),
    }
    ok = rng.random(n) > LOST
    side = (np.exp(rng.normal(6.2, 0.7, (n, 1)) + rng.normal(0, 0.2, (n, 2))) + 16).astype(np.int64)
    write_table(store, part.images_table(), head | image_columns(part, ok, side, rng), DOWNLOAD_IMAGES)
    write_table(store, part.records_table(), record_columns(part, counts, rng), DOWNLOAD_RECORDS)
    scored = ok & (side.min(axis=1) >= RULES["images"]["min_side_px"])
    write_table(store, part.scores_table("clip"), head | score_columns(part, scored, rng), SCORE_IMAGES)
    fates = {"ok": int(ok.sum()), "failed:dns": int((~ok).sum())}
    write_receipt(store, part.receipt("download"), Receipt("-", {"records": {"ok": m}, "images": fates}))
    return n


def record_id(part: Part, row: int) -> str:
    return f"{part.label}-{part.index:05d}-{row:06d}"


def image_columns(
    part: Part, ok: NDArray[np.bool_], side: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, Any]:
    """What download measures; one picture in fifty is one of a few."""
    n, lost = len(ok), ~ok
    pictures = np.where(rng.random(n) < COPIES, rng.integers(0, 2_000, n), rng.integers(1 << 40, 1 << 60, n))
    hexes = [hashlib.sha256(value.tobytes()).hexdigest() for value in pictures]
    size = rng.integers(8_000, 90_000, n)
    return {
        "url": pa.array([f"https://pictures.example/{part.index}/{value:x}.jpg" for value in pictures.tolist()]),
        "status": pa.array(np.where(ok, "ok", "failed")),
        "error": pa.array(np.full(n, "dns"), mask=ok),
        "http_code": pa.array(np.full(n, 200), mask=lost),
        "sha256": pa.array(hexes, mask=lost),
        "width": pa.array(np.minimum(side[:, 0], 336), mask=lost),
        "height": pa.array(np.minimum(side[:, 1], 336), mask=lost),
        "bytes": pa.array(size, mask=lost),
        "original_width": pa.array(side[:, 0], mask=lost),
        "original_height": pa.array(side[:, 1], mask=lost),
        "original_bytes": pa.array(size * 4, mask=lost),
        "phash": pa.array([value[:16] for value in hexes], mask=lost),
        "offset": pa.array(np.cumsum(size), mask=lost),
        "detail": pa.nulls(n, pa.string()),
    }


def record_columns(part: Part, counts: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Any]:
    m = len(counts)
    return {
        "row": np.arange(m),
        "record_id": pa.array([record_id(part, value) for value in range(m)]),
        "status": pa.array(["ok"] * m),
        "error": pa.nulls(m, pa.string()),
        "detail": pa.nulls(m, pa.string()),
        "n_images": counts,
        "n_texts": np.full(m, SENTENCES),
        "text_chars": np.full(m, 2400),
        "json_bytes": rng.integers(2_000, 6_000, m),
        "offset": np.arange(m) * 100_000,
        "size": np.full(m, 100_000),
        "json_sha256": pa.array([hashlib.sha256(b"%d" % value).hexdigest() for value in range(m)]),
    }


def score_columns(part: Part, scored: NDArray[np.bool_], rng: np.random.Generator) -> dict[str, Any]:
    """Similarities about 0.24, MMC4's mean; of documents to every sentence."""
    n, unscored = len(scored), ~scored
    similarity = rng.normal(0.24, 0.06, n).clip(-1, 1).astype(np.float32)
    lists = pa.nulls(n, pa.list_(pa.float32()))
    if part.corpus == "docs":
        ends = np.r_[0, np.cumsum(np.where(scored, SENTENCES, 0))].astype(np.int32)
        every = rng.normal(0.2, 0.05, (int(scored.sum()), SENTENCES)).astype(np.float32)
        lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(every.ravel()))
    return {
        "scored": scored,
        "similarity": pa.array(similarity, mask=unscored),
        "assigned_text_index": pa.array(rng.integers(0, SENTENCES, n), mask=unscored),
        "assigned_similarity": pa.array(similarity + np.float32(0.02), mask=unscored),
        "similarities": lists,
    }


def write_table(store: Store, path: str, columns: dict[str, Any], schema: pa.Schema) -> None:
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    with store.scratch() as folder:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / "table", compression="zstd")
        store.commit_file(folder / "table", path)


def measure(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Wall seconds of the whole command, several times, and the most memory it held."""
    command = [sys.executable, "-m", "vila_data.cli", "whatif", str(folder), *arguments]
    seconds, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_s": round(used / REPEATS, 2),
        "best_s": round(min(seconds), 2),
        "median_s": round(statistics.median(seconds), 2),
        "worst_s": round(max(seconds), 2),
    }


def peak_mb(folder: Path, arguments: list[str]) -> int:
    """The most memory of the command, in a process of its own, since a process's children are counted together."""
    probe = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "vila_data.cli", "whatif", str(folder), *arguments]
    found = subprocess.run([sys.executable, "-c", probe, *command], check=True, capture_output=True, text=True)
    return round(int(found.stdout) * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--images", type=int, default=IMAGES_A_PART, help="images a part")
    parser.add_argument("--run", type=Path, help="make the run here, or take the one that is there, and leave it")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.run or Path(scratch)
        if not (folder / LOCK).exists():
            make_run(str(folder), args.parts, args.images)
        images = sum(pq.read_metadata(path).num_rows for path in folder.glob("download/*/part-?????.parquet"))
        conditions = {
            "images": images,
            "parts": args.parts,
            "score_tables_mb": round(sum(path.stat().st_size for path in folder.glob("score/*/*/*.parquet")) / 1e6),
            "download_tables_mb": round(sum(path.stat().st_size for path in folder.glob("download/*/*.parquet")) / 1e6),
            "repeats": REPEATS,
            "what": "wall seconds of whole commands, the start of Python included; exact duplicates dropped",
            "files": "local, cached",
            "cpus": cpu_count(),
            "load_average_before": round(os.getloadavg()[0], 1),
            "load": "other programs' where the average is above the number of CPUs; cpu_s is nearly free of it",
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        }
        found = {
            name: measure(folder, arguments) | {"peak_mb": peak_mb(folder, arguments)}
            for name, arguments in COMMANDS.items()
        }
    results = {"conditions": conditions, "whatif": found}
    print(json.dumps(results, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
