"""What each format's reader relies on, beyond the records themselves."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import os
import sqlite3
import struct
import tarfile
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.export.reading import Small, contents, exported, folder_of, jpeg, small_set
from tests.export.test_vila_pickle import load
from tests.made_run import MadeRun
from vila_data.core import layout
from vila_data.core.receipts import committing
from vila_data.core.records import Record
from vila_data.core.store import Store
from vila_data.corpora.config import Mmc4Config
from vila_data.corpora.kinds import open_corpus
from vila_data.export.format import DonePart, ExportCounts, ExportedSet, Part, read_content
from vila_data.export.formats import open_format
from vila_data.export.img2dataset import Img2dataset
from vila_data.shard.config import View
from vila_data.shard.read import Sample


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
        (picture,) = content.images
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
        pictures = {picture.member: picture.jpeg for picture in content.images}
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
    found = list(source.read(layout.Part("back", 0, str(path), "file", 0, rows, rows, "test")))
    assert 0 < sum(isinstance(one, Record) for one in found) < whole
    assert not isinstance(found[-1], Record)
    assert found[-1].reason == "truncated_file"


def test_llava_rows(made: MadeRun, tmp_path: Path) -> None:
    """One image: a string; several: a list; none: no key. One mark per image."""
    report = exported(folder_of(made, "chat"), "llava", tmp_path)
    rows = json.loads((tmp_path / "chat" / "chat.json").read_text())
    seen: Counter[type] = Counter()
    for row, content in zip(rows, contents(folder_of(made, "chat")), strict=True):
        paths = row.get("image", [])
        paths = [paths] if isinstance(paths, str) else paths
        seen[type(row.get("image"))] += 1
        assert isinstance(row.get("image"), (type(None), str, list)[min(len(paths), 2)])
        assert len(paths) == len(content.images) == sum(t["value"].count("<image>") for t in row["conversations"])
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(content.texts) // 2)
        assert row.get("system") == content.system
        for path, picture in zip(paths, content.images, strict=True):
            assert (tmp_path / "chat" / "images" / path).read_bytes() == picture.jpeg
    assert set(seen) == {str, list, type(None)}
    prompts = sum(content.system is not None for content in contents(folder_of(made, "chat")))
    assert report.sets[0].adapted == {
        "several_images_as_a_list": seen[list],
        "system_prompt_in_separate_field": prompts,
    }
    assert prompts
    pictures = [path for path in (tmp_path / "chat" / "images").rglob("*") if path.is_file()]
    assert len(pictures) == made.sets["chat"].images


def opened_by_v1(row: dict[str, Any], folder: Path) -> Image.Image | None:
    """The image of a row as LazySupervisedDataset of VILA v1.0 and LLaVA 1.5 opens it: one path, or no key."""
    return Image.open(os.path.join(folder, row["image"])) if "image" in row else None


@pytest.mark.parametrize("name", ["chat", "pairs"])
def test_rows_with_one_image_or_none_are_what_v1_reads(made: MadeRun, tmp_path: Path, name: str) -> None:
    report = exported(folder_of(made, name), "llava", tmp_path)
    rows = json.loads((tmp_path / name / f"{name}.json").read_text())
    refused = 0
    for row, content in zip(rows, contents(folder_of(made, name)), strict=True):
        if len(content.images) > 1:  # v1 has one image per row: the export counts the others
            with pytest.raises(TypeError):
                opened_by_v1(row, tmp_path / name / "images")
            refused += 1
            continue
        image = opened_by_v1(row, tmp_path / name / "images")
        assert (image is None) == (not content.images)
        assert image is None or image.size == (content.images[0].width, content.images[0].height)
    assert report.sets[0].adapted.get("several_images_as_a_list", 0) == refused
    assert (refused > 0) == (name == "chat")


def write(to: str, view: View, sample: dict[str, Any], images: Sequence[bytes], out: Path) -> ExportCounts:
    """Export one sample, given by its JSON, as the only part of a set called small."""
    infos = [
        {"url": f"https://pictures.test/{n}", "width": 8, "height": 8, "sha256": hashlib.sha256(image).hexdigest(),
         "similarity": None, "matched_text_index": 0, "image_index": n}
        for n, image in enumerate(images)
    ]  # fmt: skip
    source = {"corpus": "talk", "record_id": "r", "url": None}
    value = {"sample_id": "small-0", "system": None, "image_info": infos, "source": source, "schema": 1, **sample}
    if view == "conversations":
        value["images"] = [f"small-0.{n}.jpg" for n in range(len(images))]
    members = {"json": json.dumps(value).encode()} | {f"{n}.jpg": image for n, image in enumerate(images)}
    content = read_content(Sample("small-0", "small-000000.tar", members), view)
    made, part = open_format(to, view), Part("small", 0, 1, 0, 1)
    assert made is not None
    with committing(Store(str(out)), part.receipt, "test") as files:
        counts = made.write_part(part, iter([content]), files)
        files.counts = counts.counts()
    done = DonePart(part, counts.counts(), 0, 0, {f"small/small-{0:06d}.tar": 0})
    with committing(Store(str(out)), "set.json", "test") as files:
        made.finish(ExportedSet("small", view, "test", [done], Store(str(out))), files)
    return counts


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in said]


def test_a_literal_mark_in_a_conversation_without_images(tmp_path: Path) -> None:
    """LLaVA's plain and mpt templates, and VILA's main branch, read it as an image token; there is no image for it."""
    said = turns(("human", "what is <image> in HTML?"), ("gpt", "<image> is no tag: <img> is."))
    counts = write("llava", "conversations", {"conversations": said}, [], tmp_path)
    (row,) = json.loads((tmp_path / "small" / "small.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == [
        "what is <IMAGE> in HTML?",
        "<IMAGE> is no tag: <img> is.",
    ]
    assert "image" not in row and counts.adapted == {"image_placeholder_in_text": 1}
    with_image = turns(("human", "<image> what is it?"), ("gpt", "a dog"))
    counts = write("llava", "conversations", {"conversations": with_image}, [jpeg(1)], tmp_path / "one")
    (row,) = json.loads((tmp_path / "one" / "small" / "small.json").read_text())
    assert row["conversations"] == with_image and row["image"] == "00000/small-0.0.jpg" and not counts.adapted
    counts = write("energon", "conversations", {"conversations": said}, [], tmp_path / "energon")
    (data,) = members(tmp_path / "energon" / "small" / "small-000000.tar").values()
    assert json.loads(data)["conversations"] == said and not counts.adapted, "the sample as it is, for a cooker"


def test_a_literal_mark_in_a_document(tmp_path: Path) -> None:
    """OpenFlamingo reads it as an image token; VILA's readers of pickles replace it themselves."""
    texts = {"texts": [None, "an <image> tag", "the end"], "images": ["small-0.0.jpg", None, None]}
    counts = write("open-flamingo", "interleaved", texts, [jpeg(1)], tmp_path)
    (line,) = members(tmp_path / "small" / "000000000.tar").values()
    assert json.loads(line)["text_list"] == ["an <IMAGE> tag", "the end"]
    assert counts.adapted == {"not_scored": 1, "image_placeholder_in_text": 1}
    counts = write("vila-pickle", "interleaved", texts, [jpeg(1)], tmp_path / "pickle")
    ((document,),) = [load(path) for path in (tmp_path / "pickle" / "small").glob("*.pkl")]
    assert document["text_list"] == ["an <image> tag", "the end"] and counts.adapted == {"not_scored": 1}


