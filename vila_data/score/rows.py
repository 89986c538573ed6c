"""A part's records and images as the score stage walks over them: tables streamed in step, never held whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.store import Store

_BATCH: Final = 1024
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
class Known:
    """What an earlier run measured of an image; exactly one of the two is there."""

    similarity: float | None
    similarities_T: NDArray[np.float32] | None


@dataclass(slots=True)
class ImageRow:
    """One row of the images table.

    wanted: it is to be scored: its bytes are there, and a rule needs it or it was scored before.
    known:  the earlier score of a wanted image, if there is one to take over.
    """

    image_index: int
    wanted: bool
    sha256: str
    size: int
    offset: int
    matched_text_index: int | None
    known: Known | None


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
        DataError: it is no Parquet table.
    """
    with store.open_read(path) as stream, _parquet(store, path):
        return int(pq.ParquetFile(stream).metadata.num_rows)


def read_rows(store: Store, part: Part, needed: NDArray[np.bool_] | None, known: str | None) -> Iterator[RecordRows]:
    """The records of a part that have images, in order.

    Args:
        needed: [images] which images to score; None needs all. Images without bytes never are.
        known:  path of a score table of this part whose values are to be taken over.

    Raises:
        DataError: the part's tables do not fit together.
    """
    with ExitStack() as stack:
        images = _table(store, part.images_table(), _IMAGE_COLUMNS, stack)
        records = _table(store, part.records_table(), ("row", "record_id", "json_bytes", "offset"), stack)
        columns = ("row", "image_index", "scored", "similarity", "similarities")
        scores = _table(store, known, columns, stack) if known else None
        numbered = ((index, image) for index, image in enumerate(images))
        for row, group in groupby(numbered, key=lambda entry: entry[1]["row"]):
            record = next((record for record in records if record["row"] >= row), None)
            if record is None or record["row"] != row:
                raise DataError(f"{store.location(part.records_table())}: no row {row}; delete the part to redo it")
            rows = [_image_row(image, index, needed, scores, part) for index, image in group]
            offset = -1 if record["offset"] is None else record["offset"]
            yield RecordRows(row, record["record_id"], offset, record["json_bytes"], rows)


def _table(store: Store, path: str, columns: tuple[str, ...], stack: ExitStack) -> Iterator[dict[str, Any]]:
    stream = stack.enter_context(store.open_read(path))
    with _parquet(store, path):
        table = pq.ParquetFile(stream)
        for batch in table.iter_batches(_BATCH, columns=list(columns), use_threads=False):
            yield from _plain(batch)


@contextmanager
def _parquet(store: Store, path: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise DataError(f"{store.location(path)}: not a whole Parquet table: {error}; delete it to redo it") from error


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
    part: Part,
) -> ImageRow:
    known = None
    if scores is not None:
        score = next(scores, None)
        if score is None or (score["row"], score["image_index"]) != (image["row"], image["image_index"]):
            raise DataError(f"{part.scores_table()}: its rows are not those of {part.images_table()}; delete it")
        if score["scored"]:
            known = Known(score["similarity"], score["similarities"])
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
