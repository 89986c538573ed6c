"""The stages of a run, in order. To add one, add its value to `stages_of`, with the functions that it names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import StorageError
from vila_data.core.layout import Part, score_stage
from vila_data.core.receipts import Receipt, valid_receipt
from vila_data.core.scores import ScoreTable
from vila_data.corpora.kinds import open_corpus
from vila_data.download.part import download_part
from vila_data.filter.duplicates import later_copies
from vila_data.filter.named import revisions
from vila_data.filter.part import filter_part, part_digests, rows_worth_scoring
from vila_data.filter.rules import FATES_VERSION, asks_for, scorers_read
from vila_data.recipe.recipe import Recipe
from vila_data.runs.set_stages import EncodeStage, ShardStage
from vila_data.runs.stage import Gather, PartJob, PartStage, Report, SetStage, Work
from vila_data.score.part import covers, score_part
from vila_data.score.scorer import Scorer, Task
from vila_data.score.stage import look_at_part, measure_part, share_digest


@dataclass(frozen=True)
class Stages:
    """A recipe's stages: those over parts, then those over sets; the blend is planned from the last one's sets."""

    parts: tuple[PartStage, ...]
    sets: tuple[SetStage, ...]

    def part(self, name: str) -> PartStage:
        """A part stage by name."""
        return next(stage for stage in self.parts if stage.name == name)

    def verbs(self) -> tuple[str, ...]:
        """What `--only` takes, in order."""
        return tuple(dict.fromkeys([*(one.verb for one in self.parts), *(one.name for one in self.sets), "blend"]))

    def deciding(self) -> list[str]:
        """Names of the part stages that decide fates: the lines of the funnel."""
        return [stage.name for stage in self.parts if stage.decides]


def stages_of(recipe: Recipe, fingerprint: str) -> Stages:
    """The stages of a recipe. fingerprint: of the recipe, for the manifests of its sets."""
    download = PartStage(
        name="download",
        verb="download",
        after=(),
        settings=_download_settings,
        make=_download,
        counts=_downloaded,
        decides=True,
    )
    tables = recipe.scores().tables
    columns = [_score_stage(one.name, one.rows) for one in tables if one.name in recipe.score]
    columns += [_column_stage(one, recipe) for one in tables if one.name in recipe.stages]
    fates = PartStage(
        name="filter",
        verb="filter",
        after=("download", *(stage.name for stage in columns)),
        settings=_rules,
        make=_filter,
        counts=_fates,
        gather=Gather(_drops_copies, _digests, later_copies, _packed),
        decides=True,
        reads=_tables_of_the_rules,
    )
    sets: list[SetStage] = [ShardStage(recipe, fingerprint, download, fates)]
    if recipe.pack is not None:
        sets.append(EncodeStage(recipe.pack, recipe.blended_sets() or list(recipe.shards)))
    return Stages((download, *columns, fates), tuple(sets))


# download


def _download_settings(work: Work, part: Part) -> Any:
    return [part.inputs, work.recipe.download.what_matters()]


def _download(work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    records = open_corpus(work.recipe.corpora[job.part.corpus]).read(job.part)
    progress = functools.partial(report, "images")
    return download_part(work.store, job.part, records, work.recipe.download, inputs, progress=progress)


def _downloaded(receipt: Receipt) -> dict[str, int]:
    return _fates(receipt) | {"bytes": receipt.counts["bytes_fetched"]}


# score: a stage a scorer


def _score_stage(scorer: str, rows: str) -> PartStage:
    return PartStage(
        name=score_stage(scorer),
        verb="score",
        after=("download",),
        settings=functools.partial(_score_settings, scorer),
        make=functools.partial(_score, scorer),
        counts=functools.partial(_scored, f"{rows}s"),
        items=f"{rows}s",
        covers=functools.partial(_has_all_scores, scorer),
    )


def _score_settings(scorer: str, work: Work, part: Part) -> Any:
    return [work.scorers[scorer], work.recipe.score[scorer].switched()]


def _score(scorer: str, work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    """The rows that the rules on what is known before let through, and that have no score yet."""
    reuse = valid_receipt(work.store, job.part.receipt(score_stage(scorer)), inputs) is not None
    task = _task(scorer, work, job.part, inputs, _needed(scorer, work, job.part), reuse)
    opened = _opened(task.scorer, task.fingerprint)
    return score_part(task, opened, functools.partial(report, f"{task.scorer.rows}s"))


def _has_all_scores(scorer: str, work: Work, job: PartJob, inputs: str) -> bool:
    try:
        needed = _needed(scorer, work, job.part)
    except StorageError:  # a table is gone that a rule on a cheaper scorer reads
        return False
    return covers(_task(scorer, work, job.part, inputs, needed))


def _task(scorer: str, work: Work, part: Part, inputs: str, needed: NDArray[np.bool_], reuse: bool = False) -> Task:
    return Task(work.store, part, scorer, work.recipe.score[scorer], work.scorers[scorer], needed, inputs, reuse)


def _needed(scorer: str, work: Work, part: Part) -> NDArray[np.bool_]:
    """bool[rows of its table]: which are to be scored."""
    rules, scores = work.recipe.rules_for(part.corpus), work.scores
    needed = rows_worth_scoring(work.store, part, rules, scores, scorer)
    conversations = work.recipe.corpora[part.corpus].makes == "conversation"
    if conversations and scores.table(scorer).on_demand and not asks_for(rules, scores, scorer):
        needed[:] = False
    return needed


@functools.lru_cache(maxsize=4)
def _opened(scorer: Scorer, fingerprint: str) -> Any:
    """The model, loaded once a process."""
    return scorer.open()


def _scored(unit: str, receipt: Receipt) -> dict[str, int]:
    return {unit: receipt.counts[f"{unit}_scored"]}


# the entries of `stages:`


def _column_stage(table: ScoreTable, recipe: Recipe) -> PartStage:
    name, entry = table.name, recipe.stages[table.name]
    return PartStage(
        name=name,
        verb=name,
        after=("download", *_stage_names(sorted(table.reads), recipe)),
        settings=functools.partial(_column_settings, name),
        make=functools.partial(_make_columns, name),
        counts=functools.partial(_scored, f"{table.rows}s"),
        items=f"{table.rows}s",
        kept_as=score_stage(name),
        gather=Gather(_always, functools.partial(_look, name), entry.join, share_digest) if entry.gathers else None,
    )


def _stage_names(tables: Iterable[str], recipe: Recipe) -> tuple[str, ...]:
    return tuple(name if name in recipe.stages else score_stage(name) for name in tables)


def _column_settings(name: str, work: Work, part: Part) -> Any:
    return work.recipe.stages[name].fingerprint()


def _make_columns(name: str, work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    stage = work.recipe.stages[name]
    return measure_part(work.store, job.part, name, stage, work.scores, job.gathered, inputs)


def _look(name: str, work: Work, part: Part, report: Report) -> Any:
    return look_at_part(work.store, part, work.recipe.stages[name], work.scores)


def _always(work: Work, corpus: str) -> bool:
    return True


# filter


def _rules(work: Work, part: Part) -> Any:
    rules = work.recipe.rules_for(part.corpus)
    added = revisions(rules.rules)
    return rules.model_dump(mode="json") | {"fates": FATES_VERSION} | ({"revisions": added} if added else {})


def _tables_of_the_rules(work: Work, corpus: str) -> tuple[str, ...]:
    return ("download", *_stage_names(scorers_read(work.recipe.rules_for(corpus), work.scores), work.recipe))


def _filter(work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    rules = work.recipe.rules_for(job.part.corpus)
    return filter_part(work.store, job.part, rules, work.scores, job.gathered, inputs)


def _drops_copies(work: Work, corpus: str) -> bool:
    return work.recipe.rules_for(corpus).images.exact_duplicates == "drop"


def _digests(work: Work, part: Part, report: Report) -> NDArray[np.void]:
    return part_digests(work.store, part, work.recipe.rules_for(part.corpus), work.scores)


def _packed(copies: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(copies).tobytes()).hexdigest()


def _fates(receipt: Receipt) -> dict[str, int]:
    return {unit: sum(receipt.counts[unit].values()) for unit in ("images", "records")}
