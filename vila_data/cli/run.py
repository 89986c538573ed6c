"""Commands that build data: run, plan, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vila_data.cli.options import Corpora, Json, Limit, RecipeArgument, Settings, app, print_json

if TYPE_CHECKING:
    from vila_data.recipe.recipe import Recipe


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option(help="Output directory or URL of the run. Rerun with the same value to resume.")],
    runner: Annotated[
        str,
        typer.Option(
            help='"ray": the cluster at RAY_ADDRESS, or Ray on this machine if unset. "local": a single process without '
            "Ray."
        ),
    ] = "ray",
    limit: Limit = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Run only this stage: download, score, an entry of the recipe's `stages`, filter, shard, encode or blend."
        ),
    ] = None,
    corpora: Corpora = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and exit without writing anything.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a recipe's shards, token files and blend. Completed work is skipped, so rerunning resumes."""
    from vila_data.recipe.recipe import load_recipe

    resolved = load_recipe(recipe, corpora, settings or ())
    if dry_run:
        _print_plan(resolved, out, limit, as_json)
        return
    from vila_data.build import run as run_recipe
    from vila_data.cli.tables import console, print_run
    from vila_data.runs.progress import ConsoleProgress
    from vila_data.runs.run import open_run

    with ConsoleProgress(Console(stderr=True)) as progress:
        report = run_recipe(resolved, out, runner=runner, limit=limit, only=only, progress=progress)
    totals = open_run(out).totals
    assert totals is not None
    if as_json:
        print_json(totals)
        return
    screen = console()
    print_run(screen, totals)
    for name, manifest in report.sets.items():
        empty = "" if manifest.samples else " (empty: no records were kept; see the funnel for the reasons)"
        screen.print(f"{name}: {report.out}/shards/{name}{empty}", highlight=False, markup=False, soft_wrap=True)
    if report.finished:
        screen.print(f"report: {report.out}/report.html", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    out: Annotated[
        str | None,
        typer.Option(
            help="An existing run, to show which work is already complete (for filter, including results of other rules)."
        ),
    ] = None,
    limit: Limit = None,
    corpora: Corpora = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what a run would do: parts, records, estimated bytes and hours, the blend, and which work is complete."""
    from vila_data.recipe.recipe import load_recipe

    _print_plan(load_recipe(recipe, corpora, settings or ()), out, limit, as_json)


@app.command()
def recipes(
    copy: Annotated[
        str | None, typer.Option(help="Copy this recipe into the current directory as a starting point.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the bundled recipes, or copy one."""
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
    from vila_data.runs.plan_summary import summarize_plan

    tree = summarize_plan(recipe, out, limit)
    if as_json:
        print_json(tree)
    else:
        print_tree(console(), tree)
