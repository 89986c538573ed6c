"""Processes or threads: the loader's own work loop run as either, beside a training loop that needs the interpreter.

    python benchmarks/workers.py [--photos DIR] [--data DIR] [--repeats N] [--json benchmarks/results/workers.json]

The same code (vila_data.loader.worker.Worker), the same messages and buffers; only who runs it differs. The consumer is
either idle, or keeps the interpreter busy as a training loop that launches kernels does: 2 ms of Python a step. The two
take turns, one run each, so that both meet the same machine; a ratio is the median over pairs of neighbors, and the
load average before each pair is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream_data import made_run

import vila_data as vd
from vila_data.loader.lease import SlotLender
from vila_data.loader.orders import Order
from vila_data.loader.pool import Patience, WorkerPool
from vila_data.loader.worker import STATUS_BYTES, Worker

STEPS, WARM = 60, 4
BUSY_S = 0.002


class Threads:
    """Stands in for a WorkerPool: the same loop in threads of this process."""

    def __init__(self, spec: Any, lengths: Any, count: int) -> None:
        self._count, self._step = count, 0
        self._sides = []
        for number in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            own = replace(spec, stride=count, limit_bytes=spec.limit_bytes // count)
            orders = [Order(0, spec.epoch, spec.start, number)]
            worker = Worker(theirs, own, orders, lengths, bytearray(STATUS_BYTES))
            threading.Thread(target=worker.run, daemon=True).start()
            self._sides.append((ours, SlotLender(ours)))

    def get(self) -> Any:
        ours, lender = self._sides[self._step % self._count]
        self._step += 1
        while True:
            message, fds, _, _ = socket.recv_fds(ours, 65_536, 1)
            if message[:1] == b"B":
                return lender.take(message, list(fds))
            if message[:1] == b"W" and lender.exhausted:
                ours.send(b"G")

    def close(self) -> None:
        for ours, lender in self._sides:
            ours.close()
            lender.close()


def steps_per_s(pool: Any, busy_s: float) -> tuple[float, float]:
    """(steps a second, seconds that a busy part of BUSY_S took on average)."""
    taken = []
    for step in range(STEPS + WARM):
        if step == WARM:
            began = time.perf_counter()
        found = pool.get()
        del found
        start = time.perf_counter()
        spin(busy_s)
        taken.append(time.perf_counter() - start)
    elapsed = time.perf_counter() - began
    pool.close()
    return STEPS / elapsed, statistics.mean(taken[WARM:])


def spin(seconds: float) -> None:
    """Keep the interpreter busy for so much of this thread's own CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def measured(folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    loader = vd.stream(folder / "mixed.yaml", folder, rank=0, world_size=1, batch_size=4, num_workers=0)
    spec, lengths = loader._spec, loader._lengths
    for count in (1, 2):
        for busy_s in (0.0, BUSY_S):
            made = {
                "processes": lambda: WorkerPool(spec, lengths, count, Patience()),  # noqa: B023 - called in this turn
                "threads": lambda: Threads(spec, lengths, count),  # noqa: B023
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
            loads = []
            for turn in range(repeats):
                loads.append(os.getloadavg()[0])
                for name in sorted(made, reverse=bool(turn % 2)):
                    found[name].append(steps_per_s(made[name](), busy_s))
            rates = {name: [rate for rate, _ in runs] for name, runs in found.items()}
            waits = {name: statistics.median(spent for _, spent in runs) for name, runs in found.items()}
            ratios = [one / other for one, other in zip(rates["processes"], rates["threads"], strict=True)]
            yield {
                "workers": count,
                "busy_ms": busy_s * 1000,
                "steps_per_s": {name: statistics.median(runs) for name, runs in rates.items()},
                "processes_over_threads": statistics.median(ratios),
                "ratios": ratios,
                "load": loads,
                "busy_took_ms": {name: spent * 1000 for name, spent in waits.items()} if busy_s else None,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--data", type=Path, help="where the run is made, and kept")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data or Path(scratch)
        made = made_run(folder, arguments.photos, peers=False)
        load = os.getloadavg()[0]
        rows = list(measured(folder, arguments.repeats))
    for row in rows:
        print(json.dumps(row))
    if arguments.json:
        conditions = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        conditions |= {"python": platform.python_version(), "pictures": made["pictures"]}
        conditions |= {"repeats": arguments.repeats, "load_before": load, "load_after": os.getloadavg()[0]}
        arguments.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
