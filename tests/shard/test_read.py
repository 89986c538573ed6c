from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.made_run import SETS, MadeRun
from vila_data.core.errors import DataError, StorageError
from vila_data.core.ranges import prefetch
from vila_data.core.store import Store
from vila_data.shard import read
from vila_data.shard.read import ShardSetReader, open_shards


def folder_of(made: MadeRun, name: str) -> Path:
    return Path(made.store.location(f"shards/{name}"))


def members_by_tarfile(folder: Path) -> dict[str, dict[str, bytes]]:
    """key -> suffix -> bytes, read without the index."""
    import tarfile

    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                stream = tar.extractfile(member)
                assert stream is not None
                found.setdefault(key, {})[suffix] = stream.read()
    return found


def copied(made: MadeRun, name: str, folder: Path) -> Path:
    shutil.copytree(folder_of(made, name), folder / name)
    return folder / name


def in_memory(made: MadeRun, name: str, url: str) -> ShardSetReader:
    remote = Store(url)
    for path in made.store.files(f"shards/{name}"):
        remote.commit_bytes(made.store.read(path), path)
    return open_shards(f"{url}/shards/{name}")


@pytest.mark.parametrize("name", list(SETS))
def test_every_member_is_given_by_iteration_and_by_number(made: MadeRun, name: str) -> None:
    wanted = members_by_tarfile(folder_of(made, name))
    reader = open_shards(folder_of(made, name))
    assert {sample.key: sample.members for sample in reader} == wanted
    assert {reader[number].key: reader[number].members for number in reversed(range(len(reader)))} == wanted
    assert all(type(data) is bytes for sample in reader for data in sample.members.values())
    assert [sample.json for sample in reader] == [json.loads(members["json"]) for members in wanted.values()]


@pytest.mark.parametrize("largest", [1, 30_000, 8 << 20])
def test_a_remote_set_is_read_in_large_requests(made: MadeRun, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LARGEST", largest)
    reader = in_memory(made, "docs", f"memory://requests-{largest}")
    asked: list[int] = []
    read_range = Store.read_range

    def counted(store: Store, path: str, offset: int, size: int) -> bytes:
        asked.append(size)
        return read_range(store, path, offset, size)

    monkeypatch.setattr(Store, "read_range", counted)
    local = list(open_shards(folder_of(made, "docs")))
    asked.clear()
    assert list(reader) == local
    members = [len(data) for sample in local for data in sample.members.values()]
    assert max(asked) <= max(largest, *members)
    shards = len(reader.manifest.shards)
    assert len(asked) == len(members) if largest == 1 else shards <= len(asked) < len(local)
    if largest == 8 << 20:
        assert len(asked) == shards > 1
    asked.clear()
    assert reader[5] == local[5]
    assert len(asked) == (1 if largest > 1 else len(local[5].members))


def test_json_is_parsed_once_and_only_when_asked_for(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    loads = json.loads

    def counted(data: bytes) -> Any:
        parsed.append(data)
        return loads(data)

    sample = open_shards(folder_of(made, "docs"))[0]
    monkeypatch.setattr(read.json, "loads", counted)
    assert not parsed
    assert sample.json is sample.json
    assert parsed == [sample.members["json"]]


def test_a_reader_goes_to_another_process(made: MadeRun) -> None:
    reader = open_shards(folder_of(made, "chat"))
    first = reader[0]
    again = pickle.loads(pickle.dumps(reader))
    assert list(again) == list(reader)
    assert pickle.loads(pickle.dumps(first)) == first


def test_threads_read_the_same(made: MadeRun) -> None:
    reader = open_shards(folder_of(made, "pairs"))
    wanted = list(reader)
    found: list[list[Any]] = []
    threads = [threading.Thread(target=lambda: found.append(list(reader))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_files_that_are_no_longer_needed_are_closed(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_OPEN_SHARDS", 2)
    reader = open_shards(folder_of(made, "pairs"))
    assert len(reader.manifest.shards) > 3
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    list(reader)
    assert before < len(os.listdir("/proc/self/fd")) <= before + 2
    del reader
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_tar_that_is_cut_is_an_error(made: MadeRun, tmp_path: Path) -> None:
    folder = copied(made, "pairs", tmp_path)
    tar = folder / "pairs-000000.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    reader = open_shards(folder)
    with pytest.raises(StorageError, match=r"pairs-000000\.tar: short read at offset \d+: got \d+ of \d+ bytes"):
        list(reader)
    assert reader[0].json["sample_id"] == reader[0].key


def test_a_tar_that_is_missing_is_an_error(made: MadeRun, tmp_path: Path) -> None:
    folder = copied(made, "pairs", tmp_path)
    (folder / "pairs-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"pairs-000001\.tar: no such file"):
        list(open_shards(folder))


def test_an_index_of_other_samples_is_an_error(made: MadeRun, tmp_path: Path) -> None:
    folder = copied(made, "pairs", tmp_path)
    index = folder / "pairs-000000.parquet"
    table = pq.read_table(index)
    pq.write_table(table.slice(0, len(table) - 1), index)
    with pytest.raises(DataError, match=rf"pairs-000000.parquet: {len(table) - 1} samples, but the manifest says"):
        list(open_shards(folder))
    pq.write_table(table.drop_columns(["offsets"]), index)
    with pytest.raises(DataError, match=r"not an index: .*offsets"):
        list(open_shards(folder))
    index.write_bytes(b"no table")
    with pytest.raises(DataError, match=r"pairs-000000\.parquet: not an index"):
        list(open_shards(folder))


def test_json_that_is_broken_is_an_error_when_it_is_asked_for(made: MadeRun, tmp_path: Path) -> None:
    folder = copied(made, "chat", tmp_path)
    row = pq.read_table(folder / "chat-000000.parquet").to_pylist()[0]
    with open(folder / "chat-000000.tar", "rb+") as tar:
        tar.seek(row["offsets"][0])
        tar.write(b"[")
    sample = open_shards(folder)[0]
    assert sample.members["json"][:1] == b"["
    with pytest.raises(DataError, match=rf"chat-000000.tar: {row['key']}.json: not JSON"):
        _ = sample.json