@pytest.mark.parametrize("to", ["llava", "energon"])
@pytest.mark.parametrize("roles", [("gpt", "human", "gpt"), ("human", "gpt", "human"), ("gpt",), ("gpt", "human")])
def test_conversations_of_any_first_and_last_turn_and_with_messages(
    tmp_path: Path, to: str, roles: tuple[str, ...]
) -> None:
    said = turns(*((role, f"turn {number}") for number, role in enumerate(roles)))
    said[-1]["value"] += " <image>"
    said[0]["value"] += " <image>"
    chat = {"messages": [{"role": "user", "content": [{"type": "image"}] * 2}], "tools": [{"type": "function"}]}
    images = [jpeg(number) for number in range(2)]
    counts = write(to, "conversations", {"conversations": said, **chat}, images, tmp_path)
    assert (counts.exported, counts.images) == (1, 2)
    if to == "llava":
        (row,) = json.loads((tmp_path / "small" / "small.json").read_text())
        assert row["conversations"] == said and len(row["image"]) == 2 and set(row) == {"id", "image", "conversations"}
    else:
        held = members(tmp_path / "small" / "small-000000.tar")
        assert json.loads(held["small-0.json"])["tools"] == chat["tools"]


def test_a_literal_mark_in_a_caption(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "run", "pairs", [Small(("an <image> of a dog",), (0,))])
    report = exported(folder, "llava", tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "small" / "small.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == ["<image>", "an <IMAGE> of a dog"]
    assert report.sets[0].adapted == {"image_placeholder_in_caption": 1}


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
        for picture, wanted in zip(given, content.images, strict=True):
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
