"""`run --only STAGE` on a finished run: what still holds is told, what does not is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vila_data as vd
from tests.faults.kills import tree
from vila_data.recipe.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OF_A_LAUNCH = ("seconds", "speed")


def told(out: Path) -> dict[str, Any]:
    """run.json but for times."""
    value = json.loads((out / "run.json").read_text())
    return {key: entry for key, entry in value.items() if key not in OF_A_LAUNCH}


@pytest.fixture(scope="module")
def finished(sample_stand_ins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "run"
    vd.run(recipe(sample_stand_ins), out, runner="local")
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of local files only."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def recipe(stand_ins: Path, *settings: str) -> Recipe:
    return load_recipe(RECIPES / "vila_sft.yaml", stand_ins, settings)


def only(stage: str, out: Path, stand_ins: Path, *settings: str) -> vd.RunReport:
    return vd.run(recipe(stand_ins, *settings), out, runner="local", only=stage)


def test_every_stage_leaves_a_finished_run_as_it_is(out: Path, finished: Path, sample_stand_ins: Path) -> None:
    for stage in ("download", "filter", "shard", "encode", "blend"):
        report = only(stage, out, sample_stand_ins)
        assert report.finished and told(out) == told(finished), stage
        assert tree(out) == tree(finished) and (out / "report.html").exists(), stage
    assert told(out)["blend"] and len(told(out)["tokens"]) == 3


def test_a_scored_run_too(sample_run: Path, sample_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(sample_run, out)
    for stage in ("score", "shard"):
        assert vd.run(sample_recipe, out, runner="local", only=stage).finished
        assert told(out) == told(sample_run), stage
    assert tree(out) == tree(sample_run) and told(out)["blend"]


@pytest.mark.parametrize("stage", ["download", "encode"])
def test_a_run_json_without_what_fates_were_made_from(
    out: Path, finished: Path, sample_stand_ins: Path, stage: str
) -> None:
    """Of an earlier version: whether the fates hold is found from the columns."""
    value = json.loads((out / "run.json").read_text())
    del value["made_from"]
    (out / "run.json").write_text(json.dumps(value))
    only(stage, out, sample_stand_ins)
    assert told(out) == told(finished)


def test_new_rules_leave_no_sets_of_old_ones(out: Path, finished: Path, sample_stand_ins: Path) -> None:
    strict = "filter.images.min_side_px=200"
    report = only("filter", out, sample_stand_ins, strict)
    assert not report.finished and report.measures is None
    assert report.sets.keys() == report.tokens.keys() == {"flan"}, "text has the same fates under both rules"
    assert report.blend is None
    assert told(out)["funnel"] != told(finished)["funnel"]
    assert not (out / "report.html").exists() and not (out / "card.md").exists()
    only("filter", out, sample_stand_ins)  # back: the same fates, so the sets and token files are theirs again
    assert told(out) == told(finished) | {"blend": None}
    only("blend", out, sample_stand_ins)
    assert told(out) == told(finished) and tree(out) == tree(finished)


@pytest.mark.parametrize("stage", ["download", "blend"])
def test_fates_of_other_rules_are_not_told_as_these(out: Path, sample_stand_ins: Path, stage: str) -> None:
    report = only(stage, out, sample_stand_ins, "filter.images.min_side_px=200")
    assert not report.finished and all("filter" not in stages for stages in report.funnel.values())
    assert (report.sets, report.tokens, report.blend) == ({}, {}, None)
    with pytest.raises(
        vd.UsageError, match=r"corpus 'chat': filter is incomplete \(\d of \d parts are missing\); run it first"
    ):
        only("shard", out, sample_stand_ins, "filter.images.min_side_px=200")


def test_fates_of_other_downloads_are_not_told(out: Path, finished: Path, sample_stand_ins: Path) -> None:
    """What fates were made from is compared as it lies there, not as an earlier launch told it."""
    receipt = next((out / "filter" / "chat").glob("*.json"))
    value = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(value | {"inputs": "0" * 16}))
    report = only("encode", out, sample_stand_ins)
    assert "filter" not in report.funnel["chat"] and "chat" not in report.sets and report.blend is None
    assert report.tokens.keys() == told(finished)["tokens"].keys() - {"chat"}


def test_token_files_of_other_shards_are_not_told(out: Path, finished: Path, sample_stand_ins: Path) -> None:
    small = "shards.chat.max_mb=1"
    report = only("shard", out, sample_stand_ins, small)
    others = {name: counts for name, counts in told(finished)["tokens"].items() if name != "chat"}
    for counts in others.values():
        del counts["left_out"]  # the same counts as shares, which run.json alone has
    assert report.finished and report.tokens == others and report.blend is None
    assert len(report.sets["chat"].shards) > 1
    with pytest.raises(
        vd.UsageError, match=r"sets chat: .* from other shards; run the recipe with --only encode first"
    ):
        only("blend", out, sample_stand_ins, small)
    assert only("encode", out, sample_stand_ins, small).tokens.keys() == told(finished)["tokens"].keys()
    last = only("blend", out, sample_stand_ins, small)
    before = told(out)
    whole = vd.run(recipe(sample_stand_ins, small), out, runner="local")
    assert last.blend == whole.blend and told(out) == before


def test_lost_token_files_are_not_told(out: Path, sample_stand_ins: Path) -> None:
    next(out.rglob("flan-000000.arrow")).unlink()
    report = only("download", out, sample_stand_ins)
    assert report.finished and "flan" not in report.tokens and "chat" in report.tokens and report.blend is None


def test_lost_shards_are_not_told(out: Path, sample_stand_ins: Path) -> None:
    next(out.rglob("flan-000000.tar")).unlink()
    report = only("filter", out, sample_stand_ins)
    assert not report.finished and report.sets.keys() == {"chat", "vflan"} == report.tokens.keys()
    assert report.blend is None and not (out / "report.html").exists()


def test_without_its_tokenizer_a_launch_goes_on(out: Path, sample_stand_ins: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    gone = f"pack.tokenizer={tmp_path}/gone"
    with pytest.warns(UserWarning, match="run.json no longer contains tokens and blend: .*gone"):
        report = only("download", out, sample_stand_ins, gone)
    assert report.finished and report.sets and not report.tokens and report.blend is None


def test_first_launches_tell_no_more_than_was_done(sample_stand_ins: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stage in ("download", "filter"):
        report = only(stage, out, sample_stand_ins)
        assert not report.finished and not report.sets and not (out / "report.html").exists()
    assert only("shard", out, sample_stand_ins).tokens == {}
    assert only("encode", out, sample_stand_ins).blend is None
