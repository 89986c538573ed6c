"""Run tasks on Ray; the only module that imports it.

Placement, retries of lost workers, the dashboard and metrics are Ray's. A step that
requests a GPU runs on actors, one per GPU share, so that its model is loaded once; all
other steps are tasks. Counters appear as Ray metrics named vila_data_<counter>_total.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import ray
from ray.util.metrics import Counter

from vila_data.core.errors import RunError, VilaDataError
from vila_data.recipe.recipe import StageResources
from vila_data.runs.runner import Step, TaskResult
from vila_data.runs.stage import Report, Work

_RETRIES = 3
_TASKS_PER_CORE = 2


class RayRunner:
    """Runs tasks on the cluster at RAY_ADDRESS, or on a local Ray instance for the duration of the run."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"

    def __enter__(self) -> RayRunner:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address == "local":
            quiet["include_dashboard"] = False
        try:
            ray.init(address=self._address, ignore_reinit_error=True, **quiet)
        except (ConnectionError, TimeoutError) as error:
            hint = (
                "check that the cluster is running; if it requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            )
            raise RunError(f"Ray at {self._address}: {error}; {hint}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()

    def run(self, work: Work, steps: list[Step], jobs: Iterable[Any], report: Report) -> Iterator[TaskResult]:
        """See `Runner.run`. Submits only a few tasks per core in advance; Ray places them."""
        shared = ray.put(work)
        flow = _Flow(_pools(steps, shared))
        in_flight = max(1, int(_cluster("CPU"))) * _TASKS_PER_CORE + 2
        todo = enumerate(jobs)
        for number, job in itertools.islice(todo, in_flight):
            flow.start(number, job)
        while flow.running:
            done = flow.next()
            yield done
            if done.stage == steps[-1].stage:
                for number, job in itertools.islice(todo, 1):
                    flow.start(number, job)


def _pools(steps: list[Step], work: Any) -> list[_Tasks | _Actors]:
    """A pool for each step; scorers share their actors, because each pool of actors takes all GPUs."""
    pools: list[_Tasks | _Actors] = []
    actors: dict[str, _Actors] = {}
    for step in steps:
        if not step.resources.num_gpus:
            pools.append(_Tasks(step, work))
            continue
        pool = _Actors(step, work, actors.get(step.verb))
        actors.setdefault(step.verb, pool)
        pools.append(pool)
    return pools


class _Flow:
    """Moves jobs through the steps; a step with `max_tasks` holds back jobs beyond that number."""

    def __init__(self, pools: list[_Tasks | _Actors]) -> None:
        self._pools = pools
        self._held: list[deque[int]] = [deque() for _ in pools]
        self._jobs: dict[int, tuple[Any, list[Any]]] = {}
        self.running: dict[Any, tuple[int, int]] = {}

    def start(self, number: int, job: Any) -> None:
        """Submit the first step of a job."""
        self._jobs[number] = (job, [])
        self._submit(number, 0)

    def next(self) -> TaskResult:
        """Wait for any task to finish, and submit the next step of its job."""
        ready, _ = ray.wait(list(self.running), num_returns=1)
        number, at = self.running.pop(ready[0])
        pool = self._pools[at]
        value, seconds = _get(ready[0], pool.step.stage)
        pool.finished(ready[0])
        _job, results = self._jobs[number]
        results.append(value)
        if self._held[at]:
            self._submit(self._held[at].popleft(), at)
        if at + 1 < len(self._pools):
            self._submit(number, at + 1)
        else:
            del self._jobs[number]
        return TaskResult(number, pool.step.stage, value, seconds)

    def _submit(self, number: int, at: int) -> None:
        pool = self._pools[at]
        limit = pool.step.resources.max_tasks
        if limit is not None and sum(step == at for _, step in self.running.values()) >= limit:
            self._held[at].append(number)
            return
        self.running[pool.submit(*self._jobs[number])] = (number, at)


class _Tasks:
    """A step as Ray tasks."""

    def __init__(self, step: Step, work: Any) -> None:
        self.step, self._work = step, work
        self._remote = ray.remote(_call).options(name=step.stage, max_retries=_RETRIES, **_options(step.resources))

    def submit(self, job: Any, results: list[Any]) -> Any:
        return self._remote.remote(self.step, self._work, job, results)

    def finished(self, ref: Any) -> None:
        return None


class _Actors:
    """A step as calls of actors that keep their models loaded."""

    def __init__(self, step: Step, work: Any, shared: _Actors | None) -> None:
        self.step, self._work = step, work
        self._actors: list[Any] = [] if shared is None else shared._actors
        self._calls: dict[Any, int] = {} if shared is None else shared._calls
        if shared is not None:
            return
        gpus = _cluster("GPU")
        count = step.resources.max_tasks or int(gpus / step.resources.num_gpus)
        if count < 1 or gpus < step.resources.num_gpus:
            raise RunError(
                f"resources.{step.verb} requests {step.resources.num_gpus:g} GPUs, but the cluster has {gpus:g}"
            )
        remote: Any = ray.remote(_Caller).options(
            max_restarts=-1, max_task_retries=_RETRIES, **_options(step.resources)
        )
        self._actors += [remote.remote() for _ in range(count)]

    def submit(self, job: Any, results: list[Any]) -> Any:
        busy = Counts(self._calls.values())
        least = min(range(len(self._actors)), key=lambda index: busy[index])
        ref = self._actors[least].call.remote(self.step, self._work, job, results)
        self._calls[ref] = least
        return ref

    def finished(self, ref: Any) -> None:
        del self._calls[ref]


class _Caller:
    """An actor that runs calls; the task's own module caches the model."""

    def call(self, step: Step, work: Work, job: Any, results: list[Any]) -> Any:
        return _call(step, work, job, results)


def _call(step: Step, work: Work, job: Any, results: list[Any]) -> tuple[Any, float]:
    """The task's result and its duration in seconds, without the time in the queue."""
    counters: dict[str, Counter] = {}

    def report(counter: str, count: int) -> None:
        if counter not in counters:
            counters[counter] = Counter(f"vila_data_{counter}", f"{counter} that passed a stage", tag_keys=("stage",))
        if count:
            counters[counter].inc(count, tags={"stage": step.stage})

    start = time.perf_counter()
    result = step.function(work, job, *results, report)
    report("tasks", 1)
    return result, time.perf_counter() - start


def _cluster(resource: str) -> float:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return total.get(resource, 0.0)


def _options(resources: StageResources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.num_cpus}
    if resources.num_gpus:
        options["num_gpus"] = resources.num_gpus
    if resources.memory_gb:
        options["memory"] = int(resources.memory_gb * 1e9)
    return options


def _get(ref: Any, stage: str) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VilaDataError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise RunError(f"{stage}: a task lost its worker {_RETRIES + 1} times: {error}") from error
