"""Every recipe: resolved and held against its golden file, then run on the sample by one switch."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import vila_data as vd
from tests.recipes.golden import GOLDEN, NAMES, PLANS, RECIPES, STAND_INS, printed_plan, resolved, without_fingerprints
from vila_data.explore import inspection
from vila_data.recipe import catalog
from vila_data.recipe.recipe import load_recipe

SETTINGS = {
    "224/256": ("download.resize.shorter_side_px=224", "pack.tokens_per_image=256"),
    "336/576": ("download.resize.shorter_side_px=336", "pack.tokens_per_image=576"),
    "336/144": ("download.resize.shorter_side_px=336", "pack.tokens_per_image=144"),
}


def test_there_are_the_stages_and_the_ablations() -> None:
    assert set(NAMES) >= {
        *("vila_align", "vila_pretrain", "vila_sft", "coyo_only", "mmc4_pairs", "mmc4_only", "mmc4_coyo"),
        *("images_first", "sft_visual_only", "sft_text_only", "sft_blended"),
        *("px224_tokens256", "px336_tokens576", "px336_tokens144"),
    }


def test_golden_files_and_plans_are_those_of_the_recipes() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.yaml")) == NAMES
    assert sorted(file.stem for file in PLANS.glob("*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_resolves_to_its_golden_file(name: str) -> None:
    assert resolved(name) == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_takes_each_resolution(name: str, setting: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml", STAND_INS, SETTINGS[setting])
    assert recipe.pack is not None and recipe.download.resize is not None
    assert f"{recipe.download.resize.shorter_side_px}/{recipe.pack.tokens_per_image}" == setting
    given = load_recipe(RECIPES / f"{name}.yaml", STAND_INS)
    assert given.pack is not None and given.download.resize is not None
    assert (recipe == given) == (setting == f"{given.download.resize.shorter_side_px}/{given.pack.tokens_per_image}")


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_sample(name: str, sample_stand_ins: Path, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml", sample_stand_ins)
    report = vd.run(recipe, tmp_path / "run", runner="local")
    assert report.finished and recipe.pack is not None and report.blend is not None
    assert set(report.tokens) == set(recipe.blended_sets())
    for counts in report.tokens.values():
        assert counts["sequences"] == counts["samples"] > 20
        assert 0 < counts["trained_tokens"] <= counts["text_tokens"]
    packs = report.blend["packs"]
    assert packs["samples"] > 50
    if recipe.pack.semantics == "paper":
        assert packs["packs"] == packs["samples"]
    else:
        assert packs["packs"] < packs["samples"] / 2
    assert list(inspection.check(tmp_path / "run")) == []
    expected = (PLANS / f"{name}.txt").read_text()
    assert without_fingerprints(printed_plan(name, sample_stand_ins, tmp_path / "run")) == without_fingerprints(
        expected
    )


def test_the_ablations_differ_as_their_names_say(sample_stand_ins: Path, tmp_path: Path) -> None:
    """Text-only and visual-only take disjoint rows of the same corpus, and together all of them."""
    images: dict[str, int] = {}
    samples: dict[str, int] = {}
    for name in ("sft_visual_only", "sft_text_only", "sft_blended"):
        report = vd.run(load_recipe(RECIPES / f"{name}.yaml", sample_stand_ins), tmp_path / name, runner="local")
        assert report.blend is not None
        (chat,) = (source for source in report.blend["sources"] if source["label"] == "chat")
        images[name], samples[name] = chat["images"], chat["samples"]
    assert images["sft_text_only"] == 0 < images["sft_visual_only"] == images["sft_blended"]
    assert samples["sft_text_only"] + samples["sft_visual_only"] == samples["sft_blended"]
    assert min(samples.values()) > 0


def test_a_recipe_is_copied_and_never_written_over(tmp_path: Path) -> None:
    copy = catalog.copy_recipe("vila_sft", tmp_path)
    assert copy.read_bytes() == (RECIPES / "vila_sft.yaml").read_bytes()
    with pytest.raises(vd.UsageError, match="already exists"):
        catalog.copy_recipe("vila_sft", tmp_path)
    with pytest.raises(vd.UsageError, match="did you mean vila_sft"):
        catalog.copy_recipe("vila_stf", tmp_path)


def test_each_recipe_is_listed_with_one_line() -> None:
    listed = catalog.recipes()
    assert {recipe.name for recipe in listed} == {*NAMES, "sample"}
    for recipe in listed:
        assert 20 < len(recipe.summary) < 130 and recipe.summary.endswith(".")
