"""A stage as a value: what it makes, what it depends on, its work. What is committed, stale or left to do is the engine's.

A *part stage* makes a table, and a receipt, for each part of a corpus; one with a `Gather` looks at all parts of the
corpus first. A *set stage* makes the files of a set. `workflow.stages` lists all of them.
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
"""report(counter, n): called by a task as it gets on."""


@dataclass(frozen=True)
class Work:
    """What every task of a run needs to know. scorers: `Scorer.fingerprint` by name."""

    store: Store
    recipe: Recipe
    scorers: Mapping[str, str]

    @functools.cached_property
    def scores(self) -> Scores:
        """The recipe's scorers, in the order in which they run."""
        return self.recipe.scores()


@dataclass(frozen=True)
class PartJob:
    """A part to work on. receipts: of the stages before, by name; gathered: the part's share of a `Gather`."""

    part: Part
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    gathered: Any = None


@dataclass(frozen=True)
class Gather:
    """What the work on a part needs of all parts of its corpus.

    wanted: whether (work, corpus) needs it at all; else each part gets None.
    look:   a task: (work, part, report) -> what it says of a part, of bytes rather than of columns.
    join:   what all parts say -> each part's share, in this process.
    digest: a share -> text, for fingerprints.
    """

    wanted: Callable[[Work, str], bool]
    look: Callable[[Work, Part, Report], Any]
    join: Callable[[list[Any]], Sequence[Any]]
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
        """The part's receipt if its outputs are there and what this recipe asks for."""
        receipt = valid_receipt(work.store, self.receipt(job.part), self.inputs(work, job))
        return receipt if receipt is None or self.covers is None or self.covers(work, job, receipt.inputs) else None

    def do(self, work: Work, job: PartJob, report: Report) -> Receipt:
        """The part's receipt; made if it is not committed."""
        return self.committed(work, job) or self.make(work, job, self.inputs(work, job), report)


def task_of(stage: PartStage, earlier: Sequence[str] = ()) -> Callable[..., Receipt]:
    """A runner's task: `stage` over a part, behind the tasks of the stages `earlier` on the same part."""
    return functools.partial(_do_behind, stage, tuple(earlier))


def _do_behind(stage: PartStage, earlier: tuple[str, ...], work: Work, job: PartJob, *rest: Any) -> Receipt:
    *results, report = rest
    receipts = {**job.receipts, **dict(zip(earlier, results, strict=True))}
    return stage.do(work, replace(job, receipts=receipts), report)


class Finished(Protocol):
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
    """A stage that makes the files of sets, and, last, what finishes a set: its manifest. Stages are sent to workers."""

    @property
    def name(self) -> str:
        """Of its progress, `--only`, `resources` and the report."""

    @property
    def before(self) -> str | None:
        """The set stage whose sets it reads; None: it reads parts."""

    @property
    def folder(self) -> str:
        """Of a run directory: where its sets are."""

    def sets(self) -> Sequence[str]:
        """Names of the sets that it makes."""

    def inputs(self, store: Store, name: str, made: Made) -> str | None:
        """Fingerprint of everything that a set depends on; None: what comes before it is not there."""

    def found(self, store: Store, name: str) -> Finished | None:
        """The finished set, of whatever inputs; None where there is none."""

    def whole(self, store: Store, finished: Any) -> bool:
        """Whether all files of a finished set are there."""

    def forget(self, store: Store, name: str) -> None:
        """Remove the file that says that a set is finished."""

    def jobs(self, store: Store, name: str, made: Made) -> Sequence[Any]:
        """The files to write (SetJob)."""

    def make(self, store: Store, job: Any) -> Receipt:
        """A task: write one file."""

    def finish(self, store: Store, name: str, made: Made, jobs: Sequence[Any], receipts: list[Receipt]) -> Finished:
        """Finish a set whose files are written.

        Raises:
            DataError: they do not hold all samples.
        """

    def counts(self, receipt: Receipt) -> dict[str, int]:
        """What a receipt says was done, `samples` among it."""


def do_set_job(stage: SetStage, work: Work, job: Any, report: Report) -> Receipt:
    """A runner's task: one file of a set, unless it is committed."""
    return valid_receipt(work.store, job.receipt(), job.inputs) or stage.make(work.store, job)


def standing_set(stage: SetStage, store: Store, name: str, made: Made) -> Any | None:
    """A finished set, if its files are there and such as this recipe makes of what comes before; else None."""
    inputs = stage.inputs(store, name, made)
    found = stage.found(store, name) if inputs is not None else None
    return found if found is not None and found.inputs == inputs and stage.whole(store, found) else None


def make_set(
    stage: SetStage, store: Store, name: str, made: Made, run: Callable[[Sequence[Any]], list[Receipt]]
) -> Any:
    """The finished set: the one that stands, or a new one. run: does jobs, and gives their receipts in order."""
    standing = standing_set(stage, store, name, made)
    if standing is not None:
        return standing
    if stage.found(store, name) is not None:  # its manifest must not describe the new files
        stage.forget(store, name)
    jobs = stage.jobs(store, name, made)
    return stage.finish(store, name, made, jobs, run(jobs))


@dataclass
class CorpusState:
    """A corpus's parts and their receipts by stage, None where a stage is not committed."""

    plan: CorpusPlan
    receipts: dict[str, list[Receipt | None]] = field(default_factory=dict)

    def is_complete(self, stage: str) -> bool:
        """Whether the stage is committed for all parts."""
        return None not in self.receipts[stage]

    def of(self, stage: str) -> list[Receipt]:
        """The receipts of a stage that is complete."""
        return [receipt for receipt in self.receipts[stage] if receipt is not None]

    def told(self, store: Store, stage: PartStage) -> list[Receipt] | None:
        """The stage's receipts, even of parts whose files are gone; None where one is missing."""
        found: list[Receipt] = []
        for part, known in zip(self.plan.parts, self.receipts[stage.name], strict=True):
            receipt = known or read_receipt(store, stage.receipt(part))
            if receipt is None:
                return None
            found.append(receipt)
        return found

    def job(self, index: int, stages: Sequence[str]) -> PartJob | None:
        """A part with its receipts of some stages; None where one is not committed."""
        found = {name: self.receipts[name][index] if name in self.receipts else None for name in stages}
        there = {name: receipt for name, receipt in found.items() if receipt is not None}
        return PartJob(self.plan.parts[index], there) if len(there) == len(found) else None

    def jobs(self, stages: Sequence[str]) -> list[PartJob]:
        """All parts with their receipts of some stages.

        Raises:
            UsageError: a stage is not committed for all parts.
        """
        for name in stages:
            missing = self.receipts[name].count(None)
            if missing:
                raise UsageError(
                    f"corpus {self.plan.name!r}: {name} lacks {missing} of {len(self.plan.parts)} parts: run it first"
                )
        found = [self.job(index, stages) for index in range(len(self.plan.parts))]
        return [job for job in found if job is not None]


@dataclass
class Made:
    """The finished work of a run that the engine has found or made so far. sets: finished sets, by stage and name."""

    corpora: dict[str, CorpusState]
    sets: dict[str, dict[str, Any]]


def find_committed(work: Work, stages: Sequence[PartStage], corpus: CorpusState) -> None:
    """Note the committed receipts of stages, in order; those without a `Gather`."""
    for stage in stages:
        corpus.receipts[stage.name] = found = []
        for index in range(len(corpus.plan.parts)):
            job = corpus.job(index, stage.depends(work, corpus.plan.name))
            found.append(None if job is None else stage.committed(work, job))
