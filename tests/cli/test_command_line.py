"""The command line as a stranger meets it: the list of commands, the version, paths that are nothing."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vila_data.cli  # noqa: F401  its modules add their commands
from vila_data.build import run
from vila_data.cli.options import ORDER, app
from vila_data.core.errors import UsageError
from vila_data.explore.inspection import check, inspect
from vila_data.recipe.recipe import load_recipe
from vila_data.runs.progress import NoProgress


def test_help_lists_every_command_in_the_order_of_use() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert tuple(re.findall(r"^\W*([a-z]+)  ", text.partition("Commands")[2], re.M)) == ORDER
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(ORDER)  # type: ignore[union-attr]


def test_the_version() -> None:
    found = CliRunner().invoke(app, ["--version"])
    assert found.exit_code == 0 and found.output == f"vila-data {version('vila-data')}\n"


def test_a_file_that_is_nothing_and_the_folder_of_the_sets(sample_run: Path) -> None:
    for look in (inspect, lambda path: list(check(path))):
        with pytest.raises(UsageError, match=r"report\.html: not a recipe \(\.yaml\), run"):
            look(str(sample_run / "report.html"))
        with pytest.raises(UsageError, match="it contains shard sets; pass one of them, or the run"):
            look(str(sample_run / "shards"))


def test_one_problem_is_one(tmp_path: Path, sample_run: Path) -> None:
    for path in (sample_run / "shards" / "text").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "text-000000.tar").unlink()
    found = CliRunner().invoke(app, ["check", str(tmp_path)])
    lines = found.output.splitlines()
    assert found.exit_code == 1 and len(lines) == 2
    assert lines[-1].endswith(": 1 problem")


def test_former_names_are_still_accepted(sample_recipe: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "vila_sft.yaml"
    texts = [
        CliRunner().invoke(app, ["plan", str(recipe), option, str(sample_stand_ins), "--json"]).output
        for option in ("--corpora", "--on")
    ]
    assert texts[0] == texts[1] and '"corpus": "chat"' in texts[0]
    assert load_recipe(recipe, corpora=sample_stand_ins) == load_recipe(recipe, on=sample_stand_ins)
    seen: dict[str, Stages] = {}
    for name in ("progress", "watch"):
        seen[name] = Stages()
        run(load_recipe(sample_recipe), tmp_path / name, runner="local", limit=2, only="download", **{name: seen[name]})  # type: ignore[arg-type]
    assert seen["progress"].names == seen["watch"].names and seen["watch"].names


class Stages(NoProgress):
    """Records the names of the stages."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, total: int, done: int) -> None:
        """See Progress."""
        self.names.append(name)
