"""Entries of `stages:` in a run: done, skipped, redone, killed and judged as the stages of every run are."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import vila_data as vd
from tests.faults.kills import TIMED, Launches, finish, tree
from tests.score.made_stages import MADE
from vila_data.cli import app
from vila_data.explore.inspection import check, inspect
from vila_data.explore.whatif import whatif
from vila_data.recipe.recipe import Recipe
from vila_data.runs.plan_summary import summarize_plan
from vila_data.runs.stages import stages_of
from vila_data.score.kinds import STAGES

LIMIT = 60
ABOVE = "ahead.lead >= 0"
UPPER = "rank.percentile >= 0.6"
WIDE = "size.width >= 330"
ENTRIES = (
    "stages.ahead={kind: lead, of: clip.similarity}",
    "stages.rank={kind: percentile, of: ahead.lead}",
    "stages.after={kind: lead, of: rank.percentile}",
    "stages.size={kind: widest}",
)
RULES = f'filter.rules=["{ABOVE}", "{UPPER}", "{WIDE}"]'


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in MADE.items():
            patch.setitem(STAGES, name, kind)
        yield


def recipe(path: Path, *settings: str) -> Recipe:
    """The sample, to its shards, without a rule that needs similarities."""
    mild = "filter.images.min_similarity=-1"
    return vd.load_recipe(path, settings=[mild, *settings]).model_copy(update={"pack": None, "blend": None})


def run(made: Recipe, out: Path, only: str | None = None, runner: str = "local") -> vd.RunReport:
    return vd.run(made, out, runner=runner, limit=LIMIT, only=only)


@pytest.fixture(scope="module")
def finished(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stages") / "run"
    run(recipe(sample_recipe, *ENTRIES, RULES), out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return [row for file in sorted(out.glob(f"{table}/part-?????.parquet")) for row in pq.read_table(file).to_pylist()]


def stamps(out: Path) -> dict[str, int]:
    return {path: (out / path).stat().st_mtime_ns for path in tree(out)}


def redone(out: Path, before: dict[str, int]) -> set[str]:
    """Tables that were written again, by folder."""
    after = stamps(out)
    changed = {path for path in before if path.endswith(".parquet") and after.get(path) != before[path]}
    return {"/".join(path.split("/")[:3:2]) if path.startswith("score/") else path.split("/")[0] for path in changed}


def test_columns_are_what_their_stages_say(finished: Path) -> None:
    images, clip = rows(finished, "download/docs"), rows(finished, "score/docs/clip")
    ahead, rank = rows(finished, "score/docs/ahead"), rows(finished, "score/docs/rank")
    known = [row["similarity"] for row in clip if row["scored"]]
    assert len(images) == len(clip) == len(ahead) == len(rank) and len(known) > 20
    assert [row["scored"] for row in ahead] == [row["scored"] for row in clip]
    for record in {row["record_id"] for row in clip}:
        of = [
            (row["similarity"], at["lead"]) for row, at in zip(clip, ahead, strict=True) if row["record_id"] == record
        ]
        there = [(value, lead) for value, lead in of if lead is not None]
        for value, lead in there:
            assert lead == pytest.approx(value - np.mean([one for one, _ in there]), abs=1e-6)
    leads = np.array([row["lead"] for row in ahead if row["lead"] is not None])
    places = np.array([row["percentile"] for row in rank if row["percentile"] is not None])
    share = (leads[None, :] < leads[:, None]).mean(axis=1)
    assert len(places) == len(leads) and np.abs(places - share).max() <= 1e-3 < np.ptp(places)
    widest = {row["record_id"]: row["width"] for row in rows(finished, "score/docs/size")}
    found: dict[str, list[int]] = {}
    for row in images:
        found.setdefault(row["record_id"], []).append(row["width"] or 0)
    assert all(widest[record] == (max(widths) or None) for record, widths in found.items())


def test_rules_judge_by_them_and_all_pages_show_it(finished: Path, sample_recipe: Path) -> None:
    funnel = inspect(finished)[1]["funnel"]["docs"]
    fates = [row for row in rows(finished, "filter/docs") if row["image_index"] is not None]
    assert funnel["filter"]["images"][f"dropped:{ABOVE}"] == sum(row["reason"] == ABOVE for row in fates) > 0
    assert funnel["filter"]["images"][f"dropped:{UPPER}"] > 0
    assert funnel["filter"]["records"][f"dropped:{WIDE}"] > 0
    low = {
        (row["record_id"], row["image_index"])
        for row in rows(finished, "score/docs/ahead")
        if row["lead"] is not None and row["lead"] < 0
    }
    assert low and not low & {(row["record_id"], row["image_index"]) for row in fates if row["fate"] == "kept"}
    assert list(check(finished)) == []
    assert "ahead.lead &gt;= 0" in (finished / "report.html").read_text()
    tree_ = summarize_plan(recipe(sample_recipe, *ENTRIES, RULES), finished, LIMIT)
    corpus = next(node for node in tree_["children"] if node.get("corpus") == "docs")
    stages = [node["name"] for node in corpus["children"]]
    assert stages == ["download", "score clip", "ahead", "rank", "after", "size", "filter"]
    assert {node["committed"] == node["parts"] > 1 for node in corpus["children"]} == {True}
    speed = json.loads((finished / "run.json").read_text())["speed"]
    assert list(speed) == ["download", "score", "ahead", "rank", "after", "size", "filter", "shard"]


def test_relaunching_changes_nothing(out: Path, finished: Path, sample_recipe: Path) -> None:
    made, before = recipe(sample_recipe, *ENTRIES, RULES), stamps(out)
    assert run(made, out).finished and stamps(out) == before
    for verb in ("download", "score", "ahead", "rank", "after", "size", "filter"):
        report = run(made, out, verb)
        assert report.finished and tree(out) == tree(finished), verb


@pytest.mark.slow
def test_ray_gives_the_same_bytes(finished: Path, sample_recipe: Path, tmp_path: Path) -> None:
    run(recipe(sample_recipe, *ENTRIES, RULES), tmp_path / "run", runner="ray")
    assert tree(tmp_path / "run") == tree(finished)


def test_other_settings_redo_the_stage_and_what_is_made_from_it(out: Path, sample_recipe: Path) -> None:
    twice = "stages.ahead.factor=2.0"
    before = stamps(out)
    stale = run(recipe(sample_recipe, *ENTRIES, twice, RULES), out, "download")
    assert not stale.finished and all("filter" not in stages for stages in stale.funnel.values())
    with pytest.raises(
        vd.UsageError, match=r"corpus 'docs': ahead is incomplete \(\d of \d parts are missing\); run it first"
    ):
        run(recipe(sample_recipe, *ENTRIES, twice, RULES), out, "rank")
    run(recipe(sample_recipe, *ENTRIES, twice, RULES), out, "ahead")
    assert redone(out, before) == {"score/ahead"}
    report = run(recipe(sample_recipe, *ENTRIES, twice, RULES), out)
    assert report.finished and redone(out, before) >= {"score/ahead", "score/rank", "filter"}
    assert not redone(out, before) & {"download", "score/clip", "score/size"}
    assert report.funnel["docs"]["filter"]["images"][f"dropped:{ABOVE}"] > 0


def test_a_stage_that_is_added_redoes_nothing_before_a_rule_names_it(out: Path, sample_recipe: Path) -> None:
    before = stamps(out)
    more = [*ENTRIES, "stages.wide={kind: percentile, of: width}"]
    run(recipe(sample_recipe, *more, RULES), out)
    assert redone(out, before) <= {"shards"} and rows(out, "score/pairs/wide")
    rule = 'filter.rules=["wide.percentile >= 0.5"]'
    asked = whatif(str(out), [rule])
    report = run(recipe(sample_recipe, *more, rule), out)
    assert {name: found.new for name, found in asked.corpora.items()} == report.funnel
    assert report.funnel["pairs"]["filter"]["images"]["dropped:wide.percentile >= 0.5"] > 0


def test_more_scores_redo_what_is_made_from_them(sample_recipe: Path, tmp_path: Path) -> None:
    """A rule that spares the scorer work leaves nulls; a looser one scores them, and the stage follows."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    run(recipe(sample_recipe, *ENTRIES, 'filter.rules=["width >= 250"]'), out)
    lacking = sum(not row["scored"] for row in rows(out, "score/docs/ahead"))
    assert sum(found.unscored for found in whatif(str(out), [f'filter.rules=["{ABOVE}"]']).corpora.values()) > 0
    run(recipe(sample_recipe, *ENTRIES), out)
    assert sum(not row["scored"] for row in rows(out, "score/docs/ahead")) < lacking
    run(recipe(sample_recipe, *ENTRIES), whole)
    files = [path for path in tree(whole) if path.startswith(("score/", "filter/", "shards/"))]
    scores = [path for path in files if path.endswith(".parquet")]
    assert len(scores) > 20 and all((out / path).read_bytes() == (whole / path).read_bytes() for path in scores)


