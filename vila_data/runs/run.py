"""An opened run directory: access its recipe, parts, receipts, tables, shard sets, token files and totals by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, Literal

import pyarrow as pa

from vila_data.core.errors import StorageError, UsageError
from vila_data.core.layout import EXPORT_JSON, Part
from vila_data.core.receipts import Receipt, read_receipt
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import TokenSet, open_tokens
from vila_data.recipe.lock import LOCK, read_lock
from vila_data.recipe.recipe import Recipe, checked
from vila_data.recipe.yaml_lines import suggestion
from vila_data.runs.plan import CorpusPlan, committed_plan
from vila_data.runs.report import RUN_JSON, corpus_funnel, read_run_json
from vila_data.runs.set_stages import ready_tokenizer
from vila_data.runs.stages import Stages, stages_of
from vila_data.shard.downloaded_records import DownloadedRecords
from vila_data.shard.manifest import Manifest, read_manifest
from vila_data.shard.read import ShardSetReader

PartTable = Literal["images", "records", "fates"]
_RECEIPT: Final = re.compile(r"/part-(\d+)\.json$")
_MAX_LEVELS: Final = 5
"""Number of parent directories searched for the run of a path: tokens/<tokenizer>/<set>/<encoding>/<file>."""


class Run:
    """An opened run directory. Opening reads recipe.lock.yaml; everything else is read on demand.

    store:  where the run is.
    recipe: what the run was built from, as resolved by the last invocation.
    lock:   the whole content of recipe.lock.yaml.

    Raises:
        UsageError: there is no run at the path; says what was found.
        DataError: recipe.lock.yaml is damaged, or was written by another version.
    """

    def __init__(self, store: Store) -> None:
        found = read_lock(store)
        if found is None:
            raise UsageError(_no_run(store))
        self.store = store
        self.lock = found.value
        self.recipe = found.recipe
        self._lines = found.lines
        self._plans: dict[str, CorpusPlan | None] = {}

    def __repr__(self) -> str:
        return f"Run({self.url!r}: {self.recipe.name})"

    @property
    def url(self) -> str:
        """The local path or URL of the directory."""
        return self.store.url

    @property
    def scorer_fingerprints(self) -> dict[str, str]:
        """{scorer: fingerprint of its model and settings}, as of the last invocation."""
        found: dict[str, str] = self.lock["scorers"]
        return found

    @property
    def totals(self) -> dict[str, Any] | None:
        """The content of run.json; None before the first invocation has finished.

        Raises:
            DataError: the file is damaged.
        """
        return read_run_json(self.store)

    def recipe_with(self, settings: Sequence[str]) -> Recipe:
        """The recipe with ``dotted.key=value`` overrides.

        Raises:
            RecipeError: a key is unknown or a value is wrong.
        """
        return checked(self._lines.copy(), settings)

    @cached_property
    def stages(self) -> Stages:
        """The stages of the recipe, in order."""
        return stages_of(self.recipe, "")

    @cached_property
    def similarity(self) -> str | None:
        """The scorer that `min_similarity` means; None where there is none."""
        return self.recipe.scores().similarity

    def plan(self, corpus: str) -> CorpusPlan | None:
        """The parts of a corpus and its counts of rows; None before its metadata was scanned.

        Raises:
            UsageError: the recipe has no such corpus.
        """
        self._known("corpus", corpus, self.recipe.corpora)
        if corpus not in self._plans:
            self._plans[corpus] = committed_plan(self.store, corpus)
        return self._plans[corpus]

    def parts(self, corpus: str) -> tuple[Part, ...]:
        """The parts of a corpus, in order; none before its metadata was scanned."""
        plan = self.plan(corpus)
        return () if plan is None else plan.parts

    def committed(self, stage: str, corpus: str) -> tuple[Part, ...]:
        """The parts of a corpus that have a receipt of a stage, found with a single listing.

        If the list of parts is missing, as in a copy without download/, the parts are known by name only.
        """
        directory = Part.named(corpus, 0).receipt(stage).rpartition("/")[0]
        there = set(self.store.files(directory))
        parts: Iterable[Part] = self.parts(corpus)
        if self.plan(corpus) is None:
            numbers = sorted(int(found[1]) for path in there if (found := _RECEIPT.search(path)))
            parts = (Part.named(corpus, number) for number in numbers)
        return tuple(part for part in parts if part.receipt(stage) in there)

    def receipts(self, stage: str, corpus: str) -> list[Receipt | None]:
        """The receipts of a stage, one per part of the corpus; None for a part that is not complete."""
        return [read_receipt(self.store, part.receipt(stage)) for part in self.parts(corpus)]

    def funnel(self, corpus: str) -> dict[str, dict[str, dict[str, int]]]:
        """{stage: {"records" | "images": {fate: count}}} of a corpus, up to the last stage that is complete.

        Raises:
            DataError: the fates of a stage do not sum to what entered it.
        """
        plan = self.plan(corpus)
        if plan is None:
            return {}
        deciding = self.stages.deciding()
        receipts = {stage: self.receipts(stage, corpus) for stage in deciding}
        return corpus_funnel(plan, receipts, deciding).as_dict()

    def part_table(self, part: Part, table: PartTable, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table of a part, or some of its columns.

        images: a row per image of the metadata, the result of its download (core.tables.DOWNLOAD_IMAGES);
        records: a row per row of the metadata (DOWNLOAD_RECORDS); fates: a row per record and per image (FATES).

        Raises:
            DataError: it is damaged, or lacks a column.
            StorageError: it is missing or cannot be read.
        """
        paths = {"images": part.images_table, "records": part.records_table, "fates": part.fates_table}
        return read_table(self.store, paths[table](), columns)

    def scores(self, part: Part, columns: Sequence[str] | None = None, scorer: str | None = None) -> pa.Table | None:
        """A scorer's table of a part, one row per image or record; None if it has none.

        scorer: or an entry of `stages`; None: the one that `min_similarity` uses (core.tables.SCORE_IMAGES).

        Raises:
            UsageError: the recipe has no such scorer.
            DataError, StorageError: as `part_table`.
        """
        path = self.scores_path(part, scorer)
        return None if path is None or self.store.size(path) is None else read_table(self.store, path, columns)

    def scores_path(self, part: Part, scorer: str | None = None) -> str | None:
        """Where a scorer's table of a part is; None if no scorer is given and none computes similarities."""
        if scorer is not None:
            self._known("scorer", scorer, [*self.recipe.score, *self.recipe.stages])
        name = self.similarity if scorer is None else scorer
        return None if name is None else part.scores_table(name)

    def evidence(self, corpus: str) -> DownloadedRecords:
        """The records and images of a corpus as downloaded, whatever their fate."""
        return DownloadedRecords(self.store, self.parts(corpus))

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a shard set; None before the set is finished.

        Raises:
            UsageError: the recipe has no such set.
            DataError: the manifest is damaged, or of another version.
        """
        self._known("shard set", name, self.recipe.shards)
        return read_manifest(self.store, name)

    def open_set(self, name: str) -> ShardSetReader:
        """The samples of a finished shard set.

        Raises:
            UsageError: the recipe has no such set, or the set is not finished.
            DataError: the manifest is damaged, or of another version.
        """
        manifest = self.manifest(name)
        if manifest is None:
            raise UsageError(f"{self.url}: set {name!r} is not finished; {self.finish()}")
        return ShardSetReader(self.set_store(name), manifest)

    def set_store(self, name: str) -> Store:
        """The directory of a shard set."""
        return Store(self.store.location(f"shards/{name}"))

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The recipe's tokenizer.

        Raises:
            UsageError: the recipe has no `pack`, or the tokenizer cannot be loaded here.
        """
        if self.recipe.pack is None:
            raise UsageError(
                f"{self.url}: its recipe has no `pack:` section, so it has no tokenizer and no token files"
            )
        return ready_tokenizer(self.recipe.pack)

    def tokens(self, name: str) -> TokenSet:
        """The token files of a shard set for the recipe's `pack`.

        Raises:
            UsageError: the recipe has no such set or no `pack`, or the set is not encoded; says what there is.
        """
        self._known("shard set", name, self.recipe.shards)
        tokenizer = self.tokenizer
        assert self.recipe.pack is not None
        return open_tokens(self.store, name, self.recipe.pack, tokenizer)

    def finish(self) -> str:
        """What to do if something is missing from the run."""
        return f"finish the run first: vila-data run RECIPE --out {self.url}"

    def _known(self, what: str, name: str, names: Iterable[str]) -> None:
        if name not in names:
            raise UsageError(f"{self.url}: the run has no {what} {name!r}{suggestion(name, names)}")


