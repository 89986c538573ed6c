"""The engine: runs the stages of a recipe in order, on either runner, and skips completed work.

A stage runs part by part, or file by file of a set. Completed parts and files are skipped, so rerunning resumes.
Stages that need nothing from other parts are chained: a part is scored as soon as it is downloaded.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vila_data.core.errors import VilaDataError
from vila_data.core.receipts import Receipt, has_outputs, read_receipt
from vila_data.runs.completed_work import check_token_files, find_committed, finished_sets, receipts_basis
from vila_data.runs.epoch_plan import plan_epoch
from vila_data.runs.progress import Progress
from vila_data.runs.report import Speeds
from vila_data.runs.runner import Runner, Step, TaskResult
from vila_data.runs.stage import (
    CorpusState,
    PartJob,
    PartStage,
    RunState,
    SetStage,
    Work,
    make_set,
    part_task,
    run_set_job,
)
from vila_data.runs.stages import Stages


class Engine:
    """One invocation of `run` on a run directory.

    only:    run only the stages of this verb.
    earlier: run.json of the previous invocation.
    """

    def __init__(
        self,
        work: Work,
        stages: Stages,
        runner: Runner,
        progress: Progress,
        only: str | None = None,
        earlier: dict[str, Any] | None = None,
    ) -> None:
        self._work, self._stages, self._runner, self._progress, self._only = work, stages, runner, progress, only
        self._earlier = earlier or {}
        self.speeds = Speeds(dict.fromkeys([stage.verb for stage in stages.parts] + [one.name for one in stages.sets]))
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add a block's wall time to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def does(self, verb: str) -> bool:
        """Whether this invocation runs the stages of a verb."""
        return self._only in (None, verb)

    def run_tasks(
        self,
        verb: str,
        function: Callable[..., Any],
        jobs: Sequence[Any],
        done: Callable[[TaskResult], None] | None = None,
    ) -> list[Any]:
        """Run one task per job; their results in order. done: called as each task ends."""
        results: dict[int, Any] = {}
        for one in self._runner.run(self._work, [self._step(verb, verb, function)], jobs, _ignore):
            results[one.job] = one.result
            if done is not None:
                done(one)
        return [results[index] for index in range(len(jobs))]

    # stages over parts

    def make_parts(self, state: RunState) -> None:
        """Run every part stage of this invocation; read the receipts of the others, as far as they are complete."""
        for chain in _chains(self._stages.parts):
            if chain[0].gather is not None:
                for corpus in state.corpora.values():
                    self._gathered(chain[0], corpus)
                continue
            for corpus in state.corpora.values():
                find_committed(self._work, chain, corpus)
            active = [stage for stage in chain if self.does(stage.verb)]
            if active:
                self._run_chain(active, state)

    def _run_chain(self, chain: Sequence[PartStage], state: RunState) -> None:
        names = [stage.name for stage in chain]
        outside = sorted({name for stage in chain for name in stage.after} - set(names))
        jobs: list[PartJob] = []
        places: list[tuple[CorpusState, int]] = []
        for corpus in state.corpora.values():
            for index, job in enumerate(corpus.jobs(outside)):
                if any(corpus.receipts[name][index] is None for name in names):
                    jobs.append(job)
                    places.append((corpus, index))
        for name in names:
            receipts = [receipt for corpus in state.corpora.values() for receipt in corpus.receipts[name]]
            self._progress.stage(name, len(receipts), sum(receipt is not None for receipt in receipts))
        steps = [self._step(stage.name, stage.verb, part_task(stage, names[:at])) for at, stage in enumerate(chain)]
        by_name = {stage.name: stage for stage in chain}
        with self.timed(" and ".join(dict.fromkeys(stage.verb for stage in chain))):
            for done in self._runner.run(self._work, steps, jobs, _ignore):
                corpus, index = places[done.job]
                stage, receipts = by_name[done.stage], corpus.receipts[done.stage]
                self._note(stage, done)
                if receipts[index] is None:
                    self._progress.advance(stage.name, stage.counts(done.result).get(stage.items, 0))
                receipts[index] = done.result

    def _gathered(self, stage: PartStage, corpus: CorpusState) -> None:
        if not self.does(stage.verb):
            corpus.receipts[stage.name] = self._valid_receipts(stage, corpus)
            return
        jobs = self._jobs(stage, corpus)
        shown = f"{stage.name} {corpus.plan.name}"
        self._progress.stage(shown, len(jobs), 0)

        def done(one: TaskResult) -> None:
            self._note(stage, one)
            self._progress.advance(shown, stage.counts(one.result).get(stage.items, 0))

        with self.timed(stage.verb):
            corpus.receipts[stage.name] = list(self.run_tasks(stage.verb, part_task(stage), jobs, done))

    def _jobs(self, stage: PartStage, corpus: CorpusState) -> list[PartJob]:
        """All parts, with what a gathering stage needs of the other parts."""
        jobs = corpus.jobs(stage.depends(self._work, corpus.plan.name))
        gather = stage.gather
        if gather is None or not gather.applies(self._work, corpus.plan.name):
            return jobs
        shares = gather.combine(self.run_tasks(stage.verb, gather.collect, corpus.plan.parts))
        return [PartJob(job.part, job.receipts, share) for job, share in zip(jobs, shares, strict=True)]

    def _valid_receipts(self, stage: PartStage, corpus: CorpusState) -> list[Receipt | None]:
        """A gathering stage's receipts of an earlier invocation; None for those that are not valid for this recipe.

        If run.json records the same basis for them, no columns are read.
        """
        nothing: list[Receipt | None] = [None] * len(corpus.plan.parts)
        found: list[Receipt] = []
        for part in corpus.plan.parts:
            receipt = read_receipt(self._work.store, stage.receipt(part))
            if receipt is None or not has_outputs(self._work.store, receipt):
                return nothing
            found.append(receipt)
        basis = receipts_basis(self._work, self._stages, stage, corpus, found)
        known = self._earlier.get("made_from", {}).get(stage.name, {}).get(corpus.plan.name)
        if basis is not None and basis == known:
            return list(found)
        if all(corpus.is_complete(name) for name in stage.depends(self._work, corpus.plan.name)):
            return self.run_tasks(stage.verb, functools.partial(_committed, stage), self._jobs(stage, corpus))
        return nothing

    # stages over sets

    def make_sets(self, state: RunState) -> None:
        """Run every set stage of this invocation, from existing sets if it does not run the previous stage."""
        for stage in self._stages.sets:
            state.sets[stage.name] = {}
            if not self.does(stage.name):
                continue
            if stage.before is not None and not self.does(stage.before):
                state.sets[stage.before] = finished_sets(self._work.store, self._stages, stage.before)
            with self.timed(stage.name):
                for name in stage.sets():
                    state.sets[stage.name][name] = self._make_set(stage, name, state)

    def _make_set(self, stage: SetStage, name: str, state: RunState) -> Any:
        if stage.before is None:
            corpus = state.corpora[self._work.recipe.shards[name].corpus]
            corpus.jobs([one.name for one in self._stages.parts if one.decides])  # complete, or an error
        shown = f"{stage.name} {name}"
        began = False

        def run(jobs: Sequence[Any]) -> list[Receipt]:
            nonlocal began
            began = True
            self._progress.stage(shown, len(jobs), 0)
            return self.run_tasks(stage.name, functools.partial(run_set_job, stage), jobs, done)

        def done(one: TaskResult) -> None:
            counts = stage.counts(one.result)
            self.speeds.add(stage.name, one.result, one.seconds, counts)
            self._progress.advance(shown, counts["samples"])

        finished = make_set(stage, self._work.store, name, state, run)
        if not began:
            self._progress.stage(shown, 0, 0)
        return finished

    # the blend

    def plan_blend(self, state: RunState) -> dict[str, Any] | None:
        """The plan of one epoch of the recipe's blend.

        Raises:
            UsageError: token files are incomplete, or were made from other shards.
        """
        store, recipe = self._work.store, self._work.recipe
        if recipe.blend is None:
            return None
        with self.timed("blend"):
            if not self.does("encode"):
                check_token_files(store, self._stages, state)
            return plan_epoch(store, recipe)

    def replan_blend(self) -> dict[str, Any] | None:
        """Plan the blend of the previous invocation again from valid sets; warns if that is impossible."""
        if self._work.recipe.blend is None or not self._earlier.get("blend"):
            return None
        try:
            with self.timed("blend"):
                return plan_epoch(self._work.store, self._work.recipe)
        except VilaDataError as error:
            warnings.warn(f"{self._work.store.url}: run.json no longer contains a blend: {error}", stacklevel=2)
            return None

    def _note(self, stage: PartStage, done: TaskResult) -> None:
        self.speeds.add(stage.verb, done.result, done.seconds, stage.counts(done.result))

    def _step(self, name: str, verb: str, function: Callable[..., Any]) -> Step:
        resources = self._work.recipe.resources
        return Step(name, verb, function, getattr(resources, verb, resources.stages))


def _chains(stages: Sequence[PartStage]) -> list[list[PartStage]]:
    """Group neighboring stages that need nothing from other parts; a gathering stage is a group of its own."""
    chains: list[list[PartStage]] = []
    for stage in stages:
        if chains and stage.gather is None and chains[-1][0].gather is None:
            chains[-1].append(stage)
        else:
            chains.append([stage])
    return chains


def _committed(stage: PartStage, work: Work, job: PartJob, report: Any) -> Receipt | None:
    return stage.committed(work, job)


def _ignore(counter: str, count: int) -> None:
    return None
