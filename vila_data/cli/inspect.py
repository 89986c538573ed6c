"""Commands that inspect data: inspect, check, preview, bench."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from vila_data.cli.options import Corpora, Json, PathArgument, Settings, app, print_json


@app.command()
def inspect(path: PathArgument, as_json: Json = False) -> None:
    """Describe a run, shard set, shard, export or recipe."""
    from vila_data.cli.result_tables import print_export
    from vila_data.cli.tables import console, print_measures, print_run, print_set, print_shard, print_tree
    from vila_data.explore.inspection import inspect as describe

    kind, value = describe(path)
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
    """Verify files against their manifests and receipts. Lists every problem and exits with status 1 if there is one."""
    from vila_data.core.readable import many
    from vila_data.explore.inspection import check as find_problems

    problems = list(find_problems(path))
    if as_json:
        print_json({"path": path, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{path}: {many(len(problems), 'problems') if problems else 'no problems found'}")
    if problems:
        raise typer.Exit(1)


@app.command()
def preview(
    path: Annotated[str, typer.Argument(help="Path or URL of a run, shard set or shard (.tar).", show_default=False)],
    out: Annotated[str, typer.Option(help="HTML file to write.", show_default=False)],
    order: Annotated[
        Literal["random", "worst", "best"],
        typer.Option(help='"worst" and "best" sort by image-text similarity over the whole run; "random" samples.'),
    ] = "random",
    seed: Annotated[int, typer.Option(help="Random seed for --order random.")] = 0,
    count: Annotated[int, typer.Option(help="Maximum number of records on the page.")] = 200,
    corpus: Annotated[str | None, typer.Option(help="Show only records from this corpus.")] = None,
    fate: Annotated[
        Literal["kept", "dropped", "failed"] | None,
        typer.Option(help="Show only records that have this fate, or contain an image that has it."),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Show only records or images rejected for this reason, e.g. min_similarity or http_status."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Show only records that contain this text (case-insensitive).")
    ] = None,
    packs: Annotated[int, typer.Option(help="Number of packs to show, if the run has a blend.")] = 12,
    as_json: Json = False,
) -> None:
    """Write an HTML page for browsing records: images, scores, what was dropped and why, and packs."""
    from vila_data.cli.preview_table import print_preview
    from vila_data.cli.tables import console
    from vila_data.explore.preview import Choice
    from vila_data.explore.preview import preview as write_preview
    from vila_data.runs.progress import ConsoleProgress

    choice = Choice(
        count=count, order=order, seed=seed, corpus=corpus, fate=fate, reason=reason, text=text, packs=packs
    )
    with ConsoleProgress(Console(stderr=True)) as watch:
        report = write_preview(path, out, choice, watch=watch)
    if as_json:
        print_json(report.as_dict())
    else:
        print_preview(console(), report.as_dict())


@app.command()
def bench(
    path: Annotated[
        str,
        typer.Argument(help="Path or URL of a finished run; or a recipe file (YAML), with --run.", show_default=False),
    ],
    run: Annotated[
        str | None, typer.Option(help="Stream this run's shards with the blend of the recipe.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to stream, in seconds.")] = 20.0,
    step_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="Simulated duration of a training step in ms; reports how often the step would wait for data.",
        ),
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Packs per batch.")] = 8,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of worker processes. Default: one fewer than the CPUs, between 1 and 8."),
    ] = None,
    size_px: Annotated[int, typer.Option(min=1, help="Image side length in pixels.")] = 336,
    fit: Annotated[str, typer.Option(help="How images are made square: pad, resize or crop.")] = "pad",
    device: Annotated[str | None, typer.Option(help="Copy batches to this device, e.g. cuda.")] = None,
    corpora: Corpora = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Measure streaming from a finished run: samples, images and tokens per second, the slowest stage, and how long a
    training step would wait."""
    from vila_data.cli.result_tables import print_bench
    from vila_data.cli.tables import console
    from vila_data.loader.bench import bench as measure
    from vila_data.loader.bench import opened
    from vila_data.loader.stream import stream

    image = {"size_px": size_px, "fit": fit}
    recipe, found = opened(path, run, corpora, settings or ())
    loader = stream(recipe, found, batch_size=batch_size, num_workers=num_workers, image=image, device=device)
    rates = measure(loader, seconds=seconds, step_s=step_ms / 1000)
    if as_json:
        print_json(rates)
    else:
        print_bench(console(), rates)
