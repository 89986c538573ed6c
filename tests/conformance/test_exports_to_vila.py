"""Exports to VILA and OpenFlamingo, read by number, tar and list as those programs read (minimal_readers.py)."""

from __future__ import annotations

import importlib
import json
import tarfile
from pathlib import Path

import pytest

from tests.conformance.minimal_readers import (
    LEAST_SIMILARITY,
    MOST_IMAGES,
    PickleFolder,
    flamingo_assignment,
    flamingo_documents,
    flamingo_pictures,
    llava_rows,
    vila_document,
    vila_pair,
)
from tests.conformance.shard_sets import OpenedSet, cases, jpegs, sizes_of
from tests.conformance.table import Table
from vila_data.export.exporting import SetReport, export
from vila_data.shard.read import Sample


def exported(opened: OpenedSet, to: str, out: Path, shards: int | None = None) -> tuple[Path, SetReport]:
    """The folder of the set as exported, and what the export says of it."""
    (report,) = export(opened.folder, to, out, shards=shards).sets
    assert report.exported + sum(report.left_out.values()) == opened.manifest.samples
    return out / opened.case.name, report


def vila_text(sample: Sample) -> str:
    """A sample's text as VILA would have it, from the sample's own reading order."""
    found, marks = [], ""
    for text in sample.json["texts"]:
        if text is None:
            marks += "<image>"
        else:
            found.append(marks + text.replace("<image>", "<IMAGE>"))
            marks = ""
    return " ".join([*found, *([marks] if marks else [])])


@pytest.mark.parametrize("opened", cases("interleaved"), indirect=True)
def test_vila_reads_every_document(opened: OpenedSet, tmp_path: Path, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    folder, _ = exported(opened, "vila-pickle", tmp_path)
    with table.reading(
        "VILA mmc4", "v1.0 access", "export --to vila-pickle", case.source, case.name, facts.samples, facts.images
    ) as row:
        found = PickleFolder(folder)
        assert len(found) == facts.samples
        for number in reversed(range(len(found))):
            (document,), sample = found[number], opened.ours[number]
            text, placed = vila_document(document)
            assert text == vila_text(sample)
            assert [one.jpeg for one in placed] == jpegs(sample)
            assert [one.size for one in placed] == sizes_of(sample.json)
            row.samples_read += 1
            row.images_read += len(placed)
            again, _ = vila_document(document)
            assert again == text
            _, first = vila_document(document, MOST_IMAGES)
            assert len(first) == min(MOST_IMAGES, len(placed))


@pytest.mark.parametrize("opened", cases("interleaved", "pairs", sources=("made",)), indirect=True)
def test_vila_ranks_share_all_shards(opened: OpenedSet, tmp_path: Path) -> None:
    """As many files as ranks: nobody's are dropped, and all ranks together have everything once."""
    folder, report = exported(opened, "vila-pickle", tmp_path, shards=4)
    item = 4 if opened.case.view == "pairs" else 1
    ranks = [PickleFolder(folder, rank, 4, item) for rank in range(4)]
    rows = [row for rank in ranks for number in range(len(rank)) for row in rank[number]]
    names = {row["id"] if item == 4 else row["sample_id"] for row in rows}
    assert len(names) == len(rows) == report.exported
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize("opened", cases("pairs"), indirect=True)
def test_vila_reads_every_pair(opened: OpenedSet, tmp_path: Path, table: Table) -> None:
    case = opened.case
    folder, report = exported(opened, "vila-pickle", tmp_path)
    left_out = report.left_out.get("incomplete_group_of_four", 0)
    expected = opened.manifest.samples // 4 * 4
    assert report.exported == expected and left_out == opened.manifest.samples - expected
    with table.reading(
        "VILA coyo", "v1.0 access", "export --to vila-pickle", case.source, case.name, expected, expected, left_out
    ) as row:
        found = PickleFolder(folder, item=4)
        samples = iter(opened.ours)
        for number in range(len(found)):
            for pair in found[number]:
                caption, placed = vila_pair(pair)
                sample = next(samples)
                assert (caption, placed.jpeg) == (sample.json["caption"], sample.members["jpg"])
                assert pair["url"] == sample.json["url"]
                row.samples_read += 1
                row.images_read += 1


@pytest.mark.parametrize("opened", cases("pairs"), indirect=True)
def test_vila_reads_its_webdataset(
    opened: OpenedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "cache"))
    wids = importlib.import_module("wids")
    facts, case = opened.manifest, opened.case
    folder, _ = exported(opened, "wids", tmp_path / "out")
    meta = json.loads((folder / "wids-meta.json").read_text())
    assert (meta["__kind__"], meta["wids_version"]) == ("VILA-WebDataset", 1)
    for shard in meta["shardlist"]:
        assert (folder / shard["url"]).stat().st_size == shard["filesize"]
        with tarfile.open(folder / shard["url"]) as tar:
            assert all(member.isreg() and "/" not in member.name for member in tar)
    with table.reading(
        "VILA wds", "through wids", "export --to wids", case.source, case.name, facts.samples, facts.images
    ) as row:
        dataset = wids.ShardListDataset(str(folder / "wids-meta.json"), keep=True)
        assert len(dataset) == facts.samples
        for number, sample in enumerate(opened.ours):
            one = dataset[number]
            assert one["__key__"] == sample.key
            assert [one[".jpg"].size] == sizes_of(sample.json)
            assert one[".txt"] == sample.json["caption"] and one[".json"]["url"] == sample.json["url"]
            row.samples_read += 1
            row.images_read += 1


