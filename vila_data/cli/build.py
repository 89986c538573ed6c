"""Commands that make data: run, plan, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vila_data.cli.options import Json, Limit, On, RecipeArgument, Settings, app, print_json

if TYPE_CHECKING:
    from vila_data.recipe.recipe import Recipe


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option(help="Folder or URL of the run; relaunch with the same to resume.")],
    runner: Annotated[
        str, typer.Option(help="ray: the cluster at RAY_ADDRESS, or this machine; local: one process.")
    ] = "ray",
    limit: Limit = None,
    only: Annotated[
        str | None,
        typer.Option(help="One stage: download, score, one of the recipe's `stages`, filter, shard, encode or blend."),
    ] = None,
    on: On = None,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make the recipe's shards, tokens and blend; what is committed already is passed over."""
    from vila_data.recipe.recipe import load_recipe

    resolved = load_recipe(recipe, on, settings or ())
    if dry_run:
        _print_plan(resolved, out, limit, as_json)
        return
    from vila_data.build import run as run_recipe
    from vila_data.cli.tables import console, print_run
    from vila_data.runs.progress import ConsoleWatch
    from vila_data.runs.run import open_run

    with ConsoleWatch(Console(stderr=True)) as watch:
        report = run_recipe(resolved, out, runner=runner, limit=limit, only=only, watch=watch)
    totals = open_run(out).totals
    assert totals is not None
    if as_json:
        print_json(totals)
        return
    screen = console()
    print_run(screen, totals)
    for name, manifest in report.sets.items():
        empty = "" if manifest.samples else " (empty: no record was kept; the funnel says why)"
        screen.print(f"{name}: {report.out}/shards/{name}{empty}", highlight=False, markup=False, soft_wrap=True)
    if report.finished:
        screen.print(f"to look at: {report.out}/report.html", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    out: Annotated[
        str | None, typer.Option(help="A run, to see what is committed there already (of filter, also by other rules).")
    ] = None,
    limit: Limit = None,
    on: On = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Print what a run will do: parts, records, bytes, hours, the blend, and what is committed."""
    from vila_data.recipe.recipe import load_recipe

    _print_plan(load_recipe(recipe, on, settings or ()), out, limit, as_json)


@app.command()
def recipes(
    copy: Annotated[str | None, typer.Option(help="Copy this recipe here, to start from.")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with the package, or copy one."""
    from vila_data.cli.tables import console, print_recipes
    from vila_data.recipe import catalog

    if copy is not None:
        print(catalog.copy_recipe(copy, Path()))
        return
    found = [{"name": recipe.name, "summary": recipe.summary} for recipe in catalog.recipes()]
    if as_json:
        print_json(found)
    else:
        print_recipes(console(), found)


def _print_plan(recipe: Recipe, out: str | None, limit: int | None, as_json: bool) -> None:
    from vila_data.cli.tables import console, print_tree
    from vila_data.runs.forecast import forecast

    tree = forecast(recipe, out, limit)
    if as_json:
        print_json(tree)
    else:
        print_tree(console(), tree)
