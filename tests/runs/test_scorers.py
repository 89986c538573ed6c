"""Named scorers in a run: one is added, and nothing else is done again; a cheap one spares an expensive one its work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import vila_data as vd
from tests.faults.kills import tree
from tests.score.made_scorers import MADE, write_graph
from vila_data.explore.inspection import inspect
from vila_data.explore.preview import Choice, preview
from vila_data.explore.sweep import sweep
from vila_data.explore.whatif import whatif
from vila_data.recipe.recipe import Recipe
from vila_data.runs.plan_summary import summarize_plan
from vila_data.score.kinds import KINDS

LIMIT = 40
NIGHT = "shade.dark < 0.35"
LONG = "words.count > 8"
OF_CLIP = "clip.similarity >= 0.6 or width > 10000"


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in MADE.items():
        monkeypatch.setitem(KINDS, name, kind)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_graph(tmp_path / "shade.onnx"))


def recipe(path: Path, *settings: str) -> Recipe:
    """The sample, to its shards."""
    return vd.load_recipe(path, settings=settings).model_copy(update={"pack": None, "blend": None})


def run(made: Recipe, out: Path) -> vd.RunReport:
    return vd.run(made, out, runner="local", limit=LIMIT)


def rows(out: Path, path: str) -> list[dict[str, Any]]:
    return [row for file in sorted(out.glob(path)) for row in pq.read_table(file).to_pylist()]


def stamps(out: Path, *folders: str) -> dict[str, int]:
    return {path: (out / path).stat().st_mtime_ns for path in tree(out) if path.startswith(folders)}


def test_a_scorer_is_added_and_nothing_else_is_done_again(sample_recipe: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "run"
    first = run(recipe(sample_recipe), out)
    before = stamps(out, "download", "score", "filter", "shards")
    scorers = [f"score.shade.model={model}", "score.words={}", "score.form={kind: shape}"]
    added = run(recipe(sample_recipe, *scorers), out)
    assert added.funnel == first.funnel
    stages = summarize_plan(recipe(sample_recipe, *scorers), str(out), LIMIT)["children"][0]["children"]
    names = {node["name"] for node in stages if node["stage"] == "score"}
    assert names == {f"score {name}" for name in ("shade", "words", "form", "clip")}
    assert {
        path: stamp for path, stamp in stamps(out, "download", "score", "filter", "shards").items() if path in before
    } == before
    for corpus in ("docs", "pairs", "chat"):
        dark, images = rows(out, f"score/{corpus}/shade/*.parquet"), rows(out, f"download/{corpus}/part-?????.parquet")
        assert len(dark) == len(images) and sum(row["scored"] for row in dark) > 0
    assert sum(row["scored"] for row in rows(out, "score/text/words/*.parquet")) > 30
    ruled = recipe(sample_recipe, *scorers, f'filter.rules=["{NIGHT}", "{LONG}"]')
    answer = whatif(str(out), [f'filter.rules=["{NIGHT}", "{LONG}"]'])
    report = run(ruled, out)
    after = stamps(out, "download", "score")
    assert {path: stamp for path, stamp in after.items() if path in before} == {
        p: s for p, s in before.items() if p in after
    }
    assert {name: found.new for name, found in answer.corpora.items()} == report.funnel != first.funnel
    assert report.funnel["docs"]["filter"]["images"][f"dropped:{NIGHT}"] > 0
    assert report.funnel["pairs"]["filter"]["records"][f"dropped:{LONG}"] > 0
    reasons = {(row["image_index"] is None, row["reason"]) for row in rows(out, "filter/*/*.parquet")}
    assert {(False, NIGHT), (True, LONG)} <= reasons
    assert f"dropped:{NIGHT}" in inspect(out)[1]["funnel"]["docs"]["filter"]["images"]
    assert "shade.dark &lt; 0.35" in (out / "report.html").read_text()
    preview(str(out), str(tmp_path / "page.html"), Choice(reason=NIGHT))
    assert "shade.dark &lt; 0.35" in (tmp_path / "page.html").read_text()
    steps = sweep(str(out), "filter.images.min_similarity=0.4,0.8", [f'filter.rules=["{OF_CLIP}"]'])
    assert steps.corpora["pairs"].kept["images"][1] > 0


def test_what_a_cheap_rule_drops_is_not_given_to_clip_and_is_scored_later(
    sample_recipe: Path, tmp_path: Path, model: str
) -> None:
    scorer = f"score.shade.model={model}"
    strict = recipe(sample_recipe, scorer, f'filter.rules=["{NIGHT}"]')
    out, whole = tmp_path / "run", tmp_path / "whole"
    run(strict, out)
    scored = {
        (corpus, row["row"], row["image_index"]): row["scored"]
        for corpus in ("docs", "pairs")
        for row in rows(out, f"score/{corpus}/clip/part-*.parquet")
    }
    fates = {
        (corpus, row["row"], row["image_index"]): row["reason"]
        for corpus in ("docs", "pairs")
        for row in rows(out, f"filter/{corpus}/part-*.parquet")
        if row["image_index"] is not None
    }
    dropped = [place for place, reason in fates.items() if reason == NIGHT]
    assert dropped and not any(scored[place] for place in dropped) and any(scored.values())
    asked = whatif(str(out), ["filter.rules=[]"])
    assert sum(found.unscored for found in asked.corpora.values()) == len(dropped)
    loose = recipe(sample_recipe, scorer)
    report = run(loose, out)
    for corpus, found in asked.corpora.items():
        for unit, counts in found.new["filter"].items():
            real, unknown = report.funnel[corpus]["filter"][unit], counts.get("unknown:not_scored", 0)
            assert counts["kept"] <= real["kept"] <= counts["kept"] + unknown
    run(loose, whole)
    scores = [
        path
        for path in tree(whole)
        if path.startswith(("score", "filter", "shards")) and not path.endswith("manifest.json")  # it names the recipe
    ]
    assert {path: tree(out)[path] for path in scores} == {path: tree(whole)[path] for path in scores}


def test_fates_do_not_depend_on_what_other_rules_had_scored(sample_recipe: Path, tmp_path: Path, model: str) -> None:
    """Once with nothing scored before, once with all: the same fates and shards, and `whatif` said so."""
    scorers = (f"score.shade.model={model}", "score.words={}")
    loose = [
        f"filter.{key}" for key in ("images.min_side_px=null", "images.aspect_ratio=null", "documents.min_images=0")
    ]
    tight = [
        f'filter.rules=["{NIGHT}", "{LONG}"]',
        "filter.images.min_side_px=120",
        "filter.images.min_similarity=0.6",
        "filter.documents.on_missing_image=drop_document",
        "filter.per_corpus.docs.documents.min_images=2",
    ]
    new, before = tmp_path / "new", tmp_path / "before"
    expected = run(recipe(sample_recipe, *scorers, *tight), new)
    run(recipe(sample_recipe, *scorers, *loose), before)
    unset = [f"filter.{key}" for key in ("images.aspect_ratio=[0.5,2.0]", "documents.min_images=1")]
    said = whatif(str(before), [*unset, *tight])
    assert {name: (found.new, found.unscored) for name, found in said.corpora.items()} == {
        name: (funnel, 0) for name, funnel in expected.funnel.items()
    }
    assert run(recipe(sample_recipe, *scorers, *tight), before).funnel == expected.funnel
    made, again = (
        {path: digest for path, digest in tree(out).items() if path.startswith(("filter", "shards"))}
        for out in (new, before)
    )
    receipts = {
        path for path in made if path.startswith("filter") and path.endswith(".json")
    }  # they name the scores' bytes
    assert {path: again[path] for path in again.keys() - receipts} == {
        path: made[path] for path in made.keys() - receipts
    }
    for path in receipts:
        assert json.loads((new / path).read_text())["counts"] == json.loads((before / path).read_text())["counts"]
    passing = 0  # images that would be judged otherwise: scored before, and of a record that is lost without that score
    for corpus in ("docs", "chat"):
        known, fates = (rows(before, f"{path}/part-*.parquet") for path in (f"score/{corpus}/clip", f"filter/{corpus}"))
        lost = [row["scored"] for row in rows(new, f"score/{corpus}/clip/part-*.parquet")]
        reasons = [row["reason"] for row in fates if row["image_index"] is not None]
        passing += sum(
            row["scored"] and not scored and reason == "record_dropped"
            for row, scored, reason in zip(known, lost, reasons, strict=True)
        )
    assert passing > 10


def test_what_may_not_change_of_a_scorer(sample_recipe: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "run"
    run(recipe(sample_recipe, f"score.dusk={{kind: shade, model: {model}}}"), out)
    (tmp_path / "moved").mkdir()
    moved = write_graph(tmp_path / "moved" / "shade.onnx")
    run(recipe(sample_recipe, f"score.dusk={{kind: shade, model: {moved}}}"), out)  # the same bytes elsewhere
    other = write_graph(tmp_path / "other.onnx", 300.0)
    for settings, said in (
        ((f"score.dusk={{kind: shade, model: {other}}}",), r"score\.dusk\.model: the weights differ"),
        ((), r"score\.dusk: in the run, but not in this recipe"),
        (("score.dusk={kind: words}",), r"score\.dusk\.kind: 'shade' in the run, 'words' now"),
        (
            (f"score.dusk={{kind: shade, model: {model}}}", "score.clip.revision=x"),
            r"score\.clip\.revision: None in the run",
        ),
    ):
        with pytest.raises(vd.UsageError, match=said):
            run(recipe(sample_recipe, *settings), out)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["score.x={kind: shad, model: m}"], r"score\.x\.kind: found 'shad'; did you mean shade"),
        (["score.x={model: m}"], r"score\.x\.kind: missing required key 'kind'"),
        (["score.shade={modle: m}"], r"score\.shade\.modle: unknown key 'modle'; did you mean model"),
        (["score.shade={model: 3}"], r"score\.shade\.model: input should be a valid string"),
        (["score.shade={model: nothing.onnx}"], r"score\.shade\.model: 'nothing\.onnx' does not exist"),
        (["score.x-y={kind: words}"], r"'x-y': the name of a scorer must be 1 to 48 letters"),
        (["score.not={kind: words}"], r"'not': the name of a scorer"),
        (["score.clip.backnd=onnx"], r"score\.clip\.backnd: unknown key 'backnd'; did you mean backend"),
        (["score.clip=null"], r"filter\.images\.min_similarity: needs score\.clip, which is not set"),
        (
            ["score.clip=null", "score.a={kind: clip, model: x/y}", "score.b={kind: clip, model: x/y}"],
            r"min_similarity: uses the scorer named clip, or the only one of kind clip; the recipe has a, b",
        ),
        (
            ['filter.rules=["clip.similarty > 0.2"]'],
            r"filter\.rules\.0: no column 'clip\.similarty'; nearest: clip\.similarity",
        ),
        (
            ['filter.per_corpus.docs.rules=["width > 3", "height > true"]'],
            r"docs\.rules\.1: 'true' is a flag; expected a number",
        ),
        (['filter.rules=["width >"]'], r"filter\.rules\.0: .* is not an expression"),
        (["filter.rules=[3]"], r"filter\.rules\.0: input should be a valid string"),
    ],
)
def test_recipes_that_are_wrong(sample_recipe: Path, settings: list[str], said: str) -> None:
    with pytest.raises(vd.RecipeError, match=said):
        vd.load_recipe(sample_recipe, settings=settings)


def test_the_only_scorer_of_kind_clip_is_the_one_of_similarities(sample_recipe: Path, tmp_path: Path) -> None:
    text = sample_recipe.read_text()
    named = sample_recipe.with_name("named.yaml")
    named.write_text(text.replace("  clip: {backend", "  look: {kind: clip, backend"))
    made, plain = recipe(named), recipe(sample_recipe)
    assert made.scores().similarity == "look"
    assert Recipe.model_validate(made.model_dump(mode="json"), strict=False) == made
    assert run(made, tmp_path / "named").funnel == run(plain, tmp_path / "plain").funnel
    lock = json.dumps(plain.model_dump(mode="json")["score"])
    assert json.loads(lock)["clip"]["kind"] == "clip"