@pytest.mark.parametrize("opened", cases("interleaved"), indirect=True)
def test_open_flamingo_reads_every_document(opened: OpenedSet, tmp_path: Path, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    folder, _ = exported(opened, "open-flamingo", tmp_path)
    samples = {sample.key: sample for sample in opened.ours}
    names, taken = set(), 0
    with table.reading(
        "OpenFlamingo", "its access", "export --to open-flamingo", case.source, case.name, facts.samples, facts.images
    ) as row:
        for name, line in flamingo_documents(sorted(folder.glob("*.tar"))):
            sample = samples[line["sample_id"]]
            placed = flamingo_pictures(line)
            assert [one.jpeg for one in sorted(placed, key=lambda one: one.sentence)] == jpegs(sample)
            assert flamingo_taken(sample) == [
                (line["image_info"][i]["image_name"], k) for i, k in flamingo_assignment(line)
            ]
            taken += len(flamingo_assignment(line))
            names.add(name)
            row.samples_read += 1
            row.images_read += len(placed)
    assert len(names) == facts.samples and taken > 0


def flamingo_taken(sample: Sample) -> list[tuple[str, int]]:
    """By the sample's own columns: of each sentence its most similar picture, if that is similar enough; the first six."""
    members = [name for name in sample.json["images"] if name is not None]
    order = sorted(range(len(members)), key=lambda i: sample.json["image_info"][i]["image_index"])
    best: dict[int, int] = {}
    for i in order:
        info = sample.json["image_info"][i]
        held = best.get(info["matched_text_index"])
        if held is None or info["similarity"] > sample.json["image_info"][held]["similarity"]:
            best[info["matched_text_index"]] = i
    found = [
        (members[i], sample.json["image_info"][i]["matched_text_index"])
        for i in order
        if i in best.values() and sample.json["image_info"][i]["similarity"] >= LEAST_SIMILARITY
    ]
    return found[:MOST_IMAGES]


@pytest.mark.parametrize("opened", cases("pairs", "conversations"), indirect=True)
def test_llava_reads_every_conversation(opened: OpenedSet, tmp_path: Path, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    folder, _ = exported(opened, "llava", tmp_path)
    with table.reading(
        "LLaVA", "its access", "export --to llava", case.source, case.name, facts.samples, facts.images
    ) as row:
        for (key, turns, pictures), sample in zip(llava_rows(folder), opened.ours, strict=True):
            assert key == sample.key and pictures == jpegs(sample)
            if case.view == "conversations":
                assert turns == sample.json["conversations"]
            else:
                caption = sample.json["caption"].replace("<image>", "<IMAGE>")
                assert [turn["value"] for turn in turns] == ["<image>", caption]
            row.samples_read += 1
            row.images_read += len(pictures)
