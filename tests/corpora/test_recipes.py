"""What a recipe may ask of each kind of corpus, and where its files, images and data sets lie."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vila_data as vd
from vila_data.corpora import text
from vila_data.recipe.recipe import Recipe

RECIPE = """version: 1
name: kinds
corpora:
  docs: {kind: mmc4, files: [docs.jsonl]}
  pages: {kind: obelics, files: [pages.jsonl]}
  chat: {kind: llava, files: [chat.json], image_root: images}
  flan: {kind: text, files: ["flan*.jsonl"]}
  talk: {kind: text, dataset: talk, split: test, system: ""}
  vflan: {kind: vflan, files: [vflan.jsonl]}
  flickr: {kind: flickr8k, files: [captions.csv], image_root: images}
  pairs: {kind: coyo, files: [pairs.parquet]}
download: {engine: builtin}
score: {clip: {backend: transformers, model: some/clip}}
filter:
  images: {min_similarity: 0.2, exact_duplicates: drop, min_side_px: 20}
  documents: {min_images: 1, on_missing_image: drop_image}
  per_corpus:
    vflan: {images: {min_similarity: 0.1}, documents: {min_images: 1}}
shards:
  docs: {corpus: docs, view: interleaved}
  docs_pairs: {corpus: docs, view: pairs}
  pages: {corpus: pages, view: interleaved}
  chat: {corpus: chat, view: conversations}
  flickr: {corpus: flickr, view: pairs}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("docs.jsonl", "pages.jsonl", "chat.json", "flan1.jsonl", "flan2.jsonl", "vflan.jsonl", "captions.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "pairs.parquet").write_text("")
    (tmp_path / "rows.pkl").write_text("")
    (tmp_path / "images").mkdir()
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "test.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    return tmp_path


def load(folder: Path, old: str = "", new: str = "") -> Recipe:
    assert old in RECIPE
    (folder / "recipe.yaml").write_text(RECIPE.replace(old, new) if old else RECIPE)
    return vd.load_recipe(folder / "recipe.yaml")


def test_files_images_and_data_sets_are_resolved(folder: Path) -> None:
    recipe = load(folder)
    corpora: dict[str, Any] = dict(recipe.corpora)
    assert corpora["chat"].image_root == corpora["flickr"].image_root == str(folder / "images")
    assert corpora["flan"].files == (str(folder / "flan1.jsonl"), str(folder / "flan2.jsonl"))
    assert corpora["talk"].files == (str(folder / "talk" / "test.jsonl"),)
    assert (corpora["talk"].system, corpora["flan"].system, corpora["vflan"].system) == ("", None, "")
    assert Recipe.model_validate(recipe.model_dump(mode="json"), strict=False) == recipe


def test_an_image_root_may_be_a_url(folder: Path) -> None:
    recipe = load(
        folder, "files: [chat.json], image_root: images", "files: [chat.json], image_root: s3://bucket/images"
    )
    assert recipe.corpora["chat"].image_root == "s3://bucket/images"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{corpus: chat, view: conversations}",
            "{corpus: chat, view: interleaved}",
            "recipe.yaml:23 shards.chat.view: interleaved is a view of documents; corpus 'chat' (llava) contains "
            "conversations; its views: conversations",
        ),
        (
            "{corpus: docs, view: pairs}",
            "{corpus: docs, view: conversations}",
            "recipe.yaml:21 shards.docs_pairs.view: conversations is a view of conversations; corpus 'docs' (mmc4) contains "
            "documents; its views: interleaved, pairs",
        ),
        (
            "{corpus: flickr, view: pairs}",
            "{corpus: flickr, view: interleaved}",
            "corpus 'flickr' (flickr8k) contains pairs; its views: pairs",
        ),
        (
            "engine: builtin",
            "engine: img2dataset",
            "recipe.yaml:12 download.engine: the img2dataset engine only downloads image-caption pairs by URL; corpus 'docs' (mmc4) has none",
        ),
        (
            "files: [chat.json], image_root: images",
            "files: [chat.json], image_root: pictures",
            "recipe.yaml:6 corpora.chat.image_root: directory 'pictures' does not exist",
        ),
        (
            "[captions.csv], image_root: images",
            "[captions.csv]",
            "recipe.yaml:10 corpora.flickr.image_root: missing required key",
        ),
        (
            "[vflan.jsonl]",
            "[rows.pkl]",
            "recipe.yaml:9 corpora.vflan.files.0: rows.pkl: pickle files are refused because opening one can run code",
        ),
        ("[chat.json]", "[captions.csv]", "recipe.yaml:6 corpora.chat.files.0: captions.csv: rows are read from .json"),
        (
            "min_images: 1, on_missing_image: drop_image",
            "reassign: true",
            "recipe.yaml:16 filter.documents.reassign: corpus 'pages' is of kind obelics, whose image order is kept; set "
            "filter.per_corpus.pages.documents.reassign: false",
        ),
        (
            "vflan: {images: {min_similarity: 0.1}, documents: {min_images: 1}}",
            "pages: {documents: {reassign: true}}",
            "recipe.yaml:18 filter.per_corpus.pages.documents.reassign: corpus 'pages' is of kind obelics",
        ),
        (
            "documents: {min_images: 1}}",
            "documents: {on_missing_image: drop_image}}",
            "recipe.yaml:18 filter.per_corpus.vflan.documents.on_missing_image: corpus 'vflan' contains conversations",
        ),
        (
            'files: ["flan*.jsonl"]',
            "system: S",
            "recipe.yaml:7 corpora.flan",
        ),
        (
            'files: ["flan*.jsonl"]',
            'files: ["flan*.jsonl"], dataset: talk',
            "recipe.yaml:7 corpora.flan.dataset: `dataset` and `files` are alternatives",
        ),
        (
            'files: ["flan*.jsonl"]',
            'files: ["flan*.jsonl"], split: test',
            "config, split and revision need `dataset`",
        ),
        ("split: test", "split: dev", "has no split 'dev'; it has test"),
        ("dataset: talk, split: test", "dataset: talk, config: nope", "datasets cannot open"),
    ],
)
def test_what_a_corpus_cannot_have(folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(vd.RecipeError) as caught:
        load(folder, old, new)
    assert message in str(caught.value)


def test_rules_for_conversations(folder: Path) -> None:
    recipe = load(folder)
    chat, vflan, docs = (recipe.rules_for(name) for name in ("chat", "vflan", "docs"))
    assert (chat.images.min_similarity, chat.images.exact_duplicates, chat.images.min_side_px) == (None, "keep", 20)
    assert (chat.documents.min_images, chat.documents.on_missing_image) == (0, "drop_document")
    assert chat.documents.on_dropped_image == "drop_document"
    assert (vflan.images.min_similarity, vflan.documents.min_images) == (0.1, 1)
    assert vflan.documents.on_missing_image == "drop_document"
    assert (docs.images.min_similarity, docs.images.exact_duplicates) == (0.2, "drop")
    assert (docs.documents.on_missing_image, docs.documents.on_dropped_image) == ("drop_image", "drop_image")


def test_data_sets_of_other_files_are_refused(folder: Path) -> None:
    (folder / "tables").mkdir()
    (folder / "tables" / "test.csv").write_text("prompt,completion\np,c\n")
    with pytest.raises(vd.RecipeError, match=r"corpora\.talk\.dataset: .*is not a dataset of plain rows .*test\.csv"):
        load(folder, "dataset: talk", "dataset: tables")


def test_a_data_set_on_the_hub_is_read_by_its_file_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` answers for a hub name, without a network: URLs with the commit in them."""
    import datasets

    from vila_data.corpora.config import TextConfig

    asked: list[Any] = []

    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": ["hf://datasets/a/b@c0ffee/0.parquet"]}))

    def load_dataset_builder(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    config = TextConfig(kind="text", dataset="a/b", config="en", revision="c0ffee")
    assert text.data_files(config) == ("hf://datasets/a/b@c0ffee/0.parquet",)
    assert asked == [(("a/b", "en"), {"revision": "c0ffee"})]


def test_a_resolved_recipe_is_plain_json(folder: Path) -> None:
    json.dumps(load(folder).model_dump(mode="json"))
