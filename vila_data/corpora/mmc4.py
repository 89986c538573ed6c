"""MMC4: one JSON document a line, in .jsonl, .jsonl.gz or .jsonl.zip, or a member, in OpenFlamingo's .tar or a pipe of one.

Line format: docs/sources.md. An image may share a sentence with others; a
document may have more images than sentences.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record
from vila_data.core.tarcodec import BLOCK, TarFault, walk_foreign
from vila_data.corpora.config import Mmc4Config
from vila_data.corpora.images import encoded_image
from vila_data.corpora.rows import BROKEN_CONTAINER
from vila_data.corpora.source import (
    PIPE,
    FileScan,
    RowProblem,
    file_fingerprint,
    open_binary,
    rows_of_part,
    scan_pipe,
)

_BROKEN_CONTAINER = (*BROKEN_CONTAINER, zipfile.BadZipFile)


class Mmc4Source:
    """Documents of MMC4, or of anything written in its line format."""

    def __init__(self, config: Mmc4Config) -> None:
        self._config = config

    def scan(self, file: str, max_rows: int | None) -> FileScan:
        """Count lines; a container that breaks off counts one row more, which will fail."""
        if file.startswith(PIPE):
            return scan_pipe(file, self._config.part_records, max_rows)
        rows = sum(1 for _ in itertools.islice(_lines(file), max_rows))
        return FileScan(file, rows, file_fingerprint(file))

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Documents of lines `part.start` to `part.stop`; blank lines are failed records too."""
        rows = rows_of_part(_lines(part.file), part, self._config.part_records)
        for number, line in enumerate(rows, part.start + 1):
            record_id = f"{part.label}-{number:06d}"
            try:
                if isinstance(line, RowProblem):
                    raise line
                yield _document(record_id, _parse(line))
            except RowProblem as error:
                yield BadRecord(record_id, error.reason, f"{part.file}:{number}: {error}")


def _lines(file: str) -> Iterator[bytes | RowProblem]:
    try:
        with open_binary(file) as raw:
            if file.endswith(".tar") or file.startswith(PIPE):
                yield from _members(raw, file)
            elif file.endswith(".zip"):
                with zipfile.ZipFile(raw) as archive:
                    for name in archive.namelist():
                        with archive.open(name) as stream:
                            yield from stream
            elif file.endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield from stream
            else:
                yield from raw
    except _BROKEN_CONTAINER as error:
        yield RowProblem("truncated_file", f"the file cannot be read further: {error}")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _members(raw: Any, file: str) -> Iterator[bytes | RowProblem]:
    """Contents of a tar, that others may have written; where it is broken or cut there is a row more, which is none."""
    whole = True
    for member in walk_foreign(raw, file):
        if isinstance(member, TarFault):
            whole = False
            yield RowProblem("truncated_file", member.text)
            continue
        raw.seek(member.offset)
        yield raw.read(member.size)
    end = raw.seek(0, 2)
    raw.seek(max(0, end - 2 * BLOCK))
    if whole and raw.read() != bytes(2 * BLOCK):
        yield RowProblem("truncated_file", "the tar has no end-of-archive marker")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowProblem("malformed_json", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowProblem("wrong_type", f"expected an object, found a {type(value).__name__}")
    return value


def _document(record_id: str, value: dict[str, Any]) -> Record:
    texts = _field(value, "text_list", list)
    if not all(isinstance(text, str) for text in texts):
        raise RowProblem("wrong_type", "text_list must contain strings only")
    if not texts:
        raise RowProblem("no_text", "text_list is empty")
    infos = _field(value, "image_info", list)
    source_url = value.get("url")
    return Record(
        record_id=record_id,
        kind="document",
        texts=tuple(texts),
        images=tuple(_image(index, info, len(texts)) for index, info in enumerate(infos)),
        source_url=source_url if isinstance(source_url, str) else None,
    )


def _image(index: int, info: Any, n_texts: int) -> ImageRef:
    if not isinstance(info, dict):
        raise RowProblem("wrong_type", f"image_info[{index}] must be an object")
    url = _field(info, "raw_url", str, f"image_info[{index}].")
    matched = info.get("matched_text_index")
    if matched is not None and (type(matched) is not int or not 0 <= matched < n_texts):
        raise RowProblem(
            "bad_matched_text_index",
            f"image_info[{index}].matched_text_index is {matched!r}; the document has {n_texts} sentences",
        )
    sim = info.get("matched_sim")
    name = info.get("image_name")
    encoded = info.get("image_base64")
    held = ImageRef(url=url) if encoded is None else encoded_image(encoded)
    return replace(
        held,
        url=url,
        matched_text_index=matched,
        matched_sim=float(sim) if isinstance(sim, (int, float)) else None,
        name=name if isinstance(name, str) else None,
    )


def _field(value: dict[str, Any], key: str, kind: type, where: str = "") -> Any:
    if key not in value:
        raise RowProblem("missing_field", f"{where}{key} is missing")
    if not isinstance(value[key], kind):
        found = type(value[key]).__name__
        raise RowProblem("wrong_type", f"{where}{key} is a {found}, not a {kind.__name__}")
    return value[key]
