"""The application, and the arguments that several of its commands take."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

ORDER = ("run", "plan", "recipes", "inspect", "check", "preview", "whatif", "search", "export", "bench")
"""The commands as `--help` lists them: build, look, ask, hand on, stream."""


class _InOrder(TyperGroup):
    """Commands in the order of their use."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """See ORDER."""
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="vila-data",
    cls=_InOrder,
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


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vila-data {installed('vila-data')}")
        raise typer.Exit


@app.callback()
def command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From published metadata to checked shards for vision-language training."""


def print_json(value: Any) -> None:
    """A value for programs, on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
