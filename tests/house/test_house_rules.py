"""The rules of the house, held over the package's own source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vila_data

ROOT = Path(vila_data.__file__).parent
REPO = ROOT.parent
FILES = sorted(ROOT.rglob("*.py"))

FLOOR = {
    "core": 0,
    "corpora": 1,
    "download": 2,
    "score": 2,
    "filter": 2,
    "shard": 2,
    "encode": 2,
    "mix": 3,
    "recipe": 4,
    "runs": 5,
    "loader": 6,
    "export": 6,
    "explore": 7,
    "build": 8,
    "cli": 9,
}
"""A module imports from its own room and from lower floors; rooms of one floor never meet."""


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", [file for file in FILES if file.name != "__init__.py" or file.parent != ROOT], ids=str)
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vila_data" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != room:
            assert FLOOR[parts[1]] < FLOOR[room], f"{path}: {room} imports {name}"


def test_every_room_has_a_floor() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR)


def test_no_room_takes_the_name_of_a_public_function() -> None:
    """Importing `vila_data.x` would put the package in the function's place."""
    assert not set(FLOOR) & set(vila_data.__all__)


def test_no_import_cycles() -> None:
    modules = {".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    graph = {
        name: {
            target
            for found in imports(file)
            for target in (found, found.rsplit(".", 1)[0])
            if target in modules and target != name
        }
        for name, file in modules.items()
        if name != "vila_data"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    assert len(done) >= len(graph)


def test_names() -> None:
    banned = {"utils", "helpers", "manager", "managers", "handler", "handlers", "misc", "common"}
    assert not [file for file in FILES if banned & set(file.with_suffix("").relative_to(ROOT).parts)]


def test_ray_is_imported_in_one_file() -> None:
    found = [file.name for file in FILES if any(name.split(".")[0] == "ray" for name in imports(file))]
    assert found == ["ray_runner.py"]


def test_importing_the_package_is_light() -> None:
    probe = "import sys, vila_data; print(sorted({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_loading_a_recipe_needs_neither_torch_nor_ray() -> None:
    probe = (
        "import sys, vila_data; vila_data.load_recipe(sys.argv[1]); "
        "print(sorted({'torch', 'ray', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    recipe = REPO / "recipes" / "sample.yaml"
    found = subprocess.run([sys.executable, "-c", probe, str(recipe)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names() -> None:
    assert set(vila_data.__all__) >= {"load_recipe", "run", "open_shards", "stream", "RunReport", "Recipe"}
    for name in vila_data.__all__:
        assert getattr(vila_data, name).__doc__, name


def test_command_line_verbs() -> None:
    from vila_data.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == {"run", "plan", "inspect", "check", "preview", "bench", "export", "recipes", "search", "whatif"}


@pytest.mark.parametrize("path", sorted((REPO / "recipes").glob("*.yaml")), ids=str)
def test_recipes_open_with_how_to_run_them(path: Path) -> None:
    head = path.read_text().split("version:", 1)[0]
    assert head.startswith("# ") and f"recipes/{path.name}" in head
