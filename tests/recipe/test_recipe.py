from __future__ import annotations

from pathlib import Path

import pytest

import vila_data as vd
from vila_data.core.errors import RecipeError
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.recipe.yaml_lines import ValueWithLines, validate

GOOD = """version: 1
name: small
seed: 17
corpora:
  docs: {kind: mmc4, files: ["meta/docs_*.jsonl*"]}
  pairs:
    kind: coyo
    files: ["meta/coyo-*.parquet"]
    preselect: {by: [a, b], keep: top_count, count: 10, scope: corpus}
download:
  timeout_s: 10
  resize: {shorter_side_px: 336, only_if_larger: true, jpeg_quality: 90}
score:
  clip: {backend: transformers, model: openai/clip-vit-large-patch14-336, batch_size: 256, embeddings: false}
filter:
  images: {min_side_px: 64, aspect_ratio: [0.5, 2.0], min_similarity: 0.20, exact_duplicates: drop}
  documents: {min_images: 1, max_images: 30, on_missing_image: drop_document, reassign: false}
  per_corpus: {pairs: {images: {min_similarity: 0.25}}}
shards:
  docs: {corpus: docs, view: interleaved, max_mb: 512}
  pairs: {corpus: pairs, view: pairs}
pack: {tokenizer: meta-llama/Llama-2-7b-hf, sequence_length: 4096, tokens_per_image: 576, max_images_per_document: 6}
blend:
  weight_unit: images
  sources:
    - {shards: docs, weight: 1}
    - {shards: pairs, weight: 1}
"""


def write(folder: Path, text: str = GOOD) -> Path:
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / "docs_0.jsonl").write_text("")
    (folder / "meta" / "docs_1.jsonl").write_text("")
    (folder / "meta" / "coyo-0.parquet").write_text("")
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def load(folder: Path, old: str, new: str) -> Recipe:
    assert old in GOOD
    return vd.load_recipe(write(folder, GOOD.replace(old, new)))


def test_a_good_recipe_is_resolved(tmp_path: Path) -> None:
    recipe = vd.load_recipe(write(tmp_path))
    assert recipe.corpora["docs"].files == tuple(str(tmp_path / "meta" / f"docs_{n}.jsonl") for n in (0, 1))
    assert recipe.filter.rules_for("pairs").images.min_similarity == 0.25
    assert Recipe.model_validate(recipe.model_dump(mode="json"), strict=False) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "timeout_s: 10",
            "timeout: 10",
            "recipe.yaml:11 download.timeout: unknown key 'timeout'; did you mean timeout_s",
        ),
        ("seed: 17", "sede: 17", "recipe.yaml:3 sede: unknown key 'sede'; did you mean seed"),
        (
            'files: ["meta/coyo-*.parquet"]',
            "fiels: [x]",
            "recipe.yaml:8 corpora.pairs.fiels: unknown key 'fiels'; did you mean files",
        ),
        (
            "name: small",
            "name: a b",
            "recipe.yaml:2 name: names must have 1 to 48 characters from A-Z, a-z, 0-9, - and _; found 'a b'",
        ),
        ("  docs: {kind", "  docs!: {kind", "recipe.yaml:5 corpora.docs!: names must have 1 to 48 characters"),
        (
            "min_side_px: 64",
            "min_side_px: wide",
            "recipe.yaml:16 filter.images.min_side_px: input should be a valid integer; found 'wide'",
        ),
        ("kind: coyo", "kind: cojo", "recipe.yaml:7 corpora.pairs.kind: found 'cojo'; did you mean coyo"),
        (
            "view: interleaved",
            "view: interleafed",
            "recipe.yaml:20 shards.docs.view: found 'interleafed'; did you mean interleaved",
        ),
        ("{corpus: docs,", "{corpus: dogs,", "recipe.yaml:20 shards.docs.corpus: no corpus 'dogs'; did you mean docs"),
        (
            "{shards: docs, weight",
            "{shards: doks, weight",
            "recipe.yaml:26 blend.sources.0.shards: no shard set 'doks'; did you mean docs",
        ),
        (
            "per_corpus: {pairs:",
            "per_corpus: {pears:",
            "recipe.yaml:18 filter.per_corpus.pears: no corpus 'pears'; did you mean pairs",
        ),
        (
            "meta/docs_*.jsonl*",
            "meta/dogs_*.jsonl",
            "recipe.yaml:5 corpora.docs.files.0: no file matches 'meta/dogs_*.jsonl'",
        ),
        ("count: 10, ", "", "recipe.yaml:9 corpora.pairs.preselect: keep: top_count needs count, and no fraction"),
        (
            "aspect_ratio: [0.5, 2.0]",
            "aspect_ratio: [2.0, 0.5]",
            "recipe.yaml:16 filter.images: aspect_ratio is [lowest",
        ),
        (
            "weight: 1}\n    - {shards: pairs",
            "weight: 0}\n    - {shards: pairs",
            "recipe.yaml:26 blend.sources.0.weight: weight must be greater than 0, found 0",
        ),
        ("name: small", "name: a.b", "recipe.yaml:2 name: names must have 1 to 48 characters"),
        ("version: 1", "version: 2", "recipe.yaml:1 version: found 2; one of: 1"),
        ("seed: 17", "seed: 17\nseed: 18", "recipe.yaml:4 seed: duplicate key"),
        ("name: small\n", "", "recipe.yaml:1 name: missing required key 'name'"),
        ("seed: 17", "seed: [", "recipe.yaml:"),
        ("score:\n", "x_score:\n", "recipe.yaml:13 x_score: unknown key 'x_score'; did you mean score"),
        (
            "{corpus: pairs, view: pairs}",
            "{corpus: pairs, view: interleaved}",
            "recipe.yaml:21 shards.pairs.view: interleaved is a view of documents",
        ),
        (
            "backend: transformers, model: openai/clip-vit-large-patch14-336",
            "backend: onnx, model: nowhere",
            "recipe.yaml:14 score.clip.model: 'nowhere' does not exist",
        ),
    ],
)
def test_errors_name_file_line_key_and_the_nearest_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(vd.RecipeError) as caught:
        load(tmp_path, old, new)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_threshold_without_a_model_is_an_error(tmp_path: Path) -> None:
    text = GOOD.replace(GOOD[GOOD.index("score:") : GOOD.index("filter:")], "")
    with pytest.raises(vd.RecipeError, match=r"recipe.yaml:\d+ filter.images.min_similarity: needs score.clip"):
        vd.load_recipe(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(vd.RecipeError, match=r"nothing\.yaml: no such file"):
        vd.load_recipe(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_a_recipe_that_is_not_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(vd.RecipeError, match="a recipe must be a mapping; found"):
        vd.load_recipe(write(tmp_path, text))


def test_the_examples_of_the_docs_are_recipes() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "recipe.md").read_text()
    whole, *pieces = [block.split("```", 1)[0] for block in text.split("```yaml\n")[1:]]
    recipe = validate(ValueWithLines("docs/recipe.md", whole), Recipe)
    assert recipe.blend is not None and recipe.pack is not None
    blends = [piece for piece in pieces if piece.startswith("blend:")]
    assert blends
    for piece in blends:
        head = whole[: whole.index("\nblend:") + 1]
        blend = validate(ValueWithLines("docs/recipe.md", head + piece), Recipe).blend
        assert blend is not None and len(list(blend.leaves())) > len(blend.sources)


def test_an_alias_that_contains_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nname: x\ncorpora: &a {docs: *a}\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:3 .*nested more than 60 levels deep"):
        load_recipe(path)
