"""The command that hands data on to other programs: export."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from vila_data.cli.options import Json, app, print_json


@app.command()
def export(
    path: Annotated[str, typer.Argument(help="A run or a shard set.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="vila-pickle, wids, energon, llava, open-flamingo, obelics or img2dataset.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL; relaunch with the same to resume.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option(help="Of a run, this shard set; may be repeated. Without it, all that fit.")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Files a set; for VILA's pickles a multiple of the number of GPUs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write shard sets in the form that another program reads."""
    from vila_data.cli.result_tables import print_export
    from vila_data.cli.tables import console
    from vila_data.export.exporting import export as hand_on
    from vila_data.runs.progress import ConsoleWatch

    with ConsoleWatch(Console(stderr=True)) as watch:
        report = hand_on(path, to, out, only=only or (), shards=shards, watch=watch)
    if as_json:
        print_json(report.to_json())
    else:
        print_export(console(), report.to_json())
