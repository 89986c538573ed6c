"""What each kind of corpus offers, and what a scan of one metadata file finds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.selection import Scores

_EDGE_BYTES = 65_536


@dataclass(frozen=True)
class FileScan:
    """One metadata file: its raw rows, a fingerprint, and its scores where rows are preselected."""

    file: str
    rows: int
    fingerprint: str
    scores: Scores | None = None


class RowProblem(Exception):
    """A row that is no record; `reason` is one of core.fates.RECORD_REASONS."""

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
    """16 hex digits of a file's name, size, first and last 64 KiB: cheap, and changes when it is remade.

    Raises:
        DataError: the file cannot be opened.
    """
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
    """Prefixes of record ids, one a file: its name up to the first dot, made unique where names repeat."""
    labels: dict[str, None] = {}
    seen: dict[str, int] = {}
    for file in files:
        stem = file.rsplit("/", 1)[-1].split(".", 1)[0] or "file"
        number = seen.get(stem, 0) + 1
        label = stem if number == 1 else f"{stem}~{number}"
        while label in labels:
            number += 1
            label = f"{stem}~{number}"
        seen[stem] = number
        labels[label] = None
    return list(labels)


def open_binary(file: str) -> Any:
    """A seekable binary stream of a local path or URL, as a context manager."""
    return fsspec.open(file, "rb")
