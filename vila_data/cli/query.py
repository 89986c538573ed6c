"""Commands that query a run: search, whatif."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vila_data.cli.options import Json, RunArgument, app, print_json


@app.command()
def search(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help='Query text, e.g. "a red bicycle".', show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Find images similar to this one (file or URL).")] = None,
    within: Annotated[str, typer.Option("--in", help='Which embeddings to search: "images" or "captions".')] = "images",
    corpus: Annotated[list[str] | None, typer.Option(help="Search only this corpus. Repeatable.")] = None,
    count: Annotated[int, typer.Option(help="Maximum number of results.")] = 20,
    fate: Annotated[str, typer.Option(help='"any", or "kept" for only the images that the filter keeps.')] = "any",
    out: Annotated[str | None, typer.Option(help="Also write the results to this HTML file.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every vector instead of using an index.")] = False,
    build_index: Annotated[
        bool, typer.Option("--build-index", help="Build an index for large corpora before searching.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Current path of the run's CLIP model, if it has moved.")] = None,
    as_json: Json = False,
) -> None:
    """Search a run's images by text or by example image."""
    from rich.console import Console

    from vila_data.cli.search_table import print_built, print_search
    from vila_data.cli.tables import console
    from vila_data.explore.search import query as searching
    from vila_data.runs.progress import ConsoleProgress

    names, kind = tuple(corpus or ()), searching.kind_of(within)
    query = None
    if text is not None or image is not None or not build_index:
        query = searching.Query(text, image, kind, names, count, searching.fate_of(fate), exact, model)
    with ConsoleProgress(Console(stderr=True)) as watch:
        built = [asdict(entry) for entry in searching.build_index(run, kind, names, watch)] if build_index else []
        report = searching.search(run, query, watch) if query else None
    if report and report.hits and out:
        searching.preview_hits(run, report, out)
    if as_json:
        print_json({"built": built, **(report.as_dict() if report else {})})
        return
    print_built(console(), built)
    if report:
        print_search(console(), report.as_dict())
        if out:
            line = out if report.hits else f"{out}: not written, because the search returned no results"
            console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def whatif(
    run: RunArgument,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override one filter rule: filter.….key=value. Repeatable.")
    ] = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Try each value of one filter rule: filter.….key=START:STOP:STEP or =a,b,c."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Also write the sweep to this HTML file: curves, and examples around each threshold."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare other filter rules with the run's current ones. Reads stored columns only and writes nothing to the run."""
    from rich.console import Console

    from vila_data.cli.result_tables import print_sweep, print_whatif
    from vila_data.cli.tables import console
    from vila_data.core.errors import UsageError
    from vila_data.runs.progress import ConsoleProgress

    if sweeps and len(sweeps) > 1:
        raise UsageError(f"whatif: got {len(sweeps)} --sweep options; use one, and fix the other keys with --set")
    sweep = sweeps[0] if sweeps else None
    if out is not None and sweep is None:
        raise UsageError("whatif: --out writes the page of a sweep and needs --sweep")
    with ConsoleProgress(Console(stderr=True)) as watch:
        if sweep is None:
            from vila_data.explore.whatif import whatif as ask

            value = asdict(ask(run, settings or (), watch))
        else:
            from vila_data.explore.sweep import sweep as ask_each

            value = ask_each(run, sweep, settings or (), out=out, watch=watch).as_dict()
    if as_json:
        print_json(value)
        return
    (print_whatif if sweep is None else print_sweep)(console(), value)
    if out is not None:
        console().print(out, highlight=False, markup=False, soft_wrap=True)
