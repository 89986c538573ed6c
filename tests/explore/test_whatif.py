"""`whatif` on the sample: what it says is what relaunching the run with the settings gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import vila_data as vd
from vila_data.build import run
from vila_data.cli import app
from vila_data.core.errors import DataError, UsageError, VilaDataError
from vila_data.explore import sweep_page as whatif_examples
from vila_data.explore.sweep import parse_sweep, sweep
from vila_data.explore.whatif import FilteredRun, whatif
from vila_data.recipe.lock import LOCK
from vila_data.recipe.recipe import Recipe

LIMIT = 40
OWN = "filter.per_corpus.docs.images.min_similarity=0.3"
SETTINGS = (
    ["filter.images.min_similarity=0.8"],
    ["filter.images.min_similarity=null", "filter.images.exact_duplicates=keep", "filter.documents.min_images=0"],
    ["filter.documents.reassign=true", "filter.documents.on_missing_image=drop_document"],
    ["filter.per_corpus.pairs.images.min_similarity=0.8", "filter.per_corpus.chat.documents.max_images=1"],
    ["filter.images.min_side_px=200", "filter.images.aspect_ratio=[0.9, 1.2]", "filter.documents.max_images=3"],
)


def recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The sample, to its shards; docs have a similarity of their own."""
    loaded = vd.load_recipe(path, settings=[OWN, *settings])
    return loaded.model_copy(update={"pack": None, "blend": None})


