"""One score task: a part's table by one scorer, then its receipt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pyarrow.parquet as pq

from vila_data.core.errors import DataError
from vila_data.core.layout import score_stage
from vila_data.core.receipts import Receipt, committing, has_outputs, read_receipt
from vila_data.score.embeddings import embedding_paths
from vila_data.score.feed import FeedStats
from vila_data.score.rows import KnownTable, count_rows, read_records, read_rows
from vila_data.score.scorer import Task
from vila_data.score.similarities import KNOWN, score_similarities
from vila_data.score.values import score_values

_SCORER_KEY: Final = b"vila_data.scorer"
_DOWNLOAD_KEY: Final = b"vila_data.download"


def score_part(
    task: Task, opened: Any, progress: Callable[[int], None] | None = None, *, stats: FeedStats | None = None
) -> Receipt:
    """Write the score table of a part, and what else its scorer makes, then the receipt.

    Args:
        opened: what the scorer's `open` gave.
        progress: called with the number of rows finished since its last call.
        stats: filled with where the time went.

    Raises:
        DataError: the part's files do not fit together, or bytes are damaged.
        StorageError: the store cannot be read or written.
    """
    store, needed = task.store, task.needed
    path = task.part.images_table() if task.scorer.rows == "image" else task.part.records_table()
    total = count_rows(store, path)
    if needed is not None and len(needed) != total:
        raise DataError(f"{store.location(path)}: {total} {task.scorer.rows}s, but {len(needed)} were judged")
    known = KnownTable(task.path, _known_columns(task)) if task.reuse and _reusable(task) else None
    score = score_similarities if task.scorer.needs == "pixels and texts" else score_values
    receipt_path = task.part.receipt(score_stage(task.name))
    with committing(store, receipt_path, task.inputs) as outputs:
        counts = score(task, opened, known, outputs, _table_metadata(task), progress, stats or FeedStats())
        outputs.counts.update(counts)
    if outputs.receipt is None:
        raise DataError(f"{store.location(receipt_path)}: was not written")
    return outputs.receipt


def covers(task: Task) -> bool:
    """Whether a committed score table of this scorer and this download has every needed row, and its other files."""
    if not _reusable(task):
        return False
    store, part, needed = task.store, task.part, task.needed
    of_images = task.scorer.rows == "image"
    path = part.images_table() if of_images else part.records_table()
    if needed is not None and len(needed) != count_rows(store, path):
        return False
    known = KnownTable(task.path, ())
    if not of_images:
        return all(not row.wanted or row.known is not None for row in read_records(store, part, needed, known))
    records = read_rows(store, part, needed, known)
    return all(not image.wanted or image.known is not None for record in records for image in record.images)


def _known_columns(task: Task) -> tuple[str, ...]:
    if task.scorer.needs == "pixels and texts":
        return KNOWN
    return tuple(column.name for column in task.scorer.columns())


def _reusable(task: Task) -> bool:
    """Whether a whole score table is there, made by this scorer from this download."""
    receipt = read_receipt(task.store, task.part.receipt(score_stage(task.name)))
    if receipt is None or task.path not in receipt.outputs or not has_outputs(task.store, receipt):
        return False
    vectors = getattr(task.scorer, "embeddings", False) and receipt.counts.get("images_scored")
    if vectors and embedding_paths(task.part, task.name)[0] not in receipt.outputs:
        return False
    with task.store.open_read(task.path) as stream:
        metadata = pq.read_schema(stream).metadata or {}
    wanted = _table_metadata(task)
    return all(metadata.get(key) == value for key, value in wanted.items()) and wanted[_DOWNLOAD_KEY] != b""


def _table_metadata(task: Task) -> dict[bytes, bytes]:
    download = read_receipt(task.store, task.part.receipt("download"))
    made_from = download.fingerprint().encode() if download else b""
    return {_SCORER_KEY: task.fingerprint.encode(), _DOWNLOAD_KEY: made_from}
