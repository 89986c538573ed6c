"""One score task: a part's table by one scorer, then its receipt."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError
from vila_data.core.layout import score_stage
from vila_data.core.receipts import Outputs, Receipt, committing, has_outputs, read_receipt
from vila_data.core.scores import DOWNLOADED, PartTables
from vila_data.core.tables import read_parquet, score_schema
from vila_data.score.embeddings import embedding_paths
from vila_data.score.reading import UNUSED, Feed, FeedStats, Job, Reader, read_record
from vila_data.score.scorer import Scorer, Task
from vila_data.score.similarities import KNOWN, score_similarities
from vila_data.score.tables import KnownTable, RecordRow, TableWriter, count_rows, read_records, read_rows

_AHEAD: Final = 4
"""Images or records a thread that may be in work and not yet written."""

Row = tuple[Any, ...]


def score_values(
    task: Task,
    compute: Callable[..., Any],
    known: KnownTable | None,
    outputs: Outputs,
    metadata: dict[bytes, bytes],
    progress: Callable[[int], None] | None,
    stats: FeedStats,
) -> dict[str, Any]:
    """Write the score table of a part; the counts of its receipt.

    compute: what the scorer's `open` gave.

    Raises:
        DataError: the part's files do not fit together, bytes are damaged, or a row has not the scorer's columns.
    """
    begun, unit = time.perf_counter(), task.scorer.rows
    rows = _ROWS[task.scorer.needs](task, compute, known, stats)
    schema = score_schema(unit, [column.field() for column in task.scorer.columns()])
    empty, scored, total = (None,) * len(task.scorer.columns()), 0, 0
    with TableWriter(outputs.path(task.path), schema, metadata) as table:
        for head, values in rows:
            table.add(*head, values is not None, *(empty if values is None else values))
            scored, total = scored + (values is not None), total + 1
            if progress is not None:
                progress(1)
    stats.total += time.perf_counter() - begun
    return {f"{unit}s_scored": scored, f"{unit}s_skipped": total - scored}


def _of_pixels(
    task: Task, compute: Callable[..., Any], known: KnownTable | None, stats: FeedStats
) -> Iterator[tuple[Row, Row | None]]:
    """Each image's (row, record_id, image_index) and values, None where it is not scored; each distinct image once."""
    threads = task.threads or cpu_count()
    rows_of = partial(read_rows, task.store, task.part, task.needed, known)
    prepare = partial(_computed, task, compute)
    reader = Reader(task.store, task.part, rows_of, prepare, task.scorer.side, texts=False)
    found: list[Row] = []
    pending: deque[Future[Row]] = deque()
    with Feed[Future[Row] | Job](reader.events, threads, _AHEAD * threads) as feed:

        def settle(count: int) -> None:
            """Wait for the oldest, until `count` are pending."""
            while len(pending) > count:
                begun = time.perf_counter()
                found.append(pending.popleft().result())
                stats.waiting += time.perf_counter() - begun
                feed.release(1)

        for event in feed.events(stats):
            if not isinstance(event, Job):
                pending.append(event)
                settle(_AHEAD * threads // 2)
                continue
            settle(len(found) + len(pending) - 1 - max(event.image_slots, default=UNUSED))
            for image, slot in zip(event.rows.images, event.image_slots, strict=True):
                values = found[slot] if slot != UNUSED else _known_row(task.scorer, image.known)
                yield (event.rows.row, event.rows.record_id, image.image_index), values


def _of_text(
    task: Task, compute: Callable[..., Any], known: KnownTable | None, stats: FeedStats
) -> Iterator[tuple[Row, Row | None]]:
    """Each record's (row, record_id) and values, None where it is not scored."""
    threads, where = task.threads or cpu_count(), task.store.location(task.part.images_tar())
    Event = tuple[RecordRow, Future[Row] | None]

    def events(feed: Feed[Event]) -> Iterator[Event]:
        with task.store.open_read(task.part.images_tar()) as tar:
            for row in read_records(task.store, task.part, task.needed, known):
                future = None
                if row.wanted and row.known is None:
                    record = read_record(tar, where, row.offset, row.json_bytes, row.record_id)
                    future = feed.submit(partial(_computed, task, compute, record))
                yield row, future

    with Feed[Event](events, threads, _AHEAD * threads) as feed:
        for row, future in feed.events(stats):
            if future is None:
                values = _known_row(task.scorer, row.known)
            else:
                values = future.result()
                feed.release(1)
            yield (row.row, row.record_id), values


def _of_columns(
    task: Task, compute: Callable[..., Any], known: KnownTable | None, stats: FeedStats
) -> Iterator[tuple[Row, Row | None]]:
    """Each image's or record's head and values, None where it is not scored; they are all computed again."""
    store, part, unit = task.store, task.part, task.scorer.rows
    of_image = [name for name in task.scorer.reads if DOWNLOADED[name][0] == "image"]
    of_record = [name for name in task.scorer.reads if DOWNLOADED[name][0] == "record"]
    keys = ["row", "record_id", "status"]
    with store.open_read(part.images_table()) as stream:
        images = read_parquet(stream, list(dict.fromkeys([*keys, "image_index", *of_image])))
    with store.open_read(part.records_table()) as stream:
        records = read_parquet(stream, list(dict.fromkeys([*keys, *of_record])))
    tables = PartTables(images, records, {})
    values = {name: tables.values(name, DOWNLOADED[name][0]) for name in task.scorer.reads}
    if unit == "image":
        places = images.column("row").to_numpy()
        values |= {name: values[name].of_images(places) for name in of_record}
    table = images if unit == "image" else records
    wanted = pc.equal(table.column("status"), "ok").to_numpy()
    if task.needed is not None:
        wanted &= task.needed | _scored(task, known, table.num_rows)
    begun = time.perf_counter()
    arrays = compute(values)
    stats.model += time.perf_counter() - begun
    heads = zip(
        *(table.column(name).to_pylist() for name in keys[:2] + ["image_index"] * (unit == "image")), strict=True
    )
    rows = zip(*arrays, strict=True)
    for head, row, want in zip(heads, rows, wanted.tolist(), strict=True):
        yield head, _checked(task, row) if want else None


_ROWS: Final = {"pixels": _of_pixels, "text": _of_text, "columns": _of_columns}


def _scored(task: Task, known: KnownTable | None, count: int) -> Any:
    """bool[n]: what an earlier table has."""
    if known is None:
        return np.zeros(count, np.bool_)
    with task.store.open_read(known.path) as stream:
        return read_parquet(stream, ["scored"]).column("scored").to_numpy()


def _known_row(scorer: Scorer, known: Mapping[str, Any] | None) -> Row | None:
    return None if known is None else tuple(known[column.name] for column in scorer.columns())


def _computed(task: Task, compute: Callable[[Any], Sequence[Any]], item: Any) -> Row:
    return _checked(task, compute(item))


def _checked(task: Task, row: Sequence[Any]) -> Row:
    """A row of values, NaN as null.

    Raises:
        DataError: it has not a value for each column.
    """
    columns = task.scorer.columns()
    if len(row) != len(columns):
        raise DataError(f"score.{task.name}: {len(row)} values, expected one for each of its {len(columns)} columns")
    return tuple(None if value is None or value != value else value for value in row)


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
        raise DataError(
            f"{store.location(path)}: has {total} {task.scorer.rows}s, but the filter decided {len(needed)}; run the recipe again"
        )
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
