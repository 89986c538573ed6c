"""Read the downloaded texts and images of any record, kept or not, by byte range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.ranges.reader import Blocks, Span, read_spans
from vila_data.core.records import Record, record_from_json
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.core.tarcodec import BLOCK

_TABLES: Final = 8
"""Parts whose locations are cached: 28 bytes per record and per image."""


@dataclass(frozen=True)
class _Places:
    """Where a part's records (m) and images (n) are in its tar; offset -1: missing."""

    offset: NDArray[np.int64]  # [m] of the JSON's header
    size: NDArray[np.int64]  # [m] of the JSON
    firsts: NDArray[np.int64]  # [m + 1] of each record's images among the n
    image_offset: NDArray[np.int64]  # [n]
    image_size: NDArray[np.int64]  # [n]


class DownloadedRecords:
    """The records and images of one corpus of a run, as downloaded; kept, dropped or failed.

    parts: of the corpus. Reads by range through the tables of `download`; those of the parts used last are held.
    """

    def __init__(self, store: Store, parts: Iterable[Part]) -> None:
        self._store = store
        self._parts = {part.index: part for part in parts}
        self._blocks = Blocks(store)
        self._places = lru_cache(maxsize=_TABLES)(self._read_places)

    def record(self, part: int, row: int) -> Record | None:
        """The record of a metadata row; None if the row is not a record.

        Raises:
            DataError: there is no such row, or the bytes are not a record's.
            StorageError: a file of the part is missing or cannot be read.
        """
        return next(self.records(part, [row]))

    def records(self, part: int, rows: Sequence[int]) -> Iterator[Record | None]:
        """The records of some rows, in the order given; neighbors come by one read where reads are requests.

        Raises:
            DataError, StorageError: as `record`.
        """
        path = self._part(part).images_tar()
        spans = [self._span(path, part, row) for row in rows]
        found = read_spans(self._store, [span for span in spans if span is not None])
        for span in spans:
            if span is None:
                yield None
            else:
                yield record_from_json(next(found), f"{self._store.location(path)}: byte {span.offset}")

    def _span(self, path: str, part: int, row: int) -> Span | None:
        places = self._row(part, row)
        offset = int(places.offset[row])
        return None if offset < 0 else Span(path, offset + BLOCK, int(places.size[row]))

    def jpeg(self, part: int, row: int, image_index: int) -> bytes | None:
        """The stored JPEG of an image; None where its download failed.

        Raises:
            DataError: there is no such row or image.
            StorageError: a file of the part is missing or cannot be read.
        """
        places = self._row(part, row)
        first, last = places.firsts[row : row + 2].tolist()
        if not 0 <= image_index < last - first:
            raise DataError(
                f"{self._where(part)}: row {row} has {last - first} images; image {image_index} was requested"
            )
        path = self._part(part).images_tar()
        offsets, sizes = places.image_offset[first:last], places.image_size[first:last]
        there = offsets >= 0
        if not there[image_index]:
            return None
        start = int(offsets[there].min())
        block = Span(path, start, int((offsets + sizes)[there].max()) - start)
        return self._blocks.read(Span(path, int(offsets[image_index]), int(sizes[image_index])), block)

    def _row(self, part: int, row: int) -> _Places:
        places = self._places(part)
        if not 0 <= row < len(places.offset):
            raise DataError(f"{self._where(part)}: {len(places.offset)} rows; row {row} was requested")
        return places

    def _part(self, index: int) -> Part:
        if index not in self._parts:
            raise DataError(f"{self._store.url}: the corpus has no part {index}")
        return self._parts[index]

    def _where(self, part: int) -> str:
        return self._store.location(self._part(part).records_table())

    def _read_places(self, index: int) -> _Places:
        part = self._part(index)
        records = read_table(self._store, part.records_table(), ["row", "json_bytes", "offset"])
        images = read_table(self._store, part.images_table(), ["row", "bytes", "offset"])
        rows = np.arange(records.num_rows + 1)
        return _Places(
            offset=_integers(records, "offset"),
            size=_integers(records, "json_bytes"),
            firsts=np.searchsorted(_integers(images, "row"), rows).astype(np.int64),
            image_offset=_integers(images, "offset"),
            image_size=_integers(images, "bytes"),
        )


def _integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column, -1 where it is null."""
    values: NDArray[np.int64] = table.column(name).fill_null(-1).to_numpy().astype(np.int64)
    return values
