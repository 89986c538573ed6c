"""Commands that look at data: inspect, check, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from vila_data.cli.options import Json, On, PathArgument, RecipeArgument, Settings, app, print_json


@app.command()
def inspect(path: PathArgument, as_json: Json = False) -> None:
    """Show what lies at a path."""
    from vila_data.view import tables
    from vila_data.workflow.inspection import inspect as look

    kind, value = look(path)
    if as_json:
        print_json({"kind": kind, **value})
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
        print_json({"path": path, "problems": problems})
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
        print_json(found)
    else:
        print_bench(console(), found)
