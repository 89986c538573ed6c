"""`export` of whole runs and on the command line."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.export.reading import tree
from tests.made_run import SETS, MadeRun, make_run, write_lock_of
from vila_data.cli.result_tables import print_export
from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.explore.inspection import check
from vila_data.export.energon import NotExpressible, SetTotals, metadataset_yaml, sample_blend
from vila_data.export.exporting import export
from vila_data.export.formats import FORMATS
from vila_data.mix.config import BlendConfig
from vila_data.recipe.lock import LOCK
from vila_data.recipe.recipe import Recipe
from vila_data.runs.progress import NoProgress


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """The made run with the lock and the totals that a run has."""
    made = make_run(str(tmp_path_factory.mktemp("exporting")))
    recipe = {
        "version": 1,
        "name": "made",
        "corpora": {
            "web": {"kind": "mmc4", "files": ["web.jsonl"]},
            "alt": {"kind": "coyo", "files": ["alt.parquet"]},
            "talk": {"kind": "llava", "files": ["talk.json"]},
        },
        "shards": {name: {"corpus": one.corpus, "view": one.view} for name, one in SETS.items()},
        "pack": {"tokenizer": "none", "sequence_length": 512, "tokens_per_image": 144},
        "blend": {
            "weight_unit": "images",
            "sources": [{"shards": "docs", "weight": 3}, {"shards": "pairs", "weight": 1}],
        },
    }
    write_lock_of(made.store, Recipe.model_validate(recipe, strict=False))
    return made


@pytest.mark.parametrize("to", list(FORMATS))
def test_all_sets_of_a_run_that_fit(run: MadeRun, tmp_path: Path, to: str) -> None:
    report = export(run.store.url, to, tmp_path)
    fitting = {name for name, one in SETS.items() if one.view in FORMATS[to][1]}
    assert {one.name for one in report.sets} == fitting
    assert set(report.not_exported) == set(SETS) - fitting
    for name, reason in report.not_exported.items():
        assert f"its view is {SETS[name].view}, but {to} supports" in reason
        assert all(SETS[name].view in FORMATS[other][1] for other in reason.rsplit(": ", 1)[1].split(", "))
    for one in report.sets:
        assert one.samples == run.sets[one.name].samples == one.exported + sum(one.left_out.values())
    assert not (tmp_path / ".scratch").exists()
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == fitting | {".receipts"}


def test_only(run: MadeRun, tmp_path: Path) -> None:
    report = export(run.store.url, "obelics", tmp_path, only=["pairs"])
    assert [one.name for one in report.sets] == ["pairs"]
    assert report.not_exported["docs"] == "not chosen by --only"
    with pytest.raises(UsageError, match="contains a different export"):
        export(run.store.url, "obelics", tmp_path, only=["docs"])


def test_wrong_calls(run: MadeRun, tmp_path: Path) -> None:
    """Each says what was found and what to do, and leaves no folder."""
    out, whole, one = tmp_path / "out", run.store.url, run.store.location("shards/docs")
    calls: list[tuple[str, str, dict[str, Any], str]] = [
        (whole, "tfrecord", {}, r"--to tfrecord: unknown format; choose one of vila-pickle, wids, energon, llava,"),
        (whole, "wids", {"only": ["nothing"]}, r"--only nothing: .* has no such shard set; it has docs, docs_pairs,"),
        (
            whole,
            "wids",
            {"only": ["docs"]},
            r"--only docs: its view is interleaved, but wids supports pairs; formats for inter",
        ),
        (
            one,
            "wids",
            {},
            r"docs: its view is interleaved, but wids supports pairs; formats for interleaved: vila-pickle, ener",
        ),
        (one, "energon", {"only": ["docs"]}, r"docs: is a single shard set; --only selects sets of a run"),
        (one, "energon", {"shards": 0}, r"--shards must be at least 1, found 0"),
        (one, "energon", {"shards": 1000}, r"--shards 1000: set docs has \d+ samples, enough for at most \d+ files"),
        (f"{one}/docs-000000.tar", "wids", {}, r"is a shard; export takes a run or a shard set"),
        (str(tmp_path), "wids", {}, r"not a recipe \(.yaml\), run"),
    ]
    for path, to, options, message in calls:
        with pytest.raises(UsageError, match=message):
            export(path, to, out, **options)
    assert not out.exists()


def test_command(run: MadeRun, tmp_path: Path) -> None:
    """The table counts what --json gives; a second call finds all there."""
    command = [sys.executable, "-m", "vila_data.cli", "export", run.store.url, "--to", "vila-pickle"]
    command += ["--out", str(tmp_path / "out"), "--only", "docs", "--only", "docs_pairs", "--shards", "4"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "docs_pairs: left out: incomplete_group_of_four: 2" in first.stdout
    assert "not exported: pairs, chat: not chosen by --only" in first.stdout
    assert "docs: 4 tasks" in first.stderr
    before = tree(tmp_path / "out")
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    value = json.loads(second.stdout)
    assert [one["name"] for one in value["sets"]] == ["docs", "docs_pairs"]
    assert all(one["parts"] == 4 and one["files"] == 8 and one["launch_samples"] == 0 for one in value["sets"])
    assert tree(tmp_path / "out") == before


def test_names_that_look_like_markup(run: MadeRun, tmp_path: Path) -> None:
    out = str(tmp_path / "a[/bold]b")
    screen = Console(width=200, file=io.StringIO())
    print_export(screen, export(run.store.location("shards/chat"), "llava", out).to_json())
    assert f"llava: {out}" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_blend_for_energon(run: MadeRun, tmp_path: Path) -> None:
    """Three images of documents to one of pairs, whatever the images a document."""
    report = export(run.store.url, "energon", tmp_path)
    assert report.blend is not None
    value = yaml.safe_load((tmp_path / "blend.yaml").read_text())
    assert (value["__module__"], value["__class__"]) == ("megatron.energon", "MetadatasetV2")
    entries = {one["path"]: one["weight"] for one in value["splits"]["train"]["blend"]}
    assert entries == dict(report.blend.shares)
    assert all((tmp_path / path / ".nv-meta" / "dataset.yaml").exists() for path in entries)
    assert sum(entries.values()) == pytest.approx(1)
    images = {name: weight * run.sets[name].images / run.sets[name].samples for name, weight in entries.items()}
    assert images["docs"] / images["pairs"] == pytest.approx(3)
    assert (
        f"docs: {run.sets['docs'].images / run.sets['docs'].samples:.6g} images"
        in (tmp_path / "blend.yaml").read_text()
    )


def test_the_blend_is_checked(run: MadeRun, tmp_path: Path) -> None:
    export(run.store.url, "energon", tmp_path)
    before = tree(tmp_path)
    (tmp_path / "blend.yaml").write_text("other")
    assert list(check(tmp_path)) == [
        f"{tmp_path}/blend.yaml: does not match its receipt; delete it and rerun the export"
    ]
    (tmp_path / "blend.yaml").unlink()
    assert list(check(tmp_path)) == [f"{tmp_path}/blend.yaml: missing; delete it and rerun the export"]
    export(run.store.url, "energon", tmp_path)
    assert tree(tmp_path) == before
    assert list(check(tmp_path)) == []


@pytest.mark.parametrize("weight", [None, {0.0: 1, 0.5: 2}], ids=["no blend", "none that Energon has"])
def test_the_blend_of_an_earlier_recipe_goes(tmp_path: Path, run: MadeRun, weight: Any) -> None:
    """A run's blend may change in place, and the sets stay what they are."""
    folder = Path(shutil.copytree(run.store.url, tmp_path / "run"))
    lock = yaml.safe_load((folder / LOCK).read_text())
    export(folder, "energon", tmp_path / "out")
    assert (tmp_path / "out" / "blend.yaml").exists()
    if weight is None:
        del lock["recipe"]["blend"]
    else:
        lock["recipe"]["blend"]["sources"][0]["weight"] = weight
        lock["recipe"]["blend"]["total_packs"] = 10
    (folder / LOCK).write_text(yaml.safe_dump(lock))
    report = export(folder, "energon", tmp_path / "out")
    assert report.blend is None if weight is None else report.blend is not None and report.blend.file is None
    assert not (tmp_path / "out" / "blend.yaml").exists()
    assert list(check(tmp_path / "out")) == []


