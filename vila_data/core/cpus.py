"""How many threads a task may use."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """CPUs of this process: its affinity, or fewer where OMP_NUM_THREADS says so.

    Ray sets that variable to a task's num_cpus, so that concurrent tasks share a machine.
    """
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(have, int(given))) if given.isdigit() else have
