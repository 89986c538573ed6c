"""One run: every stage over every part, then the shards, then the totals.

Stages are committed part by part; what is committed already is passed over, so
relaunching the same call resumes.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, fingerprint, read_receipt
from vila_data.core.store import Store
from vila_data.corpora.source import FileScan
from vila_data.encode.part import EncodeJob
from vila_data.encode.tokens import TokenManifest
from vila_data.filter import duplicates
from vila_data.score.clip import clip_fingerprint
from vila_data.shard.layout import lay_out
from vila_data.shard.manifest import Manifest, finish_set, manifest_path, read_manifest
from vila_data.shard.write import ShardJob
from vila_data.workflow import lock, tasks
from vila_data.workflow.blending import plan_epoch
from vila_data.workflow.encoding import committed_tokens, encode_sets, ready_tokenizer, token_totals
from vila_data.workflow.measures.run import measure, parts_to_measure
from vila_data.workflow.pages import write_pages
from vila_data.workflow.plan import CorpusPlan, commit_parts, corpus_inputs, plan_corpus
from vila_data.workflow.progress import Silence, Watch
from vila_data.workflow.recipe import Recipe, load_recipe
from vila_data.workflow.report import RunReport, corpus_funnel, read_run_json, write_run_json
from vila_data.workflow.runner import LocalRunner, Runner, Step
from vila_data.workflow.speed import Speeds
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


@dataclass
class _Corpus:
    """A corpus's parts and their receipts by stage, None where a stage is not committed."""

    plan: CorpusPlan
    receipts: dict[str, list[Receipt | None]] = field(default_factory=dict)

    def complete(self, stage: str) -> list[Receipt]:
        """The stage's receipts.

        Raises:
            UsageError: the stage is not committed for all parts.
        """
        found = [receipt for receipt in self.receipts[stage] if receipt is not None]
        missing = len(self.plan.parts) - len(found)
        if missing:
            raise UsageError(
                f"corpus {self.plan.name!r}: {stage} lacks {missing} of {len(self.plan.parts)} parts: run it first"
            )
        return found


