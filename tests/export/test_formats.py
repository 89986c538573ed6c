"""What each format's reader relies on, beyond the records themselves."""

from __future__ import annotations

import base64
import importlib
import io
import json
import sqlite3
import struct
import tarfile
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.export.reading import Small, contents, exported, folder_of, jpeg, small_set
from tests.made_run import MadeRun
from vila_data.core.layout import Part
from vila_data.core.records import Record
from vila_data.corpora.config import Mmc4Config
from vila_data.corpora.kinds import open_corpus
from vila_data.export.img2dataset import Img2dataset


def members(path: Path) -> dict[str, bytes]:
    """{name: content} of a tar in which there is nothing but files, each name once."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            assert member.isreg()
            assert member.name not in found
            stream = tar.extractfile(member)
            assert stream is not None
            found[member.name] = stream.read()
    return found


def test_wids(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "cache"))
    wids = importlib.import_module("wids")
    exported(folder_of(made, "pairs"), "wids", tmp_path / "out", shards=3)
    folder = tmp_path / "out" / "pairs"
    meta = json.loads((folder / "wids-meta.json").read_text())
    assert (meta["name"], meta["__kind__"], meta["wids_version"]) == ("pairs", "VILA-WebDataset", 1)
    assert [shard["filesize"] for shard in meta["shardlist"]] == [
        (folder / shard["url"]).stat().st_size for shard in meta["shardlist"]
    ]
    assert all(len(members(folder / shard["url"])) == 3 * shard["nsamples"] for shard in meta["shardlist"])
    dataset = wids.ShardListDataset(str(folder / "wids-meta.json"), keep=True)
    everything = contents(folder_of(made, "pairs"))
    assert len(dataset) == len(everything)
    for number, content in enumerate(everything):
        sample = dataset[number]
        (picture,) = content.pictures
        assert (sample["__key__"], sample[".txt"], sample[".json"]["url"]) == (
            content.key,
            content.texts[0],
            picture.url,
        )
        assert sample[".jpg"].size == (picture.width, picture.height)


def test_wids_tars_of_a_run_have_names_of_their_own(made: MadeRun, tmp_path: Path) -> None:
    for name in ("pairs", "docs_pairs"):
        exported(folder_of(made, name), "wids", tmp_path / name)
    names = [path.name for path in tmp_path.rglob("*.tar")]
    assert len(names) == len(set(names)) >= 4


def test_open_flamingo(made: MadeRun, tmp_path: Path) -> None:
    exported(folder_of(made, "docs"), "open-flamingo", tmp_path)
    tars = sorted((tmp_path / "docs").iterdir())
    assert [path.name for path in tars] == [f"{index:09d}.tar" for index in range(len(made.sets["docs"].shards))]
    rows = [(name, json.loads(data)) for path in tars for name, data in members(path).items()]
    for (name, row), content in zip(rows, contents(folder_of(made, "docs")), strict=True):
        stem, suffix = name.split(".")
        assert uuid.UUID(stem).version == 5
        assert suffix == "json"
        pictures = {picture.member: picture.jpeg for picture in content.pictures}
        for info in row["image_info"]:
            assert base64.b64decode(info["image_base64"], validate=True) == pictures.pop(info["image_name"])
        assert not pictures


def test_open_flamingo_tar_that_is_cut(made: MadeRun, tmp_path: Path) -> None:
    """Kind mmc4 gives what is whole, and one record that failed."""
    exported(folder_of(made, "docs"), "open-flamingo", tmp_path, shards=1)
    path = tmp_path / "docs" / "000000000.tar"
    whole = len(members(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = open_corpus(Mmc4Config(kind="mmc4", files=(str(path),)))
    rows = source.scan(str(path), None).rows
    found = list(source.read(Part("back", 0, str(path), "file", 0, rows, rows, "test")))
    assert 0 < sum(isinstance(one, Record) for one in found) < whole
    assert not isinstance(found[-1], Record)
    assert found[-1].reason == "truncated_file"


def test_llava_rows(made: MadeRun, tmp_path: Path) -> None:
    """First turn human, a mark a picture, a list where there are several, no key where there is none."""
    report = exported(folder_of(made, "chat"), "llava", tmp_path)
    rows = json.loads((tmp_path / "chat" / "chat.json").read_text())
    seen = set()
    for row, content in zip(rows, contents(folder_of(made, "chat")), strict=True):
        paths = row.get("image", [])
        paths = [paths] if isinstance(paths, str) else paths
        seen.add(type(row.get("image")))
        assert len(paths) == len(content.pictures) == sum(t["value"].count("<image>") for t in row["conversations"])
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(content.texts) // 2)
        assert row.get("system") == content.system
        for path, picture in zip(paths, content.pictures, strict=True):
            assert (tmp_path / "chat" / "images" / path).read_bytes() == picture.jpeg
    assert seen == {str, list, type(None)}
    prompts = sum(content.system is not None for content in contents(folder_of(made, "chat")))
    assert report.sets[0].adapted == {"system_prompt_beside_the_turns": prompts}
    assert prompts
    pictures = [path for path in (tmp_path / "chat" / "images").rglob("*") if path.is_file()]
    assert len(pictures) == made.sets["chat"].images


def test_a_literal_mark_in_a_caption(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "run", "pairs", [Small(("an <image> of a dog",), (0,))])
    report = exported(folder, "llava", tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "small" / "small.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == ["<image>", "an <IMAGE> of a dog"]
    assert report.sets[0].adapted == {"image_mark_in_caption": 1}


@pytest.mark.parametrize("name", ["docs", "pairs"])
def test_datasets_gives_pictures(made: MadeRun, tmp_path: Path, name: str) -> None:
    import datasets

    exported(folder_of(made, name), "obelics", tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out" / name), split="train", cache_dir=str(tmp_path / "cache"))
    for row, content in zip(rows, contents(folder_of(made, name)), strict=True):
        if name == "docs":
            assert len(row["images"]) == len(row["texts"]) == len(row["pictures"]) == len(json.loads(row["metadata"]))
            assert [url is None for url in row["images"]] == [one is None for one in row["pictures"]]
            assert [text for text in row["texts"] if text is not None] == list(content.texts)
            assert json.loads(row["general_metadata"])["record_id"] == content.record_id
        given = [one for one in row["pictures"] if one is not None] if name == "docs" else [row["image"]]
        for picture, wanted in zip(given, content.pictures, strict=True):
            assert picture.convert("RGB").tobytes() == Image.open(io.BytesIO(wanted.jpeg)).tobytes()


def test_parquet_groups_are_small(tmp_path: Path) -> None:
    records = [Small((f"text {n}",), (0,)) for n in range(230)]
    folder = small_set(tmp_path / "run", "pairs", records, max_bytes=10_000_000)
    exported(folder, "obelics", tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out" / "small" / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 30]


def test_img2dataset_files(made: MadeRun, tmp_path: Path) -> None:
    exported(folder_of(made, "pairs"), "img2dataset", tmp_path, shards=3)
    folder = tmp_path / "pairs"
    stems = [f"{index:05d}" for index in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".tar", ".parquet", "_stats.json")
    )
    rows = [pq.read_table(folder / f"{stem}.parquet").to_pylist() for stem in stems]
    assert [len(part) for part in rows] == [19, 19, 18], "all but the last have the same number"
    for stem, part in zip(stems, rows, strict=True):
        stats = json.loads((folder / f"{stem}_stats.json").read_text())
        assert stats["count"] == stats["successes"] == len(part)
        assert stats["end_time"] - stats["start_time"] == stats["duration"] > 0
        held = members(folder / f"{stem}.tar")
        assert list(held) == [f"{row['key']}.{suffix}" for row in part for suffix in ("jpg", "json", "txt")]
        for number, row in enumerate(part):
            assert row["key"] == f"{stem}{number:04d}"
            assert json.loads(held[f"{row['key']}.json"]) == pytest.approx(row)
            assert held[f"{row['key']}.txt"].decode() == row["caption"]


def test_img2dataset_cuts_at_ten_thousand() -> None:
    parts = Img2dataset("pairs").cut("big", [9_000, 12_000, 4_000], None)
    assert [(part.start, part.stop) for part in parts] == [(0, 10_000), (10_000, 20_000), (20_000, 25_000)]


@pytest.mark.parametrize("name", ["docs", "pairs", "chat"])
def test_energon_index(made: MadeRun, tmp_path: Path, name: str) -> None:
    """Every sample and member can be read at the place that the indexes name."""
    exported(folder_of(made, name), "energon", tmp_path, shards=3)
    folder = tmp_path / name
    tars = [f"{name}-{index:06d}.tar" for index in range(3)]
    info = json.loads((folder / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert list(info) == tars
    assert sum(info.values()) == made.sets[name].samples
    database = sqlite3.connect(folder / ".nv-meta" / "index.sqlite")
    data = [(folder / tar).read_bytes() for tar in tars]
    samples = database.execute("SELECT * FROM samples ORDER BY tar_file_id, sample_index").fetchall()
    everything = contents(folder_of(made, name))
    for (tar, key, index, offset, size), content in zip(samples, everything, strict=True):
        starts = struct.unpack(f"<{info[tars[tar]] + 1}Q", (folder / f"{tars[tar]}.idx").read_bytes())
        assert (offset, offset + size) == (starts[index], starts[index + 1])
        assert key == content.key
        parts = database.execute(
            "SELECT part_name, content_byte_offset, content_byte_size FROM sample_parts "
            "WHERE tar_file_id = ? AND sample_index = ? ORDER BY content_byte_offset",
            (tar, index),
        ).fetchall()
        assert {f"{key}.{part}": data[tar][at : at + length] for part, at, length in parts} == content.members
    database.close()
    assert (folder / ".nv-meta" / "sample_loader.py").exists() == (name == "docs")


def test_energon_tars_are_the_sets_own(made: MadeRun, tmp_path: Path) -> None:
    """Not cut otherwise, a set goes out byte for byte."""
    exported(folder_of(made, "docs"), "energon", tmp_path)
    for shard in made.sets["docs"].shards:
        assert (tmp_path / "docs" / shard.name).read_bytes() == made.store.read(f"shards/docs/{shard.name}")
        assert (tmp_path / "docs" / f"{shard.name}.idx").read_bytes() == made.store.read(
            f"shards/docs/{shard.name}.idx"
        )


def test_pictures_of_tests_differ() -> None:
    assert len({jpeg(seed) for seed in range(40)}) == 40
