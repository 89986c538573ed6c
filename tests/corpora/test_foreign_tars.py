"""Tars that others wrote and that are broken or cut: what can be read is, the rest has a fate of its own."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.config import Img2datasetConfig, Mmc4Config
from vila_data.corpora.img2dataset import Img2datasetSource
from vila_data.corpora.mmc4 import Mmc4Source

KEYS = [f"{number:09d}" for number in range(6)]


def written(path: Path, members: dict[str, bytes]) -> list[int]:
    """A tar as tarfile writes it; where each member's header stands."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [info.offset for info in tar]


def damage(path: Path, headers: list[int], how: str) -> None:
    """Break the header of the third member, or cut the tar inside the fourth."""
    data = bytearray(path.read_bytes())
    if how == "broken":
        data[headers[2] : headers[2] + 8] = b"\xff" * 8
    else:
        del data[headers[3] + 520 :]
    path.write_bytes(data)


@pytest.mark.parametrize(("how", "rows"), [("broken", [0, 1, None, 3, 4, 5]), ("cut", [0, 1, 2, None])])
def test_mmc4_in_tars(tmp_path: Path, how: str, rows: list[int | None]) -> None:
    documents = {
        f"{key}.json": json.dumps({"text_list": [f"text {key} " * 90], "image_info": []}).encode() for key in KEYS
    }
    path = tmp_path / "docs.tar"
    headers = written(path, documents)
    damage(path, headers, how)
    source = Mmc4Source(Mmc4Config(kind="mmc4", files=(str(path),)))
    assert source.scan(str(path), None).rows == len(rows)
    found = list(source.read(Part("docs", 0, str(path), "docs", 0, len(rows), len(rows), "x")))
    texts = [one.texts[0].split()[1] if isinstance(one, Record) else None for one in found]
    assert texts == [None if row is None else KEYS[row] for row in rows]
    (bad,) = (one for one in found if isinstance(one, BadRecord))
    assert bad.reason == "truncated_file" and f"at byte {headers[2 if how == 'broken' else 3]}" in bad.detail


def downloaded(folder: Path) -> tuple[Path, list[int]]:
    """What img2dataset leaves of some pairs that all came."""
    path = folder / "00000.tar"
    headers = written(path, {f"{key}.jpg": key.encode() * 90 for key in KEYS})
    rows = [{"key": key, "url": f"https://a.test/{key}", "caption": key, "status": "success"} for key in KEYS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return path, headers


@pytest.mark.parametrize(("how", "lost"), [("broken", {2}), ("cut", {3, 4, 5})])
def test_img2dataset(tmp_path: Path, how: str, lost: set[int], caplog: pytest.LogCaptureFixture) -> None:
    path, headers = downloaded(tmp_path)
    source = Img2datasetSource(Img2datasetConfig(kind="img2dataset", files=(str(path),)))
    part = Part("mine", 0, str(path), "00000", 0, len(KEYS), len(KEYS), "x")
    damage(path, headers, how)
    with caplog.at_level(logging.WARNING, "vila_data.corpora"):
        images = [one.images[0] for one in source.read(part) if isinstance(one, Record)]
    assert [image.error for image in images] == ["upstream" if row in lost else None for row in range(len(KEYS))]
    assert all(image.data == KEYS[row].encode() * 90 for row, image in enumerate(images) if row not in lost)
    (line,) = caplog.messages
    assert f"{path}: " in line and f"at byte {headers[2 if how == 'broken' else 3]}" in line


def test_what_is_no_tar_ends_the_run(tmp_path: Path) -> None:
    path, _ = downloaded(tmp_path)
    path.write_bytes(b"<html>not here</html>" * 99)
    source = Img2datasetSource(Img2datasetConfig(kind="img2dataset", files=(str(path),)))
    with pytest.raises(DataError, match="no tar header at byte 0"):
        list(source.read(Part("mine", 0, str(path), "00000", 0, 6, 6, "x")))