Kind = Literal["recipe", "run", "set", "shard", "export"]


def kind_of(path: str) -> Kind:
    """The kind of thing at a path.

    Raises:
        UsageError: nothing that vila-data reads or writes.
    """
    if path.endswith((".yaml", ".yml")):
        return "recipe"
    if path.endswith(".tar"):
        return "shard"
    if not os.path.isfile(path):
        store = Store(path)
        if store.size("manifest.json") is not None:
            return "set"
        if store.size(LOCK) is not None:
            return "run"
    above = "; it contains shard sets; pass one of them, or the run" if path.rstrip("/").endswith("/shards") else ""
    what = f"not a recipe (.yaml), run ({LOCK}), shard set (manifest.json), shard (.tar) or export ({EXPORT_JSON})"
    raise UsageError(f"{path}: {what}{above}")


def open_run(path: str | os.PathLike[str] | Run) -> Run:
    """Open a run directory: a local path or an fsspec URL. An opened run is returned as it is.

    Raises:
        UsageError: there is no run at the path; says what was found and what to do.
        DataError: the run's recipe.lock.yaml is damaged, or was written by another version.
    """
    if isinstance(path, Run):
        return path
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"open_run: expected the path or URL of a run directory, found {path!r}")
    return Run(Store(os.fspath(path)))


def run_above(store: Store) -> Run | None:
    """The run that contains a directory such as a shard set; None if there is none."""
    url = store.url.rstrip("/")
    for _ in range(_MAX_LEVELS):
        url, slash, _ = url.rpartition("/")
        if not slash or not url or url.endswith((":", ":/")):
            return None
        above = Store(url)
        with suppress(StorageError):  # the user may not have access to a parent directory
            if above.size(LOCK) is not None:
                return Run(above)
    return None


def _no_run(store: Store) -> str:
    """Why a path is not a run, and what to do."""
    if store.url.endswith((".yaml", ".yml")):
        return f"{store.url} is a recipe, not a run; pass the directory that vila-data run {store.url} --out wrote"
    if (run := run_above(store)) is not None:
        return f"{store.url} is part of the run {run.url}; pass that directory"
    if store.size("manifest.json") is not None:
        return f"{store.url} is a shard set, not a run (it has no {LOCK}); pass the directory of its run"
    if not store.exists(""):
        return f"{store.url} does not exist; create a run with vila-data run RECIPE --out {store.url}"
    if store.size(RUN_JSON) is not None:
        return f"{store.url} has no {LOCK}, although it has {RUN_JSON}; restore that file, or run the recipe with another --out"
    create = "create one with vila-data run RECIPE --out DIRECTORY"
    return f"{store.url} is not a run (it has no {LOCK}); pass the directory of a run, or {create}"