def test_an_export_inside_its_run(run: MadeRun, tmp_path: Path) -> None:
    """Beside the run's own folders it is nothing of the run's; in one of them it is refused."""
    folder = Path(shutil.copytree(run.store.url, tmp_path / "run"))
    problems = list(check(folder))
    export(folder, "obelics", folder / "exports" / "obelics")
    assert list(check(folder)) == problems
    for path, out in [
        (folder, folder / "shards" / "obelics"),
        (folder, folder / "download"),
        (folder / "shards" / "docs", folder / "shards" / "docs" / "obelics"),
    ]:
        with pytest.raises(UsageError, match=r": is inside .*, which belongs to the run; choose another --out"):
            export(path, "obelics", out)
    assert not (folder / "shards" / "obelics").exists()
    export(folder, "obelics", folder / "shards_for_others")


def test_blend_of_sets_that_are_not_exported(run: MadeRun, tmp_path: Path) -> None:
    report = export(run.store.url, "energon", tmp_path, only=["docs"])
    assert report.blend is not None
    assert (report.blend.file, report.blend.reason) == (None, "pairs is not exported")
    assert not (tmp_path / "blend.yaml").exists()


TOTALS = {
    "docs": SetTotals(samples=100, images=400, tokens=60_000),
    "pairs": SetTotals(samples=1000, images=1000, tokens=200_000),
    "text": SetTotals(samples=50, images=0, tokens=20_000),
    "new": SetTotals(samples=50, images=50, tokens=None),
    "none": SetTotals(samples=0, images=0, tokens=0),
}


