from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.made_requests import counted_ranges
from tests.made_run import MAX_BYTES, SEED, SETS, MadeRun, documents, filtered_parts, jobs_of, make_set
from vila_data.core.errors import DataError, StorageError
from vila_data.core.ranges import reader
from vila_data.core.store import Store
from vila_data.shard.manifest import Manifest, finish_set, parse_manifest, read_manifest
from vila_data.shard.read import Sample, open_shards
from vila_data.shard.write import ShardJob, plan_shards, write_shard


def tree(store: Store, folder: str) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.files(folder)}


def small(folder: Path) -> tuple[Store, list[ShardJob]]:
    store = Store(str(folder))
    parts = filtered_parts(store, "web", documents(12), 5)
    shards = plan_shards(store, parts, "interleaved", "docs", SEED, MAX_BYTES)
    return store, jobs_of("docs", SETS["docs"], parts, shards)


@pytest.mark.parametrize("name", list(SETS))
def test_a_set_has_the_same_bytes_every_time(made: MadeRun, name: str) -> None:
    before = tree(made.store, f"shards/{name}")
    make_set(made.store, made.parts[SETS[name].corpus], name, SETS[name])
    assert tree(made.store, f"shards/{name}") == before
    assert len(before) > 20


def test_an_object_store_gets_the_same_bytes(made: MadeRun) -> None:
    remote = Store("memory://made-run")
    for path in (*made.store.files("download/web"), *made.store.files("filter/web")):
        remote.commit_bytes(made.store.read(path), path)
    make_set(remote, made.parts["web"], "docs", SETS["docs"])
    assert tree(remote, "shards/docs") == tree(made.store, "shards/docs")


