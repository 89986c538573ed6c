"""How near the loader comes to its limit: a bare loop over the decoder, in turns with the loader, on one core.

    python benchmarks/limit.py [--photos DIR] [--data DIR] [--json benchmarks/results/limit.json]

The same pictures, decoded and resized to the same size by the same decoder: the loop has their bytes in memory and one
picture of output; the loader reads shards and token files, packs, and gives batches with ids, labels and lineage, in this
process. Turns of about a second alternate, so that what else the machine does meets both; the ratio is of neighbours.
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

import numpy as np
from stream_data import made_run
from stream_peers import jpegs

import vila_data as vd
from vila_data.batch.pixels import ImageOptions, decode_into

TURNS = 15
SIZES = (336, 224)


def loop_s(pictures: list[bytes], size: int) -> float:
    """Seconds of CPU a picture."""
    options, out = ImageOptions(size_px=size, fit="resize"), np.empty((size, size, 3), np.uint8)
    began = time.process_time()
    for jpeg in pictures:
        decode_into(jpeg, options, out)
    return (time.process_time() - began) / len(pictures)


def loader_s(loader: Any) -> float:
    """The same for an epoch of the loader, but for its first batch, before which it opens files and plans."""
    images, began = 0, 0.0
    for batch in loader:
        if not began:
            began = time.process_time()
            continue
        images += len(batch.pixels)
    return (time.process_time() - began) / images


def measured(folder: Path, size: int) -> dict[str, Any]:
    pictures = list(jpegs(str(folder)))
    image = {"size_px": size, "fit": "resize"}
    loader = vd.stream(folder / "pairs.yaml", folder, rank=0, world_size=1, batch_size=8, num_workers=0, image=image)
    loop_s(pictures, size), loader_s(loader)
    turns = [(loop_s(pictures, size), loader_s(loader)) for _ in range(TURNS)]
    ratios = sorted(bare / ours for bare, ours in turns)
    return {
        "images_per_cpu_s": {
            "bare loop": 1 / statistics.median(bare for bare, _ in turns),
            "vila_data": 1 / statistics.median(ours for _, ours in turns),
        },
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-len(ratios) // 4]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--data", type=Path, help="where the run is made, and kept")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data or Path(scratch)
        made = made_run(folder, arguments.photos)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        found = {str(size): measured(folder, size) for size in SIZES}
    conditions = {"turns": TURNS, "pictures": made["pictures"], "machine": platform.machine(), "cpus": os.cpu_count()}
    conditions |= {"python": platform.python_version(), "load_average_1m_after": round(os.getloadavg()[0], 2)}
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "conditions": conditions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
