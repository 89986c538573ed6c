"""`run`: build a recipe's run directory, or resume it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.corpora.source import FileScan
from vila_data.explore.measures import measure, parts_to_measure
from vila_data.explore.report import remove_pages, write_pages
from vila_data.recipe import lock
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.completed_work import all_bases, find_valid_sets
from vila_data.runs.engine import Engine
from vila_data.runs.plan import Scan, commit_parts, corpus_inputs, plan_corpus, scan_file
from vila_data.runs.progress import NoProgress, Progress
from vila_data.runs.report import RunReport, corpus_funnel, read_run_json, write_run_json
from vila_data.runs.runner import LocalRunner, Runner
from vila_data.runs.set_stages import ready_tokenizer, token_totals
from vila_data.runs.stage import CorpusState, Report, RunState, Work
from vila_data.runs.stages import Stages, stages_of


def run(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runner: str = "ray",
    limit: int | None = None,
    only: str | None = None,
    progress: Progress | None = None,
    watch: Progress | None = None,
) -> RunReport:
    """Build a recipe's shards, token files and blend in `out`; calling it again resumes and gives the same bytes.

    Args:
        recipe: a recipe, or the path of a recipe file.
        out: a local directory or an fsspec URL.
        runner: ``ray`` (the cluster at RAY_ADDRESS, or Ray on this machine if unset) or ``local`` (this process).
        limit: use only the first rows of each corpus's metadata.
        only: run only this stage, one of `Stages.verbs`; the stages before it must be complete.
        progress: receives the progress of the run.
        watch: former name of `progress`.

    Raises:
        UsageError: an argument or the recipe is invalid, or `out` belongs to a run of a different recipe.
        RunError: data, a store or a machine failed; completed work is kept.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, found {limit}")
    value = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _check_stage(value, only)
    with open_runner(runner) as opened:
        return _run(value, Store(os.fspath(out)), opened, limit, only, progress or watch or NoProgress())


def open_runner(name: str) -> Runner:
    """The runner ``local`` or ``ray``."""
    if name == "local":
        return LocalRunner()
    if name == "ray":
        from vila_data.runs.ray_runner import RayRunner

        return RayRunner()
    raise UsageError(f"--runner must be local or ray, found {name}")


def _check_stage(recipe: Recipe, only: str | None) -> None:
    missing = {
        "score": ("scorer, e.g. score.clip", recipe.score or None),
        "encode": ("pack", recipe.pack),
        "blend": ("blend", recipe.blend),
    }
    key, value = missing.get(only or "", ("", only))
    if only is not None and value is None:
        raise UsageError(f"--only {only}: the recipe has no {key}")
    verbs = stages_of(recipe, "").verbs()
    if only is not None and only not in verbs:
        raise UsageError(f"--only {only}: unknown stage; choose one of {', '.join(verbs)}")


def _run(
    recipe: Recipe, store: Store, runner: Runner, limit: int | None, only: str | None, progress: Progress
) -> RunReport:
    if recipe.pack is not None and only in (None, "encode", "blend"):
        ready_tokenizer(recipe.pack)  # fail now, not after days of downloads
    inputs = corpus_inputs(recipe)
    scorers = {name: scorer.fingerprint() for name, scorer in recipe.score.items()}
    fingerprints = lock.stage_fingerprints(recipe, limit, inputs, scorers)
    locked = lock.lock_value(recipe, limit, fingerprints, inputs, scorers)
    lock.check_same_run(store, locked)
    work = Work(store, recipe, scorers)
    stages = stages_of(recipe, fingerprints["recipe"])
    engine = Engine(work, stages, runner, progress, only, read_run_json(store))
    with engine.timed("scan"):
        plans = {
            name: plan_corpus(store, name, config, inputs[name], limit, _scanner(engine, progress))
            for name, config in recipe.corpora.items()
        }
    lock.write_lock(store, locked)
    store.clear_scratch()
    for name, plan in plans.items():
        commit_parts(store, plan, recipe.corpora[name], inputs[name], limit)
    state = RunState({name: CorpusState(plan) for name, plan in plans.items()}, {})
    engine.make_parts(state)
    store.clear_scratch()
    engine.make_sets(state)
    store.clear_scratch()
    blend = engine.plan_blend(state) if engine.does("blend") else None
    if only is not None:
        find_valid_sets(store, stages, state)
        if not state.sets.get("encode", {}).keys() >= set(recipe.blended_sets()):
            blend = None
        elif only != "blend":
            blend = engine.replan_blend()
    return _report(engine, work, stages, state, blend, locked, progress)


def _scanner(engine: Engine, progress: Progress) -> Scan:
    """A `Scan` that counts the rows of metadata files with tasks of the run."""

    def scan(name: str, config: Any, files: list[str], max_rows: int | None, share: float) -> list[FileScan]:
        progress.stage(f"scan {name}", len(files), 0)
        jobs = [(name, file, max_rows, share) for file in files]
        found: list[FileScan] = engine.run_tasks(
            "scan", _scan, jobs, lambda done: progress.advance(f"scan {name}", done.result.rows)
        )
        return found

    return scan


def _scan(work: Work, job: tuple[str, str, int | None, float], report: Report) -> FileScan:
    corpus, file, max_rows, share = job
    return scan_file(work.recipe.corpora[corpus], file, max_rows, share)


def _report(
    engine: Engine,
    work: Work,
    stages: Stages,
    state: RunState,
    blend: dict[str, Any] | None,
    locked: dict[str, Any],
    progress: Progress,
) -> RunReport:
    store, recipe = work.store, work.recipe
    earlier = read_run_json(store) or {}
    deciding = stages.deciding()
    sets = state.sets["shard"]
    decided = all(corpus.is_complete(deciding[-1]) for corpus in state.corpora.values())
    finished = len(sets) == len(recipe.shards) and decided
    tokens = {name: token_totals(found) for name, found in state.sets.get("encode", {}).items() if name in sets}
    measures = None
    if finished:
        columns = {name: (corpus.plan.parts, corpus.of("filter")) for name, corpus in state.corpora.items()}
        progress.stage("measure", parts_to_measure(columns), 0)
        with engine.timed("measure"):
            measures = measure(
                store, recipe, columns, sets, tokens, earlier.get("measures"), lambda: progress.advance("measure", 1)
            )
    report = RunReport(
        name=recipe.name,
        out=store.url,
        finished=finished,
        funnel={
            name: corpus_funnel(corpus.plan, corpus.receipts, deciding).as_dict()
            for name, corpus in state.corpora.items()
        },
        sets=sets,
        tokens=tokens,
        blend=blend,
        seconds={stage: round(seconds, 3) for stage, seconds in engine.seconds.items()},
        versions={"vila-data": version("vila-data"), "python": platform.python_version()},
        recipe=locked["fingerprints"]["recipe"],
        measures=measures,
        speed=engine.speeds.value(earlier.get("speed")),
        made_from=all_bases(work, stages, state),
    )
    write_run_json(store, report)
    if finished:
        write_pages(store, report.totals(), locked)
    elif earlier.get("finished"):
        remove_pages(store)  # they are out of date
    return report
