"""The recipes that come with the package: their names, what each is, and copies to start from."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from vila_data.core.errors import UsageError
from vila_data.recipe.marked_yaml import nearest


@dataclass(frozen=True)
class CataloguedRecipe:
    """A recipe's name, the first line of its comment, and its file."""

    name: str
    summary: str
    file: Path


def recipes() -> list[CataloguedRecipe]:
    """All recipes, by name."""
    return [
        CataloguedRecipe(file.stem, file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# "), file)
        for file in sorted(_folder().glob("*.yaml"))
    ]


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a recipe into a folder; a file that is there is not replaced.

    Raises:
        UsageError: there is no such recipe, or the file is there already.
    """
    found = {recipe.name: recipe for recipe in recipes()}
    if name not in found:
        raise UsageError(f"no recipe {name!r}{nearest(name, found)}")
    target = folder / f"{name}.yaml"
    if target.exists():
        raise UsageError(f"{target}: is there already: move it away, or copy from another folder")
    shutil.copyfile(found[name].file, target)
    return target


def _folder() -> Path:
    """recipes/ of a checkout, else where the package's data was installed."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    if (checkout / "sample.yaml").is_file():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "vila-data" / "recipes"
