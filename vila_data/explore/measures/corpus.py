"""What the columns of one corpus say, part by part: similarity, sizes, hosts, failures, images and text a record."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.explore.measures.counts import Binned, TopNames
from vila_data.filter.config import Rules

NO_HOST: Final = "(no host)"
"""Stands for images that are files, or lie in the metadata, and for what is no URL."""
TOP_HOSTS: Final = 20
HOSTS_A_CLASS: Final = 5

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
IMAGES_A_RECORD: Final = (*range(17), 20, 24, 32, 64, np.inf)
TEXT_CHARS: Final = (0, 1, *(step * power for power in (10, 1e2, 1e3, 1e4, 1e5) for step in _STEPS), np.inf)

_HOST: Final = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#\\]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:\\]+)"
_IMAGE_COLUMNS: Final = ["url", "status", "error", "http_code", "original_width", "original_height", "bytes"]


def hosts_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each URL in small letters, without port, user or password; NO_HOST where there is none."""
    found = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    return pc.fill_null(pc.utf8_lower(found), NO_HOST)


class CorpusMeasures:
    """The measures of one corpus; `add` each part once, in order. Memory does not grow with the parts.

    rules: as in force; they name the column of similarities, and their thresholds are marked.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._similarity, self._side, self._aspect = Binned(SIMILARITY), Binned(SIDE_PX), Binned(ASPECT)
        self._bytes, self._images, self._chars = Binned(IMAGE_BYTES), Binned(IMAGES_A_RECORD), Binned(TEXT_CHARS)
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
            if len(found.setdefault(error, [])) < HOSTS_A_CLASS:
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
