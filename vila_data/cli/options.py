"""The Typer application and the options shared by several commands."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

ORDER = ("run", "plan", "recipes", "inspect", "check", "preview", "whatif", "search", "export", "bench")
"""The commands in the order in which `--help` lists them."""


class _InOrder(TyperGroup):
    """Lists commands in ORDER."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """See ORDER."""
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="vila-data",
    cls=_InOrder,
    help="Build, inspect and stream training data for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
PathArgument = Annotated[
    str, typer.Argument(help="Path or URL of a run, shard set, shard, export or recipe.", show_default=False)
]
RunArgument = Annotated[str, typer.Argument(help="Directory or URL of a run.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Corpora = Annotated[
    Path | None,
    typer.Option("--corpora", "--on", help="YAML file with substitute corpora, to try the recipe on a small dataset."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override one recipe value: dotted.key=value. Repeatable.")
]
Limit = Annotated[int | None, typer.Option(help="Use only the first N metadata rows of each corpus.")]


def _print_version(requested: bool) -> None:
    if requested:
        print(f"vila-data {installed('vila-data')}")
        raise typer.Exit


@app.callback()
def command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Build, inspect and stream training data for vision-language models."""


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