def test_a_rule_on_them_has_conversations_scored(sample_recipe: Path, tmp_path: Path) -> None:
    rule = 'filter.per_corpus.chat.rules=["ahead.lead > -2"]'
    run(recipe(sample_recipe, *ENTRIES, rule), tmp_path / "run", "download")
    run(recipe(sample_recipe, *ENTRIES, rule), tmp_path / "run", "score")
    assert any(row["scored"] for row in rows(tmp_path / "run", "score/chat/clip"))


class Stop(Exception):
    """The launch ends here, as if it were killed."""


class Killer:
    """A watch that ends the launch at a task of a stage."""

    def __init__(self, stage: str, after: int) -> None:
        self._stage, self._left = stage, after

    def stage(self, name: str, total: int, done: int) -> None:
        """See Progress."""

    def advance(self, name: str, items: int) -> None:
        """See Progress."""
        self._left -= name.split()[0] == self._stage
        if self._left < 0:
            raise Stop


@pytest.mark.slow
def test_killed_at_random_moments(sample_recipe: Path, tmp_path: Path) -> None:
    """Kill -9, until four kills have hit a run at its work; the kind is one of the package, so that a process of its own has it."""
    path, alone, out = sample_recipe.with_name("ranked.yaml"), tmp_path / "alone", tmp_path / "run"
    path.write_text(sample_recipe.read_text() + "stages:\n  rank: {kind: percentile, of: clip.similarity}\n")
    path.write_text(path.read_text().replace("filter:\n", 'filter:\n  rules: ["rank.percentile >= 0.4"]\n', 1))
    finish(path, alone, "local")
    images = json.loads((alone / "run.json").read_text())["funnel"]["docs"]["filter"]["images"]
    assert images["dropped:rank.percentile >= 0.4"] > 0

    def begin() -> None:
        """What is downloaded and scored, so that the stage is not far."""
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(alone, out, ignore=shutil.ignore_patterns("rank", "filter", "shards", "tokens", *TIMED))

    begin()
    start = time.monotonic()
    finish(path, out, "local")
    span, rng, hits, launches = time.monotonic() - start, random.Random(5), 0, Launches()
    begin()
    for _ in range(20):
        if launches.run_and_kill(path, out, "local", rng.uniform(0, 0.6) * span):
            hits += 1
        else:
            assert tree(out) == tree(alone)
            begin()
        if hits == 4:
            break
    launches.close()
    assert hits == 4, "the kills do not hit the run: this proves nothing"
    finish(path, out, "local")
    assert tree(out) == tree(alone)


