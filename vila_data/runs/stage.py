"""A stage as a value: what it makes, what it depends on, and its function. The engine decides what is left to do.

A *part stage* makes a table, and a receipt, for each part of a corpus; one with a `Gather` first reads all parts of
the corpus. A *set stage* makes the files of a set. `runs.stages` lists all stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vila_data.core.errors import UsageError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, fingerprint, read_receipt, valid_receipt
from vila_data.core.scores import Scores
from vila_data.core.store import Store
from vila_data.core.tables import SCHEMA_VERSION
from vila_data.recipe.recipe import Recipe
from vila_data.runs.plan import CorpusPlan

Report = Callable[[str, int], None]
"""report(counter, n): called by a task as it progresses."""


@dataclass(frozen=True)
class Work:
    """The context of every task of a run. scorers: `Scorer.fingerprint` by name."""

    store: Store
    recipe: Recipe
    scorers: Mapping[str, str]

    @functools.cached_property
    def scores(self) -> Scores:
        """The recipe's scorers, in the order in which they run."""
        return self.recipe.scores()


@dataclass(frozen=True)
class PartJob:
    """A part to process. receipts: of earlier stages, by name; gathered: the part's share of a `Gather`."""

    part: Part
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    gathered: Any = None


@dataclass(frozen=True)
class Gather:
    """What a stage needs from all parts of a corpus before it can process one of them.

    applies: whether (work, corpus) needs it; if not, each part gets None.
    collect: a task: (work, part, report) -> a summary of the part, a few bytes per row.
    combine: summaries of all parts -> each part's share, in this process.
    digest:  a share -> text, for fingerprints.
    """

    applies: Callable[[Work, str], bool]
    collect: Callable[[Work, Part, Report], Any]
    combine: Callable[[list[Any]], Sequence[Any]]
    digest: Callable[[Any], str]


@dataclass(frozen=True)
class PartStage:
    """A stage that makes something for each part.

    name:     of its receipts, its progress and in `after`: ``download``, ``score nsfw``.
    verb:     of `--only`, `resources` and the report: ``score``.
    after:    stages that come before it; it depends on their receipts, on all of them unless `reads` says which.
    reads:    (work, corpus) -> those of `after` that it depends on for a corpus.
    settings: (work, part) -> everything else that its outputs depend on, as JSON.
    make:     (work, job, inputs, report) -> the receipt, once written; inputs: the fingerprint for it.
    kept_as:  the name of its receipts (core.layout.Part.receipt), "": its own.
    covers:   whether a valid receipt is enough for (work, job, inputs); where it is not, `make` adds what is missing.
    counts:   what a receipt says was done, for progress and speed; `items` names the one that progress shows.
    decides:  its receipts count fates, so it is a line of the funnel.
    """

    name: str
    verb: str
    after: tuple[str, ...]
    settings: Callable[[Work, Part], Any]
    make: Callable[[Work, PartJob, str, Report], Receipt]
    counts: Callable[[Receipt], dict[str, int]]
    items: str = "images"
    kept_as: str = ""
    covers: Callable[[Work, PartJob, str], bool] | None = None
    gather: Gather | None = None
    decides: bool = False
    reads: Callable[[Work, str], tuple[str, ...]] | None = None

    def receipt(self, part: Part) -> str:
        """Where a part's receipt is."""
        return part.receipt(self.kept_as or self.name)

    def depends(self, work: Work, corpus: str) -> tuple[str, ...]:
        """Names of the stages that its outputs for a corpus depend on."""
        return self.after if self.reads is None else self.reads(work, corpus)

    def inputs(self, work: Work, job: PartJob) -> str:
        """Fingerprint of everything that the outputs depend on."""
        before = [[name, job.receipts[name].fingerprint()] for name in self.depends(work, job.part.corpus)]
        gathered = None if self.gather is None or job.gathered is None else self.gather.digest(job.gathered)
        return fingerprint([self.settings(work, job.part), before, gathered, SCHEMA_VERSION])

    def committed(self, work: Work, job: PartJob) -> Receipt | None:
        """The part's receipt if its outputs exist and are valid for this recipe."""
        receipt = valid_receipt(work.store, self.receipt(job.part), self.inputs(work, job))
        return receipt if receipt is None or self.covers is None or self.covers(work, job, receipt.inputs) else None

    def do(self, work: Work, job: PartJob, report: Report) -> Receipt:
        """The part's receipt; runs the stage if it is not complete."""
        return self.committed(work, job) or self.make(work, job, self.inputs(work, job), report)


def part_task(stage: PartStage, earlier: Sequence[str] = ()) -> Callable[..., Receipt]:
    """A runner's task: `stage` on a part, after the tasks of the stages `earlier` on the same part."""
    return functools.partial(_run_part, stage, tuple(earlier))


def _run_part(stage: PartStage, earlier: tuple[str, ...], work: Work, job: PartJob, *rest: Any) -> Receipt:
    *results, report = rest
    receipts = {**job.receipts, **dict(zip(earlier, results, strict=True))}
    return stage.do(work, replace(job, receipts=receipts), report)


