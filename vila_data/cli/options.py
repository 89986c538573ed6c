"""The application, and the arguments that several of its commands take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="vila-data",
    help="From published metadata to checked shards for vision-language training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False)]
PathArgument = Annotated[str, typer.Argument(help="A run, shard set, shard, export or recipe.", show_default=False)]
RunArgument = Annotated[str, typer.Argument(help="Folder or URL of a run.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of tables.")]
On = Annotated[Path | None, typer.Option("--on", help="Stand-ins for the recipe's corpora: try it on a small one.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="dotted.key=value put over the recipe's; may be repeated.")
]
Limit = Annotated[int | None, typer.Option(help="Take only the first rows of each corpus's metadata.")]


def print_json(value: Any) -> None:
    """A value for programs, on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
