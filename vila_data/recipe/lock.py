"""recipe.lock.yaml: what a run directory was made from, and whether a recipe may go on in it.

Downloads and scores cost days; a recipe that would throw them away is refused. New scorers may be
added; stages, rules, shards, packs, blends and resources may change: they are derived again in seconds or hours.
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
from vila_data.recipe.marked_yaml import MarkedValue
from vila_data.recipe.recipe import Recipe, checked
from vila_data.score.kinds import SCORERS

LOCK = "recipe.lock.yaml"
FORM = 3
"""Of a run directory: whatever is in one is read by versions of this form alone (`check_form`). Raised with
core.tables.SCHEMA_VERSION, and when a path of shards/FORMAT.md moves."""


def stage_fingerprints(
    recipe: Recipe, limit: int | None, inputs: dict[str, list[str]], scorers: Mapping[str, str]
) -> dict[str, str]:
    """Fingerprints by stage. inputs: file fingerprints by corpus; scorers: `Scorer.fingerprint` by name."""
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
    return {
        "form": FORM,
        "recipe": recipe.model_dump(mode="json") | {"filter": _rules(recipe)},
        "limit": limit,
        "inputs": inputs,
        "scorers": dict(scorers),
        "fingerprints": fingerprints,
    }


def check_form(lock: Any, where: str) -> None:
    """Refuse the run directory of another version of the package.

    Raises:
        DataError: its form is not FORM; says what to do.
    """
    if isinstance(lock, dict) and "recipe" in lock:
        check_version(where, "form", lock.get("form", 1), FORM)


@dataclass(frozen=True)
class Lock:
    """A lock as read. value: its content; recipe: what the run was made from; marked: the recipe with its lines."""

    value: dict[str, Any]
    recipe: Recipe
    marked: MarkedValue


def read_lock(store: Store) -> Lock | None:
    """The lock of a run directory, or None where nothing was run yet.

    Raises:
        DataError: the file is not a lock, or is one of another version of vila-data.
    """
    if store.size(LOCK) is None:
        return None
    where = store.location(LOCK)
    try:
        whole = MarkedValue(where, store.read(LOCK).decode())
        check_form(whole.value, where)
        marked = whole.below("recipe")
        return Lock(whole.value, checked(marked), marked)
    except (RecipeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: not a recipe lock: {error}; restore it, or make the run again with another --out"
        ) from error


def write_lock(store: Store, value: dict[str, Any]) -> None:
    """Write recipe.lock.yaml if it would change."""
    data = yaml.safe_dump(value, sort_keys=False, width=120).encode()
    if store.size(LOCK) != len(data) or store.read(LOCK) != data:
        store.commit_bytes(data, LOCK)


def check_same_run(store: Store, new: dict[str, Any]) -> None:
    """Refuse a recipe that would throw away what the run directory holds.

    Raises:
        UsageError: names each key that differs, and the ways on.
    """
    found = read_lock(store)
    if found is None:
        strangers = [path for path in store.files("") if path]
        if strangers:
            raise UsageError(f"{store.url}: not empty and not a run ({strangers[0]} …): choose another --out")
        return
    differing = list(_differences(found.value, new))
    if differing:
        raise UsageError(
            f"{store.url}: holds the run of another recipe; it differs in\n  "
            + "\n  ".join(differing)
            + "\nchoose another --out, or delete that folder, or set these keys back (stages, filter, shards, pack, "
            "blend and resources may change in place, and scorers may be added)"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    before, after = old["recipe"], new["recipe"]
    if before["name"] != after["name"]:
        yield f"name: {before['name']!r} there, {after['name']!r} here"
    if old["limit"] != new["limit"]:
        yield f"--limit: {old['limit']} there, {new['limit']} here"
    for section in ("corpora", "download"):
        there, here = _flat(before[section]), _flat(after[section])
        for key in sorted(there.keys() | here.keys()):
            harmless = section == "download" and key in DownloadConfig.HARMLESS
            if harmless or key.endswith((".files", ".image_root", ".dataset")) or there.get(key) == here.get(key):
                continue
            yield f"{section}.{key}: {there.get(key)!r} there, {here.get(key)!r} here"
    for name in sorted(old["inputs"].keys() & new["inputs"].keys()):
        if old["inputs"][name] != new["inputs"][name]:
            yield f"corpora.{name}.files: the metadata files have changed"
    for name, scorer in before["score"].items():
        yield from _of_scorer(name, scorer, after["score"].get(name), old["scorers"], new["scorers"])


def _of_scorer(
    name: str, there: Mapping[str, Any], here: Mapping[str, Any] | None, old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[str]:
    """What differs of a scorer that is there already; new ones may be added."""
    if here is None:
        yield f"score.{name}: there, and not here"
        return
    kind = SCORERS.find(here["kind"])
    assert kind is not None, "a checked recipe has kinds that there are"
    for key in sorted(there.keys() | here.keys()):
        switched_on = key in kind.switches and here.get(key) is True
        if key not in kind.harmless and not switched_on and there.get(key) != here.get(key):
            yield f"score.{name}.{key}: {there.get(key)!r} there, {here.get(key)!r} here"
    if there["kind"] == here["kind"] and old[name] != new[name]:
        what = f"score.{name}.model: the weights differ" if "model" in here else f"score.{name}: its code differs"
        yield f"{what} ({old[name]} there, {new[name]} here)"


def _rules(recipe: Recipe) -> dict[str, Any]:
    """The section `filter`; under `per_corpus` only the keys that are set, since the others leave the common ones."""
    own = {name: rules.model_dump(mode="json", exclude_unset=True) for name, rules in recipe.filter.per_corpus.items()}
    return recipe.filter.model_dump(mode="json") | {"per_corpus": own}


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            result |= _flat(entry, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = entry
    return result
