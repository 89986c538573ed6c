"""What the golden files of the recipes hold. `python tests/recipes/golden.py` writes them again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from vila_data.workflow.recipe import load_recipe

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "recipes"
STAND_INS = REPO / "shards" / "sample" / "corpora.yaml"
GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "sample")


def resolved(name: str) -> dict[str, Any]:
    """A recipe on the sample with every default filled in, paths below <repo>."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", STAND_INS)
    text = json.dumps(recipe.model_dump(mode="json"))
    value: dict[str, Any] = json.loads(text.replace(str(REPO), "<repo>"))
    return value


def without_fingerprints(text: str) -> str:
    """A printed plan with fingerprints, which depend on the port that the sample is served on, and paths left out."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "<fingerprint>", text)
    return re.sub(r" in /\S+", " in <out>", text)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name in NAMES:
        (GOLDEN / f"{name}.yaml").write_text(yaml.safe_dump(resolved(name), sort_keys=False, width=120))