@pytest.fixture(scope="module")
def finished(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the sample; do not write to it."""
    out = tmp_path_factory.mktemp("whatif") / "run"
    run(recipe(sample_recipe), out, runner="local", limit=LIMIT)
    return out


def rerun(finished: Path, path: Path, settings: Sequence[str], folder: Path) -> vd.RunReport:
    out = folder / "run"
    shutil.copytree(finished, out)
    return run(recipe(path, settings), out, runner="local", limit=LIMIT)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings[0])
def test_it_says_what_a_run_gives(settings: list[str], finished: Path, sample_recipe: Path, tmp_path: Path) -> None:
    answer = whatif(str(finished), settings)
    report = rerun(finished, sample_recipe, settings, tmp_path)
    assert {name: found.new for name, found in answer.corpora.items()} == report.funnel
    assert {name: found.old for name, found in answer.corpora.items()} != report.funnel, "the setting changed nothing"
    for name, manifest in report.sets.items():
        new = answer.sets[name].new
        assert (new.samples, new.images, new.shards) == (manifest.samples, manifest.images, len(manifest.shards)), name
        assert (new.samples_at_most, new.images_at_most) == (new.samples, new.images)


def test_what_was_not_scored_is_said_and_bounds_hold(finished: Path, sample_recipe: Path, tmp_path: Path) -> None:
    settings = ["filter.images.min_side_px=8", "filter.images.aspect_ratio=null"]
    answer = whatif(str(finished), settings)
    scored = _images_scored(finished)
    report = rerun(finished, sample_recipe, settings, tmp_path)
    newly = _images_scored(tmp_path / "run") - scored
    assert sum(found.unscored for found in answer.corpora.values()) == newly > 0
    for name, found in answer.corpora.items():
        for unit, counts in found.new["filter"].items():
            unknown = counts.get("unknown:not_scored", 0)
            real = report.funnel[name]["filter"][unit]
            assert counts["kept"] <= real["kept"] <= counts["kept"] + unknown
    for name, manifest in report.sets.items():
        new = answer.sets[name].new
        assert new.samples <= manifest.samples <= new.samples_at_most
        assert (new.shards is None) == (new.samples != new.samples_at_most or new.images != new.images_at_most)


def _images_scored(run: Path) -> int:
    receipts = [json.loads(path.read_text()) for path in run.glob("score/*/clip/part-?????.json")]
    return sum(receipt["counts"]["images_scored"] for receipt in receipts)


def test_nothing_is_written_to_the_run(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    whatif(str(finished), SETTINGS[0])
    sweep(str(finished), "filter.images.min_similarity=0.1:0.9:0.1")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_lock_keeps_what_per_corpus_leaves_to_the_common_rules(finished: Path, sample_recipe: Path) -> None:
    made = recipe(sample_recipe)
    assert FilteredRun(str(finished)).recipe.filter == made.filter
    assert FilteredRun(str(finished)).recipe.rules_for("docs") == made.rules_for("docs")
    assert made.rules_for("docs").images.min_side_px is not None


def test_each_value_of_a_sweep_is_a_whatif(finished: Path) -> None:
    key = "filter.images.min_similarity"
    beside = ["filter.documents.on_missing_image=drop_document"]
    answer = sweep(str(finished), f"{key}=0.3:0.9:0.1", beside)
    assert answer.values == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert (answer.in_force, set(answer.corpora)) == (
        0.5,
        {"pairs"},
    )  # docs have their own, the others are conversations
    assert answer.untouched == ["docs", "chat", "text"]
    kept = answer.corpora["pairs"].kept
    assert kept["images"] == sorted(kept["images"], reverse=True) and len(set(kept["images"])) > 2
    for place, value in enumerate(answer.values):
        one = whatif(str(finished), [*beside, f"{key}={value}"])
        counts = one.corpora["pairs"].new["filter"]
        assert {unit: kept[unit][place] for unit in kept} == {unit: counts[unit]["kept"] for unit in kept}
        assert answer.sets["pairs"].samples[place] == one.sets["pairs"].new.samples
    base = whatif(str(finished), beside).corpora["pairs"].new["filter"]
    assert answer.corpora["pairs"].in_force == {unit: base[unit]["kept"] for unit in base}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("filter.images.min_similarity=0.1:0.4:0.02", [f"{0.1 + 0.02 * n:.2f}" for n in range(16)]),
        ("filter.images.min_side_px=16:64:16", ["16", "32", "48", "64"]),
        ("filter.images.min_similarity=-0.1:0.1:0.1", ["-0.1", "0.0", "0.1"]),
        ("filter.documents.reassign=true, false", ["true", "false"]),
        ("filter.images.min_side_px=5", ["5"]),
        ("filter.images.aspect_ratio=[0.5, 2], null, [0.3, 3]", ["[0.5, 2]", "null", "[0.3, 3]"]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[str]) -> None:
    assert parse_sweep(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filter.images.min_similarity", "START:STOP:STEP"),
        ("filter.images.min_similarity=0:1", "three numbers"),
        ("filter.images.min_similarity=0:x:1", "three numbers"),
        ("filter.images.min_similarity=0:nan:1", "START <= STOP"),
        ("filter.images.min_similarity=1:0:0.1", "START <= STOP"),
        ("filter.images.min_similarity=0:1:0", "STEP above 0"),
        ("filter.images.min_similarity=0:1:0.0000001", "the limit is 1,000"),
        ("filter.images.min_similarity=0:1e999999:1e-999999", "three numbers"),
        ("filter.images.min_similarity=0.1,,0.2", "a value is empty"),
        ("filter.images.min_similarity=0.1,", "a value is empty"),
        ("download.max_bytes=1:2:1", "would have to be downloaded"),
    ],
)
def test_a_sweep_that_is_written_wrongly(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("download.resize.shorter_side_px=224", "would have to be downloaded"),
        ("score.clip.model=x", "new scores would have to be computed"),
        ("shards.docs.max_mb=9", "not which are kept"),
        ("pack.tokens_per_image=1", "become sequences"),
        ("filtr.images.min_side_px=9", "no key 'filtr'"),
        ("filter.images.min_similarty=0.2", "did you mean min_similarity"),
        ("filter.images.min_similarity=3", "less than or equal to 1"),
        ("filter.images.min_side_px=big", "found 'big'"),
        ("filter.per_corpus.dogs.images.min_side_px=3", "no corpus 'dogs'"),
        ("filter.per_corpus.chat.documents.reassign=true", "contains conversations"),
        ("filter.images.min_similarity", "dotted.key=value"),
    ],
)
def test_what_cannot_be_asked(setting: str, said: str, finished: Path) -> None:
    with pytest.raises(UsageError, match=said):
        whatif(str(finished), [setting])


def test_every_refusal_says_what_can_be_asked(finished: Path) -> None:
    with pytest.raises(UsageError) as refused:
        whatif(str(finished), ["download.timeout_s=3"])
    for name in ("min_similarity", "exact_duplicates", "on_missing_image", "reassign", "per_corpus"):
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filter=1,2", "should be an object"),
        ("filter.images=1,2", "should be an object"),
        ("filter.per_corpus.dogs.images.min_side_px=3,4", "no corpus 'dogs'"),
        ("filter.per_corpus.=1,2", "should be an object"),
    ],
)
def test_a_sweep_of_what_is_no_rule_is_refused(text: str, said: str, finished: Path) -> None:
    with pytest.raises(UsageError, match=said):
        sweep(str(finished), text)


def test_a_sweep_of_lists_knows_the_one_in_force(finished: Path) -> None:
    answer = sweep(str(finished), "filter.images.aspect_ratio=[0.5,2.0],[0.9,1.1],null")
    assert answer.in_force == answer.values[0]
    assert all(found.kept["images"][0] == found.in_force["images"] for found in answer.corpora.values())


def test_where_a_page_cannot_be_is_said_before_the_work(finished: Path, tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "none" / "x.html"):
        with pytest.raises(UsageError, match="--out"):
            sweep(str(finished), "filter.images.min_side_px=5,6", out=str(out), watch=_Unwatched())


class _Unwatched:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"work began: {name}")


def test_a_sweep_that_changes_nothing_is_refused(finished: Path) -> None:
    for values in ("0.5", "0.5,0.50"):
        with pytest.raises(UsageError, match=r"changes nothing .* already set; try others"):
            sweep(str(finished), f"filter.images.min_similarity={values}")
    with pytest.raises(UsageError, match=r"changes nothing .* value is already set; try others"):
        sweep(str(finished), "filter.per_corpus.docs.images.min_similarity=0.3")
    own = [f"filter.per_corpus.{name}.images.min_similarity=0.4" for name in ("docs", "pairs")]
    with pytest.raises(UsageError) as error:
        sweep(str(finished), "filter.images.min_similarity=0.5,0.6", own)
    assert "docs: per_corpus overrides it; sweep filter.per_corpus.docs.images.min_similarity; pairs: " in str(
        error.value
    )
    assert "chat: contains conversations; the rule applies to them only as" in str(error.value)
    assert str(error.value).endswith("text: has no images")


def test_a_blended_set_that_would_be_empty_is_said(finished: Path, sample_recipe: Path, tmp_path: Path) -> None:
    assert whatif(str(finished), ["filter.documents.min_images=3"]).notes == ()  # no blend
    blended = tmp_path / "run"
    shutil.copytree(finished, blended)
    lock = yaml.safe_load((blended / LOCK).read_text())
    whole = vd.load_recipe(sample_recipe).model_dump(mode="json")
    (blended / LOCK).write_text(
        yaml.safe_dump(lock | {"recipe": lock["recipe"] | {k: whole[k] for k in ("pack", "blend")}})
    )
    answer = whatif(str(blended), ["filter.documents.min_images=3"])
    assert [note.partition(",")[0] for note in answer.notes] == ["set pairs would be empty"]
    assert "set pairs would be empty, so a run would fail while planning the blend" in invoke(
        str(blended), "--set", "filter.documents.min_images=3"
    )[1].replace("\n", " ")
    assert whatif(str(blended), ["filter.documents.min_images=1"]).notes == ()


def test_a_run_that_is_not_there_or_not_finished(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vila-data run RECIPE --out"):
        whatif(str(tmp_path / "nothing"), SETTINGS[0])
    for stage in ("filter", "download"):
        out = tmp_path / stage
        shutil.copytree(finished, out)
        (out / stage / "docs" / "part-00000.json").unlink()
        with pytest.raises(UsageError, match=f"'docs': {stage} lacks 1 of .*vila-data run RECIPE"):
            whatif(str(out), SETTINGS[0])
    shutil.rmtree(tmp_path / "download" / "download")
    with pytest.raises(UsageError, match="not downloaded"):
        whatif(str(tmp_path / "download"), SETTINGS[0])


def test_fates_that_are_not_those_of_the_lock_are_an_error(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    lock = yaml.safe_load((out / LOCK).read_text())
    lock["recipe"]["filter"]["images"]["min_side_px"] = 250
    (out / LOCK).write_text(yaml.safe_dump(lock))
    with pytest.raises(DataError, match="Rerun vila-data run"):
        whatif(str(out), SETTINGS[0])


def test_a_lock_that_does_not_say_which_keys_per_corpus_sets(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    lock = yaml.safe_load((out / LOCK).read_text())
    del lock["form"]
    (out / LOCK).write_text(yaml.safe_dump(lock))
    with pytest.raises(DataError, match=r"form 1, this version of vila-data reads form \d+: make the run again"):
        whatif(str(out), SETTINGS[0])


def test_a_table_that_is_broken_is_an_error(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "score" / "pairs" / "clip" / "part-00000.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"score/pairs/clip/part-00000.parquet: not the table"):
        whatif(str(out), SETTINGS[0])


def invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["whatif", *arguments], catch_exceptions=True)
    if isinstance(found.exception, VilaDataError):
        return found.exception.exit_code, str(found.exception)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout


def test_the_command_shows_old_and_new_side_by_side(finished: Path) -> None:
    code, text = invoke(str(finished), "--set", "filter.per_corpus.pairs.images.min_similarity=0.8")
    answer = whatif(str(finished), ["filter.per_corpus.pairs.images.min_similarity=0.8"])
    images = (answer.corpora["pairs"].old["filter"]["images"], answer.corpora["pairs"].new["filter"]["images"])
    line = next(line for line in text.splitlines() if "images" in line and "kept" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert (cells[3], cells[5]) == tuple(f"{counts['kept']:,}" for counts in images)
    assert cells[7] == f"{images[1]['kept'] - images[0]['kept']:+,}"
    assert code == 0 and "unchanged: docs, chat, text" in text


def test_the_command_gives_json_and_a_page(finished: Path, tmp_path: Path) -> None:
    code, text = invoke(str(finished), "--set", "filter.images.min_side_px=8", "--json")
    value: dict[str, Any] = json.loads(text)
    assert (code, set(value)) == (0, {"run", "asked", "corpora", "sets", "notes"})
    page = tmp_path / "sweep.html"
    arguments = ("--sweep", "filter.images.min_similarity=0.3:0.9:0.3", "--out", str(page), "--json")
    code, text = invoke(str(finished), *arguments)
    assert (code, json.loads(text)["values"]) == (0, [0.3, 0.6, 0.9])
    html = page.read_bytes()
    assert html.count(b"data:image/webp") > 6 and len(html) < 5_000_000
    invoke(str(finished), *arguments)
    assert page.read_bytes() == html
    code, text = invoke(str(finished), "--sweep", "filter.images.min_similarity=0.3:0.9:0.3")
    assert code == 0 and "0.6" in text and "current value: 0.5" in text


def test_a_page_of_many_pictures_stays_small(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whatif_examples, "_MAX_IMAGE_BYTES", 30_000)
    sweep(str(finished), "filter.images.min_side_px=16:400:4", out=str(tmp_path / "sweep.html"))
    html = (tmp_path / "sweep.html").read_text()
    pictures = [entry.partition('"')[0] for entry in html.split('src="data:image')[1:]]
    assert 0 < sum(map(len, pictures)) <= 30_000
    assert html.count('class="example"') > len(pictures)
    assert html.count('class="example"') <= 2 * whatif_examples._EXAMPLES
    assert html.count('<article class="cut"') == 97


def test_exit_codes(finished: Path, tmp_path: Path) -> None:
    assert invoke(str(finished))[0] == 2
    assert invoke(str(finished), "--set", "seed=3")[0] == 2
    assert invoke(str(finished), "--set", "filter.images.min_side_px=3", "--out", str(tmp_path / "x.html"))[0] == 2
    assert invoke(str(tmp_path), "--sweep", "filter.images.min_side_px=3:4:1")[0] == 2
    two = ("--sweep", "filter.images.min_side_px=3,4", "--sweep", "filter.images.min_side_px=5,6")
    assert invoke(str(finished), *two)[0] == 2
