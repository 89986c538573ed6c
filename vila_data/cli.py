"""The command `vila-data`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vila_data.core.errors import VilaDataError

if TYPE_CHECKING:
    from vila_data.workflow.recipe import Recipe

app = typer.Typer(
    name="vila-data",
    help="From published metadata to checked shards for vision-language training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False)]
PathArgument = Annotated[str, typer.Argument(help="A run, shard set, shard or recipe.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of tables.")]
On = Annotated[Path | None, typer.Option("--on", help="Stand-ins for the recipe's corpora: try it on a small one.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="dotted.key=value put over the recipe's; may be repeated.")
]
Limit = Annotated[int | None, typer.Option(help="Take only the first rows of each corpus's metadata.")]


@app.command()
def run(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option(help="Folder or URL of the run; relaunch with the same to resume.")],
    runner: Annotated[
        str, typer.Option(help="ray: the cluster at RAY_ADDRESS, or this machine; local: one process.")
    ] = "ray",
    limit: Limit = None,
    only: Annotated[
        str | None, typer.Option(help="One stage: download, score, filter, shard, encode or blend.")
    ] = None,
    on: On = None,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make the recipe's shards, tokens and blend; what is committed already is passed over."""
    from vila_data.workflow.recipe import load_recipe

    resolved = load_recipe(recipe, on, settings or ())
    if dry_run:
        _print_plan(resolved, out, limit, as_json)
        return
    from vila_data.core.store import Store
    from vila_data.view.tables import console, print_run
    from vila_data.workflow.progress import ConsoleWatch
    from vila_data.workflow.report import read_run_json
    from vila_data.workflow.run import run as run_recipe

    with ConsoleWatch(Console(stderr=True)) as watch:
        report = run_recipe(resolved, out, runner=runner, limit=limit, only=only, watch=watch)
    totals = read_run_json(Store(out))
    assert totals is not None
    if as_json:
        _print_json(totals)
        return
    screen = console()
    print_run(screen, totals)
    for name, manifest in report.sets.items():
        empty = "" if manifest.samples else " (empty: every record was dropped; the funnel says why)"
        screen.print(f"{name}: {report.out}/shards/{name}{empty}", highlight=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    out: Annotated[str | None, typer.Option(help="A run, to see what is committed there already.")] = None,
    limit: Limit = None,
    on: On = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Print what a run will do: parts, records, bytes, hours, the blend, and what is committed."""
    from vila_data.workflow.recipe import load_recipe

    _print_plan(load_recipe(recipe, on, settings or ()), out, limit, as_json)


@app.command()
def inspect(path: PathArgument, as_json: Json = False) -> None:
    """Show what lies at a path."""
    from vila_data.view import tables
    from vila_data.workflow.inspection import inspect as look

    kind, value = look(path)
    if as_json:
        _print_json({"kind": kind, **value})
        return
    show = {
        "recipe": tables.print_tree,
        "run": tables.print_run,
        "set": tables.print_set,
        "shard": tables.print_shard,
    }[kind]
    show(tables.console(), value)


@app.command()
def check(path: PathArgument, as_json: Json = False) -> None:
    """Are the bytes what manifests and receipts say? Exit 1 and a list where not."""
    from vila_data.workflow.inspection import check as find_problems

    problems = list(find_problems(path))
    if as_json:
        _print_json({"path": path, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{path}: {'all well' if not problems else f'{len(problems)} problems'}")
    if problems:
        raise typer.Exit(1)


@app.command()
def bench(
    recipe: RecipeArgument,
    run: Annotated[str, typer.Option(help="Folder or URL of the recipe's finished run.", show_default=False)],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to stream.")] = 20.0,
    step_ms: Annotated[float, typer.Option(min=0, help="What a training step takes: how often would it wait?")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Packs of a batch.")] = 8,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; one less than CPUs.")] = None,
    size_px: Annotated[int, typer.Option(min=1, help="Side of a picture, pixels.")] = 336,
    fit: Annotated[str, typer.Option(help="pad, resize or crop.")] = "pad",
    device: Annotated[str | None, typer.Option(help="Copy batches there, e.g. cuda.")] = None,
    on: On = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Stream a finished run: samples, images and tokens a second, the slowest stage, what a training step would wait."""
    from vila_data.view.bench_table import print_bench
    from vila_data.view.tables import console
    from vila_data.workflow.bench import bench as measure
    from vila_data.workflow.recipe import load_recipe
    from vila_data.workflow.streaming import stream

    image = {"size_px": size_px, "fit": fit}
    resolved = load_recipe(recipe, on, settings or (), find_corpora=False)
    loader = stream(resolved, run, batch_size=batch_size, num_workers=num_workers, image=image, device=device)
    found = measure(loader, seconds=seconds, step_s=step_ms / 1000)
    if as_json:
        _print_json(found)
    else:
        print_bench(console(), found)


@app.command()
def recipes(
    copy: Annotated[str | None, typer.Option(help="Copy this recipe here, to start from.")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with the package, or copy one."""
    from vila_data.view.tables import console, print_recipes
    from vila_data.workflow import catalogue

    if copy is not None:
        print(catalogue.copy_recipe(copy, Path()))
        return
    found = [{"name": recipe.name, "summary": recipe.summary} for recipe in catalogue.recipes()]
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_recipes(console(), found)


def _print_plan(recipe: Recipe, out: str | None, limit: int | None, as_json: bool) -> None:
    from vila_data.view.tables import console, print_tree
    from vila_data.workflow.forecast import forecast

    tree = forecast(recipe, out, limit)
    if as_json:
        _print_json(tree)
    else:
        print_tree(console(), tree)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def main() -> None:
    """Run the command; an error made for users is one message, exit 1 (data) or 2 (call)."""
    try:
        app()
    except VilaDataError as error:
        print(f"vila-data: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vila-data: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