@pytest.mark.parametrize("name", list(SETS))
def test_an_object_store_is_asked_for_neighbours_at_once(
    made: MadeRun, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = SETS[name].corpus
    remote = Store(f"memory://neighbours-{name}")
    for path in (*made.store.files(f"download/{corpus}"), *made.store.files(f"filter/{corpus}")):
        remote.commit_bytes(made.store.read(path), path)
    asked = counted_ranges(monkeypatch)
    manifest = make_set(remote, made.parts[corpus], name, SETS[name])
    assert tree(remote, f"shards/{name}") == tree(made.store, f"shards/{name}")
    tars = [span for span in asked if span.path.startswith("download/")]
    assert 0 < len(tars) <= len(manifest.shards) * len(made.parts[corpus]) < manifest.samples
    # Only one sample a part in a shard: nothing lies near another one, and no disk is needed.
    monkeypatch.setattr(reader, "GAP", -1)
    asked.clear()
    make_set(remote, made.parts[corpus], name, SETS[name])
    assert tree(remote, f"shards/{name}") == tree(made.store, f"shards/{name}")


def flip(store: Store, path: str, at: int, bit: int = 1) -> None:
    data = bytearray(store.read(path))
    data[at] ^= bit
    store.commit_bytes(bytes(data), path)


def test_a_flipped_byte_of_a_downloaded_image_is_an_error(tmp_path: Path) -> None:
    store, jobs = small(tmp_path)
    job = jobs[0]
    at = int(job.samples.image_offset[0] + job.samples.image_bytes[0]) - 1
    tar = job.parts[int(job.samples.part[0])].images_tar()
    flip(store, tar, at)
    with pytest.raises(DataError, match=r"part-0000\d\.tar: the image at byte \d+ has changed"):
        write_shard(store, job)
    assert store.size(job.receipt()) is None
    assert store.size("shards/docs/docs-000000.tar") is None
    flip(store, tar, at)
    write_shard(store, job)
    assert store.size("shards/docs/docs-000000.tar") is not None


def test_a_broken_downloaded_record_is_an_error(tmp_path: Path) -> None:
    store, jobs = small(tmp_path)
    job = jobs[0]
    tar = job.parts[int(job.samples.part[0])].images_tar()
    flip(store, tar, int(job.samples.offset[0]) + 512)
    with pytest.raises(
        DataError, match=r"part-0000\d\.tar: the record at byte \d+ has changed since it was downloaded"
    ):
        write_shard(store, job)


def test_a_download_tar_that_is_cut_is_an_error(tmp_path: Path) -> None:
    store, jobs = small(tmp_path)
    for part in jobs[0].parts.values():
        store.commit_bytes(store.read(part.images_tar())[:700], part.images_tar())
    with pytest.raises(StorageError, match="at offset"):
        for job in jobs:
            write_shard(store, job)


def test_the_receipt_and_the_index_describe_the_shard(made: MadeRun) -> None:
    for number, shard in enumerate(made.sets["docs"].shards):
        stem = f"shards/docs/docs-{number:06d}"
        rows = pq.read_table(made.store.location(f"{stem}.parquet")).to_pylist()
        data = made.store.read(f"{stem}.tar")
        assert len(rows) == shard.samples
        assert sum(row["n_images"] for row in rows) == shard.images
        for row in rows:
            assert row["members"] == [f"{row['key']}.json", *(f"{row['key']}.{i}.jpg" for i in range(row["n_images"]))]
            assert len(row["similarities"]) == row["n_images"]
            contents = [data[at : at + size] for at, size in zip(row["offsets"], row["sizes"], strict=True)]
            assert contents[0][:1] == b"{" and contents[0][-1:] == b"}"
            assert all(content[:2] == b"\xff\xd8" and content[-2:] == b"\xff\xd9" for content in contents[1:])


@pytest.mark.parametrize("name", list(SETS))
def test_open_shards_gives_what_was_written(made: MadeRun, name: str) -> None:
    reader = open_shards(Path(made.store.location(f"shards/{name}")))
    samples: list[Sample] = list(reader)
    assert len(samples) == len(reader) == made.sets[name].samples
    assert [reader[number].key for number in range(len(reader))] == [sample.key for sample in samples]
    assert reader[-1] == samples[-1]
    assert reader[3:9:2] == samples[3:9:2]
    assert len({sample.key for sample in samples}) == len(samples)
    assert not [sample.key for sample in samples if "." in sample.key]
    with pytest.raises(IndexError):
        reader[len(reader)]
    with pytest.raises(IndexError):
        reader[-len(reader) - 1]


def test_what_is_no_finished_set_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the shard set is not finished"):
        open_shards(tmp_path)


def test_the_manifest_round_trips(made: MadeRun) -> None:
    for name, manifest in made.sets.items():
        assert read_manifest(made.store, name) == manifest
    assert read_manifest(made.store, "no_such_set") is None
    with pytest.raises(DataError, match="not a manifest"):
        parse_manifest(b"{}", "here")
    newer = made.store.read("shards/docs/manifest.json").replace(b'"schema": 2', b'"schema": 3')
    with pytest.raises(DataError, match="here: schema 3, this version of vila-data reads schema 2: make the run again"):
        parse_manifest(newer, "here")


def finish(store: Store, jobs: list[ShardJob]) -> Manifest:
    return finish_set(store, "docs", SETS["docs"], [write_shard(store, job) for job in jobs], "recipe", "inputs")


def test_shards_of_an_earlier_layout_are_deleted(tmp_path: Path) -> None:
    store, jobs = small(tmp_path / "run")
    finish(store, jobs)
    store.commit_bytes(b"of energon prepare", "shards/docs/.nv-meta/index.sqlite")
    store.commit_bytes(b"not ours", "shards/docs/notes.md")
    fewer = plan_shards(store, list(jobs[0].parts.values()), "interleaved", "docs", SEED, 10**9)
    assert len(jobs) > len(fewer) == 1
    finish(store, [replace(jobs[0], samples=fewer[0])])
    assert [path.removeprefix("shards/docs/") for path in store.files("shards/docs")] == [
        ".nv-meta/.info.json",
        ".nv-meta/dataset.yaml",
        ".nv-meta/sample_loader.py",
        ".nv-meta/split.yaml",
        ".receipts/docs-000000.json",
        "docs-000000.parquet",
        "docs-000000.tar",
        "docs-000000.tar.idx",
        "manifest.json",
        "notes.md",
        "wids-meta.json",
    ]
