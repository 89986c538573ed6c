"""What each kind of corpus offers, and what a scan of one metadata file finds."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import fsspec

from vila_data.core.errors import DataError, StorageError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.selection import FileScores

_EDGE_BYTES = 65_536
PIPE: Final = "pipe:"
"""Begins the URL of a tar that a shell command writes, as in webdataset. A pipe is one part, and is read once: its
rows are not counted before, and its fingerprint is the command's text, since what it writes is not known."""

_TAR_NAME: Final = re.compile(r"[\w.-]+(?=\.tar\b)")

Row = TypeVar("Row")


@dataclass(frozen=True)
class FileScan:
    """One metadata file: its raw rows, a fingerprint, and its scores where rows are preselected."""

    file: str
    rows: int
    fingerprint: str
    scores: FileScores | None = None


class RowProblem(Exception):
    """A row that is not a record; `reason` is one of core.fates.RECORD_REASONS."""

    def __init__(self, reason: str, problem: str) -> None:
        self.reason = reason
        super().__init__(problem)


class Source(Protocol):
    """A kind of corpus: metadata files to records."""

    def scan(self, file: str, max_rows: int | None) -> FileScan:
        """Count the rows of a file, at most `max_rows`.

        Raises:
            DataError: the file cannot be read as this kind of metadata.
        """
        ...

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Records of a part in the order of its rows; a row that is none is a BadRecord."""
        ...


def file_fingerprint(file: str) -> str:
    """16 hex digits of a file's name, size, first and last 64 KiB: cheap, and changes when it is remade; of a pipe, of
    its command.

    Raises:
        DataError: the file cannot be opened.
    """
    if file.startswith(PIPE):
        return hashlib.sha256(file.encode()).hexdigest()[:16]
    fs, path = fsspec.core.url_to_fs(file)
    try:
        size = int(fs.info(path)["size"])
        head = fs.cat_file(path, start=0, end=min(size, _EDGE_BYTES))
        tail = fs.cat_file(path, start=max(0, size - _EDGE_BYTES), end=size)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    digest = hashlib.sha256(f"{path.rsplit('/', 1)[-1]}:{size}:".encode())
    digest.update(head)
    digest.update(tail)
    return digest.hexdigest()[:16]


def file_labels(files: list[str]) -> list[str]:
    """Prefixes of record ids, one a file: its name up to the first dot, made unique where names repeat.

    The file of a pipe is the last tar that its command names.
    """
    labels: dict[str, None] = {}
    seen: dict[str, int] = {}
    for file in files:
        name = next(reversed(_TAR_NAME.findall(file)), "pipe") if file.startswith(PIPE) else file
        stem = name.rsplit("/", 1)[-1].split(".", 1)[0] or "file"
        number = seen.get(stem, 0) + 1
        label = stem if number == 1 else f"{stem}~{number}"
        while label in labels:
            number += 1
            label = f"{stem}~{number}"
        seen[stem] = number
        labels[label] = None
    return list(labels)


def open_binary(file: str) -> Any:
    """A seekable binary stream of a local path, a URL or a pipe, as a context manager.

    Raises:
        StorageError: on entering, where the command of a pipe fails.
    """
    return _piped(file) if file.startswith(PIPE) else fsspec.open(file, "rb")


@contextmanager
def _piped(file: str) -> Iterator[Any]:
    """What a command writes, as a temporary file.

    So a command that fails halfway gives no record, and a damaged tar is reported and read around as any other is.
    """
    from webdataset.gopen import gopen

    with tempfile.TemporaryFile() as copy:
        pipe = gopen(file)
        try:
            with pipe:
                shutil.copyfileobj(pipe, copy, 1 << 20)
        except OSError as error:
            first = error.__context__ if isinstance(error.__context__, OSError) else error  # of a full disk
            reason = first.strerror or f"the command exited with status {pipe.status}"
            raise StorageError(f"{file}: {reason}; rerun to try again") from error
        copy.seek(0)
        yield copy


def rows_of_part(rows: Iterator[Row], part: Part, part_records: int) -> Iterator[Row]:
    """Those from `part.start` to `part.stop`.

    Raises:
        DataError: a pipe has more of them than `part_records`, so that some are in no part.
    """
    yield from itertools.islice(rows, part.start, part.stop)
    if part.file.startswith(PIPE) and part.stop == part_records and next(rows, None) is not None:
        raise DataError(
            f"{part.file}: a pipe must fit in one part, but this one has more than part_records ({part_records}) samples: "
            f"set corpora.{part.corpus}.part_records to at least the sample count of the largest pipe"
        )


def scan_pipe(file: str, part_records: int, max_rows: int | None) -> FileScan:
    """What is known of a pipe before it is read: that it has at most so many rows."""
    return FileScan(file, part_records if max_rows is None else min(part_records, max_rows), file_fingerprint(file))
