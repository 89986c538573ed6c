"""`vila-data bench`: the speed of a recipe's stream on this machine, its slowest stage, and how long a step would wait."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from vila_data.core.errors import DataError, UsageError
from vila_data.loader.assemble import STAGES
from vila_data.loader.loader import StreamLoader
from vila_data.loader.metrics import StreamMetrics
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.run import Run, open_run

_COUNTS = ("batches", "packs", "samples", "images", "tokens", "read_bytes")


def opened(
    path: str, run: str | None, on: str | os.PathLike[str] | None = None, settings: Sequence[str] = ()
) -> tuple[Recipe, Run]:
    """What to stream: the blend of a run alone (`path`), or that of a recipe (`path`) over the shards of `run`.

    Raises:
        UsageError: there is no run; `path` is a recipe without a run, or a run with another or with substitutes; a wrong setting.
    """
    if path.endswith((".yaml", ".yml")):
        if run is None:
            raise UsageError(
                f"bench: {path} is a recipe; add --run RUN, or give the directory of its finished run alone"
            )
        return load_recipe(path, on, settings, find_corpora=False), open_run(run)
    if run is not None or on is not None:
        extra = "--corpora" if run is None else "--run"
        raise UsageError(f"bench: {extra} applies to a recipe (.yaml) only, found {path}; remove {extra}")
    found = open_run(path)
    return found.recipe_with(settings), found


def bench(loader: StreamLoader, *, seconds: float, step_s: float = 0.0) -> dict[str, Any]:
    """Stream for some seconds, measured from the second batch on, over as many epochs as necessary.

    step_s: simulated duration of a training step: the consumer sleeps so long after each batch, and `waited_share` is
    how much it would wait. With 0 all time is waiting, and the rates are the loader's maximum.

    Raises:
        DataError: an epoch has no batches.
    """
    first: StreamMetrics | None = None
    began = 0.0
    epochs = 0
    with loader:
        while first is None or time.perf_counter() - began < seconds:
            epochs += 1
            for batch in loader:
                if first is None:
                    first, began = loader.metrics(), time.perf_counter()
                    continue
                if time.perf_counter() - began >= seconds:
                    break
                del batch
                time.sleep(step_s)
            if first is None:
                raise DataError("bench: the epoch has no batches")
        last = loader.metrics()
        elapsed = time.perf_counter() - began
    counts = {name: getattr(last, name) - getattr(first, name) for name in _COUNTS}
    stages = {stage: last.stage_seconds[stage] - first.stage_seconds[stage] for stage in STAGES}
    busy = {stage: spent for stage, spent in stages.items() if stage != "blocked"}
    path, slowest_s = last.slowest_read
    return {
        "seconds": elapsed,
        "step_s": step_s,
        "waited_share": (last.waited_s - first.waited_s) / elapsed,
        **counts,
        **{f"{name}_per_s": count / elapsed for name, count in counts.items()},
        "fill": last.fill,
        "stage_seconds": stages,
        "slowest_stage": max(busy, key=lambda stage: busy[stage]),
        "consumer_is_slower": stages["blocked"] > sum(busy.values()),
        "sources": {source.source: source.token_share for source in last.sources},
        "cache_hits": last.cache_hits,
        "reads": last.reads,
        "retries": last.retries,
        "faults": last.faults,
        "replaced_workers": last.replaced_workers,
        "slowest_read": {"path": path, "seconds": slowest_s},
        "epochs_begun": epochs,
    }
