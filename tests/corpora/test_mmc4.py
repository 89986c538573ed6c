from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.config import Mmc4Config
from vila_data.corpora.mmc4 import Mmc4Source

SOURCE = Mmc4Source(Mmc4Config(kind="mmc4", files=("x",)))


def line(**changes: Any) -> bytes:
    value: dict[str, Any] = {
        "text_list": ["one", "two"],
        "url": "http://page.example/",
        "image_info": [
            {"raw_url": "http://a.example/1.jpg", "matched_text_index": 1, "matched_sim": 0.3, "image_name": "1.jpg"}
        ],
    }
    value.update(changes)
    return json.dumps({key: entry for key, entry in value.items() if entry is not ...}).encode()


def write(folder: Path, suffix: str, lines: list[bytes]) -> str:
    data = b"\n".join(lines) + b"\n"
    path = folder / f"docs_shard_0_v2.jsonl{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("docs_shard_0_v2.jsonl", data)
    else:
        path.write_bytes(data)
    return str(path)


def read(file: str, start: int = 0, stop: int = 10**6) -> list[Record | BadRecord]:
    return list(SOURCE.read(Part("docs", 0, file, "shard", start, stop, stop - start, "x")))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
def test_reads_each_container_alike(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, suffix, [line(), b"{broken", line(text_list=["three"], image_info=[])])
    assert SOURCE.scan(file, None).rows == 3
    first, bad, last = read(file)
    assert isinstance(first, Record) and first.texts == ("one", "two")
    assert first.images[0].url == "http://a.example/1.jpg" and first.images[0].matched_text_index == 1
    assert isinstance(bad, BadRecord) and bad.reason == "malformed_json" and f"{file}:2:" in bad.detail
    assert isinstance(last, Record) and last.images == ()
    assert [entry.record_id for entry in read(file, 1, 3)] == [bad.record_id, last.record_id]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_list": ...}, "missing_field"),
        ({"text_list": "one"}, "wrong_type"),
        ({"text_list": [1]}, "wrong_type"),
        ({"text_list": []}, "no_text"),
        ({"image_info": ...}, "missing_field"),
        ({"image_info": [3]}, "wrong_type"),
        ({"image_info": [{}]}, "missing_field"),
        ({"image_info": [{"raw_url": "u", "matched_text_index": 2}]}, "bad_matched_text_index"),
        ({"image_info": [{"raw_url": "u", "matched_text_index": -1}]}, "bad_matched_text_index"),
        ({"image_info": [{"raw_url": "u", "matched_text_index": True}]}, "bad_matched_text_index"),
    ],
)
def test_a_wrong_document_is_a_failed_record(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = read(write(tmp_path, "", [line(), line(**changes), line()]))
    assert isinstance(found[1], BadRecord) and found[1].reason == reason
    assert isinstance(found[0], Record) and isinstance(found[2], Record)


@pytest.mark.parametrize("suffix", [".gz", ".zip"])
def test_a_container_that_breaks_off_costs_one_record(tmp_path: Path, suffix: str) -> None:
    lines = [line(text_list=[f"sentence {number} " * 50, "two"]) for number in range(300)]
    file = Path(write(tmp_path, suffix, lines))
    data = file.read_bytes()
    if suffix == ".gz":
        file.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes(64) + data[middle + 64 :])
    found = read(str(file))
    assert SOURCE.scan(str(file), None).rows == len(found)
    bad = [entry for entry in found if isinstance(entry, BadRecord)]
    assert found[-1] in bad and bad[-1].reason == "truncated_file"
    assert isinstance(found[0], Record)


def test_invalid_utf8_is_one_failed_record(tmp_path: Path) -> None:
    found = read(write(tmp_path, "", [b'{"text_list": ["\xff\xfe"]}', line()]))
    assert isinstance(found[0], BadRecord) and found[0].reason == "malformed_json"
    assert isinstance(found[1], Record)