class _Run:
    def __init__(self, recipe: Recipe, store: Store, runner: Runner, limit: int | None, watch: Watch) -> None:
        self._recipe, self._store, self._runner, self._limit, self._watch = recipe, store, runner, limit, watch
        clip = clip_fingerprint(recipe.score.clip) if recipe.score.clip else None
        self._work = Work(store, recipe, clip)
        self._seconds: dict[str, float] = {}
        self._fingerprints: dict[str, str] = {}
        self._tokens: dict[str, TokenManifest] = {}
        self._speeds = Speeds()

    def execute(self, only: str | None) -> RunReport:
        """Do what is left to do."""
        if self._recipe.pack is not None and only in (None, "encode", "blend"):
            ready_tokenizer(self._recipe.pack)  # rather now than after days of downloads
        inputs = corpus_inputs(self._recipe)
        self._fingerprints = lock.stage_fingerprints(self._recipe, self._limit, inputs, self._work.clip)
        locked = lock.lock_value(self._recipe, self._limit, self._fingerprints, inputs, self._work.clip)
        lock.check_same_run(self._store, locked)
        with self._timed("scan"):
            plans = {
                name: plan_corpus(self._store, name, config, inputs[name], self._limit, self._scan)
                for name, config in self._recipe.corpora.items()
            }
        lock.write_lock(self._store, locked)
        self._store.clear_scratch()
        for name, plan in plans.items():
            commit_parts(self._store, plan, self._recipe.corpora[name], inputs[name], self._limit)
        corpora = {name: _Corpus(plan) for name, plan in plans.items()}
        self._download_and_score(corpora, only)
        self._store.clear_scratch()
        if only in ("download", "score"):
            return self._report(corpora, {}, None, finished=False)
        sets = self._committed_sets() if only in ("encode", "blend") else {}
        self._filter(corpora, only)
        if only in (None, "shard"):
            sets = self._shard(corpora)
        if only in (None, "encode"):
            self._encode(sets, only)
        self._store.clear_scratch()
        blend = self._blend(only) if only in (None, "blend") else None
        return self._report(corpora, sets, blend, finished=only in (None, "shard", "encode", "blend"))

    def _scan(self, name: str, config: Any, files: list[str], max_rows: int | None, share: float) -> list[FileScan]:
        jobs = [ScanJob(name, file, max_rows, share) for file in files]
        found: dict[int, FileScan] = {}
        self._watch.stage(f"scan {name}", len(jobs), 0)
        for done in self._runner.run(self._work, [self._step("scan", tasks.scan)], jobs, _ignore):
            found[done.job] = done.result
            self._watch.advance(f"scan {name}", done.result.rows)
        return [found[index] for index in range(len(jobs))]

    def _download_and_score(self, corpora: dict[str, _Corpus], only: str | None) -> None:
        """Fetch and score; a part is scored as soon as it is fetched."""
        for corpus in corpora.values():
            downloads = [tasks.committed_download(self._work, part) for part in corpus.plan.parts]
            corpus.receipts = {"download": downloads, "score": [None] * len(downloads)}
            if self._work.scored:
                corpus.receipts["score"] = [
                    None if done is None else tasks.committed_score(self._work, part, done)
                    for part, done in zip(corpus.plan.parts, downloads, strict=True)
                ]
        steps = []
        if only in (None, "download"):
            steps.append(self._step("download", tasks.download))
        if only in (None, "score") and self._work.scored:
            steps.append(self._step("score", tasks.score))
        if only == "score":
            if not steps:
                raise UsageError("--only score: the recipe has no score.clip")
            for corpus in corpora.values():
                corpus.complete("download")
            steps = [self._step("score", _score_committed)]
        if steps:
            self._run_parts(corpora, steps)

    def _run_parts(self, corpora: dict[str, _Corpus], steps: list[Step]) -> None:
        places: list[tuple[_Corpus, int]] = []
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

    def _filter(self, corpora: dict[str, _Corpus], only: str | None) -> None:
        for name, corpus in corpora.items():
            if only in ("shard", "encode", "blend"):
                corpus.receipts["filter"] = [
                    read_receipt(self._store, part.receipt("filter")) for part in corpus.plan.parts
                ]
                corpus.complete("filter")
                continue
            with self._timed("filter"):
                corpus.receipts["filter"] = list(self._filter_corpus(name, corpus))

    def _filter_corpus(self, name: str, corpus: _Corpus) -> list[Receipt]:
        parts, downloads = corpus.plan.parts, corpus.complete("download")
        scores: list[Receipt] | list[None] = corpus.complete("score") if self._work.scored else [None] * len(parts)
        copies: list[Any] = [None] * len(parts)
        if self._recipe.rules_for(name).images.exact_duplicates == "drop":
            copies = duplicates.later_copies(self._ordered("filter", tasks.digests, parts))
        jobs = [FilterJob(*job) for job in zip(parts, downloads, scores, copies, strict=True)]
        self._watch.stage(f"filter {name}", len(jobs), 0)
        receipts: list[Receipt] = self._ordered("filter", tasks.filter_fates, jobs)
        for receipt in receipts:
            self._watch.advance(f"filter {name}", sum(receipt.counts["images"].values()))
        return receipts

    def _shard(self, corpora: dict[str, _Corpus]) -> dict[str, Manifest]:
        with self._timed("shard"):
            return {name: self._shard_set(name, corpora[config.corpus]) for name, config in self._recipe.shards.items()}

    def _shard_set(self, name: str, corpus: _Corpus) -> Manifest:
        config = self._recipe.shards[name]
        facts = [receipt.fingerprint() for stage in ("download", "filter") for receipt in corpus.complete(stage)]
        inputs = fingerprint([facts, config.model_dump(mode="json"), self._recipe.seed, name])
        committed = read_manifest(self._store, name)
        recipe = self._fingerprints["recipe"]
        if committed is not None and committed.inputs == inputs and _shards_there(self._store, committed):
            self._watch.stage(f"shard {name}", len(committed.shards), len(committed.shards))
            return committed
        if committed is not None:  # nobody must take new shards for those that it names
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

    def _blend(self, only: str | None) -> dict[str, Any] | None:
        if self._recipe.blend is None:
            if only == "blend":
                raise UsageError("--only blend: the recipe has no blend")
            return None
        assert self._recipe.pack is not None
        with self._timed("blend"):
            tokenizer = ready_tokenizer(self._recipe.pack)
            names = self._recipe.blended_sets()
            self._tokens = committed_tokens(self._store, self._recipe.pack, tokenizer, names)
            return plan_epoch(self._store, self._recipe)

    def _ordered(self, stage: str, function: Any, jobs: Any, watched: str | None = None) -> list[Any]:
        results: dict[int, Any] = {}
        for done in self._runner.run(self._work, [self._step(stage, function)], jobs, _ignore):
            results[done.job] = done.result
            self._speeds.note(done)
            if watched is not None:
                self._watch.advance(watched, done.result.counts["samples"])
        return [results[index] for index in range(len(jobs))]

    def _step(self, stage: str, function: Any) -> Step:
        return Step(stage, function, getattr(self._recipe.resources, stage))

    def _report(
        self, corpora: dict[str, _Corpus], sets: dict[str, Manifest], blend: dict[str, Any] | None, finished: bool
    ) -> RunReport:
        funnels = {
            name: corpus_funnel(corpus.plan, corpus.receipts, self._work.scored) for name, corpus in corpora.items()
        }
        earlier = read_run_json(self._store) or {}
        tokens = {name: token_totals(manifest) for name, manifest in self._tokens.items()}
        measures = self._measure(corpora, sets, tokens, earlier.get("measures")) if finished else None
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
            measures=measures,
            speed=self._speeds.value(earlier.get("speed")),
        )
        write_run_json(self._store, report)
        if finished:
            write_pages(self._store, report.totals())
        return report

    def _measure(
        self, corpora: dict[str, _Corpus], sets: dict[str, Manifest], tokens: dict[str, Any], earlier: Any
    ) -> dict[str, Any]:
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


def _score_committed(work: Work, part: Part, report: tasks.Report) -> Receipt:
    done = tasks.committed_download(work, part)
    if done is None:
        raise UsageError(f"corpus {part.corpus!r}: {part.name} is not downloaded: run --only download first")
    return tasks.score(work, part, done, report)


def _progress(corpora: dict[str, _Corpus], stage: str) -> tuple[int, int]:
    receipts = [receipt for corpus in corpora.values() for receipt in corpus.receipts[stage]]
    return len(receipts), sum(receipt is not None for receipt in receipts)


def _images_in(stage: str, receipt: Receipt) -> int:
    if stage == "download":
        return sum(receipt.counts["images"].values())
    scored: int = receipt.counts["images_scored"]
    return scored


def _used(parts: dict[int, Part], refs: Any) -> dict[int, Part]:
    return {int(index): parts[int(index)] for index in sorted(set(refs.part.tolist()))}


def _shards_there(store: Store, manifest: Manifest) -> bool:
    return all(store.size(f"shards/{manifest.name}/{shard.name}") == shard.bytes for shard in manifest.shards)


def _ignore(counter: str, count: int) -> None:
    return None
