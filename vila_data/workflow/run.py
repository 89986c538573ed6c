"""One run: every stage over every part, then the shards, then the totals.

Stages are committed part by part; what is committed already is passed over, so
relaunching the same call resumes.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import Part, score_stage
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.corpora.source import FileScan
from vila_data.encode.part import EncodeJob
from vila_data.encode.tokens import TokenManifest
from vila_data.filter import duplicates
from vila_data.filter.rules import scorers_read
from vila_data.shard.layout import lay_out
from vila_data.shard.manifest import Manifest, finish_set, manifest_path, read_manifest
from vila_data.shard.write import ShardJob
from vila_data.workflow import lock, standing, tasks
from vila_data.workflow.blending import plan_epoch
from vila_data.workflow.encoding import encode_sets, ready_tokenizer, token_totals, tokens_to_blend
from vila_data.workflow.measures.run import measure, parts_to_measure
from vila_data.workflow.pages import remove_pages, write_pages
from vila_data.workflow.plan import commit_parts, corpus_inputs, plan_corpus
from vila_data.workflow.progress import Silence, Watch
from vila_data.workflow.recipe import Recipe, load_recipe
from vila_data.workflow.report import RunReport, corpus_funnel, read_run_json, write_run_json
from vila_data.workflow.runner import LocalRunner, Runner, Step
from vila_data.workflow.speed import Speeds
from vila_data.workflow.standing import CorpusState
from vila_data.workflow.tasks import FilterJob, ScanJob, Work

STAGES: Final = ("download", "score", "filter", "shard", "encode", "blend")
MB: Final = 1_000_000


def run(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runner: str = "ray",
    limit: int | None = None,
    only: str | None = None,
    watch: Watch | None = None,
) -> RunReport:
    """Make the shards of a recipe in `out`; calling it again resumes and gives the same bytes.

    Args:
        recipe: a recipe, or the path of one.
        out: a local folder or an fsspec URL.
        runner: ``ray`` (the cluster at RAY_ADDRESS, else this machine) or ``local`` (this process).
        limit: take only the first rows of each corpus's metadata.
        only: do one of STAGES; the ones before it must be committed.
        watch: is told how far the run is.

    Raises:
        UsageError: the call or the recipe is wrong, or `out` holds another recipe's run.
        RunError: data, a store or a machine is wrong; what is committed stays.
    """
    if only is not None and only not in STAGES:
        raise UsageError(f"--only {only}: the stages are {', '.join(STAGES)}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1")
    value = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with open_runner(runner) as opened:
        return _Run(value, Store(os.fspath(out)), opened, limit, watch or Silence()).execute(only)


def open_runner(name: str) -> Runner:
    """The runner ``local`` or ``ray``."""
    if name == "local":
        return LocalRunner()
    if name == "ray":
        from vila_data.workflow.ray_runner import RayRunner

        return RayRunner()
    raise UsageError(f"--runner {name}: local or ray")


class _Run:
    def __init__(self, recipe: Recipe, store: Store, runner: Runner, limit: int | None, watch: Watch) -> None:
        self._recipe, self._store, self._runner, self._limit, self._watch = recipe, store, runner, limit, watch
        self._work = Work(store, recipe, {name: scorer.fingerprint() for name, scorer in recipe.score.items()})
        self._seconds: dict[str, float] = {}
        self._fingerprints: dict[str, str] = {}
        self._tokens: dict[str, TokenManifest] = {}
        self._speeds = Speeds()
        self._earlier: dict[str, Any] = {}

    def execute(self, only: str | None) -> RunReport:
        """Do what is left to do."""
        if self._recipe.pack is not None and only in (None, "encode", "blend"):
            ready_tokenizer(self._recipe.pack)  # rather now than after days of downloads
        inputs = corpus_inputs(self._recipe)
        self._fingerprints = lock.stage_fingerprints(self._recipe, self._limit, inputs, self._work.scorers)
        locked = lock.lock_value(self._recipe, self._limit, self._fingerprints, inputs, self._work.scorers)
        lock.check_same_run(self._store, locked)
        self._earlier = read_run_json(self._store) or {}
        with self._timed("scan"):
            plans = {
                name: plan_corpus(self._store, name, config, inputs[name], self._limit, self._scan)
                for name, config in self._recipe.corpora.items()
            }
        lock.write_lock(self._store, locked)
        self._store.clear_scratch()
        for name, plan in plans.items():
            commit_parts(self._store, plan, self._recipe.corpora[name], inputs[name], self._limit)
        corpora = {name: CorpusState(plan) for name, plan in plans.items()}
        self._download_and_score(corpora, only)
        self._store.clear_scratch()
        sets = self._committed_sets() if only in ("encode", "blend") else {}
        self._filter(corpora, only)
        if only in (None, "shard"):
            sets = self._shard(corpora)
        if only in (None, "encode"):
            self._encode(sets, only)
        self._store.clear_scratch()
        blend = self._blend(sets, only) if only in (None, "blend") else None
        if only is not None:
            sets, blend = self._tell_others(corpora, sets, blend, only)
        return self._report(corpora, sets, blend)

    def _scan(self, name: str, config: Any, files: list[str], max_rows: int | None, share: float) -> list[FileScan]:
        jobs = [ScanJob(name, file, max_rows, share) for file in files]
        found: dict[int, FileScan] = {}
        self._watch.stage(f"scan {name}", len(jobs), 0)
        for done in self._runner.run(self._work, [self._step("scan", tasks.scan)], jobs, _ignore):
            found[done.job] = done.result
            self._watch.advance(f"scan {name}", done.result.rows)
        return [found[index] for index in range(len(jobs))]

    def _download_and_score(self, corpora: dict[str, CorpusState], only: str | None) -> None:
        """Fetch and score; a part is scored as soon as it is fetched, by one scorer after another."""
        scorers = [table.name for table in self._work.scores.tables]
        for corpus in corpora.values():
            downloads = [tasks.committed_download(self._work, part) for part in corpus.plan.parts]
            corpus.receipts = {"download": downloads}
            for name in scorers:
                corpus.receipts[score_stage(name)] = [
                    None if done is None else tasks.committed_score(self._work, part, name, done)
                    for part, done in zip(corpus.plan.parts, downloads, strict=True)
                ]
        steps = []
        if only in (None, "download"):
            steps.append(self._step("download", tasks.download))
        if only == "score":
            if not scorers:
                raise UsageError("--only score: the recipe has no scorer, e.g. score.clip")
            for corpus in corpora.values():
                corpus.complete("download")
        if only in (None, "score"):
            steps += [self._step(score_stage(name), functools.partial(_score, name)) for name in scorers]
        if steps:
            self._run_parts(corpora, steps)

    def _run_parts(self, corpora: dict[str, CorpusState], steps: list[Step]) -> None:
        places: list[tuple[CorpusState, int]] = []
        for step in steps:
            self._watch.stage(step.stage, *_progress(corpora, step.stage))
        for corpus in corpora.values():
            for index in range(len(corpus.plan.parts)):
                if any(corpus.receipts[step.stage][index] is None for step in steps):
                    places.append((corpus, index))
        jobs = [corpus.plan.parts[index] for corpus, index in places]
        with self._timed("download and score"):
            for done in self._runner.run(self._work, steps, jobs, _ignore):
                corpus, index = places[done.job]
                self._speeds.note(done)
                if corpus.receipts[done.stage][index] is None:
                    self._watch.advance(done.stage, _images_in(done.stage, done.result))
                corpus.receipts[done.stage][index] = done.result

    def _filter(self, corpora: dict[str, CorpusState], only: str | None) -> None:
        for name, corpus in corpora.items():
            if only in (None, "filter"):
                with self._timed("filter"):
                    corpus.receipts["filter"] = list(self._filter_corpus(name, corpus))
                continue
            corpus.receipts["filter"] = self._standing_fates(name, corpus)
            if only == "shard":
                corpus.complete("filter")

    def _filter_corpus(self, name: str, corpus: CorpusState) -> list[Receipt]:
        jobs = self._filter_jobs(name, corpus)
        self._watch.stage(f"filter {name}", len(jobs), 0)
        receipts: list[Receipt] = self._ordered("filter", tasks.filter_fates, jobs)
        for receipt in receipts:
            self._watch.advance(f"filter {name}", sum(receipt.counts["images"].values()))
        return receipts

    def _filter_jobs(self, name: str, corpus: CorpusState) -> list[FilterJob]:
        parts, downloads = corpus.plan.parts, corpus.complete("download")
        read = scorers_read(self._recipe.rules_for(name), self._work.scores)
        by_scorer = [corpus.complete(score_stage(scorer)) for scorer in read]
        scores = [dict(zip(read, receipts, strict=True)) for receipts in zip(*by_scorer, strict=True)] or [{}] * len(
            parts
        )
        copies: list[Any] = [None] * len(parts)
        if self._recipe.rules_for(name).images.exact_duplicates == "drop":
            copies = duplicates.later_copies(self._ordered("filter", tasks.digests, parts))
        return [FilterJob(*job) for job in zip(parts, downloads, scores, copies, strict=True)]

    def _standing_fates(self, name: str, corpus: CorpusState) -> list[Receipt | None]:
        """The filter's receipts of an earlier launch; None for those that this recipe would not give."""
        found = standing.whole_fates(self._store, corpus)
        if found is not None:
            basis = standing.fates_basis(self._store, self._recipe, corpus, found)
            if basis is not None and basis == self._earlier.get("made_from", {}).get("fates", {}).get(name):
                return list(found)
            read = scorers_read(self._recipe.rules_for(name), self._work.scores)
            if all(corpus.is_complete(stage) for stage in ("download", *map(score_stage, read))):
                return self._ordered("filter", tasks.committed_fates, self._filter_jobs(name, corpus))
        return [None] * len(corpus.plan.parts)

    def _shard(self, corpora: dict[str, CorpusState]) -> dict[str, Manifest]:
        with self._timed("shard"):
            return {name: self._shard_set(name, corpora[config.corpus]) for name, config in self._recipe.shards.items()}

    def _shard_set(self, name: str, corpus: CorpusState) -> Manifest:
        config = self._recipe.shards[name]
        corpus.complete("download")
        inputs = standing.set_inputs(self._store, self._recipe, name, corpus)
        assert inputs is not None
        committed = standing.standing_set(self._store, self._recipe, name, corpus)
        recipe = self._fingerprints["recipe"]
        if committed is not None:
            self._watch.stage(f"shard {name}", len(committed.shards), len(committed.shards))
            return committed
        if self._store.size(manifest_path(name)) is not None:  # nobody must take new shards for those that it names
            self._store.remove(manifest_path(name))
        parts = {part.index: part for part in corpus.plan.parts}
        shards = lay_out(self._store, corpus.plan.parts, config.view, name, self._recipe.seed, config.max_mb * MB)
        jobs = [
            ShardJob(name, index, config.view, config.corpus, refs, _used(parts, refs), fingerprint([inputs, index]))
            for index, refs in enumerate(shards)
        ]
        self._watch.stage(f"shard {name}", len(jobs), 0)
        receipts: list[Receipt] = self._ordered("shard", tasks.shard, jobs, watched=f"shard {name}")
        samples = sum(receipt.counts["samples"] for receipt in receipts)
        if samples != sum(map(len, shards)):
            raise DataError(f"set {name!r}: {samples} samples written of {sum(map(len, shards))}")
        return finish_set(self._store, name, config, receipts, recipe, inputs)

    def _committed_sets(self) -> dict[str, Manifest]:
        found = {name: read_manifest(self._store, name) for name in self._recipe.shards}
        missing = [name for name, manifest in found.items() if manifest is None]
        if missing:
            raise UsageError(f"sets {', '.join(missing)}: not there yet: run --only shard first")
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def _encode(self, sets: dict[str, Manifest], only: str | None) -> None:
        config = self._recipe.pack
        if config is None:
            if only == "encode":
                raise UsageError("--only encode: the recipe has no pack")
            return
        wanted = self._recipe.blended_sets() or list(sets)
        with self._timed("encode"):
            self._tokens = encode_sets(self._store, config, [sets[name] for name in wanted], self._encode_set)

    def _encode_set(self, name: str, jobs: list[EncodeJob]) -> list[Receipt]:
        self._watch.stage(f"encode {name}", len(jobs), 0)
        return self._ordered("encode", tasks.encode, jobs, watched=f"encode {name}")

    def _blend(self, sets: dict[str, Manifest], only: str | None) -> dict[str, Any] | None:
        if self._recipe.blend is None:
            if only == "blend":
                raise UsageError("--only blend: the recipe has no blend")
            return None
        assert self._recipe.pack is not None
        with self._timed("blend"):
            if only == "blend":
                names = self._recipe.blended_sets()
                self._tokens = tokens_to_blend(self._store, self._recipe.pack, [sets[name] for name in names])
            return plan_epoch(self._store, self._recipe)

    def _tell_others(
        self, corpora: dict[str, CorpusState], sets: dict[str, Manifest], blend: dict[str, Any] | None, only: str
    ) -> tuple[dict[str, Manifest], dict[str, Any] | None]:
        """The sets and the blend that stand beside the stage that was done, and, in `_tokens`, the token files."""
        if only != "shard":
            sets = standing.standing_sets(self._store, self._recipe, corpora)
        if only not in ("encode", "blend"):
            self._tokens = standing.told_tokens(self._store, self._recipe, sets)
        self._tokens = {name: tokens for name, tokens in self._tokens.items() if name in sets}
        if self._recipe.blend is None or not self._tokens.keys() >= set(self._recipe.blended_sets()):
            return sets, None
        if only != "blend" and self._earlier.get("blend"):
            with self._timed("blend"):
                blend = standing.told_blend(self._store, self._recipe)
        return sets, blend

    def _ordered(self, stage: str, function: Any, jobs: Any, watched: str | None = None) -> list[Any]:
        results: dict[int, Any] = {}
        for done in self._runner.run(self._work, [self._step(stage, function)], jobs, _ignore):
            results[done.job] = done.result
            self._speeds.note(done)
            if watched is not None:
                self._watch.advance(watched, done.result.counts["samples"])
        return [results[index] for index in range(len(jobs))]

    def _step(self, stage: str, function: Any) -> Step:
        return Step(stage, function, getattr(self._recipe.resources, stage.partition(" ")[0]))

    def _report(
        self, corpora: dict[str, CorpusState], sets: dict[str, Manifest], blend: dict[str, Any] | None
    ) -> RunReport:
        funnels = {name: corpus_funnel(corpus.plan, corpus.receipts) for name, corpus in corpora.items()}
        finished = len(sets) == len(self._recipe.shards) and all(map(_has_fates, corpora.values()))
        tokens = {name: token_totals(manifest) for name, manifest in self._tokens.items()}
        report = RunReport(
            name=self._recipe.name,
            out=self._store.url,
            finished=finished,
            funnel={name: funnel.as_dict() for name, funnel in funnels.items()},
            sets=sets,
            tokens=tokens,
            blend=blend,
            seconds={stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            versions={"vila-data": version("vila-data"), "python": platform.python_version()},
            recipe=self._fingerprints["recipe"],
            measures=self._measure(corpora, sets, tokens) if finished else None,
            speed=self._speeds.value(self._earlier.get("speed")),
            made_from={"fates": self._fates_basis(corpora)},
        )
        write_run_json(self._store, report)
        if finished:
            write_pages(self._store, report.totals())
        elif self._earlier.get("finished"):
            remove_pages(self._store)  # they show what is so no more
        return report

    def _fates_basis(self, corpora: dict[str, CorpusState]) -> dict[str, str | None]:
        return {
            name: standing.fates_basis(self._store, self._recipe, corpus, corpus.complete("filter"))
            for name, corpus in corpora.items()
            if _has_fates(corpus)
        }

    def _measure(
        self, corpora: dict[str, CorpusState], sets: dict[str, Manifest], tokens: dict[str, Any]
    ) -> dict[str, Any]:
        earlier = self._earlier.get("measures")
        columns = {name: (corpus.plan.parts, corpus.complete("filter")) for name, corpus in corpora.items()}
        self._watch.stage("measure", parts_to_measure(columns), 0)
        with self._timed("measure"):
            return measure(
                self._store, self._recipe, columns, sets, tokens, earlier, lambda: self._watch.advance("measure", 1)
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start


def _score(scorer: str, work: Work, part: Part, *results_and_report: Any) -> Receipt:
    """The step of one scorer, after those of download, unless that was an earlier launch's, and of cheaper scorers."""
    done = tasks.committed_download(work, part)
    if done is None:
        raise UsageError(f"corpus {part.corpus!r}: {part.name} is not downloaded: run --only download first")
    return tasks.score(work, part, scorer, done, results_and_report[-1])


def _progress(corpora: dict[str, CorpusState], stage: str) -> tuple[int, int]:
    receipts = [receipt for corpus in corpora.values() for receipt in corpus.receipts[stage]]
    return len(receipts), sum(receipt is not None for receipt in receipts)


def _images_in(stage: str, receipt: Receipt) -> int:
    if stage == "download":
        return sum(receipt.counts["images"].values())
    return sum(receipt.counts.get(name, 0) for name in ("images_scored", "records_scored"))


def _used(parts: dict[int, Part], refs: Any) -> dict[int, Part]:
    return {int(index): parts[int(index)] for index in sorted(set(refs.part.tolist()))}


def _has_fates(corpus: CorpusState) -> bool:
    return corpus.is_complete("filter")


def _ignore(counter: str, count: int) -> None:
    return None
