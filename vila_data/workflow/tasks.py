"""The work of one task of each stage: what runs on a worker. All of it is idempotent.

A task whose receipt is valid returns it without doing anything.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, StorageError
from vila_data.core.layout import Part, score_stage
from vila_data.core.receipts import Receipt, fingerprint, valid_receipt
from vila_data.core.schemas import SCHEMA_VERSION
from vila_data.core.scores import Scores
from vila_data.core.store import Store
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.source import FileScan
from vila_data.download.part import download_part
from vila_data.encode.part import EncodeJob, encode_shard
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.filter.part import filter_part, part_digests, rows_worth_scoring
from vila_data.filter.rules import asks_for, scorers_read
from vila_data.score.part import covers, score_part
from vila_data.score.scorer import Scorer, Task
from vila_data.shard.write import ShardJob, receipt_path, write_shard
from vila_data.workflow.plan import scan_file
from vila_data.workflow.recipe import Recipe

Report = Callable[[str, int], None]
"""report(counter, n): called by a task as it gets on."""


@dataclass(frozen=True)
class Work:
    """What every task of a run needs to know. scorers: `Scorer.fingerprint` by name."""

    store: Store
    recipe: Recipe
    scorers: Mapping[str, str]

    @property
    def scores(self) -> Scores:
        """The recipe's scorers, in the order in which they run."""
        return self.recipe.scores()

    def download_inputs(self, part: Part) -> str:
        """Fingerprint of what a part's download depends on."""
        config = self.recipe.download.model_dump(mode="json", include=_DOWNLOAD_MATTERS)
        return fingerprint([part.inputs, config, SCHEMA_VERSION])

    def score_inputs(self, scorer: str, download: Receipt) -> str:
        """Fingerprint of what a part's table by a scorer depends on, but for which rows are scored."""
        switched = self.recipe.score[scorer].switched()
        return fingerprint([download.fingerprint(), self.scorers[scorer], switched, SCHEMA_VERSION])


_DOWNLOAD_MATTERS = {"max_bytes", "max_pixels", "allow_private_hosts", "opt_out", "robots_txt", "resize", "engine"}


@dataclass(frozen=True)
class ScanJob:
    """One metadata file to look at."""

    corpus: str
    file: str
    max_rows: int | None
    share: float


@dataclass(frozen=True)
class FilterJob:
    """A part to filter. scores: receipts of the scorers that its rules read, by name; copies: which of its passing images
    stand earlier in the corpus; None: not asked."""

    part: Part
    download: Receipt
    scores: Mapping[str, Receipt]
    copies: NDArray[np.bool_] | None


def scan(work: Work, job: ScanJob, report: Report) -> FileScan:
    """Count the rows of one metadata file."""
    return scan_file(work.recipe.corpora[job.corpus], job.file, job.max_rows, job.share)


def committed_download(work: Work, part: Part) -> Receipt | None:
    """The part's download if it is there already."""
    return valid_receipt(work.store, part.receipt("download"), work.download_inputs(part))


def download(work: Work, part: Part, report: Report) -> Receipt:
    """Fetch the images of a part."""
    done = committed_download(work, part)
    if done is not None:
        return done
    records = open_corpus(work.recipe.corpora[part.corpus]).read(part)
    inputs = work.download_inputs(part)
    return download_part(
        work.store, part, records, work.recipe.download, inputs, progress=functools.partial(report, "images")
    )


def committed_score(work: Work, part: Part, scorer: str, download: Receipt) -> Receipt | None:
    """The part's table by a scorer if it is there and has every row that the rules leave it."""
    inputs = work.score_inputs(scorer, download)
    done = valid_receipt(work.store, part.receipt(score_stage(scorer)), inputs)
    if done is None:
        return None
    try:
        needed = _needed(work, part, scorer)
    except StorageError:  # a table is gone that a rule on a cheaper scorer reads
        return None
    return done if covers(_score_task(work, part, scorer, inputs, needed)) else None


def score(work: Work, part: Part, scorer: str, download: Receipt, report: Report) -> Receipt:
    """Score the rows of a part that the rules on what is known before let through, and that have no score yet."""
    done = committed_score(work, part, scorer, download)
    if done is not None:
        return done
    inputs = work.score_inputs(scorer, download)
    reuse = valid_receipt(work.store, part.receipt(score_stage(scorer)), inputs) is not None
    task = _score_task(work, part, scorer, inputs, _needed(work, part, scorer), reuse)
    opened = _opened(task.scorer, task.fingerprint)
    return score_part(task, opened, functools.partial(report, f"{task.scorer.rows}s"))


def _score_task(
    work: Work, part: Part, scorer: str, inputs: str, needed: NDArray[np.bool_], reuse: bool = False
) -> Task:
    return Task(work.store, part, scorer, work.recipe.score[scorer], work.scorers[scorer], needed, inputs, reuse)


def _needed(work: Work, part: Part, scorer: str) -> NDArray[np.bool_]:
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


def digests(work: Work, part: Part, report: Report) -> NDArray[np.void]:
    """Digests of the part's images that pass every rule but the duplicates'."""
    return part_digests(work.store, part, work.recipe.rules_for(part.corpus), work.scores)


def filter_fates(work: Work, job: FilterJob, report: Report) -> Receipt:
    """Decide the fates of a part."""
    done = committed_fates(work, job, report)
    rules = work.recipe.rules_for(job.part.corpus)
    return done or filter_part(work.store, job.part, rules, work.scores, job.copies, _fates_inputs(work, job))


def committed_fates(work: Work, job: FilterJob, report: Report) -> Receipt | None:
    """The part's fates if they are there already and are those of these rules, downloads and scores."""
    return valid_receipt(work.store, job.part.receipt("filter"), _fates_inputs(work, job))


def _fates_inputs(work: Work, job: FilterJob) -> str:
    rules = work.recipe.rules_for(job.part.corpus)
    copies = None if job.copies is None else hashlib.sha256(np.packbits(job.copies).tobytes()).hexdigest()
    read = {name: job.scores[name].fingerprint() for name in scorers_read(rules, work.scores)}
    facts: list[Any] = [job.download.fingerprint(), read]
    return fingerprint([*facts, rules.model_dump(mode="json"), copies, SCHEMA_VERSION])


def shard(work: Work, job: ShardJob, report: Report) -> Receipt:
    """Write one shard."""
    done = valid_receipt(work.store, receipt_path(job.name, job.index), job.inputs)
    return done or write_shard(work.store, job)


def encode(work: Work, job: EncodeJob, report: Report) -> Receipt:
    """Write the token file of one shard."""
    done = valid_receipt(work.store, job.receipt(), job.inputs)
    if done is not None:
        return done
    assert work.recipe.pack is not None
    tokenizer = load_tokenizer(work.recipe.pack.tokenizer)
    if tokenizer.fingerprint != job.tokenizer:
        raise DataError(
            f"tokenizer {tokenizer.name}: is {tokenizer.fingerprint} on this worker and {job.tokenizer} where the run "
            "was started: install the same versions and files everywhere"
        )
    return encode_shard(work.store, job, work.recipe.pack, tokenizer)
