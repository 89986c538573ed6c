"""What benchmarks/results/learning.json has to show: the trained models answer better, and pictures are why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLES

FIGURES: dict[str, Any] = json.loads((EXAMPLES.parent / "benchmarks" / "results" / "learning.json").read_text())
RECIPES = ("sft_blended", "sft_visual_only")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_trained_model_answers_better_than_the_untrained(recipe: str) -> None:
    trained, untrained = FIGURES[recipe], FIGURES["untrained"]
    assert trained["loss_last_epoch"] < 0.5 * trained["loss_first_epoch"]
    assert trained["visual"]["chosen"] > untrained["visual"]["chosen"] + 0.1
    assert trained["visual"]["word_for_word"] > untrained["visual"]["word_for_word"]
    assert trained["visual"]["chosen"] > trained["visual_with_other_pictures"]["chosen"] + 0.05


def test_only_the_blend_with_text_rows_answers_any_task_without_a_picture() -> None:
    """Word for word, and few: choosing among given answers stays at chance for such tasks, which a tiny model cannot do."""
    said = {name: FIGURES[name]["text"]["word_for_word"] for name in (*RECIPES, "untrained")}
    assert said["sft_blended"] > said["sft_visual_only"] == said["untrained"] == 0
