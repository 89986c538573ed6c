"""Corpora of one record per row: JSON lists, JSON lines (.json, .jsonl, .gz of either) and parquet, from any row, in flat memory.

A JSON list is parsed element by element in a window that moves over the file, so that a file of any size costs no more
memory than its largest row. The byte offset of every 256th row is remembered per process: all slices of a file together
cost its bytes a few times, not once per slice. The standard library's parser does this nearly as fast as `json.load`
reads a whole file; an incremental parser (ijson) would be one more dependency and no faster.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.core.tables import parsing
from vila_data.corpora.source import FileScan, RowProblem, file_fingerprint, open_binary


def open_parquet(stream: Any, file: str) -> pq.ParquetFile:
    """A parquet file, its footer read.

    Raises:
        DataError: it is none.
    """
    with parsing(file, "a parquet file", "replace it, or leave it out of the recipe", OSError):
        return pq.ParquetFile(stream)


def count_parquet(file: str) -> int:
    """Rows of a file, from its footer."""
    with open_binary(file) as stream:
        return int(open_parquet(stream, file).metadata.num_rows)


def batches(
    file: str, start: int, stop: int, columns: tuple[str, ...] | None, batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(row of the first, batch) over the rows `start` to `stop`, opening only their row groups.

    columns: those of them that the file has are read; None reads all.
    """
    with open_binary(file) as stream:
        parquet = open_parquet(stream, file)
        names = parquet.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        at = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if at + rows > start and at < stop:
                yield from _clipped(parquet, group, (at, start, stop), wanted, batch_rows)
            at += rows


