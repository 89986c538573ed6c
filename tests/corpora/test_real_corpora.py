"""Published instruction sets and captions, as they are, down to shards: nothing is lost without a fate.

Run: VILA_DATA_SHARED=../shared pytest -m realdata tests/corpora/test_real_corpora.py
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import vila_data as vd
from vila_data.explore.inspection import check
from vila_data.shard.read import Sample

pytestmark = pytest.mark.realdata

RECIPE = """version: 1
name: real
seed: 3
corpora:
  qa: {{kind: llava, files: ["{data}/llava/coco2014_val_gpt4_qa_30x3.jsonl"], image_root: "{data}/llava/images"}}
  chats: {{kind: llava, files: ["{data}/llava/multi_image_chats.json"], image_root: "{data}/llava"}}
  t0: {{kind: text, files: ["{data}/text/t0.jsonl"], system: "", part_records: 1500}}
  sharegpt: {{kind: text, files: ["{data}/text/sharegpt.json"], part_records: 90}}
  alpaca: {{kind: text, files: ["{data}/text/alpaca_*.json"]}}
  tools: {{kind: text, files: ["{data}/text/toolcall.json"]}}
  flickr: {{kind: flickr8k, files: ["{data}/flickr8k/captions_en.csv"], image_root: "{data}/flickr8k/images"}}
shards:
  qa: {{corpus: qa, view: conversations}}
  chats: {{corpus: chats, view: conversations}}
  t0: {{corpus: t0, view: conversations, max_mb: 2}}
  sharegpt: {{corpus: sharegpt, view: conversations}}
  alpaca: {{corpus: alpaca, view: conversations}}
  tools: {{corpus: tools, view: conversations}}
  flickr: {{corpus: flickr, view: pairs, max_mb: 20}}
"""


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vd.RunReport]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=shared / "realdata"))
    return folder / "run", vd.run(folder / "recipe.yaml", folder / "run", runner="local")


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "realdata"


def samples(out: Path, name: str) -> dict[str, Sample]:
    """By record id."""
    return {sample.json["source"]["record_id"]: sample for sample in vd.open_shards(out / "shards" / name)}


def said(sample: Sample) -> list[str]:
    return [turn["value"] for turn in sample.json["conversations"]]


def test_counts(done: tuple[Path, vd.RunReport]) -> None:
    out, report = done
    funnel = {name: stages["download"] for name, stages in report.funnel.items()}
    assert funnel["qa"] == {"records": {"kept": 90}, "images": {"kept": 0, "failed:no_file": 90}}
    assert report.funnel["qa"]["filter"]["records"] == {"kept": 0, "dropped:missing_image": 90}
    assert funnel["chats"] == {"records": {"kept": 6}, "images": {"kept": 8}}
    for name, rows in (("t0", 8000), ("sharegpt", 500), ("alpaca", 1999), ("tools", 300)):
        assert funnel[name] == {"records": {"kept": rows}, "images": {"kept": 0}}
        assert (report.sets[name].samples, report.sets[name].images) == (rows, 0)
    assert funnel["flickr"] == {"records": {"kept": 2500}, "images": {"kept": 2500}}
    assert report.sets["flickr"].samples == 2500
    assert len(report.sets["t0"].shards) > 3
    assert list(check(out)) == []


def test_chats_of_several_images(done: tuple[Path, vd.RunReport], data: Path) -> None:
    rows: list[Any] = json.loads((data / "llava" / "multi_image_chats.json").read_text())
    found = samples(done[0], "chats")
    photos: dict[str, set[bytes]] = {}
    for number, row in enumerate(rows):
        sample = found[f"multi_image_chats-{number:09d}"]
        assert said(sample) == [message["content"] for message in row["messages"]]
        assert [info["url"] for info in sample.json["image_info"]] == row["images"]
        turns = [info["matched_text_index"] for info in sample.json["image_info"]]
        assert turns == [at for at, m in enumerate(row["messages"]) for _ in range(m["content"].count("<image>"))]
        for name, url in zip(sample.json["images"], row["images"], strict=True):
            photos.setdefault(url, set()).add(sample.members[name.split(".", 1)[1]])
    assert len(photos) == 3 and all(len(bytes_) == 1 for bytes_ in photos.values())
    assert sum(len(sample.json["images"]) == 2 for sample in found.values()) == 2


def test_every_prompt_and_completion(done: tuple[Path, vd.RunReport], data: Path) -> None:
    rows = [json.loads(line) for line in (data / "text" / "t0.jsonl").open()]
    found = samples(done[0], "t0")
    for number, row in enumerate(rows):
        sample = found[f"t0-{number:09d}"]
        assert said(sample) == [row["prompt"], row["completion"]]
        assert sample.json["system"] == ""


def test_every_turn_of_sharegpt_and_alpaca(done: tuple[Path, vd.RunReport], data: Path) -> None:
    found = samples(done[0], "sharegpt")
    for number, row in enumerate(json.loads((data / "text" / "sharegpt.json").read_text())):
        assert found[f"sharegpt-{number:09d}"].json["conversations"] == row["conversations"]
    found = samples(done[0], "alpaca")
    for language in ("en", "zh"):
        for number, row in enumerate(json.loads((data / "text" / f"alpaca_{language}.json").read_text())):
            question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
            assert said(found[f"alpaca_{language}-{number:09d}"]) == [question, row["output"]]


def test_tool_calls(done: tuple[Path, vd.RunReport], data: Path) -> None:
    found = samples(done[0], "tools")
    speakers: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(json.loads((data / "text" / "toolcall.json").read_text())):
        sample = found[f"toolcall-{number:09d}"]
        assert said(sample) == [turn["value"] for turn in row["conversations"]]
        assert sample.json["system"] == (None if row["tools"] in ("", "[]") else row["tools"])
        published = [turn["from"] for turn in row["conversations"]]
        speakers.update(zip(published, [turn["from"] for turn in sample.json["conversations"]], strict=True))
    assert set(speakers) == {
        ("human", "human"),
        ("gpt", "gpt"),
        ("function_call", "gpt"),
        ("observation", "human"),
    }


def test_every_caption_with_its_photo(done: tuple[Path, vd.RunReport], data: Path) -> None:
    with (data / "flickr8k" / "captions_en.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = samples(done[0], "flickr")
    assert len(rows) == len(found) == 2500
    for number, row in enumerate(rows):
        sample = found[f"captions_en-{number:09d}"]
        assert (sample.json["url"], sample.json["caption"]) == (row["image"], row["caption"])
    assert len({sample.json["sha256"] for sample in found.values()}) == 500
