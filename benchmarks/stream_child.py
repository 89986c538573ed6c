"""One contestant of benchmarks/stream.py in a process of its own, in its own environment.

    python stream_child.py MODULE CONTESTANT '{"folder": …, "workers": 0, …}'

A contestant is a function that gives an iterator of amounts, {"samples": …, "images": …, "tokens": …}. The first
amount is start-up: workers, imports made late, files opened. Rates are those of what follows, once queues have settled.
Only the standard library and psutil are needed here. With "each": {"size": [336, 224]} the contestant runs once for each;
with "set": [["docs", 4]], over the set docs four times.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil

Amount = dict[str, int]
SETTLE = 8  # batches of a loader with workers until its queues are as full as they stay


def cpu_seconds() -> float:
    """User and system time of this process, of its children, and of those that have ended."""
    process = psutil.Process()
    used = process.cpu_times()
    total = used.user + used.system + used.children_user + used.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def measured(stream: Iterator[Amount], started: float, skip: int, limit_s: float) -> dict[str, Any]:
    """Rates a second, by wall clock and by CPU time, of the amounts after the first `skip`, for `limit_s` at most."""
    next(stream)
    start_up = time.time() - started
    for _ in range(skip - 1):
        next(stream)
    total: Counter[str] = Counter()
    cpu, begun = cpu_seconds(), time.perf_counter()
    for amount in stream:
        total.update(amount)
        if time.perf_counter() - begun > limit_s:
            break
    seconds = time.perf_counter() - begun
    used = max(cpu_seconds() - cpu, 1e-9)
    stream.close()  # type: ignore[attr-defined]
    return {
        "per_s": {name: count / seconds for name, count in total.items()},
        "per_cpu_s": {name: count / used for name, count in total.items()},
        "total": dict(total),
        "seconds": seconds,
        "start_up_s": start_up,
    }


def main(module: str, contestant: str, values: dict[str, Any]) -> None:
    sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]
    started, each, limit_s = values.pop("started"), values.pop("each"), values.pop("limit_s")
    skip = SETTLE if values.get("workers") else 1
    run = importlib.import_module(module).CONTESTANTS[contestant]
    result: dict[str, Any] = {}
    for key, choices in each.items() or {"": [""]}.items():
        for choice in choices:
            named = {"name": choice[0], "passes": choice[1]} if key == "set" else {key: choice} if key else {}
            found = run(**values, **named)
            result[str(named.get("name", choice))] = (
                found if isinstance(found, dict) else measured(iter(found), started, skip, limit_s)
            )
            started = time.time()
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
