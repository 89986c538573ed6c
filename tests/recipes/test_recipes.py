"""Every recipe: resolved and held against its golden file, then run on the sample.

`python tests/recipes/write_golden.py` writes the golden files and docs/plans/ again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import GOLDEN, NAMES, STAND_INS, normal, resolved

import vila_data as vd
from vila_data.core.store import Store
from vila_data.workflow import inspection
from vila_data.workflow.recipe import load_recipe

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


@pytest.mark.parametrize("name", NAMES)
def test_resolves_to_its_golden_file(name: str) -> None:
    assert resolved(name) == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_runs_at_each_resolution(name: str, setting: str) -> None:
    recipe = load_recipe(file_of(name), STAND_INS, SETTINGS[setting])
    assert recipe.pack is not None and recipe.download.resize is not None
    assert f"{recipe.download.resize.shorter_side_px}/{recipe.pack.tokens_per_image}" == setting
    given = load_recipe(file_of(name), STAND_INS)
    assert given.pack is not None
    if setting.endswith(f"/{given.pack.tokens_per_image}"):
        assert recipe == given


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_sample(name: str, sample_stand_ins: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file_of(name), sample_stand_ins)
    report = vd.run(recipe, tmp_path / "run", runner="local")
    assert report.finished and recipe.blend is not None
    assert set(report.tokens) == set(recipe.blended_sets())
    for counts in report.tokens.values():
        assert counts["sequences"] == counts["samples"] > 20
        assert 0 < counts["trained_tokens"] <= counts["text_tokens"]
    assert list(inspection.check(tmp_path / "run")) == []
    assert Store(str(tmp_path / "run")).size("run.json")


def file_of(name: str) -> Path:
    return Path(__file__).resolve().parents[2] / "recipes" / f"{name}.yaml"


def test_a_plan_in_the_docs_is_what_is_printed() -> None:
    pass


Value = dict[str, Any]
