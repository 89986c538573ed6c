"""The bundled recipes: list them, or copy one as a starting point."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from vila_data.core.errors import UsageError
from vila_data.recipe.yaml_lines import suggestion


@dataclass(frozen=True)
class CatalogEntry:
    """A recipe's name, the first line of its comment, and its file."""

    name: str
    summary: str
    file: Path


def recipes() -> list[CatalogEntry]:
    """All recipes, by name."""
    return [
        CatalogEntry(file.stem, file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# "), file)
        for file in sorted(_directory().glob("*.yaml"))
    ]


def copy_recipe(name: str, directory: Path) -> Path:
    """Copy a bundled recipe into a directory; an existing file is not replaced.

    Raises:
        UsageError: there is no such recipe, or the file already exists.
    """
    found = {recipe.name: recipe for recipe in recipes()}
    if name not in found:
        raise UsageError(f"no recipe {name!r}{suggestion(name, found)}")
    target = directory / f"{name}.yaml"
    if target.exists():
        raise UsageError(f"{target} already exists; move it, or run the command in another directory")
    shutil.copyfile(found[name].file, target)
    return target


def _directory() -> Path:
    """recipes/ of a checkout; otherwise the directory in which the package's data was installed."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    if (checkout / "sample.yaml").is_file():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "vila-data" / "recipes"
