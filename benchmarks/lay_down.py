"""What a stored picture weighs, and what filter and shard cost: seconds of a core an image, bytes in and out.

    python benchmarks/lay_down.py --photos DIR [--images 3000] [--json OUT]

The photographs become a corpus of pairs, local files, of which `download` makes what it stores (shorter side 336, quality
90); then that part is filtered and written as shards: reading, tar, index, sha256 and fsync included. Seconds are those of the
process (user and system), so that other work on the machine does not count; the median of the repeats is given. The disk is
not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vila_data.core.layout import Part
from vila_data.core.scores import NONE
from vila_data.core.store import Store
from vila_data.corpora.config import Flickr8kConfig
from vila_data.corpora.kinds import open_corpus
from vila_data.download.config import DownloadConfig
from vila_data.download.part import download_part
from vila_data.filter.config import Rules
from vila_data.filter.part import filter_part
from vila_data.shard.config import ShardSet
from vila_data.shard.manifest import finish_set
from vila_data.shard.write import ShardJob, plan_shards, write_shard

SHARD_BYTES = 512_000_000


def stored_part(store: Store, photos: Path, folder: Path, images: int) -> Part:
    """A part of pairs, as download leaves it; each photograph stands in it as often as it takes."""
    names = [path.name for path in sorted(photos.glob("*.jp*g"))]
    captions = folder / "captions.csv"
    rows = [f"{names[number % len(names)]},Photograph {number} of a bench." for number in range(images)]
    captions.write_text("\n".join(["image,caption", *rows]) + "\n")
    config = Flickr8kConfig(kind="flickr8k", files=(str(captions),), image_root=str(photos))
    part = Part("pairs", 0, str(captions), "bench", 0, images, images, "bench")
    download_part(store, part, open_corpus(config).read(part), DownloadConfig(), "bench")
    return part


def one_round(photos: Path, images: int) -> dict[str, float]:
    """Bytes an image before and after; core seconds an image of filter and of shard; bytes of the shards."""
    with tempfile.TemporaryDirectory() as folder:
        store, config = Store(f"{folder}/run"), ShardSet(corpus="pairs", view="pairs")
        part = stored_part(store, photos, Path(folder), images)
        table = pq.read_table(store.location(part.images_table()), columns=["original_bytes", "bytes"]).to_pandas()
        begun = time.process_time()
        filter_part(store, part, Rules(), NONE, None, "bench")
        filtered = time.process_time()
        shards = plan_shards(store, [part], config.view, "pairs", 17, SHARD_BYTES)
        jobs = [
            ShardJob("pairs", number, config.view, "pairs", refs, {0: part}, "bench")
            for number, refs in enumerate(shards)
        ]
        manifest = finish_set(store, "pairs", config, [write_shard(store, job) for job in jobs], "bench", "bench")
        ended = time.process_time()
        assert manifest.samples == images
        return {
            "served_bytes": table["original_bytes"].mean(),
            "stored_bytes": table["bytes"].mean(),
            "filter_core_s": (filtered - begun) / images,
            "shard_core_s": (ended - filtered) / images,
            "shard_bytes": manifest.bytes / images,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [one_round(arguments.photos, arguments.images) for _ in range(arguments.repeats)]
    result: dict[str, Any] = {
        "an_image": {name: float(f"{statistics.median(row[name] for row in rows):.4g}") for name in rows[0]}
    }
    result["conditions"] = {
        "photographs": len(list(arguments.photos.glob("*.jp*g"))),
        "images": arguments.images,
        "repeats": arguments.repeats,
        "shorter_side_px": 336,
        "jpeg_quality": 90,
        "load_average_1m": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
