"""A part's tables as the score stage reads and writes them: row group by row group, never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.store import Store
from vila_data.core.tables import parsing

_BATCH: Final = 1024
_ADVICE: Final = "delete it to redo it"
_IMAGE_COLUMNS: Final = (
    "row",
    "record_id",
    "image_index",
    "status",
    "sha256",
    "bytes",
    "matched_text_index",
    "offset",
)


@dataclass(slots=True)
class ImageRow:
    """One row of the images table.

    wanted: it is to be scored: its bytes are there, and a rule needs it or it was scored before.
    known:  the earlier values of a wanted image, by column, if there are some to take over.
    """

    image_index: int
    wanted: bool
    sha256: str
    size: int
    offset: int
    matched_text_index: int | None
    known: Mapping[str, Any] | None


@dataclass(slots=True)
class RecordRows:
    """One record with all its images; `offset` of its block in the part's tar, JSON of `json_bytes` first."""

    row: int
    record_id: str
    offset: int
    json_bytes: int
    images: list[ImageRow]


def count_rows(store: Store, path: str) -> int:
    """Rows of a Parquet table, from its footer.

    Raises:
        DataError: it is not a Parquet table.
    """
    with store.open_read(path) as stream, parsing(store.location(path), advice=_ADVICE):
        return int(pq.ParquetFile(stream).metadata.num_rows)


@dataclass(slots=True)
class RecordRow:
    """One row of the records table; `wanted` and `known` as of an ImageRow, the rest as of RecordRows."""

    row: int
    record_id: str
    offset: int
    json_bytes: int
    wanted: bool
    known: Mapping[str, Any] | None


@dataclass(frozen=True)
class KnownTable:
    """A score table whose values are to be taken over, and its columns."""

    path: str
    columns: Sequence[str]


def read_rows(
    store: Store, part: Part, needed: NDArray[np.bool_] | None, known: KnownTable | None
) -> Iterator[RecordRows]:
    """The records of a part that have images, in order.

    Args:
        needed: [images] which images to score; None needs all. Images without bytes never are.

    Raises:
        DataError: the part's tables do not fit together.
    """
    with ExitStack() as stack:
        path = part.images_table()
        images = _table(store, path, _IMAGE_COLUMNS, stack)
        records = _table(store, part.records_table(), ("row", "record_id", "json_bytes", "offset"), stack)
        scores = _known_rows(store, known, ("row", "image_index"), stack)
        numbered = ((index, image) for index, image in enumerate(images))
        for row, group in groupby(numbered, key=lambda entry: entry[1]["row"]):
            record = next((record for record in records if record["row"] >= row), None)
            if record is None or record["row"] != row:
                raise DataError(f"{store.location(part.records_table())}: no row {row}; delete the part to redo it")
            rows = [_image_row(image, index, needed, scores, path) for index, image in group]
            offset = -1 if record["offset"] is None else record["offset"]
            yield RecordRows(row, record["record_id"], offset, record["json_bytes"], rows)


def read_records(
    store: Store, part: Part, needed: NDArray[np.bool_] | None, known: KnownTable | None
) -> Iterator[RecordRow]:
    """All rows of a part's records table, in order. Args and errors: as `read_rows`, of records."""
    with ExitStack() as stack:
        columns = ("row", "record_id", "status", "json_bytes", "offset")
        scores = _known_rows(store, known, ("row",), stack)
        path = part.records_table()
        for index, record in enumerate(_table(store, path, columns, stack)):
            found = _known(scores, record, ("row",), path)
            wanted = record["status"] == "ok" and (found is not None or needed is None or bool(needed[index]))
            offset = -1 if record["offset"] is None else record["offset"]
            yield RecordRow(record["row"], record["record_id"], offset, record["json_bytes"], wanted, found)


def _known_rows(
    store: Store, known: KnownTable | None, keys: tuple[str, ...], stack: ExitStack
) -> Iterator[dict[str, Any]] | None:
    return None if known is None else _table(store, known.path, (*keys, "scored", *known.columns), stack)


def _known(
    scores: Iterator[dict[str, Any]] | None, row: Mapping[str, Any], keys: tuple[str, ...], path: str
) -> Mapping[str, Any] | None:
    """The next row of a score table if it was scored; it must be about `row`."""
    if scores is None:
        return None
    score = next(scores, None)
    if score is None or any(score[key] != row[key] for key in keys):
        raise DataError(f"{path}: its score table has different rows; delete that table to redo it")
    return score if score["scored"] else None


def _table(store: Store, path: str, columns: tuple[str, ...], stack: ExitStack) -> Iterator[dict[str, Any]]:
    stream = stack.enter_context(store.open_read(path))
    with parsing(store.location(path), advice=_ADVICE):
        table = pq.ParquetFile(stream)
        for batch in table.iter_batches(_BATCH, columns=list(columns), use_threads=False):
            yield from _plain(batch)


def _plain(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch; lists of float32 stay numpy arrays, bit for bit."""
    lists = {name: batch.column(name) for name in batch.schema.names if name == "similarities"}
    for index, row in enumerate(batch.drop_columns(list(lists)).to_pylist() if lists else batch.to_pylist()):
        for name, column in lists.items():
            value = column[index].values
            row[name] = None if value is None else value.to_numpy(zero_copy_only=False)
        yield row


def _image_row(
    image: dict[str, Any],
    index: int,
    needed: NDArray[np.bool_] | None,
    scores: Iterator[dict[str, Any]] | None,
    path: str,
) -> ImageRow:
    known = _known(scores, image, ("row", "image_index"), path)
    ok = image["status"] == "ok"
    wanted = ok and (known is not None or needed is None or bool(needed[index]))
    return ImageRow(
        image["image_index"],
        wanted,
        image["sha256"] or "",
        image["bytes"] or 0,
        image["offset"] or 0,
        image["matched_text_index"],
        known,
    )


_ROW_GROUP: Final = 1024


class TableWriter:
    """Append rows to a zstd Parquet file; the bytes depend on rows, schema and `metadata` alone."""

    def __init__(self, path: Path, schema: pa.Schema, metadata: Mapping[bytes, bytes] | None = None) -> None:
        self._schema = schema.with_metadata(dict(metadata)) if metadata else schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._columns: list[list[Any]] = [[] for _ in schema]

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, *values: Any) -> None:
        """One row, values in the schema's order."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=_ROW_GROUP)
        for column in self._columns:
            column.clear()
