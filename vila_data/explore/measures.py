"""The measures of a run, for run.json, report.html, card.md and `inspect`: one pass over columns, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part, tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.explore.languages import identifier_version, languages
from vila_data.filter.config import Rules
from vila_data.recipe.recipe import Recipe
from vila_data.shard.manifest import Manifest

VERSION: Final = 1
"""Raised when the same columns would give other measures."""
_TOKEN_COLUMNS: Final = 32
_ROWS_PER_BATCH: Final = 1 << 18

Corpora = Mapping[str, tuple[Sequence[Part], Sequence[Receipt]]]
"""Parts and filter receipts of each corpus whose fates are decided."""


def measure(
    store: Store,
    recipe: Recipe,
    corpora: Corpora,
    sets: Mapping[str, Manifest],
    tokens: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """JSON of the measures: {"inputs", "corpora": {name: ...}, "sets": {name: ...}, "languages": {set: ...}}.

    tokens:  the sets' entries of run.json: tokenizer, encoding, counts.
    earlier: measures of an earlier run of the recipe; reused where they were made from the same files.
    advance: called after each part that is read.
    """
    inputs = _inputs(recipe, corpora, sets, tokens)
    if earlier is not None and earlier.get("inputs") == inputs:
        for parts, _ in corpora.values():
            for _ in parts:
                advance()
        return dict(earlier)
    found: dict[str, Any] = {"inputs": inputs, "corpora": {}, "sets": {}, "languages": {}}
    similarity = recipe.scores().similarity
    for name, (parts, _) in corpora.items():
        measured = CorpusMeasures(recipe.rules_for(name))
        for part in parts:
            measured.add(store, part, similarity)
            advance()
        found["corpora"][name] = measured.value()
    for name, counts in tokens.items():
        found["sets"][name] = _token_lengths(store, recipe, name, counts)
    for name in _first_of_each_corpus(sets):
        found["languages"][name] = languages(store, sets[name], recipe.seed)
    return found


def parts_to_measure(corpora: Corpora) -> int:
    """How often `measure` calls `advance`."""
    return sum(len(parts) for parts, _ in corpora.values())


def _inputs(recipe: Recipe, corpora: Corpora, sets: Mapping[str, Manifest], tokens: Mapping[str, Any]) -> str:
    return fingerprint(
        [
            VERSION,
            {
                name: [[receipt.inputs, receipt.fingerprint()] for receipt in receipts]
                for name, (_, receipts) in corpora.items()
            },
            {name: recipe.rules_for(name).model_dump(mode="json") for name in corpora},
            {name: manifest.inputs for name, manifest in sets.items()},
            {name: [counts["tokenizer"], counts["encoding"]] for name, counts in tokens.items()},
            [recipe.seed, identifier_version()],
        ]
    )


def _first_of_each_corpus(sets: Mapping[str, Manifest]) -> list[str]:
    """One set per corpus: two views of it contain the same texts."""
    first: dict[str, str] = {}
    for name, manifest in sets.items():
        first.setdefault(manifest.corpus, name)
    return list(first.values())


def _token_lengths(store: Store, recipe: Recipe, name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of a set's sequences, images expanded."""
    assert recipe.pack is not None
    length = recipe.pack.sequence_length
    binned = Binned(np.unique(np.linspace(0, length, _TOKEN_COLUMNS + 1).round()))
    path = f"{tokens_folder(counts['tokenizer'], name, counts['encoding'])}/lengths.parquet"
    with store.open_read(path) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=["tokens"], use_threads=False):
            values = batch.column(0).to_numpy().astype(np.float64)
            values = values[values > 0]
            binned.add(values, np.ones(len(values), bool))
    return {"tokens": binned.value("tokens of a sequence", "sequences", [("sequence_length", float(length))])}


NO_HOST: Final = "(no host)"
"""For images that are files or in the metadata, and for text that is not a URL."""
TOP_HOSTS: Final = 20
HOSTS_PER_CLASS: Final = 5

