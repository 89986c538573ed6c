"""The sample's web pages, its switch for recipes, and all its corpora as the package's readers see them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import make
import plan
import pyarrow.parquet as parquet
import pytest
import rebase
import scenes
import webpages
import yaml

from vila_data import load_recipe
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.kinds import open_corpus

META, SITE = make.HERE / "meta", make.HERE / "site"
EXPECTED = json.loads((META / "truth.json").read_text("utf-8"))["expected"]
SWITCH = yaml.safe_load((make.HERE / "corpora.yaml").read_text("utf-8"))
RECIPE = """
version: 1
name: try
seed: 1
corpora:
  docs: {kind: mmc4, files: ["s3://elsewhere/*.jsonl"]}
  pairs: {kind: coyo, files: [none.parquet]}
  chat: {kind: llava, files: [none.json], image_root: none}
  align: {kind: llava, files: [none.json], image_root: none}
  text: {kind: text, files: [none.jsonl]}
  vflan: {kind: vflan, files: [none.jsonl]}
  pages: {kind: obelics, files: [none.parquet]}
  captions: {kind: flickr8k, files: [none.csv], image_root: none}
"""


def pages() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(META / "obelics.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record | BadRecord]]:
    """The records of each corpus, by the readers of a recipe that runs on a rebased sample."""
    folder = tmp_path_factory.mktemp("on")
    (folder / "try.yaml").write_text(RECIPE, encoding="utf-8")
    switch = rebase.rebase_sample(folder / "sample", "http://127.0.0.1:1")
    recipe = load_recipe(folder / "try.yaml", corpora=switch)
    return {name: records_of(config) for name, config in recipe.corpora.items()}


def records_of(config: Any) -> list[Record | BadRecord]:
    source, records = open_corpus(config), []
    for number, file in enumerate(config.files):
        scan = source.scan(file, None)
        part = Part("corpus", number, file, f"f{number}", 0, scan.rows, scan.rows, scan.fingerprint)
        records += list(source.read(part))
    return records


# Web pages


def test_pages_have_a_text_or_an_image_at_each_place() -> None:
    for row in pages():
        assert len(row["images"]) == len(row["texts"]) == len(json.loads(row["metadata"]))
        assert all((image is None) != (text is None) for image, text in zip(row["images"], row["texts"], strict=True))
        for image, facts in zip(row["images"], json.loads(row["metadata"]), strict=True):
            assert image == (facts and facts["src"])


def test_pages_have_the_counts_of_truth() -> None:
    outcomes = {link.url: link.outcome for link in plan.links()}
    images = [image for row in pages() for image in row["images"] if image is not None]
    wanted = EXPECTED["obelics"]
    assert len(pages()) == wanted["rows"] == 40
    assert len(images) == len(set(images)) == wanted["images"]
    assert Counter(outcomes[image] for image in images) == wanted["image_outcomes"]
    assert sum(text is not None for row in pages() for text in row["texts"]) == wanted["texts"]
    assert sum(row["images"][-1] is not None for row in pages()) == wanted["end_with_an_image"] == 3
    assert sum(row["images"][0] is not None for row in pages()) == len(webpages.BEGINS_WITH_IMAGE)


def test_each_image_stands_beside_the_text_about_it() -> None:
    pictured = {link.url: link.picture.scene for link in plan.links()}
    for row in pages():
        for place, image in enumerate(row["images"]):
            if image is not None:
                around = row["texts"][max(place - 1, 0) : place + 2]
                thing = pictured[image].thing
                names = (thing, scenes.PLURALS.get(thing, thing + "s"))
                assert any(name in text for text in around if text for name in names), (row["texts"], image)


# The switch


def test_the_switch_names_files_that_are_there() -> None:
    entries = [*SWITCH["corpora"].values(), *SWITCH["by_name"].values()]
    matched = {path.name for entry in entries for pattern in entry["files"] for path in make.HERE.glob(pattern)}
    assert matched == {path.name for path in META.iterdir()} - {"truth.json"}
    assert all(list(make.HERE.glob(pattern)) for entry in entries for pattern in entry["files"])
    assert {entry["image_root"] for entry in entries if "image_root" in entry} == {"site"}
    assert (make.HERE / SWITCH["settings"]["score.clip"]["model"] / "image.onnx").exists()
    assert (make.HERE / SWITCH["settings"]["pack"]["tokenizer"] / "tokenizer.json").exists()
    assert SWITCH["settings"]["download"]["allow_private_hosts"] == [plan.HOST.removeprefix("http://")]


def test_a_rebased_switch_uses_the_copy_and_the_originals_pictures(tmp_path: Path) -> None:
    path = rebase.rebase_sample(tmp_path, "http://127.0.0.1:1")
    there = yaml.safe_load(path.read_text("utf-8"))
    assert path == tmp_path / "corpora.yaml"
    assert sorted(file.name for file in (tmp_path / "meta").iterdir()) == sorted(file.name for file in META.iterdir())
    assert there["corpora"]["llava"] == SWITCH["corpora"]["llava"] | {"image_root": str(SITE)}
    assert there["settings"] == {
        "download": SWITCH["settings"]["download"] | {"allow_private_hosts": ["127.0.0.1:1"]},
        "score.clip": SWITCH["settings"]["score.clip"] | {"model": str(make.HERE / "clip")},
        "pack": {"tokenizer": str(make.HERE / "tokenizer")},
    }
    rows = parquet.read_table(tmp_path / "meta" / "obelics.parquet")
    assert rows.schema == parquet.read_schema(META / "obelics.parquet")
    text = json.dumps(rows.to_pylist())
    assert plan.HOST not in text
    assert json.loads(text.replace("http://127.0.0.1:1/", plan.HOST + "/")) == pages()


def test_readme_states_the_counts() -> None:
    readme = (make.HERE / "README.md").read_text("utf-8")
    chat, vflan, web = EXPECTED["chat"], EXPECTED["vflan"], EXPECTED["obelics"]
    stated = [
        f"{chat['rows']} rows: {chat['with_one_image']} with one image, {chat['with_several_images']} with two to "
        f"four, {chat['without_image']} without, {sum(chat['failed'].values())} that are none",
        f"{EXPECTED['align']['rows']} rows with one image",
        f"{EXPECTED['instructions']['rows']} rows `task`",
        f"{EXPECTED['talks']['rows']} text-only conversations",
        f"{vflan['rows']} rows: ",
        f"{vflan['without_image']} without; 64 x 64",
        f"{web['rows']} rows; {web['images']} images at their natural place, {web['end_with_an_image']} documents",
        f"{EXPECTED['captions']['rows']} rows, five for each of {EXPECTED['captions']['files']} files",
    ]
    assert [words for words in stated if words not in readme] == []
    odd = json.loads((META / "truth.json").read_text("utf-8"))["chat"]
    assert all(f"| `{row}` |" in readme for row in odd)


# The readers


def test_readers_find_what_truth_says(found: dict[str, list[Record | BadRecord]]) -> None:
    sound = {name: [record for record in records if isinstance(record, Record)] for name, records in found.items()}
    bad = {
        name: Counter(record.reason for record in records if isinstance(record, BadRecord))
        for name, records in found.items()
    }
    images = {name: sum(len(record.images) for record in records) for name, records in sound.items()}
    assert bad == {name: {} for name in found} | {
        "docs": {"malformed_json": EXPECTED["documents"]["malformed"]},
        "chat": EXPECTED["chat"]["failed"],
    }
    assert {name: len(records) for name, records in sound.items()} == {
        "docs": EXPECTED["documents"]["valid"],
        "pairs": EXPECTED["pairs"]["rows"],
        "chat": EXPECTED["chat"]["conversations"],
        "align": EXPECTED["align"]["rows"],
        "text": EXPECTED["instructions"]["rows"] + EXPECTED["talks"]["rows"],
        "vflan": EXPECTED["vflan"]["rows"],
        "pages": EXPECTED["obelics"]["rows"],
        "captions": EXPECTED["captions"]["rows"],
    }
    assert images["text"] == 0
    for name, key in (
        ("docs", "documents"),
        ("chat", "chat"),
        ("align", "align"),
        ("vflan", "vflan"),
        ("pages", "obelics"),
    ):
        assert images[name] == EXPECTED[key]["images"], name


def test_conversations_are_read_word_for_word(found: dict[str, list[Record | BadRecord]]) -> None:
    rows = json.loads((META / "chat.json").read_text("utf-8"))
    read = 0
    for row, record in zip(rows, found["chat"], strict=True):
        if isinstance(record, Record):
            turns = [{"from": role, "value": text} for role, text in zip(record.roles, record.texts, strict=True)]
            assert turns == row["conversations"]
            images = row.get("image", [])
            assert [image.url for image in record.images] == ([images] if isinstance(images, str) else images)
            read += 1
    assert read == EXPECTED["chat"]["conversations"]


def test_local_pictures_are_below_the_site(found: dict[str, list[Record | BadRecord]]) -> None:
    for name in ("chat", "align", "captions"):
        files = [image.file for record in found[name] if isinstance(record, Record) for image in record.images]
        assert files and all(file and Path(file).is_relative_to(SITE) for file in files)
        missing = 2 if name == "chat" else 0
        assert sum(not Path(file or "").exists() for file in files) == missing


def test_pages_keep_their_order(found: dict[str, list[Record | BadRecord]]) -> None:
    for row, record in zip(pages(), found["pages"], strict=True):
        assert isinstance(record, Record)
        parts: list[str] = []
        for place, text in enumerate([*record.texts, ""]):
            parts += [image.url for image in record.images if image.matched_text_index == place] + [text]
        wanted = [image or text for image, text in zip(row["images"], row["texts"], strict=True)]
        assert parts[:-1] == [
            part.replace(plan.HOST, "http://127.0.0.1:1") if part.startswith(plan.HOST) else part for part in wanted
        ]
