"""Split each corpus's metadata into parts, the units of work of a run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from vila_data.core.errors import DataError
from vila_data.core.layout import Part, parts_list
from vila_data.core.receipts import fingerprint
from vila_data.core.store import Store
from vila_data.corpora import selection
from vila_data.corpora.config import CorpusFiles, CoyoConfig
from vila_data.corpora.coyo import CoyoSource
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.source import FileScan, file_fingerprint, file_labels, open_binary
from vila_data.recipe.recipe import Recipe

READER_VERSION = 1
READER_VERSIONS = {"llava": 2, "text": 2, "vflan": 2}
"""Increment when records read from the same metadata change; per corpus kind if only one kind is affected."""

Scan = Callable[[str, CorpusFiles, list[str], int | None, float], list[FileScan]]
"""(corpus, config, files, max_rows, expected share) -> one FileScan per file; with a runner's tasks, or `scan_here`."""


@dataclass(frozen=True)
class CorpusPlan:
    """A corpus's parts. rows: of its metadata; expected: records after preselection."""

    name: str
    rows: int
    expected: int
    parts: tuple[Part, ...]


def corpus_inputs(recipe: Recipe) -> dict[str, list[str]]:
    """Fingerprints of each corpus's metadata files, in order."""
    return {name: [file_fingerprint(file) for file in config.files] for name, config in recipe.corpora.items()}


def plan_corpus(
    store: Store, name: str, config: CorpusFiles, inputs: list[str], limit: int | None, scan: Scan
) -> CorpusPlan:
    """The corpus's parts: as written by an earlier invocation, or newly planned.

    limit: use only the first `limit` rows of the metadata.

    Raises:
        DataError: the corpus has no rows, or a file cannot be read.
    """
    identity = _identity(config, inputs, limit)
    committed = _committed(store, name, identity)
    if committed is not None:
        return committed
    scans = _scan(name, config, limit, scan)
    rows = sum(found.rows for found in scans)
    if not rows:
        raise DataError(f"corpus {name!r}: its files ({len(config.files)}) contain no records")
    cuts = _cuts(config, scans)
    expected = [_expected(found, config, cut) for found, cut in zip(scans, cuts, strict=True)]
    parts: list[Part] = []
    for label, found, cut, records in zip(file_labels(list(config.files)), scans, cuts, expected, strict=False):
        for start, stop in _slices(found.rows, records, config.part_records):
            share = round(records * (stop - start) / found.rows)
            part_inputs = fingerprint([identity, found.fingerprint, start, stop, cut])
            parts.append(Part(name, len(parts), found.file, label, start, stop, share, part_inputs, cut))
    return CorpusPlan(name, rows, sum(expected), tuple(parts))


def commit_parts(store: Store, plan: CorpusPlan, config: CorpusFiles, inputs: list[str], limit: int | None) -> None:
    """Write the corpus's parts, so that rerunning does not need to scan."""
    value = {"inputs": _identity(config, inputs, limit), **asdict(plan)}
    data = json.dumps(value, indent=1).encode() + b"\n"
    path = parts_list(plan.name)
    if store.size(path) != len(data) or store.read(path) != data:
        store.commit_bytes(data, path)


def scan_here(name: str, config: CorpusFiles, files: list[str], max_rows: int | None, share: float) -> list[FileScan]:
    """Scan in this process."""
    return [scan_file(config, file, max_rows, share) for file in files]


def scan_file(config: CorpusFiles, file: str, max_rows: int | None, share: float) -> FileScan:
    """Scan one metadata file."""
    source = open_corpus(config)
    if isinstance(source, CoyoSource):
        return source.scan(file, max_rows, share)
    return source.scan(file, max_rows)


def _identity(config: CorpusFiles, inputs: list[str], limit: int | None) -> str:
    settings = config.model_dump(mode="json", exclude={"files", "image_root", "dataset"})
    return fingerprint([settings, inputs, limit, READER_VERSIONS.get(config.kind, READER_VERSION)])


def committed_plan(store: Store, name: str) -> CorpusPlan | None:
    """The corpus's parts as recorded by a run, even if its metadata has changed since; None if there are none."""
    return _committed(store, name, None)


def _committed(store: Store, name: str, identity: str | None) -> CorpusPlan | None:
    path = parts_list(name)
    if store.size(path) is None:
        return None
    try:
        value: dict[str, Any] = json.loads(store.read(path))
        if identity is not None and value["inputs"] != identity:
            return None
        parts = tuple(Part(**{**part, "cut": tuple(part["cut"]) if part["cut"] else None}) for part in value["parts"])
        return CorpusPlan(name, value["rows"], value["expected"], parts)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(
            f"{store.location(path)}: is not the list of a corpus's parts: {error!r}; delete it and run the recipe again"
        ) from error


def _scan(name: str, config: CorpusFiles, limit: int | None, scan: Scan) -> list[FileScan]:
    files = list(config.files)
    share = _expected_share(config, limit)
    if limit is None:
        return scan(name, config, files, None, share)
    scans: list[FileScan] = []
    for file in files:
        left = limit - sum(found.rows for found in scans)
        if left <= 0:
            break
        scans += scan(name, config, [file], left, share)
    return scans


def _expected_share(config: CorpusFiles, limit: int | None) -> float:
    if not isinstance(config, CoyoConfig) or config.preselect is None:
        return 1.0
    rows = 0
    for file in config.files:
        with open_binary(file) as stream:
            rows += pq.ParquetFile(stream).metadata.num_rows
    rows = min(rows, limit) if limit is not None else rows
    return min(1.0, selection.amount(config.preselect, rows) / max(rows, 1))


def _cuts(config: CorpusFiles, scans: list[FileScan]) -> list[selection.Cut | None]:
    """The preselection's cut for each file."""
    if not isinstance(config, CoyoConfig) or config.preselect is None:
        return [None] * len(scans)
    source, rule = CoyoSource(config), config.preselect

    def again(found: list[FileScan]) -> Callable[[int, int], selection.FileScores]:
        return lambda index, bin_index: source.scores_at(found[index].file, found[index].rows, bin_index)

    groups = [scans] if rule.scope == "corpus" else [[found] for found in scans]
    cuts: list[selection.Cut | None] = []
    for group in groups:
        keep = selection.amount(rule, sum(found.rows for found in group))
        scores = [found.scores for found in group if found.scores is not None]
        cuts += [selection.find_cut(scores, keep, again(group))] * len(group)
    return cuts


def _expected(found: FileScan, config: CorpusFiles, cut: selection.Cut | None) -> int:
    if cut is None or found.scores is None:
        return found.rows
    boundary = cut[0] / selection.BIN_WIDTH
    return sum(count for value, count in found.scores.histogram.items() if value + 1 > boundary)


def _slices(rows: int, records: int, part_records: int) -> list[tuple[int, int]]:
    """Even slices of a file's rows, each with about `part_records` records at most."""
    if not rows:
        return []
    count = max(1, -(-records // part_records))
    bounds = [rows * index // count for index in range(count + 1)]
    return [(first, last) for first, last in itertools.pairwise(bounds) if first < last]