def _clipped(
    parquet: pq.ParquetFile, group: int, rows: tuple[int, int, int], columns: list[str], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    at, start, stop = rows
    for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
        first, last = max(start, at), min(stop, at + batch.num_rows)
        if first < last:
            yield first, batch.slice(first - at, last - first)
        at += batch.num_rows


BROKEN_CONTAINER: Final = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a compressed file that broke off raises."""

_STEP: Final = 256
_WINDOW: Final = 1 << 22
_MAX_ROW: Final = 1 << 28
_KNOWN_FILES: Final = 64
_BOM: Final = b"\xef\xbb\xbf"
_BETWEEN: Final = re.compile(r"[ \t\r\n,]*")
_STRUCTURE: Final = re.compile(r'["\[\]{}]')
_IN_STRING: Final = re.compile(r'["\\]')
_OPENS: Final = {"]": "[", "}": "{"}
_BARE: Final = re.compile(r"[^\s,\]\[{}\"]+")


Found = tuple[int, "bytes | RowProblem"]
"""(byte offset of a row, its JSON or what is wrong with it)"""


def count_json(file: str, max_rows: int | None) -> int:
    """Rows of a file, at most `max_rows`; a file that breaks off has one row more, which is a problem."""
    return _places(file, file_fingerprint(file)).count(max_rows)


def read_json(file: str, start: int, stop: int) -> Iterator[Any | RowProblem]:
    """The values of rows `start` to `stop`; a row that cannot be parsed is a RowProblem."""
    row, offset = _places(file, file_fingerprint(file)).before(start)
    for _, found in itertools.islice(walk(file, offset), start - row, stop - row):
        if isinstance(found, RowProblem):
            yield found
            continue
        try:
            yield json.loads(found)
        except (ValueError, RecursionError) as error:
            yield RowProblem("malformed_json", f"not JSON: {error}")


def walk(file: str, offset: int) -> Iterator[Found]:
    """Rows from a byte offset on: 0, or one that an earlier walk gave."""
    with _opened(file) as stream:
        try:
            head = stream.read(4096)
            text = head.removeprefix(_BOM)
            skipped = len(head) - len(text)
            space = len(text) - len(text.lstrip())
            if text[space : space + 1] == b"[":
                yield from _walk_list(stream, offset or skipped + space + 1)
            else:
                yield from _walk_lines(stream, offset or skipped)
        except BROKEN_CONTAINER as error:
            yield -1, RowProblem("truncated_file", f"the file cannot be read further: {error}")
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error


class _Places:
    """Byte offsets of every 256th row of a file, as far as anybody has walked."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._offsets = array("q")
        self._rows: int | None = None
        self._lock = threading.Lock()

    def count(self, max_rows: int | None) -> int:
        with self._lock:
            rows = self._extend(max_rows) if self._rows is None else self._rows
            return rows if max_rows is None else min(rows, max_rows)

    def before(self, row: int) -> tuple[int, int]:
        """(row, offset) of the last place known at or before `row`."""
        with self._lock:
            if self._rows is None and row // _STEP >= len(self._offsets):
                self._extend(row + 1)
            place = min(row // _STEP, len(self._offsets) - 1)
            return (place * _STEP, self._offsets[place]) if place >= 0 else (0, 0)

    def _extend(self, max_rows: int | None) -> int:
        known = max(0, len(self._offsets) - 1)
        row = known * _STEP
        for offset, found in walk(self._file, self._offsets[known] if self._offsets else 0):
            if max_rows is not None and row >= max_rows:
                return row
            if row % _STEP == 0 and row // _STEP == len(self._offsets) and not isinstance(found, RowProblem):
                self._offsets.append(offset)
            row += 1
        self._rows = row
        return row


@lru_cache(maxsize=_KNOWN_FILES)
def _places(file: str, fingerprint: str) -> _Places:
    return _Places(file)


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    with open_binary(file) as raw:
        yield gzip.GzipFile(fileobj=raw) if file.endswith(".gz") else raw


def _walk_lines(stream: Any, offset: int) -> Iterator[Found]:
    stream.seek(offset)
    for line in stream:
        yield offset, line
        offset += len(line)


def _walk_list(stream: Any, offset: int) -> Iterator[Found]:
    """Elements of a list. Text is taken as Latin-1, in which a character is a byte; UTF-8 is for who parses a row."""
    stream.seek(offset)
    decode = json.JSONDecoder().raw_decode
    window, at, ended = "", 0, False
    while True:
        at = _BETWEEN.match(window, at).end()  # type: ignore[union-attr]
        end = _value_end(decode, window, at, ended)
        if end is not None:
            yield offset + at, window[at:end].encode("latin-1")
            at = end
            continue
        if window[at : at + 1] == "]":
            return
        if ended or len(window) - at > _MAX_ROW:
            yield -1, RowProblem("truncated_file", f"the row at byte {offset + at} and the list do not end")
            return
        more = stream.read(max(_WINDOW, len(window) - at)).decode("latin-1")
        ended = not more
        window, offset, at = window[at:] + more, offset + at, 0


def _value_end(decode: Any, window: str, at: int, ended: bool) -> int | None:
    """Where the value at `at` ends; None where the window has not all of it, or there is none."""
    if window[at : at + 1] in ("", "]"):
        return None
    try:
        end: int | None = decode(window, at)[1]
    except (ValueError, RecursionError):
        end = _balanced_end(window, at)
    return None if end == len(window) and not ended else end


def _balanced_end(window: str, at: int) -> int | None:
    """Where a value that is not JSON ends by its brackets and quotes, so that the next one can be read."""
    bare = _BARE.match(window, at)
    if bare is not None:
        return bare.end()
    open_: list[str] = []
    while (found := _STRUCTURE.search(window, at)) is not None:
        at, mark = found.end(), found.group()
        if mark == '"':
            closed = _string_end(window, at)
            if closed is None:
                return None
            at = closed
        elif mark in "[{":
            open_.append(mark)
        else:
            while open_ and open_.pop() != _OPENS[mark] and _OPENS[mark] in open_:
                pass
        if not open_:
            return at
    return None


def _string_end(window: str, at: int) -> int | None:
    while True:
        found = _IN_STRING.search(window, at)
        if found is None or (found.group() == "\\" and found.end() == len(window)):
            return None
        if found.group() == '"':
            return found.end()
        at = found.end() + 1


ROW_SUFFIXES: Final = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_BATCH_ROWS: Final = 64  # rows may carry images

Row = dict[str, Any]
ReadRow = Callable[[str, Row], Record]
"""(record_id, row) -> its record; raises RowProblem where the row is none."""


class RowSource:
    """A kind of corpus whose files hold one record a row; record ids are `<file's label>-<row>`, rows from 0."""

    def __init__(self, read_row: ReadRow) -> None:
        self._read_row = read_row

    def scan(self, file: str, max_rows: int | None) -> FileScan:
        """Count rows; a file that breaks off counts one row more, which will fail."""
        problem = unreadable(file)
        if problem is not None:
            raise DataError(f"{file}: {problem}")
        rows = count_parquet(file) if file.endswith(".parquet") else count_json(file, max_rows)
        return FileScan(file, rows if max_rows is None else min(rows, max_rows), file_fingerprint(file))

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Records of rows `part.start` to `part.stop`, one a row.

        Raises:
            DataError: the file has fewer rows than when it was scanned.
        """
        row = part.start
        for value in _rows(part.file, part.start, part.stop):
            yield self._record(part, row, value)
            row += 1
        if row != part.stop:
            raise DataError(
                f"{part.file}: ends at row {row}, had {part.stop} rows when it was scanned: the file has changed"
            )

    def _record(self, part: Part, row: int, value: Any) -> Record | BadRecord:
        record_id = f"{part.label}-{row:09d}"
        try:
            if isinstance(value, RowProblem):
                raise value
            if not isinstance(value, dict):
                raise RowProblem("wrong_type", f"expected an object, found a {type(value).__name__}")
            return self._read_row(record_id, value)
        except RowProblem as problem:
            return BadRecord(record_id, problem.reason, f"{part.file}: row {row}: {problem}")


def unreadable(file: str) -> str | None:
    """What to do with a file that is not one of rows; None where its name says that it is."""
    if file.endswith(ROW_SUFFIXES):
        return None
    if file.endswith((".pkl", ".pickle")):
        return (
            "pickle files are refused because opening one can run code: load it where you trust it, "
            "and save its rows as .jsonl or .parquet"
        )
    return f"rows are read from {', '.join(ROW_SUFFIXES)}"


def missing(what: str, row: Row) -> RowProblem:
    """A row without a field that it must have."""
    return RowProblem("missing_field", f"{what}; the row has the keys {', '.join(map(str, row)) or 'none'}")


def text_field(row: Row, key: str) -> str:
    """A row's text under `key`.

    Raises:
        RowProblem: it is missing, or no text.
    """
    value = row.get(key)
    if value is None:
        raise missing(f"{key} is missing", row)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"{key} must be a string, found a {type(value).__name__}")
    return value


def _rows(file: str, start: int, stop: int) -> Iterator[Any]:
    if not file.endswith(".parquet"):
        yield from read_json(file, start, stop)
        return
    for _, batch in batches(file, start, stop, None, _BATCH_ROWS):
        for row in batch.to_pylist():
            yield {key: without_null_fields(value) for key, value in row.items()}


def without_null_fields(value: Any) -> Any:
    """A value of a column; a table gives all its structs all their fields, those that are null are not there."""
    if isinstance(value, dict):
        return {key: without_null_fields(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_null_fields(entry) for entry in value]
    return value
