"""Commands that ask questions of a run: whatif, search."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vila_data.cli.options import Json, RunArgument, app, print_json


@app.command()
def search(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help='What to look for: "a red bicycle".', show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Look for what is like this picture: a file or URL.")] = None,
    within: Annotated[str, typer.Option("--in", help="What is searched: images, or their captions.")] = "images",
    corpus: Annotated[list[str] | None, typer.Option(help="Only this corpus; may be repeated.")] = None,
    count: Annotated[int, typer.Option(help="Results.")] = 20,
    fate: Annotated[str, typer.Option(help="any, or kept: only what the filter keeps.")] = "any",
    out: Annotated[str | None, typer.Option(help="Also write the results as a page to look at.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every vector, use no index.")] = False,
    build_index: Annotated[bool, typer.Option("--build-index", help="Make the index of large corpora first.")] = False,
    model: Annotated[str | None, typer.Option(help="Where the run's model lies now.")] = None,
    as_json: Json = False,
) -> None:
    """Find images of a run by a text or by a picture."""
    from rich.console import Console

    from vila_data.cli.search_table import print_built, print_search
    from vila_data.cli.tables import console
    from vila_data.explore.search import query as searching
    from vila_data.runs.progress import ConsoleWatch

    names, kind = tuple(corpus or ()), searching.kind_of(within)
    question = None
    if text is not None or image is not None or not build_index:
        question = searching.Query(text, image, kind, names, count, searching.fate_of(fate), exact, model)
    with ConsoleWatch(Console(stderr=True)) as watch:
        built = [asdict(entry) for entry in searching.build_index(run, kind, names, watch)] if build_index else []
        report = searching.search(run, question, watch) if question else None
    if report and report.hits and out:
        searching.preview_hits(run, report, out)
    if as_json:
        print_json({"built": built, **(report.as_dict() if report else {})})
        return
    print_built(console(), built)
    if report:
        print_search(console(), report.as_dict())
        if out:
            line = out if report.hits else f"{out}: not written: nothing was found"
            console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def whatif(
    run: RunArgument,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="filter.….key=value put over the run's rules; may be repeated.")
    ] = None,
    sweeps: Annotated[
        list[str] | None, typer.Option("--sweep", help="filter.….key=START:STOP:STEP, or =a,b,c: each value in turn.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Also write the sweep as a page: curves, and examples at each cut.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what other rules would keep, beside what the run keeps: from columns only, nothing is written to the run."""
    from rich.console import Console

    from vila_data.cli.tables import console
    from vila_data.core.errors import UsageError
    from vila_data.explore.whatif_table import print_sweep, print_whatif
    from vila_data.runs.progress import ConsoleWatch

    if sweeps and len(sweeps) > 1:
        raise UsageError(f"whatif: {len(sweeps)} sweeps: give one --sweep, and the other keys with --set")
    sweep = sweeps[0] if sweeps else None
    if out is not None and sweep is None:
        raise UsageError("whatif: --out is the page of a --sweep, which is not given")
    with ConsoleWatch(Console(stderr=True)) as watch:
        if sweep is None:
            from vila_data.explore.whatif.answer import whatif as ask

            value = asdict(ask(run, settings or (), watch))
        else:
            from vila_data.explore.whatif.sweep import sweep as ask_each

            value = ask_each(run, sweep, settings or (), out=out, watch=watch).as_dict()
    if as_json:
        print_json(value)
        return
    (print_whatif if sweep is None else print_sweep)(console(), value)
    if out is not None:
        console().print(out, highlight=False, markup=False, soft_wrap=True)
