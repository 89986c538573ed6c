"""A recipe tried on a small corpus: one file says what stands in for each of its corpora.

    vila-data run recipes/vila_pretrain.yaml --on shards/sample/corpora.yaml --out runs/try

The recipe's own choices (preselection, rules, views, packing, blend) stay; what changes is
where records come from and what such a corpus needs (hosts, model, tokenizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import RecipeError, UsageError
from vila_data.recipe.marked_yaml import MarkedValue, nearest, read_marked, validate

_WHERE_RECORDS_COME_FROM = {"files", "image_root", "dataset", "split", "config", "revision", "part_records"}
_PATHS = {"image_root", "model", "tokenizer"}


class StandIns(StrictModel):
    """What stands in for a recipe's corpora. Paths are relative to the file.

    corpora:  by kind, the keys that say where records come from.
    by_name:  the same for a corpus of that name, before its kind.
    settings: by section (`download`, `score.clip`, `pack`), keys put over the recipe's; a section
              that the recipe does not have stays away, but for `download`.
    """

    corpora: dict[str, dict[str, Any]]
    by_name: dict[str, dict[str, Any]] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)


def substitute(marked: MarkedValue, file: Path) -> None:
    """Put the stand-ins of `file` into a recipe's value, in place.

    Raises:
        RecipeError: the file is wrong, or has nothing for one of the recipe's corpora.
    """
    stand_ins = validate(read_marked(file), StandIns)
    folder = file.resolve().parent
    if not isinstance(marked.value, dict):
        return
    corpora = marked.value.get("corpora")
    for name, corpus in corpora.items() if isinstance(corpora, dict) else ():
        if not isinstance(corpus, dict):
            continue
        kind = str(corpus.get("kind"))
        found = stand_ins.by_name.get(name, stand_ins.corpora.get(kind))
        if found is None:
            where = marked.where(("corpora", name, "kind"))
            raise RecipeError(where, f"{file} has nothing for kind {kind!r}{nearest(kind, stand_ins.corpora)}")
        for key in _WHERE_RECORDS_COME_FROM & corpus.keys():
            del corpus[key]
        corpus.update(_absolute(found, folder))
    for section, keys in stand_ins.settings.items():
        target = _section(marked.value, section)
        if target is not None:
            target.update(_absolute(keys, folder))


def override(marked: MarkedValue, settings: Sequence[str]) -> None:
    """Put ``dotted.key=value`` settings into a recipe's value, in place; values are YAML.

    Raises:
        UsageError: a setting is not of that form, or a key on its way is no mapping.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: write dotted.key=value, e.g. pack.tokens_per_image=144")
        *way, last = key.split(".")
        target: Any = marked.value
        for count, step in enumerate(way, 1):
            if isinstance(target, list) and step.isdigit():
                if int(step) >= len(target):
                    raise UsageError(f"--set {setting}: {'.'.join(way[:count])} is not there in {marked.file}")
                target = target[int(step)]
            else:
                target = target.setdefault(step, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UsageError(f"--set {setting}: {'.'.join(way)} is no mapping in {marked.file}")
        target[last] = MarkedValue(f"--set {key}", text).value


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any] | None:
    if name == "download":
        recipe.setdefault(name, {})
    value: Any = recipe
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _absolute(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = dict(keys)
    for key, value in keys.items():
        if key == "files":
            result[key] = [_path(str(pattern), folder) for pattern in value]
        elif key in _PATHS:
            result[key] = _path(str(value), folder)
    return result


def _path(value: str, folder: Path) -> str:
    return value if "://" in value else str(folder / value)
