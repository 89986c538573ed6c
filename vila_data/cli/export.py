"""The export command: convert shard sets for other tools."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from vila_data.cli.options import Json, app, print_json


@app.command()
def export(
    path: Annotated[str, typer.Argument(help="Path or URL of a run or shard set.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="Output format: vila-pickle, wids, energon, llava, open-flamingo, obelics or img2dataset.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Output directory or URL. Rerun with the same value to resume.", show_default=False)
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Export only this shard set of the run. Repeatable. Default: every set whose view the format supports."
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Number of files per set. For vila-pickle, use a multiple of the number of GPUs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert shard sets to another tool's format."""
    from vila_data.cli.result_tables import print_export
    from vila_data.cli.tables import console
    from vila_data.export.exporting import export as export_sets
    from vila_data.runs.progress import ConsoleProgress

    with ConsoleProgress(Console(stderr=True)) as watch:
        report = export_sets(path, to, out, only=only or (), shards=shards, watch=watch)
    if as_json:
        print_json(report.to_json())
    else:
        print_export(console(), report.to_json())
