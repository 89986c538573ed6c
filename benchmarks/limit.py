"""How near the loader comes to its limit: a bare loop over the decoder, in turns with the loader, on one core.

    python benchmarks/limit.py [--photos DIR] [--data DIR] [--json benchmarks/results/limit.json]

The same pictures, decoded and resized to the same size by the same decoder: the loop has their bytes in memory and 32
pictures of output; the loader reads shards and token files, packs, and gives batches with ids, labels and lineage, epoch
after epoch. Each is a process of its own, and one of them runs at a time: turns of about half a second alternate, so that
what else the machine does meets both. The ratio is of neighbouring turns, in CPU time; start-up, the first batch of the
first epoch included, is not counted, the later epochs' starts are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stream_data import made_run
from stream_peers import jpegs

TURNS = 24
IMAGES = 1_000  # a turn
SETTLE = 4  # turns that are not counted
SIZES = (336, 224)
OUTPUT = 32


def loop(folder: str, size: int) -> Iterator[int]:
    """Pictures decoded, one at a time."""
    from vila_data.loader.pixels import ImageOptions, decode_into

    pictures, options = list(jpegs(folder)), ImageOptions(size_px=size, fit="resize")
    out = np.empty((OUTPUT, size, size, 3), np.uint8)
    while True:
        for number, jpeg in enumerate(pictures):
            decode_into(jpeg, options, out[number % OUTPUT])
            yield 1


def loader(folder: str, size: int) -> Iterator[int]:
    """Pictures of each batch of the loader."""
    import vila_data as vd

    image = {"size_px": size, "fit": "resize"}
    run = Path(folder)
    stream = vd.stream(run / "pairs.yaml", run, rank=0, world_size=1, batch_size=4, num_workers=0, image=image)
    while True:
        for batch in stream:
            yield len(batch.pixels)


CONTESTANTS = {"bare loop": loop, "vila_data": loader}


def child(name: str, folder: str, size: int) -> None:
    """For each line of input, one turn; says its seconds of CPU a picture."""
    stream = CONTESTANTS[name](folder, size)
    next(stream)
    for _ in sys.stdin:
        images, began = 0, time.process_time()
        while images < IMAGES:
            images += next(stream)
        print((time.process_time() - began) / images, flush=True)


def turn(process: subprocess.Popen[str]) -> float:
    """One turn of a child, the other one waiting."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("a contestant ended before its turn did")
    return float(line)


def measured(folder: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", str(folder), "--size", str(size), "--child"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([*command, "bare loop"], **pipes) as bare,
        subprocess.Popen([*command, "vila_data"], **pipes) as ours,
    ):
        turns = [(turn(bare), turn(ours)) for _ in range(SETTLE + TURNS)][SETTLE:]
        for process in (bare, ours):
            assert process.stdin is not None
            process.stdin.close()
    ratios = sorted(loop_s / loader_s for loop_s, loader_s in turns)
    return {
        "images_per_cpu_s": {
            "bare loop": 1 / statistics.median(loop_s for loop_s, _ in turns),
            "vila_data": 1 / statistics.median(loader_s for _, loader_s in turns),
        },
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-len(ratios) // 4]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--data", type=Path, help="where the run is made, and kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, str(arguments.data), arguments.size)
        return
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
