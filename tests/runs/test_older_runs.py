"""Runs and sets of another version are refused by one sentence, whatever opens them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import vila_data as vd
from vila_data.core.errors import DataError
from vila_data.core.tables import SCHEMA_VERSION
from vila_data.explore.inspection import check, inspect
from vila_data.explore.preview import preview
from vila_data.explore.search.query import Query, search
from vila_data.explore.whatif import whatif
from vila_data.export.exporting import export
from vila_data.recipe.lock import FORM, LOCK
from vila_data.runs.plan_summary import summarize_plan

REPO = Path(__file__).parents[2]
WAY_ON = "make the run again with another --out, or use the version that made it"
OPENERS: dict[str, Callable[[Path, Path], object]] = {
    "run": lambda run, recipe: vd.run(recipe, out=run, runner="local"),
    "plan": lambda run, recipe: summarize_plan(recipe, run),
    "check": lambda run, recipe: list(check(run)),
    "inspect": lambda run, recipe: inspect(run),
    "preview": lambda run, recipe: preview(str(run), str(run.parent / "page.html")),
    "whatif": lambda run, recipe: whatif(str(run), ["filter.documents.max_images=3"]),
    "export": lambda run, recipe: export(str(run), "llava", run.parent / "out"),
    "search": lambda run, recipe: search(str(run), Query(text="a boat")),
    "stream": lambda run, recipe: vd.stream(vd.load_recipe(recipe), run, num_workers=0),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two questions without images."""
    folder = tmp_path_factory.mktemp("older")
    rows = [{"prompt": f"Question {number}?", "completion": "An answer."} for number in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: words\ncorpora: {words: {kind: text, files: [rows.jsonl]}}\n"
        "shards: {words: {corpus: words, view: conversations}}\n"
        f"pack: {{tokenizer: {REPO / 'shards' / 'sample' / 'tokenizer'}, sequence_length: 512, tokens_per_image: 4}}\n"
        "blend: {weight_unit: samples, sources: [{shards: words, weight: 1}]}\n"
    )
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    vd.run(recipe, out=recipe.parent / "run", runner="local")
    return recipe.parent / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_runs_of_this_version_are_opened(run: Path, recipe: Path) -> None:
    for name in ("run", "plan", "check", "inspect", "preview", "whatif", "export", "stream"):
        found = OPENERS[name](run, recipe)
        assert found or name == "check", name


@pytest.mark.parametrize("form", [None, FORM - 1, FORM + 1])
@pytest.mark.parametrize("name", OPENERS)
def test_a_run_of_another_form_is_refused(run: Path, recipe: Path, name: str, form: int | None) -> None:
    lock = yaml.safe_load((run / LOCK).read_text())
    del lock["form"]
    (run / LOCK).write_text(yaml.safe_dump(lock | ({} if form is None else {"form": form})))
    before = sorted(path for path in run.rglob("*") if path.is_file())
    with pytest.raises(DataError) as caught:
        OPENERS[name](run, recipe)
    assert str(caught.value) == (
        f"{run / LOCK}: form {form or 1}, this version of vila-data reads form {FORM}: {WAY_ON}"
    )
    assert before == sorted(path for path in run.rglob("*") if path.is_file()), "something was written"


@pytest.mark.parametrize("schema", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_set_of_another_schema_is_refused(run: Path, tmp_path: Path, schema: int) -> None:
    path = run / "shards" / "words" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
    said = f"{path}: schema {schema}, this version of vila-data reads schema {SCHEMA_VERSION}: {WAY_ON}"
    for alone in (
        vd.open_shards,
        inspect,
        lambda folder: preview(str(folder), str(tmp_path / "page.html")),
        lambda folder: export(str(folder), "llava", tmp_path / "out"),
    ):
        with pytest.raises(DataError) as caught:
            alone(path.parent)
        assert str(caught.value) == said
    assert list(check(path.parent)) == [said]
    assert said in list(check(run))
