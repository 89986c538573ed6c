"""Corpora of one record a row: JSON lists, JSON lines and parquet, read by slices of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.json_rows import count_json, read_json
from vila_data.corpora.parquet_rows import batches, count_parquet
from vila_data.corpora.source import FileScan, RowProblem, file_fingerprint

ROW_SUFFIXES: Final = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
_BATCH_ROWS: Final = 64  # rows may carry pictures

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


def text_field(row: Row, key: str) -> str:
    """A row's text under `key`.

    Raises:
        RowProblem: it is missing, or no text.
    """
    value = row.get(key)
    if value is None:
        raise RowProblem(
            "missing_field", f"{key} is missing; the row has the keys {', '.join(map(str, row)) or 'none'}"
        )
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"{key} is a {type(value).__name__}, not a text")
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