_STEPS: Final = (1, 1.5, 2, 3, 5, 7)
SIMILARITY: Final = np.arange(-50, 51) / 50
SIDE_PX: Final = (
    *(0, 16, 32, 48, 64, 96, 128, 192, 256, 336, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192),
    np.inf,
)
ASPECT: Final = (
    *(0, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1, 1.1, 4 / 3, 1.5, 5 / 3, 1.8, 2, 2.5, 3, 4, 5),
    np.inf,
)
IMAGE_BYTES: Final = (0, *(step * power for power in (1e2, 1e3, 1e4, 1e5, 1e6, 1e7) for step in _STEPS), np.inf)
IMAGES_PER_RECORD: Final = (*range(17), 20, 24, 32, 64, np.inf)
TEXT_CHARS: Final = (0, 1, *(step * power for power in (10, 1e2, 1e3, 1e4, 1e5) for step in _STEPS), np.inf)

_HOST: Final = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#\\]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:\\]+)"
_IMAGE_COLUMNS: Final = ["url", "status", "error", "http_code", "original_width", "original_height", "bytes"]


def hosts_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each URL in small letters, without port, user or password; NO_HOST where there is none."""
    found = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    return pc.fill_null(pc.utf8_lower(found), NO_HOST)


class CorpusMeasures:
    """The measures of one corpus; `add` each part once, in order. Memory does not grow with the parts.

    rules: the current ones; they name the column of similarities, and their thresholds are marked.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._similarity, self._side, self._aspect = Binned(SIMILARITY), Binned(SIDE_PX), Binned(ASPECT)
        self._bytes, self._images, self._chars = Binned(IMAGE_BYTES), Binned(IMAGES_PER_RECORD), Binned(TEXT_CHARS)
        self._hosts, self._failed_hosts = TopNames(), TopNames()
        self._errors: dict[str, int] = {}
        self._codes: dict[str, int] = {}
        self._formats: dict[str, int] = {}
        self._failed = 0

    def add(self, store: Store, part: Part, scorer: str | None) -> None:
        """Count what download, the scorer of similarities and filter wrote for a part.

        Raises:
            DataError: the tables of the part do not hold the same images.
        """
        images = read_table(store, part.images_table(), _IMAGE_COLUMNS)
        fates = read_table(store, part.fates_table(), ["row", "image_index", "fate"])
        records = read_table(store, part.records_table(), ["row", "status", "text_chars"])
        is_image = pc.is_valid(fates.column("image_index"))
        of_images, of_records = fates.filter(is_image), fates.filter(pc.invert(is_image))
        if of_images.num_rows != images.num_rows or of_records.num_rows != records.num_rows:
            raise DataError(f"{store.location(part.fates_table())}: not the images of {part.images_table()}: run check")
        kept = _bools(pc.equal(of_images.column("fate"), "kept"))
        if scorer is not None:
            column = "assigned_similarity" if self._rules.documents.reassign else "similarity"
            scores = read_table(store, part.scores_table(scorer), ["scored", column])
            self._similarity.add(_floats(scores.column(column)), kept & _bools(scores.column("scored")))
        ok = _bools(pc.equal(images.column("status"), "ok"))
        width, height = _floats(images.column("original_width")), _floats(images.column("original_height"))
        self._side.add(np.minimum(width, height)[ok], kept[ok])
        self._aspect.add((width[ok] / height[ok]), kept[ok])
        self._bytes.add(_floats(images.column("bytes"))[ok], kept[ok])
        self._add_hosts(images, ok)
        if "unsupported_format" in self._errors:
            self._add_formats(read_table(store, part.images_table(), ["error", "detail"]))
        self._add_records(records, of_records, of_images.column("row").to_numpy()[kept])

    def _add_hosts(self, images: pa.Table, ok: NDArray[np.bool_]) -> None:
        hosts = hosts_of(images.column("url"))
        _count(self._hosts, hosts)
        if ok.all():
            return
        failed = pa.array(~ok)
        errors = images.column("error").filter(failed)
        self._failed += len(errors)
        for found, column in ((self._errors, errors), (self._codes, images.column("http_code").filter(failed))):
            for entry in pc.value_counts(column.drop_null()).to_pylist():
                name = str(entry["values"])
                found[name] = found.get(name, 0) + entry["counts"]
        _count(self._failed_hosts, pc.binary_join_element_wise(errors, hosts.filter(failed), "\t"))

    def _add_formats(self, images: pa.Table) -> None:
        """Count the formats that are not decoded."""
        named = images.filter(pc.equal(images.column("error"), "unsupported_format")).column("detail")
        for entry in pc.value_counts(named.drop_null()).to_pylist():
            self._formats[entry["values"]] = self._formats.get(entry["values"], 0) + entry["counts"]

    def _add_records(self, records: pa.Table, fates: pa.Table, rows: NDArray[np.int32]) -> None:
        """Images and text of records that are such; rows: the record's row of each kept image."""
        ok = _bools(pc.equal(records.column("status"), "ok"))
        kept = _bools(pc.equal(fates.column("fate"), "kept"))
        of_row = records.column("row").to_numpy()
        images = np.bincount(rows, minlength=int(of_row.max(initial=-1)) + 1)[of_row]
        self._images.add(images[kept].astype(np.float64), np.ones(int(kept.sum()), bool))
        self._chars.add(_floats(records.column("text_chars"))[ok], kept[ok])

    def value(self) -> dict[str, Any]:
        """JSON of the measures; a histogram is None where nothing was counted."""
        rules = self._rules.images
        low, high = rules.aspect_ratio or (None, None)
        return {
            "similarity": self._similarity.value(
                "similarity of image and text (cosine)", "images", _marks(min_similarity=rules.min_similarity)
            ),
            "shorter_side": self._side.value(
                "shorter side as served, pixels", "images", _marks(min_side_px=rules.min_side_px)
            ),
            "aspect_ratio": self._aspect.value("width / height", "images", _marks(lowest=low, highest=high)),
            "image_bytes": self._bytes.value("bytes of the stored JPEG", "images"),
            "images_a_record": self._images.value("kept images of a record", "records"),
            "text_chars": self._chars.value("characters of text of a record", "records"),
            "hosts": {
                "images": self._hosts.total,
                "distinct": self._hosts.distinct,
                "short_by": self._hosts.short_by,
                "top": self._top_hosts(),
            },
            "failures": {
                "images": self._failed,
                "classes": dict(sorted(self._errors.items(), key=lambda entry: (-entry[1], entry[0]))),
                "formats": dict(sorted(self._formats.items(), key=lambda entry: (-entry[1], entry[0]))),
                "http_codes": dict(sorted(self._codes.items(), key=lambda entry: (-entry[1], entry[0]))),
                "short_by": self._failed_hosts.short_by,
                "top": self._top_failures(),
            },
            "duplicates": {"rule": rules.exact_duplicates},
        }

    def _top_hosts(self) -> list[list[Any]]:
        """[[host, images, failed]]."""
        failed: dict[str, int] = {}
        for name, count in self._failed_hosts.top():
            host = name.partition("\t")[2]
            failed[host] = failed.get(host, 0) + count
        return [[host, count, failed.get(host, 0)] for host, count in self._hosts.top(TOP_HOSTS)]

    def _top_failures(self) -> dict[str, list[list[Any]]]:
        """{class: [[host, images]]}."""
        found: dict[str, list[list[Any]]] = {}
        for name, count in self._failed_hosts.top():
            error, _, host = name.partition("\t")
            if len(found.setdefault(error, [])) < HOSTS_PER_CLASS:
                found[error].append([host, count])
        return {error: found[error] for error in sorted(found)}