def blend(value: dict[str, Any]) -> BlendConfig:
    return BlendConfig.model_validate(value, strict=False)


def test_blend_inside_a_blend() -> None:
    """The shares by samples give back each blend's weights in its own unit."""
    inner = {"weight_unit": "images", "sources": [{"shards": "docs", "weight": 1}, {"shards": "pairs", "weight": 1}]}
    outer = {"weight_unit": "tokens", "sources": [{"blend": inner, "weight": 4}, {"shards": "text", "weight": 1}]}
    found = sample_blend(blend(outer), TOTALS)
    shares = dict(found.shares)
    assert list(shares) == ["docs", "pairs", "text"]
    assert shares["docs"] * 4 == pytest.approx(shares["pairs"])
    tokens = {name: share * TOTALS[name].tokens / TOTALS[name].samples for name, share in shares.items()}  # type: ignore[operator]
    assert (tokens["docs"] + tokens["pairs"]) / tokens["text"] == pytest.approx(4)
    head = metadataset_yaml(found, TOTALS).decode()
    assert "images and tokens" in head
    assert "docs: 4 images, 600 tokens per sample" in head


@pytest.mark.parametrize(
    ("sources", "unit", "reason"),
    [
        ([{"shards": "docs", "weight": 1, "subset": {"where": "n_images > 2"}}], "samples", r"docs is used in part"),
        ([{"shards": "docs", "weight": {0.0: 1, 0.5: 2}}], "samples", r"the weight of docs changes over the steps"),
        ([{"shards": "text", "weight": 1}], "images", r"weights count images, and text has none"),
        ([{"shards": "new", "weight": 1}], "tokens", r"new has no count of tokens: run its recipe to the end"),
        ([{"shards": "none", "weight": 1}], "samples", r"none is empty"),
        ([{"shards": "other", "weight": 1}], "samples", r"other is not exported"),
    ],
)
def test_blends_that_energon_cannot_say(sources: list[dict[str, Any]], unit: str, reason: str) -> None:
    value = {"weight_unit": unit, "sources": sources, "total_packs": 10}
    with pytest.raises(NotExpressible, match=reason):
        sample_blend(blend(value), TOTALS)


def test_a_second_export_into_one_folder_is_one_error(run: MadeRun, tmp_path: Path) -> None:
    """The same export or another; when the first has ended, or was killed, the same call goes on."""
    held = Store(str(tmp_path))
    with held.alone("export"):
        for to in ("wids", "energon"):
            with pytest.raises(
                UsageError, match="another export is writing here; wait for it to finish, or choose another"
            ):
                export(run.store.url, to, tmp_path)
        assert not (tmp_path / "export.json").exists()
    (tmp_path / ".scratch" / "export").mkdir(parents=True)  # as a killed one leaves it
    (tmp_path / ".scratch" / "export" / ".owner").write_bytes(b"")
    export(run.store.url, "wids", tmp_path)
    assert list(check(tmp_path)) == [] and not (tmp_path / ".scratch").exists()


def test_an_export_that_runs_keeps_others_out(run: MadeRun, tmp_path: Path) -> None:
    class Second(NoProgress):
        errors = 0

        def advance(self, name: str, items: int) -> None:
            with pytest.raises(UsageError, match="another export"):
                export(run.store.url, "energon", tmp_path)
            self.errors += 1

    watch = Second()
    export(run.store.url, "wids", tmp_path, watch=watch)
    assert watch.errors and list(check(tmp_path)) == []
