"""The command line as a stranger meets it: the list of commands, the version, paths that are nothing."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vila_data.cli  # noqa: F401  its modules add their commands
from vila_data.cli.options import ORDER, app
from vila_data.core.errors import UsageError
from vila_data.explore.inspection import check, inspect


def test_help_lists_every_command_in_the_order_of_use() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert tuple(re.findall(r"^\W*([a-z]+)  ", text.partition("Commands")[2], re.M)) == ORDER
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(ORDER)  # type: ignore[union-attr]


def test_the_version() -> None:
    found = CliRunner().invoke(app, ["--version"])
    assert found.exit_code == 0 and found.output == f"vila-data {version('vila-data')}\n"


def test_a_file_that_is_nothing_and_the_folder_of_the_sets(sample_run: Path) -> None:
    for look in (inspect, lambda path: list(check(path))):
        with pytest.raises(UsageError, match=r"report\.html: no recipe \(\.yaml\), run"):
            look(str(sample_run / "report.html"))
        with pytest.raises(UsageError, match="it holds shard sets: give one of them, or the run"):
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