def _marks(**values: float | None) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in values.items() if value is not None]


def _count(found: TopNames, names: pa.ChunkedArray) -> None:
    counted = pc.value_counts(names)
    found.add(counted.field("values").to_pylist(), counted.field("counts").to_pylist())


def _bools(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(), dtype=bool)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """float64, NaN for null."""
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy().astype(np.float64)
    return values


NAMES_BOUND: Final = 100_000
_LEAST_COLUMNS: Final = 8


class Binned:
    """A histogram of all values and of the kept ones, between edges that are fixed beforehand.

    What is below the first edge, or above a finite last one, is counted in the first or last column.
    Edges are compared as float32, as the rules compare similarities.
    """

    def __init__(self, edges: ArrayLike) -> None:
        self._edges: NDArray[np.float64] = np.asarray(edges, np.float64)
        self._all = np.zeros(len(self._edges) - 1, np.int64)
        self._kept = np.zeros_like(self._all)
        self._sums = [0.0, 0.0]

    def add(self, values: NDArray[Any], kept: NDArray[np.bool_]) -> None:
        """Count values; NaN is not counted. kept: bool, one per value."""
        known = ~np.isnan(values)
        values, kept = values[known], kept[known]
        places = np.searchsorted(self._edges.astype(np.float32), values.astype(np.float32), side="right") - 1
        places = np.clip(places, 0, len(self._all) - 1)
        self._all += np.bincount(places, minlength=len(self._all))
        self._kept += np.bincount(places[kept], minlength=len(self._all))
        self._sums[0] += float(values.sum(dtype=np.float64))
        self._sums[1] += float(values[kept].sum(dtype=np.float64))

    def value(self, unit: str, of: str, marks: Iterable[tuple[str, float]] = ()) -> dict[str, Any] | None:
        """JSON of what was counted, without the empty columns at both ends; None where nothing was.

        {"unit", "of", "edges" (null: without end), "counts", "kept", "mean", "mean_kept", "marks": [[label, value]]}
        """
        filled = np.flatnonzero(self._all)
        if not len(filled):
            return None
        first, last = int(filled[0]), int(filled[-1]) + 1
        for _, mark in marks:  # a threshold is shown with what it parts
            if math.isfinite(mark) and self._edges[0] <= mark <= self._edges[-1]:
                place = int(np.searchsorted(self._edges, mark, side="right")) - 1
                first, last = min(first, max(0, place)), max(last, min(place + 1, len(self._all)))
        while last - first < min(_LEAST_COLUMNS, len(self._all)):
            first, last = (first, last + 1) if last < len(self._all) else (first - 1, last)
        total, kept = int(self._all.sum()), int(self._kept.sum())
        return {
            "unit": unit,
            "of": of,
            "edges": [float(edge) if math.isfinite(edge) else None for edge in self._edges[first : last + 1]],
            "counts": self._all[first:last].tolist(),
            "kept": self._kept[first:last].tolist(),
            "mean": _six(self._sums[0] / total),
            "mean_kept": _six(self._sums[1] / kept) if kept else None,
            "marks": [[label, at] for label, at in marks],
        }


@dataclass
class TopNames:
    """Counts by name, exact up to `bound` names; beyond that the rare ones give way (Misra and Gries, 1982).

    Then a count may be short of the true one, by at most `short_by`, and is never above it.
    """

    bound: int = NAMES_BOUND
    total: int = 0
    short_by: int = 0

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, names: Iterable[str], counts: Iterable[int]) -> None:
        """Count names, each once in a call or more often."""
        mine = self._counts
        for name, count in zip(names, counts, strict=True):
            mine[name] = mine.get(name, 0) + count
            self.total += count
        if len(mine) > self.bound:
            keep = max(1, self.bound // 2)
            less = sorted(mine.values(), reverse=True)[keep]
            self._counts = {name: count - less for name, count in mine.items() if count > less}
            self.short_by += less

    @property
    def distinct(self) -> int | None:
        """How many names there are; None where more than are held."""
        return None if self.short_by else len(self._counts)

    def top(self, count: int | None = None) -> list[tuple[str, int]]:
        """The most frequent first, equal ones by name."""
        return sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))[:count]


def _six(value: float) -> float:
    return float(f"{value:.6g}")
