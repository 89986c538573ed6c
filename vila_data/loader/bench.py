"""`vila-data bench`: how fast a recipe's stream comes here, what it waits for, and how often a training step would wait."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from vila_data.core.errors import DataError, UsageError
from vila_data.loader.assemble import STAGES
from vila_data.loader.loader import StreamLoader
from vila_data.loader.meters import StreamMetrics
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.run import Run, open_run

_COUNTS = ("batches", "packs", "samples", "images", "tokens", "read_bytes")


def opened(
    path: str, run: str | None, on: str | os.PathLike[str] | None = None, settings: Sequence[str] = ()
) -> tuple[Recipe, Run]:
    """What to stream: the blend of a run alone (`path`), or that of a recipe (`path`) over the shards of `run`.

    Raises:
        UsageError: there is no run; `path` is a recipe without a run, or a run with one or with stand-ins; a wrong setting.
    """
    if path.endswith((".yaml", ".yml")):
        if run is None:
            raise UsageError(
                f"bench: {path} is a recipe; add --run RUN, or give the directory of its finished run alone"
            )
        return load_recipe(path, on, settings, find_corpora=False), open_run(run)
    if run is not None or on is not None:
        extra = "--on" if run is None else "--run"
        raise UsageError(f"bench: {extra} is for a recipe (.yaml), found {path}; leave {extra} out")
    found = open_run(path)
    return found.recipe_with(settings), found


def bench(loader: StreamLoader, *, seconds: float, step_s: float = 0.0) -> dict[str, Any]:
    """Stream for some seconds, from the second batch on, over as many epochs as it takes.

    step_s: what a training step takes: the consumer is busy for so long after each batch, and `waited_share` is what
    it would wait. Without it everything is waiting, and the rates are what the loader gives.

    Raises:
        DataError: an epoch has no batch.
    """
    first: StreamMetrics | None = None
    began = waited = 0.0
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
                raise DataError("bench: the epoch has no batch")
        last = loader.metrics()
        elapsed, waited = time.perf_counter() - began, last.waited_s - first.waited_s
    return _figures(first, last, elapsed, waited, step_s) | {"epochs_begun": epochs}


def _figures(
    first: StreamMetrics, last: StreamMetrics, seconds: float, waited_s: float, step_s: float
) -> dict[str, Any]:
    counts = {name: getattr(last, name) - getattr(first, name) for name in _COUNTS}
    stages = {stage: last.stage_seconds[stage] - first.stage_seconds[stage] for stage in STAGES}
    busy = {stage: spent for stage, spent in stages.items() if stage != "blocked"}
    path, slowest_s = last.slowest_read
    return {
        "seconds": seconds,
        "step_s": step_s,
        "waited_share": waited_s / seconds,
        **counts,
        **{f"{name}_per_s": count / seconds for name, count in counts.items()},
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
    }
