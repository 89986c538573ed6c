"""Processes or threads: the loader's own work loop run as either, beside a training loop that needs the interpreter.

    python benchmarks/workers.py [--photos DIR] [--data DIR] [--repeats N] [--workers N …] [--json benchmarks/results/workers.json]

The same code (vila_data.loader.worker.Worker), the same messages and buffers; only who runs it differs. The consumer is
either idle, or keeps the interpreter busy as a training loop that launches kernels does: 2 ms of Python a step. The two
take turns, one run each, so that both meet the same machine; a ratio is the median over pairs of neighbors, and the
load average before each pair is kept. On a machine that others use, compare cpu_ms_a_step: the CPU time of the trainer
and its workers, which says what either costs, though not how long threads wait for the interpreter.
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

import psutil
from stream_data import made_run

import vila_data as vd
from vila_data.loader.assemble import STATUS_BYTES
from vila_data.loader.buffers import BorrowedBuffers, Request
from vila_data.loader.pool import Timeout, WorkerPool
from vila_data.loader.worker import Worker

STEPS, WARM = 60, 4
BUSY_S = 0.002


class Threads:
    """Stands in for a WorkerPool: the same loop in threads of this process."""

    def __init__(self, spec: Any, lengths: Any, count: int) -> None:
        self._count, self._step = count, 0
        self._sides: list[Any] = []
        self._threads: list[threading.Thread] = []
        for number in range(count):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            own = replace(spec, stride=count, limit_bytes=spec.limit_bytes // count)
            requests = [Request(0, spec.epoch, spec.start, number)]
            worker = Worker(theirs, own, requests, lengths, bytearray(STATUS_BYTES))
            self._threads.append(threading.Thread(target=worker.run, daemon=True))
            self._threads[-1].start()
            self._sides.append((ours, BorrowedBuffers(ours)))

    def get(self) -> Any:
        ours, buffers = self._sides[self._step % self._count]
        self._step += 1
        while True:
            message, fds, _, _ = socket.recv_fds(ours, 65_536, 1)
            if message[:1] == b"B":
                return buffers.borrow(message, list(fds))
            if message[:1] == b"W" and buffers.exhausted:
                ours.send(b"G")

    def close(self) -> None:
        for ours, buffers in self._sides:
            ours.close()
            buffers.close()
        for thread in self._threads:
            thread.join()


def measure(pool: Any, busy_s: float) -> tuple[float, float, float]:
    """(steps a second, seconds that a busy part of BUSY_S took on average, CPU seconds a step)."""
    taken = []
    for step in range(STEPS + WARM):
        if step == WARM:
            began, cpu = time.perf_counter(), cpu_s(pool)
        found = pool.get()
        del found
        start = time.perf_counter()
        spin(busy_s)
        taken.append(time.perf_counter() - start)
    elapsed, spent = time.perf_counter() - began, cpu_s(pool) - cpu
    pool.close()
    return STEPS / elapsed, statistics.mean(taken[WARM:]), spent / STEPS


def cpu_s(pool: Any) -> float:
    """CPU time of this process and of the pool's."""
    others = [psutil.Process(worker.process.pid).cpu_times() for worker in getattr(pool, "workers", ())]
    return time.process_time() + sum(times.user + times.system for times in others)


def spin(seconds: float) -> None:
    """Keep the interpreter busy for so much of this thread's own CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def measured(folder: Path, repeats: int, counts: list[int]) -> Iterator[dict[str, Any]]:
    loader = vd.stream(folder / "mixed.yaml", folder, rank=0, world_size=1, batch_size=4, num_workers=0)
    spec, lengths = loader._spec, loader._lengths
    for count in counts:
        for busy_s in (0.0, BUSY_S):
            made = {
                "processes": lambda: WorkerPool(spec, lengths, count, Timeout()),  # noqa: B023 - called in this turn
                "threads": lambda: Threads(spec, lengths, count),  # noqa: B023
            }
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in made}
            loads = []
            for turn in range(repeats):
                loads.append(os.getloadavg()[0])
                for name in sorted(made, reverse=bool(turn % 2)):
                    found[name].append(measure(made[name](), busy_s))
            rates = {name: [run[0] for run in runs] for name, runs in found.items()}
            waits = {name: statistics.median(run[1] for run in runs) for name, runs in found.items()}
            ratios = [one / other for one, other in zip(rates["processes"], rates["threads"], strict=True)]
            yield {
                "workers": count,
                "busy_ms": busy_s * 1000,
                "steps_per_s": {name: statistics.median(runs) for name, runs in rates.items()},
                "processes_over_threads": statistics.median(ratios),
                "ratios": ratios,
                "cpu_ms_a_step": {
                    name: statistics.median(run[2] for run in runs) * 1000 for name, runs in found.items()
                },
                "load": loads,
                "busy_took_ms": {name: spent * 1000 for name, spent in waits.items()} if busy_s else None,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--data", type=Path, help="where the run is made, and kept")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data or Path(scratch)
        made = made_run(folder, arguments.photos, peers=False)
        load = os.getloadavg()[0]
        rows = list(measured(folder, arguments.repeats, arguments.workers))
    for row in rows:
        print(json.dumps(row))
    if arguments.json:
        conditions = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        conditions |= {"python": platform.python_version(), "pictures": made["pictures"]}
        conditions |= {"repeats": arguments.repeats, "load_before": load, "load_after": os.getloadavg()[0]}
        arguments.json.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
