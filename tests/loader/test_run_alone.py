"""A run alone is streamed as its own recipe over it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vila_data as vd
from tests.loader.made_stream import IMAGE, opened, recipe_of
from vila_data.cli import app
from vila_data.core.errors import UsageError

HOW = {"image": IMAGE, "num_workers": 0, "rank": 0, "world_size": 1, "batch_size": 1}


def test_the_batches_are_those_of_its_recipe(made_folder: Path) -> None:
    expected = [[sample.key for sample in batch.origins] for batch in opened(made_folder)]
    for run in (str(made_folder / "run"), made_folder / "run", vd.open_run(made_folder / "run")):
        with vd.stream(run, **HOW) as loader:
            state = loader.state_dict()
            assert [[sample.key for sample in batch.origins] for batch in loader] == expected != []
    opened(made_folder).load_state_dict(state)


def test_another_blend_over_the_same_shards(made_folder: Path, tmp_path: Path) -> None:
    blend = {"weight_unit": "samples", "sources": [{"shards": "chat", "weight": 1}]}
    loader = vd.stream(recipe_of(tmp_path / "other.yaml", blend=blend), vd.open_run(made_folder / "run"), **HOW)
    keys = {sample.key.rsplit("-", 2)[0] for batch in loader for sample in batch.origins}
    assert keys == {"chat"}


def test_a_recipe_alone_is_refused(made_folder: Path) -> None:
    for recipe in (made_folder / "recipe.yaml", recipe_of(made_folder)):
        with pytest.raises(UsageError, match="is a recipe; pass run= too, or the directory of its finished run alone"):
            vd.stream(recipe, **HOW)


def bench(*arguments: object) -> tuple[int, str, Exception | None]:
    options = ["--seconds", "0.1", "--num-workers", "0", "--size-px", "32", "--batch-size", "1", "--json"]
    found = CliRunner().invoke(app, ["bench", *map(str, arguments), *options])
    return found.exit_code, found.output, found.exception if isinstance(found.exception, Exception) else None


def test_bench_of_a_run_alone_and_of_a_recipe_over_it(made_folder: Path) -> None:
    run, recipe = made_folder / "run", made_folder / "recipe.yaml"
    for arguments in ((run,), (recipe, "--run", run), (run, "--set", "seed=3")):
        code, output, _ = bench(*arguments)
        assert code == 0 and json.loads(output)["packs"] > 0
    for wrong, said in (
        ((recipe,), r"recipe.yaml is a recipe; add --run RUN, or give the directory of its finished run alone"),
        ((run, "--run", run), r"--run applies to a recipe"),
        ((run, "--corpora", recipe), r"--corpora applies to a recipe"),
        ((made_folder / "none",), r"none does not exist; create a run"),
        ((run, "--set", "seeed=3"), r"recipe.lock.yaml.*did you mean seed"),
    ):
        _, _, error = bench(*wrong)
        with pytest.raises(UsageError, match=said):
            raise error or AssertionError(wrong)