class FinishedSet(Protocol):
    """A finished set, as its manifest describes it."""

    @property
    def name(self) -> str:
        """The set's name."""

    @property
    def inputs(self) -> str:
        """Fingerprint of what it was made from."""


class SetJob(Protocol):
    """One file of a set to write."""

    @property
    def inputs(self) -> str:
        """Fingerprint of everything that it depends on."""

    def receipt(self) -> str:
        """Where its receipt is."""


class SetStage(Protocol):
    """A stage that makes the files of sets, and, last, what finishes a set: its manifest. It is pickled and sent to workers."""

    @property
    def name(self) -> str:
        """Of its progress, `--only`, `resources` and the report."""

    @property
    def before(self) -> str | None:
        """The set stage whose sets it reads; None: it reads parts."""

    @property
    def directory(self) -> str:
        """Of a run directory: where its sets are."""

    def sets(self) -> Sequence[str]:
        """Names of the sets that it makes."""

    def inputs(self, store: Store, name: str, state: RunState) -> str | None:
        """Fingerprint of everything that a set depends on; None: the previous stage is not complete."""

    def read(self, store: Store, name: str) -> FinishedSet | None:
        """The finished set, whatever its inputs were; None if there is none."""

    def is_intact(self, store: Store, finished: Any) -> bool:
        """Whether all files of a finished set exist."""

    def remove_manifest(self, store: Store, name: str) -> None:
        """Remove the file that says that a set is finished."""

    def jobs(self, store: Store, name: str, state: RunState) -> Sequence[Any]:
        """The files to write, as SetJobs."""

    def make(self, store: Store, job: Any) -> Receipt:
        """A task: write one file."""

    def finish(
        self, store: Store, name: str, state: RunState, jobs: Sequence[Any], receipts: list[Receipt]
    ) -> FinishedSet:
        """Finish a set whose files are written.

        Raises:
            DataError: they do not contain all samples.
        """

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """Counts of what was done according to a receipt, including `samples`."""


def run_set_job(stage: SetStage, work: Work, job: Any, report: Report) -> Receipt:
    """A runner's task: one file of a set, unless it is complete."""
    return valid_receipt(work.store, job.receipt(), job.inputs) or stage.make(work.store, job)


def valid_set(stage: SetStage, store: Store, name: str, state: RunState) -> Any | None:
    """A finished set if its files exist and it is valid for this recipe; otherwise None."""
    inputs = stage.inputs(store, name, state)
    found = stage.read(store, name) if inputs is not None else None
    return found if found is not None and found.inputs == inputs and stage.is_intact(store, found) else None


def make_set(
    stage: SetStage, store: Store, name: str, state: RunState, run: Callable[[Sequence[Any]], list[Receipt]]
) -> Any:
    """The finished set: the valid one, or a new one. run: runs jobs and returns their receipts in order."""
    valid = valid_set(stage, store, name, state)
    if valid is not None:
        return valid
    if stage.read(store, name) is not None:  # its manifest must not describe the new files
        stage.remove_manifest(store, name)
    jobs = stage.jobs(store, name, state)
    return stage.finish(store, name, state, jobs, run(jobs))


@dataclass
class CorpusState:
    """A corpus's parts and their receipts by stage; None for a part that is not complete."""

    plan: CorpusPlan
    receipts: dict[str, list[Receipt | None]] = field(default_factory=dict)

    def is_complete(self, stage: str) -> bool:
        """Whether the stage is complete for all parts."""
        return None not in self.receipts[stage]

    def of(self, stage: str) -> list[Receipt]:
        """The receipts of a stage that is complete."""
        return [receipt for receipt in self.receipts[stage] if receipt is not None]

    def recorded(self, store: Store, stage: PartStage) -> list[Receipt] | None:
        """The stage's receipts, even if files of its parts are gone; None if a receipt is missing."""
        found: list[Receipt] = []
        for part, known in zip(self.plan.parts, self.receipts[stage.name], strict=True):
            receipt = known or read_receipt(store, stage.receipt(part))
            if receipt is None:
                return None
            found.append(receipt)
        return found

    def job(self, index: int, stages: Sequence[str]) -> PartJob | None:
        """A part with its receipts of some stages; None if one is not complete."""
        found = {name: self.receipts[name][index] if name in self.receipts else None for name in stages}
        there = {name: receipt for name, receipt in found.items() if receipt is not None}
        return PartJob(self.plan.parts[index], there) if len(there) == len(found) else None

    def jobs(self, stages: Sequence[str]) -> list[PartJob]:
        """All parts with their receipts of some stages.

        Raises:
            UsageError: a stage is not complete for all parts.
        """
        for name in stages:
            missing = self.receipts[name].count(None)
            if missing:
                raise UsageError(
                    f"corpus {self.plan.name!r}: {name} is incomplete ({missing} of {len(self.plan.parts)} parts are missing); "
                    "run it first"
                )
        found = [self.job(index, stages) for index in range(len(self.plan.parts))]
        return [job for job in found if job is not None]


@dataclass
class RunState:
    """The completed work of a run, as far as the engine has found or done it. sets: finished sets, by stage and name."""

    corpora: dict[str, CorpusState]
    sets: dict[str, dict[str, Any]]
