"""Change a recipe's values before validation: substitute its corpora to try it on a small dataset, and override keys.

    vila-data run recipes/vila_pretrain.yaml --corpora shards/sample/corpora.yaml --out runs/try

Preselection, rules, views, packing and blend stay; what changes is where records come from and what
such a corpus needs (hosts, model, tokenizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import UsageError
from vila_data.recipe.yaml_lines import ValueWithLines, read_yaml, suggestion, validate

_RECORD_KEYS = {"files", "image_root", "dataset", "split", "config", "revision", "part_records"}
_PATHS = {"image_root", "model", "tokenizer"}


class Substitutes(StrictModel):
    """Substitutes for a recipe's corpora. Paths are relative to the file.

    corpora:  by corpus kind, the keys that say where records come from.
    by_name:  the same for the corpus of that name; takes precedence over its kind.
    settings: by section (`download`, `score.clip`, `pack`), keys that override the recipe's; a section
              that the recipe does not have is skipped, except `download`.
    """

    corpora: dict[str, dict[str, Any]]
    by_name: dict[str, dict[str, Any]] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)


def substitute(lines: ValueWithLines, file: Path) -> None:
    """Replace a recipe's corpora by the substitutes in `file`, in place.

    Raises:
        RecipeError: the file is invalid, or has no substitute for one of the recipe's corpora.
    """
    substitutes = validate(read_yaml(file), Substitutes)
    base = file.resolve().parent
    if not isinstance(lines.value, dict):
        return
    corpora = lines.value.get("corpora")
    for name, corpus in corpora.items() if isinstance(corpora, dict) else ():
        if not isinstance(corpus, dict):
            continue
        kind = str(corpus.get("kind"))
        found = substitutes.by_name.get(name, substitutes.corpora.get(kind))
        if found is None:
            problem = f"{file} has no substitute for corpus kind {kind!r}{suggestion(kind, substitutes.corpora)}"
            raise lines.error(("corpora", name, "kind"), problem)
        for key in _RECORD_KEYS & corpus.keys():
            del corpus[key]
        corpus.update(_absolute(found, base))
    for section, keys in substitutes.settings.items():
        target = _section(lines.value, section)
        if target is not None:
            target.update(_absolute(keys, base))


def override(lines: ValueWithLines, settings: Sequence[str]) -> None:
    """Apply ``dotted.key=value`` settings to a recipe's value, in place; values are YAML.

    Raises:
        UsageError: a setting does not have that form, or a parent of its key is not a mapping.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: write dotted.key=value, e.g. pack.tokens_per_image=144")
        *parents, last = key.split(".")
        target: Any = lines.value
        for count, step in enumerate(parents, 1):
            if isinstance(target, list) and step.isdigit():
                if int(step) >= len(target):
                    raise UsageError(f"--set {setting}: {'.'.join(parents[:count])} does not exist in {lines.file}")
                target = target[int(step)]
            else:
                target = target.setdefault(step, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise UsageError(f"--set {setting}: {'.'.join(parents)} is not a mapping in {lines.file}")
        target[last] = ValueWithLines(f"--set {key}", text).value


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any] | None:
    if name == "download":
        recipe.setdefault(name, {})
    value: Any = recipe
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _absolute(keys: dict[str, Any], base: Path) -> dict[str, Any]:
    result = dict(keys)
    for key, value in keys.items():
        if key == "files":
            result[key] = [_path(str(pattern), base) for pattern in value]
        elif key in _PATHS:
            result[key] = _path(str(value), base)
    return result


def _path(value: str, base: Path) -> str:
    return value if "://" in value else str(base / value)
