"""Find the completed work of a run that is still valid for this recipe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from vila_data.core.errors import UsageError, VilaDataError
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.runs.stage import CorpusState, PartJob, PartStage, RunState, Work, valid_set
from vila_data.runs.stages import Stages

Basis = dict[str, dict[str, str | None]]
"""{stage: {corpus: fingerprint of its receipts and of what they were made from}}: as `made_from` in run.json."""


def find_committed(work: Work, stages: Sequence[PartStage], corpus: CorpusState) -> None:
    """Store the valid receipts of stages without a `Gather` in `corpus.receipts`, in order."""
    for stage in stages:
        corpus.receipts[stage.name] = found = []
        for index in range(len(corpus.plan.parts)):
            job = corpus.job(index, stage.depends(work, corpus.plan.name))
            found.append(None if job is None else stage.committed(work, job))


def all_bases(work: Work, stages: Stages, state: RunState) -> Basis:
    """What the receipts of gathering stages were made from, for the corpora that have all receipts."""
    return {
        stage.name: {
            name: receipts_basis(work, stages, stage, corpus, corpus.of(stage.name))
            for name, corpus in state.corpora.items()
            if corpus.is_complete(stage.name)
        }
        for stage in stages.parts
        if stage.gather is not None
    }


def receipts_basis(
    work: Work, stages: Stages, stage: PartStage, corpus: CorpusState, receipts: list[Receipt]
) -> str | None:
    """Fingerprint of a gathering stage's receipts and of what they were made from; None if an earlier stage is stale."""
    facts: list[Any] = [stage.settings(work, part) for part in corpus.plan.parts[:1]]
    facts += [[receipt.inputs, receipt.fingerprint()] for receipt in receipts]
    for name in stage.depends(work, corpus.plan.name):
        before = _current_receipts(work, stages, stages.part(name), corpus)
        if before is None:
            return None
        facts.append([receipt.fingerprint() for receipt in before])
    return fingerprint(facts)


def _current_receipts(work: Work, stages: Stages, stage: PartStage, corpus: CorpusState) -> list[Receipt] | None:
    """The receipts of a stage if all are valid for this recipe, even if files of its parts are gone; otherwise None."""
    if stage.gather is not None:
        return corpus.of(stage.name) if corpus.is_complete(stage.name) else None
    recorded = corpus.recorded(work.store, stage)
    before = {
        name: _current_receipts(work, stages, stages.part(name), corpus)
        for name in stage.depends(work, corpus.plan.name)
    }
    for index, receipt in enumerate(recorded or ()):
        receipts = {name: found[index] for name, found in before.items() if found is not None}
        if len(receipts) < len(before):
            return None
        if receipt.inputs != stage.inputs(work, PartJob(corpus.plan.parts[index], receipts)):
            return None
    return recorded


def finished_sets(store: Store, stages: Stages, stage_name: str) -> dict[str, Any]:
    """The finished sets of a stage, whatever their inputs were.

    Raises:
        UsageError: one is missing.
    """
    stage = next(one for one in stages.sets if one.name == stage_name)
    found = {name: stage.read(store, name) for name in stage.sets()}
    missing = [name for name, finished in found.items() if finished is None]
    if missing:
        raise UsageError(f"sets {', '.join(missing)} do not exist yet; run --only {stage_name} first")
    return found


def find_valid_sets(store: Store, stages: Stages, state: RunState) -> None:
    """Put the valid sets of every stage in `state`; run.json reports them after an invocation with `only`."""
    for stage in stages.sets:
        state.sets[stage.name] = {}
        if not store.exists(stage.directory) or (stage.before and not state.sets[stage.before]):
            continue
        try:
            found = {name: valid_set(stage, store, name, state) for name in stage.sets()}
        except VilaDataError as error:
            warnings.warn(
                f"{store.url}: run.json no longer contains {stage.directory} and blend: {error}",
                stacklevel=2,
            )
            continue
        state.sets[stage.name] = {name: finished for name, finished in found.items() if finished is not None}


def check_token_files(store: Store, stages: Stages, state: RunState) -> None:
    """Refuse token files that are incomplete or were made from other shards."""
    encode = stages.sets[-1]
    state.sets["shard"] = finished_sets(store, stages, "shard")
    names = [name for name in encode.sets() if encode.read(store, name) is not None]
    state.sets["encode"] = {name: valid_set(encode, store, name, state) for name in names}
    stale = [name for name, finished in state.sets["encode"].items() if finished is None]
    if stale:
        raise UsageError(
            f"{store.url}: sets {', '.join(sorted(stale))}: their token files are incomplete or were made "
            "from other shards; run the recipe with --only encode first"
        )
