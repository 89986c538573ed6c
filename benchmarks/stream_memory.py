"""Memory of the trainer's process and of its workers over three epochs of 20,000 samples through `vd.stream`.

    python benchmarks/stream_memory.py [--photos DIR] [--workers 2] [--json benchmarks/results/stream_memory.json]

From outside, every quarter of a second, RSS and PSS of the process and of all below it are added up; PSS counts a page
that several map once. The pages of mapped files are the kernel's to take back, so they are given apart ("file").
Goal: the mean of the last quarter of the time is within 3% of that of the first; it begins at batch 20.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

SAMPLES = {"docs": 3000, "pairs": 8000, "chat": 3000, "text": 6000}
EPOCHS, WARM_BATCHES, EVERY_S = 3, 20, 0.25
LEAST = 0.03
KINDS = {"rss": "Rss", "pss": "Pss", "anonymous": "Pss_Anon", "shared": "Pss_Shmem", "file": "Pss_File"}
POINTS = 60  # of the course that is kept in the result


def train(folder: str, workers: int, prefetch_mb: int) -> None:
    """The trainer: takes each batch, looks at it, lets it go. Prints where the measured time begins and ends."""
    import vila_data as vd

    seen: list[int] = []
    batches = 0
    with vd.stream(
        Path(folder, "all.yaml"),
        run=folder,
        rank=0,
        world_size=1,
        batch_size=4,
        num_workers=workers,
        prefetch_mb=prefetch_mb,
    ) as loader:
        for _ in range(EPOCHS):
            samples = 0
            for batch in loader:
                samples += len(batch.origins)
                assert not batch.faults and int(batch.pixels[:, :, ::64, ::64].sum()) >= 0
                batches += 1
                if batches == WARM_BATCHES:
                    print(f"BEGIN {time.time()}", flush=True)
            seen.append(samples)
    print(f"END {time.time()} {json.dumps({'samples_an_epoch': seen, 'batches': batches})}", flush=True)


def memory_of(process: psutil.Process) -> dict[str, int]:
    """Kilobytes by kind, of the process and all below it."""
    total = dict.fromkeys(KINDS, 0)
    for one in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        for kind, name in KINDS.items():
            total[kind] += values.get(name, 0)
    return total


def watched(
    folder: Path, workers: int, prefetch_mb: int
) -> tuple[list[tuple[float, dict[str, int]]], float, float, dict[str, Any]]:
    """(measurements, beginning, end, what the trainer says)."""
    options = ["--child", str(folder), "--workers", str(workers), "--prefetch-mb", str(prefetch_mb)]
    trainer = subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    assert trainer.stdout is not None
    reader = threading.Thread(target=lambda: said.extend(trainer.stdout or ()))
    reader.start()
    process = psutil.Process(trainer.pid)
    found: list[tuple[float, dict[str, int]]] = []
    while trainer.poll() is None:
        try:
            found.append((time.time(), memory_of(process)))
        except psutil.NoSuchProcess:
            break
        time.sleep(EVERY_S)
    reader.join()
    marks = {line.split()[0]: line.split(maxsplit=2)[1:] for line in said}
    if trainer.wait() or not {"BEGIN", "END"} <= set(marks):
        sys.exit(f"benchmarks/stream_memory.py: the trainer failed: {said}")
    return found, float(marks["BEGIN"][0]), float(marks["END"][0]), json.loads(marks["END"][1])


def result_of(found: list[tuple[float, dict[str, int]]], begin: float, end: float) -> dict[str, Any]:
    """Means of the first and the last quarter, MB of 2**20 bytes, and the course."""
    inside = [(at, values) for at, values in found if begin <= at <= end]
    quarter = (end - begin) / 4
    result: dict[str, Any] = {}
    for kind in KINDS:
        first = statistics.mean(values[kind] for at, values in inside if at < begin + quarter)
        last = statistics.mean(values[kind] for at, values in inside if at > end - quarter)
        result[kind] = {
            "first_quarter_mb": round(first / 1024, 1),
            "last_quarter_mb": round(last / 1024, 1),
            "change": round(last / max(first, 1) - 1, 4),
            "largest_mb": round(max(values[kind] for _, values in inside) / 1024, 1),
        }
    step = max(1, len(inside) // POINTS)
    result["course"] = [
        {"s": round(at - begin, 1), **{kind: round(values[kind] / 1024, 1) for kind in KINDS}}
        for at, values in inside[::step]
    ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument(
        "--data", type=Path, help="where the samples lie or are to be made; without it they are deleted"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prefetch-mb", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train(arguments.child, arguments.workers, arguments.prefetch_mb)
        return
    from stream_data import made_run

    with tempfile.TemporaryDirectory(prefix="vila-bench-") as scratch:
        folder = arguments.data or Path(scratch) / "run"
        made = made_run(folder, arguments.photos, SAMPLES, peers=False)
        found, begin, end, said = watched(folder, arguments.workers, arguments.prefetch_mb)
    memory = result_of(found, begin, end)
    course = memory.pop("course")
    result = {
        "goal": {"change_at_most": LEAST, **{kind: memory[kind]["change"] <= LEAST for kind in ("rss", "pss")}},
        "memory": memory,
        **said,
        "seconds": round(end - begin, 1),
        "conditions": {
            "samples": made,
            "epochs": EPOCHS,
            "workers": arguments.workers,
            "prefetch_mb": arguments.prefetch_mb,
            "cores": len(os.sched_getaffinity(0)),
            "load_average_1m_after": round(os.getloadavg()[0], 2),
            "python": sys.version.split()[0],
        },
        "course": course,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "course"}, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