@pytest.mark.parametrize("stage", ["ahead", "rank", "after"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_launch_that_ends_between_parts_is_gone_on_with(
    sample_recipe: Path, finished: Path, tmp_path: Path, stage: str, after: int
) -> None:
    made, out = recipe(sample_recipe, *ENTRIES, RULES), tmp_path / "run"
    for folder in ("download", "score/docs/clip", "score/pairs/clip", "score/chat/clip", "score/text/clip"):
        shutil.copytree(finished / folder, out / folder)
    shutil.copy(finished / "recipe.lock.yaml", out)
    with pytest.raises(Stop):
        vd.run(made, out, runner="local", limit=LIMIT, watch=Killer(stage, after))
    told = inspect(out)[1]["committed"]
    assert after < told[stage] < told["download"] and told["filter"] == 0
    assert run(made, out).finished and tree(out) == tree(finished)


def test_a_lost_table_is_made_again(out: Path, finished: Path, sample_recipe: Path) -> None:
    (out / "score/docs/rank/part-00001.parquet").unlink()
    assert any("rank" in problem for problem in check(out))
    run(recipe(sample_recipe, *ENTRIES, RULES), out)
    assert tree(out) == tree(finished)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["stages.clip={kind: widest}"], "'clip' is also the name of a scorer"),
        (["stages.filter={kind: widest}"], "stages.filter: 'filter' is reserved"),
        (
            ["stages.ahead={kind: lead, of: rank.percentile}"],
            "reads 'rank.percentile', which does not exist at this point",
        ),
        (["stages.ahead={kind: led, of: width}"], "found 'led'; did you mean lead"),
        (["stages.ahead={kind: lead, off: width}"], "unknown key 'off'; did you mean of"),
        (["stages.rank={kind: percentile, of: url}"], "url is not a column of numbers"),
        ([*ENTRIES, 'filter.rules=["ahead.led > 0"]'], "no column 'ahead.led'; nearest: ahead.lead"),
    ],
)
def test_what_is_refused(sample_recipe: Path, settings: list[str], problem: str) -> None:
    with pytest.raises(vd.UsageError) as caught:
        recipe(sample_recipe, *settings)
    assert problem in str(caught.value)


def test_only_takes_its_names_from_the_list(sample_recipe: Path, tmp_path: Path) -> None:
    made = vd.load_recipe(sample_recipe, settings=ENTRIES)
    verbs = stages_of(made, "").verbs()
    assert verbs == ("download", "score", "ahead", "rank", "after", "size", "filter", "shard", "encode", "blend")
    with pytest.raises(vd.UsageError, match=f"--only ahea: unknown stage; choose one of {', '.join(verbs)}"):
        vd.run(made, tmp_path / "run", runner="local", only="ahea")
    text = " ".join(CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "400"}).output.split())
    assert all(verb in text for verb in stages_of(vd.load_recipe(sample_recipe), "").verbs()) and "stages" in text
