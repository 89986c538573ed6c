"""The stages of a run, in order. A new one is its value in this list, and the function that it names."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, valid_receipt
from vila_data.corpora.kinds import open_corpus
from vila_data.download.part import download_part
from vila_data.filter.duplicates import later_copies
from vila_data.filter.part import filter_part, images_worth_scoring, part_digests
from vila_data.score.clip import Clip, load_clip
from vila_data.score.config import ClipConfig
from vila_data.score.part import covers, score_part
from vila_data.workflow.encoding import EncodeStage
from vila_data.workflow.recipe import Recipe
from vila_data.workflow.sharding import ShardStage
from vila_data.workflow.stage import Gather, PartJob, PartStage, Report, SetStage, Work

VERBS: Final = ("download", "score", "filter", "shard", "encode", "blend")
"""What `--only` takes."""


@dataclass(frozen=True)
class Stages:
    """A recipe's stages: those over parts, then those over sets; the blend is planned from the last one's sets."""

    parts: tuple[PartStage, ...]
    sets: tuple[SetStage, ...]

    def part(self, name: str) -> PartStage:
        """A part stage by name."""
        return next(stage for stage in self.parts if stage.name == name)


def stages_of(recipe: Recipe, fingerprint: str) -> Stages:
    """The stages of a recipe. fingerprint: of the recipe, for the manifests of its sets."""
    scores = ("score",) if recipe.score.clip is not None else ()
    download = PartStage(
        name="download",
        verb="download",
        after=(),
        settings=_download_settings,
        make=_download,
        receipt=functools.partial(_receipt, "download"),
        counts=_downloaded,
        decides=True,
    )
    score = PartStage(
        name="score",
        verb="score",
        after=("download",),
        settings=_score_settings,
        make=_score,
        receipt=functools.partial(_receipt, "score"),
        counts=_scored,
        covers=_has_all_scores,
    )
    fates = PartStage(
        name="filter",
        verb="filter",
        after=("download", *scores),
        settings=_rules,
        make=_filter,
        receipt=functools.partial(_receipt, "filter"),
        counts=_fates,
        gather=Gather(_drops_copies, _digests, later_copies, _packed),
        decides=True,
    )
    sets: list[SetStage] = [ShardStage(recipe, fingerprint, download, fates)]
    if recipe.pack is not None:
        sets.append(EncodeStage(recipe.pack, recipe.blended_sets() or list(recipe.shards)))
    return Stages((download, *([score] if scores else []), fates), tuple(sets))


def _receipt(stage: str, part: Part) -> str:
    return part.receipt(stage)


# download


def _download_settings(work: Work, part: Part) -> Any:
    return [part.inputs, work.recipe.download.what_matters()]


def _download(work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    records = open_corpus(work.recipe.corpora[job.part.corpus]).read(job.part)
    progress = functools.partial(report, "images")
    return download_part(work.store, job.part, records, work.recipe.download, inputs, progress=progress)


def _downloaded(receipt: Receipt) -> dict[str, int]:
    return _fates(receipt) | {"bytes": receipt.counts["bytes_fetched"]}


# score


def _score_settings(work: Work, part: Part) -> Any:
    clip = work.recipe.score.clip
    return [work.models["clip"], clip.embeddings if clip else None]


def _score(work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    """The images that the cheap rules let through, and that have no score yet."""
    assert work.recipe.score.clip is not None
    reuse = valid_receipt(work.store, job.part.receipt("score"), inputs) is not None
    clip = _clip(work.recipe.score.clip, work.models["clip"])
    progress = functools.partial(report, "images")
    needed = _needed(work, job.part)
    return score_part(work.store, job.part, needed, clip, work.recipe.score, inputs, reuse=reuse, progress=progress)


def _has_all_scores(work: Work, job: PartJob, inputs: str) -> bool:
    assert work.recipe.score.clip is not None
    embeddings = work.recipe.score.clip.embeddings
    return covers(work.store, job.part, _needed(work, job.part), work.models["clip"], embeddings)


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


def _scored(receipt: Receipt) -> dict[str, int]:
    return {"images": receipt.counts["images_scored"]}


# filter


def _rules(work: Work, part: Part) -> Any:
    return work.recipe.rules_for(part.corpus).model_dump(mode="json")


def _filter(work: Work, job: PartJob, inputs: str, report: Report) -> Receipt:
    rules = work.recipe.rules_for(job.part.corpus)
    return filter_part(work.store, job.part, rules, "score" in job.receipts, job.gathered, inputs)


def _drops_copies(work: Work, corpus: str) -> bool:
    return work.recipe.rules_for(corpus).images.exact_duplicates == "drop"


def _digests(work: Work, part: Part, report: Report) -> NDArray[np.void]:
    scored = work.recipe.score.clip is not None
    return part_digests(work.store, part, work.recipe.rules_for(part.corpus), scored)


def _packed(copies: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(copies).tobytes()).hexdigest()


def _fates(receipt: Receipt) -> dict[str, int]:
    return {unit: sum(receipt.counts[unit].values()) for unit in ("images", "records")}
