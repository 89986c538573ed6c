"""A small finished run with token files, and recipes to stream it: no network, no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import vila_data as vd
from tests.conftest import SAMPLE
from tests.made_run import SETS, MadeRun, make_run, write_lock_of
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.set_stages import encode_sets

TOKENIZER = str(SAMPLE / "tokenizer")
PACK = {
    "tokenizer": TOKENIZER,
    "sequence_length": 512,
    "tokens_per_image": 16,
    "max_images_per_pack": 12,
    "template": "vicuna_v1",
}
BLEND = {
    "weight_unit": "tokens",
    "on_exhaustion": "renormalize",
    "sources": [{"shards": name, "weight": weight} for name, weight in (("docs", 2), ("pairs", 1), ("chat", 1))],
}
SIZE_PX = 32
IMAGE = {"size_px": SIZE_PX, "fit": "pad", "mean": [0.4815, 0.4578, 0.4082], "std": 0.25}  # CLIP's mean
CORPORA = {
    "web": {"kind": "mmc4", "files": ["none.jsonl"]},
    "alt": {"kind": "coyo", "files": ["none.parquet"]},
    "talk": {"kind": "llava", "files": ["none.json"], "image_root": "."},
}


def write_recipe(path: Path, *, seed: int = 17, pack: dict[str, Any] | None = None, blend: Any = None) -> Path:
    """A recipe over the sets of tests.made_run; its metadata files are not there."""
    value = {
        "version": 1,
        "name": "made",
        "seed": seed,
        "corpora": CORPORA,
        "shards": {name: config.model_dump(mode="json") for name, config in SETS.items()},
        "pack": PACK | (pack or {}),
        "blend": blend or BLEND,
    }
    path.write_text(yaml.safe_dump(value))
    return path


def encode(store: Store, run: MadeRun, pack: dict[str, Any] | None = None, names: Sequence[str] = tuple(SETS)) -> None:
    """Write the token files of a made run."""
    config = PackConfig(**(PACK | (pack or {})))
    sets = [run.sets[name] for name in names]
    encode_sets(store, config, sets)


def made(folder: Path) -> Path:
    """The run that most tests of the loader read; do not write to it."""
    run = make_run(str(folder / "run"))
    encode(run.store, run)
    write_lock_of(run.store, load_recipe(write_recipe(folder / "recipe.yaml"), find_corpora=False))
    return folder


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """The made run's recipe, with changes as `write_recipe` takes them."""
    path = write_recipe(folder, **changes) if changes else folder / "recipe.yaml"
    return load_recipe(path, find_corpora=False)


def opened(folder: Path, recipe: Any = None, **options: Any) -> Any:
    """A loader of the made run; small pictures and no workers unless given."""
    defaults = {"image": IMAGE, "num_workers": 0, "rank": 0, "world_size": 1, "batch_size": 1}
    return vd.stream(recipe or folder / "recipe.yaml", folder / "run", **(defaults | options))
