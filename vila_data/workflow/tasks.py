"""The work of one task of each stage: what runs on a worker. All of it is idempotent.

A task whose receipt is valid returns it without doing anything.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, fingerprint, valid_receipt
from vila_data.core.schemas import SCHEMA_VERSION
from vila_data.core.store import Store
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.source import FileScan
from vila_data.download.part import download_part
from vila_data.encode.part import EncodeJob, encode_shard
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.filter.part import filter_part, images_worth_scoring, part_digests
from vila_data.score.clip import Clip, load_clip
from vila_data.score.config import ClipConfig
from vila_data.score.part import covers, score_part
from vila_data.shard.write import ShardJob, receipt_path, write_shard
from vila_data.workflow.plan import scan_file
from vila_data.workflow.recipe import Recipe

Report = Callable[[str, int], None]
"""report(counter, n): called by a task as it gets on."""


@dataclass(frozen=True)
class Work:
    """What every task of a run needs to know. clip: fingerprint of the model's bytes."""

    store: Store
    recipe: Recipe
    clip: str | None

    @property
    def scored(self) -> bool:
        """Whether this run scores."""
        return self.recipe.score.clip is not None

    def download_inputs(self, part: Part) -> str:
        """Fingerprint of what a part's download depends on."""
        config = self.recipe.download.model_dump(mode="json", include=_DOWNLOAD_MATTERS)
        return fingerprint([part.inputs, config, SCHEMA_VERSION])

    def score_inputs(self, download: Receipt) -> str:
        """Fingerprint of what a part's scores depend on, but for which images are scored."""
        clip = self.recipe.score.clip
        return fingerprint([download.fingerprint(), self.clip, clip.embeddings if clip else None, SCHEMA_VERSION])


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
    """A part to filter. copies: which of its passing images stand earlier in the corpus; None: not asked."""

    part: Part
    download: Receipt
    score: Receipt | None
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


def committed_score(work: Work, part: Part, download: Receipt) -> Receipt | None:
    """The part's scores if they are there and cover every image that the rules ask for."""
    done = valid_receipt(work.store, part.receipt("score"), work.score_inputs(download))
    if done is None:
        return None
    needed = _needed(work, part)
    clip = work.recipe.score.clip
    assert clip is not None and work.clip is not None
    return done if covers(work.store, part, needed, work.clip, clip.embeddings) else None


def score(work: Work, part: Part, download: Receipt, report: Report) -> Receipt:
    """Score the images of a part that the cheap rules let through, and that have no score yet."""
    done = committed_score(work, part, download)
    if done is not None:
        return done
    inputs = work.score_inputs(download)
    needed = _needed(work, part)
    reuse = valid_receipt(work.store, part.receipt("score"), inputs) is not None
    assert work.recipe.score.clip is not None and work.clip is not None
    clip = _clip(work.recipe.score.clip, work.clip)
    progress = functools.partial(report, "images")
    return score_part(work.store, part, needed, clip, work.recipe.score, inputs, reuse=reuse, progress=progress)


def _needed(work: Work, part: Part) -> NDArray[np.bool_]:
    """bool[images of the part]: which are to be scored; those of conversations only where a rule asks for it."""
    rules = work.recipe.rules_for(part.corpus)
    needed = images_worth_scoring(work.store, part, rules)
    if work.recipe.corpora[part.corpus].makes == "conversation" and rules.images.min_similarity is None:
        needed[:] = False
    return needed


@functools.lru_cache(maxsize=1)
def _clip(config: ClipConfig, fingerprint: str) -> Clip:
    """The model, loaded once a process."""
    return load_clip(config)


def digests(work: Work, part: Part, report: Report) -> NDArray[np.void]:
    """Digests of the part's images that pass every rule but the duplicates'."""
    return part_digests(work.store, part, work.recipe.rules_for(part.corpus), work.scored)


def filter_fates(work: Work, job: FilterJob, report: Report) -> Receipt:
    """Decide the fates of a part."""
    done = committed_fates(work, job, report)
    rules = work.recipe.rules_for(job.part.corpus)
    return done or filter_part(work.store, job.part, rules, work.scored, job.copies, _fates_inputs(work, job))


def committed_fates(work: Work, job: FilterJob, report: Report) -> Receipt | None:
    """The part's fates if they are there already and are those of these rules, downloads and scores."""
    return valid_receipt(work.store, job.part.receipt("filter"), _fates_inputs(work, job))


def _fates_inputs(work: Work, job: FilterJob) -> str:
    rules = work.recipe.rules_for(job.part.corpus)
    copies = None if job.copies is None else hashlib.sha256(np.packbits(job.copies).tobytes()).hexdigest()
    facts: list[Any] = [job.download.fingerprint(), job.score.fingerprint() if job.score else None]
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
