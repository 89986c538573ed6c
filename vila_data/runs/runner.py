"""The Runner interface between a run and its tasks, and the single-process runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from vila_data.recipe.recipe import StageResources
from vila_data.runs.stage import Report, Work


@dataclass(frozen=True)
class Step:
    """One task per job: function(work, job, *results of earlier steps, report) -> result.

    stage: its name; verb: of `--only` and `resources`, the same for all scorers.
    """

    stage: str
    verb: str
    function: Callable[..., Any]
    resources: StageResources


@dataclass(frozen=True)
class TaskResult:
    """A finished task: job number, stage, result, and duration in seconds."""

    job: int
    stage: str
    result: Any
    seconds: float


class Runner(AbstractContextManager["Runner"], Protocol):
    """Runs steps over jobs. Results arrive in any order; the steps of a job run in sequence."""

    def run(self, work: Work, steps: list[Step], jobs: Iterable[Any], report: Report) -> Iterator[TaskResult]:
        """Run every step of every job; stops at the first error and raises it."""
        ...


class LocalRunner:
    """Runs all tasks in this process, one after another: for debugging and small runs."""

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self, work: Work, steps: list[Step], jobs: Iterable[Any], report: Report) -> Iterator[TaskResult]:
        """See `Runner.run`."""
        for number, job in enumerate(jobs):
            results: list[Any] = []
            for step in steps:
                start = time.perf_counter()
                results.append(step.function(work, job, *results, report))
                yield TaskResult(number, step.stage, results[-1], time.perf_counter() - start)
