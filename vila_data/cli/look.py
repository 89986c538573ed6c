"""Commands that look at data: inspect, check, bench."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from vila_data.cli.options import Json, On, PathArgument, Settings, app, print_json


@app.command()
def inspect(path: PathArgument, as_json: Json = False) -> None:
    """Show what lies at a path."""
    from vila_data.cli.result_tables import print_export
    from vila_data.cli.tables import console, print_measures, print_run, print_set, print_shard, print_tree
    from vila_data.explore.inspection import inspect as look

    kind, value = look(path)
    if as_json:
        print_json({"kind": kind, **value})
        return
    show = {
        "recipe": print_tree,
        "run": print_run,
        "set": print_set,
        "shard": print_shard,
        "export": print_export,
    }[kind]
    screen = console()
    show(screen, value)
    if kind == "run":
        print_measures(screen, value)


@app.command()
def check(path: PathArgument, as_json: Json = False) -> None:
    """Are the bytes what manifests and receipts say? Exit 1 and a list where not."""
    from vila_data.core.readable import many
    from vila_data.explore.inspection import check as find_problems

    problems = list(find_problems(path))
    if as_json:
        print_json({"path": path, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{path}: {many(len(problems), 'problems') if problems else 'all well'}")
    if problems:
        raise typer.Exit(1)


@app.command()
def preview(
    path: Annotated[str, typer.Argument(help="A run, a shard set, or a shard (.tar).", show_default=False)],
    out: Annotated[str, typer.Option(help="The page, one file of HTML.", show_default=False)],
    order: Annotated[
        Literal["random", "worst", "best"], typer.Option(help="worst, best: by similarity, over all of it.")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Of the random choice.")] = 0,
    count: Annotated[int, typer.Option(help="Records on the page, at most.")] = 200,
    corpus: Annotated[str | None, typer.Option(help="Records of this corpus only.")] = None,
    fate: Annotated[
        Literal["kept", "dropped", "failed"] | None, typer.Option(help="Records that are, or have an image that is.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Why they are not kept, e.g. min_similarity or http_status.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Records with these words in them.")] = None,
    packs: Annotated[int, typer.Option(help="Packs to show, where the run has a blend.")] = 12,
    as_json: Json = False,
) -> None:
    """Write one page to look at: records with their pictures and scores, what was dropped and why, packs."""
    from vila_data.cli.preview_table import print_preview
    from vila_data.cli.tables import console
    from vila_data.explore.preview import Choice
    from vila_data.explore.preview import preview as write_preview
    from vila_data.runs.progress import ConsoleWatch

    choice = Choice(
        count=count, order=order, seed=seed, corpus=corpus, fate=fate, reason=reason, text=text, packs=packs
    )
    with ConsoleWatch(Console(stderr=True)) as watch:
        report = write_preview(path, out, choice, watch=watch)
    if as_json:
        print_json(report.as_dict())
    else:
        print_preview(console(), report.as_dict())


@app.command()
def bench(
    path: Annotated[str, typer.Argument(help="A finished run; or a recipe (YAML), with --run.", show_default=False)],
    run: Annotated[
        str | None, typer.Option(help="Read the shards of this run with the blend of the recipe.", show_default=False)
    ] = None,
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
    from vila_data.cli.result_tables import print_bench
    from vila_data.cli.tables import console
    from vila_data.loader.bench import bench as measure
    from vila_data.loader.bench import opened
    from vila_data.loader.stream import stream

    image = {"size_px": size_px, "fit": fit}
    recipe, found = opened(path, run, on, settings or ())
    loader = stream(recipe, found, batch_size=batch_size, num_workers=num_workers, image=image, device=device)
    figures = measure(loader, seconds=seconds, step_s=step_ms / 1000)
    if as_json:
        print_json(figures)
    else:
        print_bench(console(), figures)
