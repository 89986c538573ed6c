"""Build, inspect and stream training data for vision-language models.

    import vila_data as vd
    recipe = vd.load_recipe("recipes/sample.yaml")
    report = vd.run(recipe, out="runs/sample")
    shards = vd.open_shards("runs/sample/shards/docs")
    run = vd.open_run("runs/sample")

Importing the package loads neither torch nor ray, nor anything else that is large.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vila_data.build import run
    from vila_data.core.errors import DataError, RecipeError, RunError, StorageError, UsageError, VilaDataError
    from vila_data.loader.stream import stream
    from vila_data.recipe.recipe import Recipe, load_recipe
    from vila_data.runs.report import RunReport
    from vila_data.runs.run import Run, open_run
    from vila_data.shard.read import Sample, ShardSetReader, open_shards

_HOMES = {
    "DataError": "core.errors",
    "RecipeError": "core.errors",
    "RunError": "core.errors",
    "StorageError": "core.errors",
    "UsageError": "core.errors",
    "VilaDataError": "core.errors",
    "Recipe": "recipe.recipe",
    "Run": "runs.run",
    "RunReport": "runs.report",
    "Sample": "shard.read",
    "ShardSetReader": "shard.read",
    "load_recipe": "recipe.recipe",
    "open_run": "runs.run",
    "open_shards": "shard.read",
    "run": "build",
    "stream": "loader.stream",
}

__all__ = [
    "DataError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "RunReport",
    "Sample",
    "ShardSetReader",
    "StorageError",
    "UsageError",
    "VilaDataError",
    "load_recipe",
    "open_run",
    "open_shards",
    "run",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vila_data' has no attribute {name!r}")
    return getattr(import_module(f"vila_data.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
