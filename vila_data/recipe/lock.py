"""recipe.lock.yaml: records what a run was built from and decides whether a recipe may continue it.

Downloads and scores cost days, so a recipe that would discard them is refused. Scorers may be added. Stages, rules,
shards, packs, blends and resources may change: they are recomputed in seconds or hours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vila_data.core.errors import DataError, RecipeError, UsageError
from vila_data.core.receipts import fingerprint
from vila_data.core.store import Store
from vila_data.core.tables import check_version
from vila_data.download.config import DownloadConfig
from vila_data.recipe.recipe import Recipe, checked
from vila_data.recipe.yaml_lines import ValueWithLines
from vila_data.score.kinds import SCORERS

LOCK = "recipe.lock.yaml"
FORM = 4
"""Version of the run directory format; a run is only read by versions of vila-data with the same form (`check_form`).
Increment it with core.tables.SCHEMA_VERSION, and when a path of shards/FORMAT.md changes."""


def stage_fingerprints(
    recipe: Recipe, limit: int | None, inputs: dict[str, list[str]], scorers: Mapping[str, str]
) -> dict[str, str]:
    """Fingerprints of the stages. inputs: file fingerprints by corpus; scorers: `Scorer.fingerprint` by name."""
    value = recipe.model_dump(mode="json")
    corpora = {
        name: {key: entry for key, entry in config.items() if key not in ("files", "image_root", "dataset")}
        | {"inputs": inputs[name]}
        for name, config in value["corpora"].items()
    }
    download = fingerprint([corpora, limit, recipe.download.what_matters()])
    score = {name: [scorers[name], scorer.switched()] for name, scorer in recipe.score.items()}
    columns = score | {name: stage.fingerprint() for name, stage in recipe.stages.items()}
    return {
        "download": download,
        "score": fingerprint([download, score]),
        "filter": fingerprint([download, columns, value["filter"]]),
        "recipe": fingerprint([value["name"], download, columns, value["filter"], value["shards"], value["seed"]]),
    }


def lock_value(
    recipe: Recipe,
    limit: int | None,
    fingerprints: dict[str, str],
    inputs: dict[str, list[str]],
    scorers: Mapping[str, str],
) -> dict[str, Any]:
    """The content of recipe.lock.yaml."""
    own = {name: rules.model_dump(mode="json", exclude_unset=True) for name, rules in recipe.filter.per_corpus.items()}
    filter_section = recipe.filter.model_dump(mode="json") | {
        "per_corpus": own
    }  # unset keys fall back to the common ones
    return {
        "form": FORM,
        "recipe": recipe.model_dump(mode="json") | {"filter": filter_section},
        "limit": limit,
        "inputs": inputs,
        "scorers": dict(scorers),
        "fingerprints": fingerprints,
    }


def check_form(lock: Any, where: str) -> None:
    """Refuse a run directory written by an incompatible version of vila-data.

    Raises:
        DataError: its form is not FORM; says what to do.
    """
    if isinstance(lock, dict) and "recipe" in lock:
        check_version(where, "form", lock.get("form", 1), FORM)


@dataclass(frozen=True)
class Lock:
    """A parsed lock file. value: its content; recipe: what the run was built from; lines: the recipe with line numbers."""

    value: dict[str, Any]
    recipe: Recipe
    lines: ValueWithLines


def read_lock(store: Store) -> Lock | None:
    """The lock of a run directory, or None if it has none yet.

    Raises:
        DataError: the file is not a lock, or was written by an incompatible version of vila-data.
    """
    if store.size(LOCK) is None:
        return None
    where = store.location(LOCK)
    try:
        lock = ValueWithLines(where, store.read(LOCK).decode())
        check_form(lock.value, where)
        recipe = lock.below("recipe")
        return Lock(lock.value, checked(recipe), recipe)
    except (RecipeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: not a recipe lock: {error}; restore it, or run the recipe with another --out"
        ) from error


def write_lock(store: Store, value: dict[str, Any]) -> None:
    """Write recipe.lock.yaml if its content changes."""
    data = yaml.safe_dump(value, sort_keys=False, width=120).encode()
    if store.size(LOCK) != len(data) or store.read(LOCK) != data:
        store.commit_bytes(data, LOCK)


def check_same_run(store: Store, new: dict[str, Any]) -> None:
    """Refuse a recipe that would discard what the run directory contains.

    Raises:
        UsageError: lists each key that differs, and what can be done.
    """
    found = read_lock(store)
    if found is None:
        other_files = [path for path in store.files("") if path]
        if other_files:
            raise UsageError(f"{store.url} is not empty and not a run (found {other_files[0]} …); choose another --out")
        return
    differing = list(_differences(found.value, new))
    if differing:
        raise UsageError(
            f"{store.url} belongs to a run of a different recipe. Differing keys:\n  "
            + "\n  ".join(differing)
            + "\nChoose another --out, delete that directory, or restore these keys (stages, filter, shards, pack, "
            "blend and resources may change in place, and scorers may be added)."
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    before, after = old["recipe"], new["recipe"]
    if before["name"] != after["name"]:
        yield f"name: {before['name']!r} in the run, {after['name']!r} now"
    if old["limit"] != new["limit"]:
        yield f"--limit: {old['limit']} in the run, {new['limit']} now"
    for section in ("corpora", "download"):
        was, now = _flat(before[section]), _flat(after[section])
        for key in sorted(was.keys() | now.keys()):
            harmless = section == "download" and key in DownloadConfig.HARMLESS
            if harmless or key.endswith((".files", ".image_root", ".dataset")) or was.get(key) == now.get(key):
                continue
            yield f"{section}.{key}: {was.get(key)!r} in the run, {now.get(key)!r} now"
    for name in sorted(old["inputs"].keys() & new["inputs"].keys()):
        if old["inputs"][name] != new["inputs"][name]:
            yield f"corpora.{name}.files: the metadata files have changed"
    for name, scorer in before["score"].items():
        yield from _scorer_differences(name, scorer, after["score"].get(name), old["scorers"], new["scorers"])


def _scorer_differences(
    name: str, was: Mapping[str, Any], now: Mapping[str, Any] | None, old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[str]:
    """What differs in a scorer of the run; new scorers may be added."""
    if now is None:
        yield f"score.{name}: in the run, but not in this recipe"
        return
    kind = SCORERS.find(now["kind"])
    assert kind is not None, "a checked recipe has only known kinds"
    for key in sorted(was.keys() | now.keys()):
        switched_on = key in kind.switches and now.get(key) is True
        if key not in kind.harmless and not switched_on and was.get(key) != now.get(key):
            yield f"score.{name}.{key}: {was.get(key)!r} in the run, {now.get(key)!r} now"
    if was["kind"] == now["kind"] and old[name] != new[name]:
        what = f"score.{name}.model: the weights differ" if "model" in now else f"score.{name}: its code differs"
        yield f"{what} ({old[name]} in the run, {new[name]} now)"


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            result |= _flat(entry, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = entry
    return result
