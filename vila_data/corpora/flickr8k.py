"""Flickr8k: a file of captions, several per image, next to a directory of images. A pair is one row of the file."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.config import Flickr8kConfig
from vila_data.corpora.images import named_image
from vila_data.corpora.rows import text_field
from vila_data.corpora.source import FileScan, RowProblem, file_fingerprint, open_binary

_COLUMNS: Final = ("image", "caption")


class Flickr8kSource:
    """Captions as CSV with the header `image,caption`, or as lines `image.jpg#0<tab>caption`."""

    def __init__(self, config: Flickr8kConfig) -> None:
        self._config = config

    def scan(self, file: str, max_rows: int | None) -> FileScan:
        """Count captions."""
        rows = sum(1 for _ in itertools.islice(_captions(file), max_rows))
        return FileScan(file, rows, file_fingerprint(file))

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Pairs of captions `part.start` to `part.stop`; images are read when they are stored."""
        for row, found in enumerate(itertools.islice(_captions(part.file), part.start, part.stop), part.start):
            record_id = f"{part.label}-{row:09d}"
            try:
                yield self._pair(record_id, found)
            except RowProblem as problem:
                yield BadRecord(record_id, problem.reason, f"{part.file}: row {row}: {problem}")

    def _pair(self, record_id: str, found: dict[str, str | None] | RowProblem) -> Record:
        if isinstance(found, RowProblem):
            raise found
        caption = text_field(found, "caption")
        if not caption.strip():
            raise RowProblem("no_text", "caption is empty")
        image = named_image(text_field(found, "image"), self._config.image_root)
        return Record(record_id, "pair", (caption,), (replace(image, matched_text_index=0),))


def _captions(file: str) -> Iterator[dict[str, str | None] | RowProblem]:
    """{image, caption} of each row, a key missing where the row ends before it."""
    with open_binary(file) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
        try:
            first = stream.readline()
            stream.seek(0)
            if "\t" in first and "#" in first.partition("\t")[0]:
                yield from (_line(line) for line in stream if line.strip())
            else:
                yield from _csv_rows(stream, file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error


def _line(line: str) -> dict[str, str | None]:
    name, tab, caption = line.rstrip("\r\n").partition("\t")
    return {"image": name.rpartition("#")[0] or name, "caption": caption if tab else None}


def _csv_rows(stream: io.TextIOWrapper, file: str) -> Iterator[dict[str, str | None] | RowProblem]:
    reader = csv.reader(stream)
    header = [name.strip().lower() for name in next(reader, [])]
    if not set(_COLUMNS) <= set(header):
        raise DataError(
            f"{file}: no captions: neither CSV with the header image,caption nor lines image.jpg#0<tab>caption"
        )
    places = {name: header.index(name) for name in _COLUMNS}
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RowProblem("wrong_type", f"not CSV: {error}")
            continue
        if values:
            yield {name: values[place] if place < len(values) else None for name, place in places.items()}
