"""Pairs that img2dataset has downloaded already: NNNNN.tar next to NNNNN.parquet and NNNNN_stats.json, or a pipe of a tar."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import fsspec

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record
from vila_data.core.tables import read_parquet
from vila_data.core.tarcodec import Member, TarFault, sample_key, walk_foreign
from vila_data.corpora.config import Img2datasetConfig
from vila_data.corpora.rows import open_parquet
from vila_data.corpora.source import PIPE, FileScan, file_fingerprint, open_binary, rows_of_part, scan_pipe

log = logging.getLogger("vila_data.corpora")
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


class Img2datasetSource:
    """One record a row of the parquet; rows that failed there stay failed, with their status.

    A pipe has no parquet: one record per sample of its tar, which has no failed rows.
    """

    def __init__(self, config: Img2datasetConfig) -> None:
        self._config = config

    def scan(self, file: str, max_rows: int | None) -> FileScan:
        """Rows of the parquet next to a tar; all three files must exist."""
        if file.startswith(PIPE):
            return scan_pipe(file, self._config.part_records, max_rows)
        stem = _stem(file)
        fs, path = fsspec.core.url_to_fs(stem)
        for suffix, meaning in ((".parquet", "its rows"), ("_stats.json", "img2dataset did not finish it")):
            if not fs.exists(path + suffix):
                raise DataError(f"{file}: {stem}{suffix} is missing ({meaning}): remove the tar or finish the download")
        with open_binary(stem + ".parquet") as stream:
            rows = open_parquet(stream, f"{stem}.parquet").metadata.num_rows
        rows = rows if max_rows is None else min(rows, max_rows)
        return FileScan(file, rows, file_fingerprint(file) + file_fingerprint(stem + ".parquet"))

    def read(self, part: Part) -> Iterator[Record | BadRecord]:
        """Pairs of the parquet's rows `part.start` to `part.stop`, with their images' bytes.

        An image that a broken or cut tar has no more is a failed one of its row (`upstream`).
        """
        if part.file.startswith(PIPE):
            yield from rows_of_part(_samples(part), part, self._config.part_records)
            return
        with open_binary(_stem(part.file) + ".parquet") as stream:
            table = read_parquet(stream).slice(part.start, part.stop - part.start)
        with open_binary(part.file) as tar:
            members = {}
            for member in walk_foreign(tar, part.file):
                if isinstance(member, TarFault):
                    log.warning("%s: its images have failed", member.text)
                else:
                    members[member.name] = member
            for row, value in enumerate(table.to_pylist(), part.start):
                yield _pair(part, row, value, tar, members)


def _samples(part: Part) -> Iterator[Record | BadRecord]:
    """The samples of a tar, whose texts and URLs are in its members; where it is broken there is a row more, which is none."""
    with open_binary(part.file) as tar:
        samples: dict[str, dict[str, Member]] = {}
        faults = []
        for member in walk_foreign(tar, part.file):
            if isinstance(member, TarFault):
                faults.append(member)
                continue
            key, suffix = sample_key(member.name)
            samples.setdefault(key, {})[suffix] = member
        for row, (key, members) in enumerate(samples.items()):
            value: dict[str, Any] = {"url": ""}
            try:
                if "json" in members:
                    value |= json.loads(_content(tar, members["json"]))
                if "txt" in members and not isinstance(value.get("caption"), str):
                    value["caption"] = _content(tar, members["txt"]).decode()
            except (ValueError, TypeError, RecursionError) as error:
                yield BadRecord(f"{part.label}-{key}", "malformed_json", f"{part.file}: {key}: {error}")
                continue
            yield _pair(
                part, row, value | {"key": key}, tar, {f"{key}.{suffix}": one for suffix, one in members.items()}
            )
        for number, fault in enumerate(faults, len(samples)):
            yield BadRecord(f"{part.label}-{number:09d}~broken", "truncated_file", fault.text)


def _content(tar: Any, member: Member) -> bytes:
    tar.seek(member.offset)
    data: bytes = tar.read(member.size)
    return data


def _pair(part: Part, row: int, value: dict[str, Any], tar: Any, members: dict[str, Member]) -> Record | BadRecord:
    key = str(value.get("key") or f"{row:09d}")
    record_id = f"{part.label}-{key}"
    text = value.get("caption")
    url = value.get("url")
    if not isinstance(text, str) or not text.strip():
        return BadRecord(record_id, "no_text", f"{part.file}: key {key}: no caption")
    if not isinstance(url, str):
        return BadRecord(record_id, "missing_field", f"{part.file}: key {key}: no url")
    member = None
    if value.get("status") in (None, "success"):
        member = next((members[f"{key}.{suffix}"] for suffix in _IMAGE_SUFFIXES if f"{key}.{suffix}" in members), None)
    if member is None:
        image = ImageRef(url=url, matched_text_index=0, error="upstream")
    else:
        image = ImageRef(url=url, matched_text_index=0, data=_content(tar, member))
    return Record(record_id, "pair", (text,), (image,))


def _stem(file: str) -> str:
    return file.removesuffix(".tar")
