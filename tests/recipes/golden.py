"""What the golden files of the recipes hold.

`python tests/recipes/golden.py` writes golden/ and docs/plans/ again.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vila_data.build import run
from vila_data.cli.tables import print_tree
from vila_data.recipe.recipe import load_recipe
from vila_data.runs.plan_summary import summarize_plan

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "recipes"
STAND_INS = REPO / "shards" / "sample" / "corpora.yaml"
GOLDEN = Path(__file__).parent / "golden"
PLANS = REPO / "docs" / "plans"
NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml") if file.stem != "sample")


def resolved(name: str) -> dict[str, Any]:
    """A recipe on the sample with every default filled in, paths below <repo>."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", STAND_INS)
    text = json.dumps(recipe.model_dump(mode="json"))
    value: dict[str, Any] = json.loads(text.replace(str(REPO), "<repo>"))
    return value


def printed_plan(name: str, stand_ins: Path, out: Path) -> str:
    """What `plan` prints for a recipe's finished run on the sample."""
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tree(console, summarize_plan(load_recipe(RECIPES / f"{name}.yaml", stand_ins), out))
    text = "".join(line.rstrip() + "\n" for line in console.export_text().splitlines())
    return text.replace(str(out), f"runs/{name}")


def without_fingerprints(text: str) -> str:
    """A plan without fingerprints: they depend on the port that the sample is served on."""
    return re.sub(r"\b[0-9a-f]{16}\b", "<fingerprint>", text)


def main() -> None:
    """Write every golden file and plan."""
    sys.path[:0] = [str(REPO / "shards" / "sample")]
    import serve

    for folder, suffix in ((GOLDEN, "yaml"), (PLANS, "txt")):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"*.{suffix}"):
            old.unlink()
    for name in NAMES:
        (GOLDEN / f"{name}.yaml").write_text(yaml.safe_dump(resolved(name), sort_keys=False, width=120))
        with serve.serving(port=8765), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / name
            run(load_recipe(RECIPES / f"{name}.yaml", STAND_INS), out, runner="local")
            (PLANS / f"{name}.txt").write_text(printed_plan(name, STAND_INS, out))


if __name__ == "__main__":
    main()
