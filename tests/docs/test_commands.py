"""No command of the documentation escapes: each is run by its page's test, or by one that is named here."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer.testing

from tests.conftest import REPO
from tests.docs.elsewhere import COMMANDS, PAGES, QUICK
from tests.docs.pages import PAGES as ALL
from tests.docs.pages import blocks, command_of, name_of
from tests.docs.sandbox import free_port, run_sh

RECIPES = sorted((REPO / "recipes").glob("*.yaml"))


def shown(page: Path) -> list[tuple[int, str, str]]:
    """(line, language of the block, command) of every call in a page's blocks."""
    return [
        (block.line + number, block.language, command)
        for block in blocks(page)
        for number, line in enumerate(block.text.splitlines())
        if block.language != "python" and (command := command_of(line)) is not None
    ]


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_command_is_run(page: Path) -> None:
    name = name_of(page)
    escaped = [
        f"{name}:{line}: {command}"
        for line, language, command in shown(page)
        if language != "sh" and (name, command) not in COMMANDS
    ]
    assert not escaped, (
        "put these into a block of sh, or name in tests/docs/elsewhere.py what runs them:\n" + "\n".join(escaped)
    )


def test_there_are_commands() -> None:
    assert sum(len(shown(page)) for page in ALL) > 40


def test_what_the_tables_name_is_there() -> None:
    for name in [*PAGES, *QUICK, *(page for page, _ in COMMANDS)]:
        assert (REPO / name).is_file(), name
    for page, command in COMMANDS:
        assert command in {found for _, _, found in shown(REPO / page)}, f"{page} no longer shows: {command}"
    for by in {*PAGES.values(), *COMMANDS.values()}:
        if by.startswith(".ci/run: "):
            assert by.removeprefix(".ci/run: ") in (REPO / ".ci" / "run").read_text(), by
            continue
        file, _, test = by.partition("::")
        functions = {
            node.name for node in ast.parse((REPO / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert test in functions, by


def test_every_file_that_a_page_links_to_is_there() -> None:
    for page in ALL:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_help() -> None:
    from vila_data.cli import app

    done = typer.testing.CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0 and "preview" in done.output


def test_what_make_installs() -> None:
    """CI installs with the Makefile, torch first and under the same constraints, as the README says for pip."""
    makefile = (REPO / "Makefile").read_text()
    torch, package = re.findall(r"pip install -q (-c constraints.txt .*)", makefile)
    assert torch == "-c constraints.txt torch" and package.startswith("-c constraints.txt -e")
    declared = (REPO / "pyproject.toml").read_text().split("[project.optional-dependencies]", 1)[1]
    for _, command in COMMANDS:
        for extra in re.findall(r"\[([\w,]+)\]", command) if command.startswith("pip ") else []:
            assert all(re.search(rf"^{name} = ", declared, re.M) for name in extra.split(","))


def test_the_sample_is_served() -> None:
    """Without a command the server serves until it is interrupted."""
    command = [sys.executable, str(REPO / "shards" / "sample" / "serve.py"), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ", 1)[1].split()[0]
        assert urllib.request.urlopen(f"{url}/robots.txt").status == 200
        server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


@pytest.mark.slow
def test_what_make_demo_runs(sandbox: Path) -> None:
    """The commands of the Makefile's target, on Ray, with the environment that is there."""
    makefile = (REPO / "Makefile").read_text()
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe is not None
    script = re.sub(r"^\t@?", "", recipe.group(1), flags=re.M).replace("$(BIN)/", "").replace("$(OUT)", "out/demo")
    assert "no problems found" in run_sh(script, sandbox, "Makefile: demo")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_commands_in_a_recipes_head(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a call that the program takes; those on the sample are planned here, and run by tests/recipes."""
    from vila_data.cli import app
    from vila_data.cli.options import app as same

    assert app is same
    head = file.read_text().split("version:", 1)[0]
    commands = [command for line in head.splitlines() if (command := command_of(line.removeprefix("#")))]
    assert commands, file
    monkeypatch.chdir(home)
    for command in commands:
        words = shlex.split(command.rpartition(" -- ")[2])
        if words[0] == "make":
            assert ("README.md", command) in COMMANDS
            continue
        assert words[:3] == ["vila-data", "run", f"recipes/{file.name}"], command
        if "--on" not in words and file.stem != "sample":
            words += ["--on", "shards/sample/corpora.yaml"]  # its own corpora are not here
        done = typer.testing.CliRunner().invoke(app, [*words[1:], "--dry-run"])
        assert done.exit_code == 0, (command, done.output, done.exception)
