"""A scored run to preview, in which each rule drops something; and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.loader.made_stream import CORPORA
from tests.loader.made_stream import made as made_stream
from tests.made_run import (
    SETS,
    Item,
    chats,
    documents,
    filtered_parts,
    make_set,
    pairs,
    write_lock_of,
)
from vila_data.core.store import Store
from vila_data.explore.preview import Choice, PreviewReport
from vila_data.explore.preview.run_source import RunSource
from vila_data.explore.preview.select import select
from vila_data.recipe.recipe import Recipe
from vila_data.runs.run import Run

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "made",
    "seed": 17,
    "corpora": CORPORA,
    "score": {"clip": {"backend": "onnx", "model": "none"}},
    "filter": {
        "images": {"min_side_px": 55, "aspect_ratio": [0.7, 1.5]},
        "documents": {"on_missing_image": "drop_image"},
        "per_corpus": {"web": {"images": {"min_similarity": 0.1}}},
    },
    "shards": {name: config.model_dump(mode="json") for name, config in SETS.items()},
}


def lock(store: Store, recipe: dict[str, Any]) -> Recipe:
    return write_lock_of(store, Recipe.model_validate(recipe, strict=False))


@dataclass(frozen=True)
class MadePreview:
    store: Store
    items: dict[str, list[Item | None]]


def make(folder: str) -> MadePreview:
    """40 documents and a row that is none, 60 pairs, 50 conversations; some dropped by each rule."""
    store = Store(folder)
    recipe = lock(store, RECIPE)
    docs: list[Item | None] = [*documents(40)]
    docs.insert(5, None)
    items: dict[str, list[Item | None]] = {"web": docs, "alt": [*pairs(60)], "talk": [*chats(50)]}
    for name, size in (("web", 15), ("alt", 35), ("talk", 30)):
        parts = filtered_parts(store, name, items[name], size, rules=recipe.rules_for(name), scored=name != "talk")
        for set_name, config in SETS.items():
            if config.corpus == name:
                make_set(store, parts, set_name, config)
    return MadePreview(store, items)


def ids(report: PreviewReport) -> list[str]:
    return [record_id for _, record_id in report.ids]


def chosen(run: MadePreview, choice: Choice) -> list[tuple[str, str]]:
    """(corpus, record_id) of what a choice means, without drawing it."""
    source = RunSource(Run(run.store))
    found = select(source, choice, lambda records: None)
    return [
        (source.corpora[location.corpus], source.record_ids(location.corpus, location.part)[location.row].as_py())
        for location, _ in found.locations
    ]


def fates(run: MadePreview, corpus: str) -> dict[str, list[tuple[int | None, str, str | None]]]:
    """(image, fate, reason) of each record of a corpus, from its tables."""
    found: dict[str, list[tuple[int | None, str, str | None]]] = {}
    for path in run.store.files(f"filter/{corpus}"):
        if path.endswith(".parquet"):
            with run.store.open_read(path) as stream:
                for row in pq.read_table(stream).to_pylist():
                    found.setdefault(row["record_id"], []).append((row["image_index"], row["fate"], row["reason"]))
    return found


def similarities(run: MadePreview) -> dict[str, list[float]]:
    every = [one for items in run.items.values() for one in items if one is not None]
    return {one.record.record_id: [value for value in one.similarities if value is not None] for one in every}


def streamed_run(folder: Path) -> Path:
    """A run with token files and a blend of docs, pairs and chat, not scored; its folder."""
    made = made_stream(folder)
    recipe = RECIPE | {"score": {}, "filter": {}}
    lines = yaml.safe_load((made / "recipe.yaml").read_text())
    lock(Store(str(made / "run")), recipe | {key: lines[key] for key in ("pack", "blend")})
    return made / "run"
