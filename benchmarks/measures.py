"""What the measures of a run cost: one pass over the columns of a million images that were made up.

    python benchmarks/measures.py [--images 1000000] [--json benchmarks/results/measures.json]

Tables as download, score and filter leave them, in parts of 10,000 records with four images each: URLs on 20,000 hosts, of
which few hold most; one image in eight failed. Seconds of the pass and the peak of resident memory, in a process of its own,
beside the same with a tenth of the images, so that a memory that grows with them would show.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.layout import Part
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, FATES, SCORE_IMAGES
from vila_data.explore.measures import CorpusMeasures
from vila_data.filter.config import ImageRules, Rules

RECORDS_A_PART, IMAGES_PER_RECORD, HOSTS = 10_000, 4, 20_000
ERRORS = ("http_status", "timeout", "dns", "not_an_image")


def write_part(folder: Path, index: int) -> None:
    """One part's four tables."""
    random = np.random.default_rng(index)
    records, images = RECORDS_A_PART, RECORDS_A_PART * IMAGES_PER_RECORD
    part = part_of(index)
    row = np.repeat(np.arange(records, dtype=np.int32), IMAGES_PER_RECORD)
    number = np.tile(np.arange(IMAGES_PER_RECORD, dtype=np.int32), records)
    ok = random.random(images) < 0.875
    hosts = np.minimum(random.zipf(1.3, images), HOSTS)
    side = random.lognormal(6, 0.6, (2, images)).astype(np.int32) + 16
    similarity = np.where(ok, random.normal(0.25, 0.06, images), np.nan).astype(np.float32)
    kept = ok & (similarity >= 0.2)
    ids = pa.array([f"meta:{index}:{at}" for at in range(records)])
    columns: dict[str, Any] = {
        "row": row,
        "record_id": ids.take(pa.array(row)),
        "image_index": number,
        "url": pa.array([f"https://host{host}.example.org/pictures/{at}.jpg?w=1024" for at, host in enumerate(hosts)]),
        "status": pa.array(np.where(ok, "ok", "failed")),
        "error": pa.array(random.choice(ERRORS, images), mask=ok),
        "http_code": pa.array(np.where(ok, 200, 404).astype(np.int32)),
        "original_width": pa.array(side[0], mask=~ok),
        "original_height": pa.array(side[1], mask=~ok),
        "bytes": pa.array(random.integers(2_000, 300_000, images), mask=~ok),
    }
    save(folder / part.images_table(), DOWNLOAD_IMAGES, columns, images)
    texts = {"row": np.arange(records, dtype=np.int32), "record_id": ids, "status": pa.array(["ok"] * records)}
    save(
        folder / part.records_table(),
        DOWNLOAD_RECORDS,
        texts | {"text_chars": random.integers(20, 9_000, records)},
        records,
    )
    scores = {"row": row, "record_id": columns["record_id"], "image_index": number, "scored": ok}
    scores["similarity"] = pa.array(similarity, mask=~ok)
    save(folder / part.scores_table("clip"), SCORE_IMAGES, scores, images)
    fate = np.concatenate([np.where(kept, "kept", np.where(ok, "dropped", "failed")), ["kept"] * records])
    fates = {
        "row": np.concatenate([row, np.arange(records, dtype=np.int32)]),
        "image_index": pa.array(
            np.concatenate([number, np.zeros(records, np.int32)]), mask=np.arange(len(fate)) >= images
        ),
        "fate": pa.array(fate),
    }
    order = np.lexsort((np.concatenate([number, np.full(records, -1)]), fates["row"]))
    save(
        folder / part.fates_table(),
        FATES,
        {key: pa.array(value).take(order) for key, value in fates.items()},
        len(fate),
    )


def part_of(index: int) -> Part:
    return Part("web", index, "meta.jsonl", "meta", 0, RECORDS_A_PART, RECORDS_A_PART, f"inputs-{index}")


def save(path: Path, schema: pa.Schema, columns: dict[str, Any], rows: int) -> None:
    """A table of `schema`; what the measures do not read is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = []
    for field in schema:
        blank = (
            pa.array([""] * rows)
            if field.type == pa.string()
            else pa.nulls(rows, field.type).fill_null(0)
            if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
            else pa.nulls(rows, field.type)
        )
        arrays.append(pa.array(columns[field.name]).cast(field.type) if field.name in columns else blank)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd")


def measured(folder: str, parts: int) -> dict[str, Any]:
    """The pass over some parts, in this process."""
    store = Store(folder)
    corpus = CorpusMeasures(Rules(images=ImageRules(min_similarity=0.2)))
    corpus.add(store, part_of(0), "clip")  # pyarrow and numpy are loaded and warm
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corpus = CorpusMeasures(Rules(images=ImageRules(min_similarity=0.2)))
    began, worked = time.perf_counter(), time.process_time()
    for index in range(parts):
        corpus.add(store, part_of(index), "clip")
    value = corpus.value()
    return {
        "images": value["hosts"]["images"],
        "hosts": value["hosts"]["distinct"],
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(time.process_time() - worked, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "peak_rss_mb_after_one_part": round(before / 1024, 1),
        "json_bytes": len(json.dumps(value)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure[0], int(arguments.measure[1]))))
        return
    parts = max(1, arguments.images // (RECORDS_A_PART * IMAGES_PER_RECORD))
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(parts):
            write_part(Path(scratch), index)
        found = {}
        for count in sorted({max(1, parts // 10), parts}):
            command = [sys.executable, __file__, "--measure", scratch, str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"{count} parts"] = json.loads(output)
    conditions = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    conditions["load_average_1m_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "conditions": conditions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
