"""What download left can be read back whatever its fate, record by record and picture by picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.made_requests import counted_ranges
from tests.made_run import Item, MadeRun, documents, write_part
from vila_data.core.errors import DataError, StorageError
from vila_data.core.store import Store
from vila_data.shard.downloaded_records import DownloadedRecords


def rows_of(made: MadeRun, corpus: str) -> list[list[Item | None]]:
    items: list[Item | None] = {"web": made.documents, "alt": made.pairs, "talk": made.chats}[corpus][:]  # type: ignore[assignment]
    size = {"web": 15, "alt": 35, "talk": 30}[corpus]
    if corpus == "web":
        items.insert(5, None)
    return [items[first : first + size] for first in range(0, len(items), size)]


@pytest.mark.parametrize("corpus", ["web", "alt", "talk"])
def test_every_record_and_picture_comes_back(made: MadeRun, corpus: str) -> None:
    evidence = DownloadedRecords(made.store, made.parts[corpus])
    lost = bad = 0
    for part, items in enumerate(rows_of(made, corpus)):
        for row, one in enumerate(items):
            if one is None:
                assert evidence.record(part, row) is None
                bad += 1
                continue
            assert evidence.record(part, row) == one.record
            assert [evidence.jpeg(part, row, i) for i in range(len(one.jpegs))] == list(one.jpegs)
            lost += one.jpegs.count(None)
    assert lost > 0 and (bad == 1 if corpus == "web" else bad == 0)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_many_records_come_back_in_the_order_asked_for(
    made: MadeRun, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = rows_of(made, "web")[0]
    store = made.store
    if where == "store":
        store = Store("memory://evidence")
        for path in made.store.files("download/web"):
            store.commit_bytes(made.store.read(path), path)
    evidence = DownloadedRecords(store, made.parts["web"])
    asked = counted_ranges(monkeypatch)
    for rows in (range(len(items)), [9, 5, 5, 2, 14, 9]):
        expected = [None if (one := items[row]) is None else one.record for row in rows]
        assert list(evidence.records(0, rows)) == expected and None in expected
    assert len(asked) == (2 if where == "store" else 0)
    asked.clear()
    for row, one in enumerate(items):
        if one is not None:
            assert [evidence.jpeg(0, row, i) for i in range(len(one.jpegs))] == list(one.jpegs)
    assert len(asked) == (sum(one is not None and any(one.jpegs) for one in items) if where == "store" else 0)
    with pytest.raises(DataError, match="15 rows; row 15 was requested"):
        list(evidence.records(0, [0, 15]))


def test_more_parts_than_are_held(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    items = documents(12)
    evidence = DownloadedRecords(store, [write_part(store, "many", index, [one]) for index, one in enumerate(items)])
    for _ in range(2):
        for index, one in enumerate(items):
            assert evidence.record(index, 0) == one.record
            assert evidence.jpeg(index, 0, 0) == one.jpegs[0]


def test_what_is_not_there_is_said(made: MadeRun) -> None:
    lost = replace(made.parts["web"][0], index=9)
    evidence = DownloadedRecords(made.store, [*made.parts["web"], lost])
    with pytest.raises(DataError, match="15 rows; row 15 was requested"):
        evidence.record(0, 15)
    with pytest.raises(DataError, match="row -1 was requested"):
        evidence.jpeg(0, -1, 0)
    with pytest.raises(DataError, match="row 0 has 1 images; image 1 was requested"):
        evidence.jpeg(0, 0, 1)
    with pytest.raises(StorageError, match=r"part-00009\.records\.parquet"):
        evidence.record(9, 0)
    with pytest.raises(DataError, match="the corpus has no part 10"):
        evidence.record(10, 0)


def test_damaged_bytes_are_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    part = write_part(store, "web", 0, documents(2))
    tar = tmp_path / part.images_tar()
    data = bytearray(tar.read_bytes())
    data[512:520] = b"not json"
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"byte 512: not a record.*run check on the run"):
        DownloadedRecords(store, [part]).record(0, 0)
    tar.write_bytes(data[:100])
    with pytest.raises(StorageError, match="at offset"):
        DownloadedRecords(store, [part]).record(0, 0)
    (tmp_path / part.records_table()).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"records.parquet: not a whole Parquet table: .*; run check on the run"):
        DownloadedRecords(store, [part]).record(0, 0)
