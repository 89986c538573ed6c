"""The score task of a scorer that gives a row of values a picture, a record, or a row of columns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError
from vila_data.core.receipts import Outputs
from vila_data.core.scores import DOWNLOADED, PartTables
from vila_data.core.tables import read_parquet, score_schema
from vila_data.score.feed import Feed, FeedStats
from vila_data.score.reading import UNUSED, Job, Reader, read_record
from vila_data.score.rows import KnownTable, RecordRow, read_records, read_rows
from vila_data.score.scorer import Scorer, Task
from vila_data.score.table import TableWriter

_AHEAD: Final = 4
"""Pictures or records a thread that may be in work and not yet written."""

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
    """Each image's (row, record_id, image_index) and values, None where it is not scored; each distinct picture once."""
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
