"""`preview` of runs: what it says of each record, the page's file and size, and what goes wrong."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.made_preview import RECIPE, MadePreview, fates, lock, make, streamed_run
from tests.made_run import (
    Item,
    filtered_parts,
    item,
)
from vila_data.build import run as launch
from vila_data.cli import app
from vila_data.core.errors import DataError, UsageError, VilaDataError
from vila_data.core.store import Store
from vila_data.core.tables import FATES
from vila_data.explore.preview import Choice, build, preview
from vila_data.explore.preview.records import Highlight, RecordLocation
from vila_data.explore.preview.run_source import RunSource, image_detail, matched_text
from vila_data.filter.config import Rules
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadePreview:
    return make(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with token files and a blend; not scored."""
    return streamed_run(tmp_path_factory.mktemp("stream")).parent


# What it says of a record


def test_each_fate_is_there_with_the_value_that_failed(run: MadePreview, tmp_path: Path) -> None:
    source = RunSource(Run(run.store))
    seen: dict[str, set[str]] = {}
    for corpus, name in enumerate(source.corpora):
        items = run.items[name]
        size = {"web": 15, "alt": 35, "talk": 30}[name]
        tables = fates(run, name)
        for number, one in enumerate(items):
            record = source.record(RecordLocation(corpus, number // size, number % size), Highlight(), None)
            if one is None:
                assert (record.fate, record.reason, record.detail, record.kind) == (
                    "failed",
                    "malformed_json",
                    "line 3",
                    "",
                )
                continue
            assert record.texts == one.record.texts and record.record_id == one.record.record_id
            rows = tables[record.record_id]
            assert (record.fate, record.reason or None) == rows[0][1:]
            assert [(image.index, image.fate, image.reason or None) for image in record.images] == rows[1:]
            for image, jpeg, similarity in zip(record.images, one.jpegs, one.similarities, strict=True):
                assert image.jpeg() == jpeg
                if similarity is not None:
                    assert image.similarity == pytest.approx(similarity)
                seen.setdefault(image.reason, set()).add(image.detail)
            seen.setdefault(record.reason, set()).add(record.detail)
    assert all(float(value.split(" < ")[0]) < 0.1 for value in seen["min_similarity"]) and seen["min_similarity"]
    assert all(int(value.split(" < ")[0]) < 55 and value.endswith(" < 55") for value in seen["min_side_px"])
    assert all(value.endswith(" outside 0.7 to 1.5") for value in seen["aspect_ratio"]) and seen["aspect_ratio"]
    assert seen["min_images"] == {"0 < 1"} and seen["record_dropped"] == {"its record was dropped"}
    assert seen["timeout"] == {""} and seen[""] == {""}
    text = (tmp_path / "page.html", preview(run.store.url, tmp_path / "page.html", Choice(count=500)))[0].read_text()
    for value in seen["aspect_ratio"] | seen["min_images"]:
        assert value.replace("<", "&lt;") in text


@pytest.mark.parametrize(
    ("reason", "facts", "similarity", "expected"),
    [
        ("min_similarity", {}, 0.17, "0.17 < 0.20"),
        ("min_similarity", {}, 0.19999, "0.19999 < 0.20"),
        ("min_similarity", {}, None, "not scored"),
        ("min_side_px", {"original_width": 40, "original_height": 90}, None, "40 < 64"),
        ("aspect_ratio", {"original_width": 340, "original_height": 100}, None, "3.40 outside 0.5 to 2"),
        ("aspect_ratio", {"original_width": 2001, "original_height": 1000}, None, "2.001 outside 0.5 to 2"),
        ("http_status", {"http_code": 404}, None, "404"),
        ("dns", {}, None, ""),
    ],
)
def test_values_that_failed(reason: str, facts: dict[str, int], similarity: float | None, expected: str) -> None:
    rules = Recipe.model_validate(
        RECIPE | {"filter": {"images": {"min_side_px": 64, "aspect_ratio": [0.5, 2.0], "min_similarity": 0.2}}},
        strict=False,
    ).rules_for("web")
    row = {"original_width": None, "original_height": None, "http_code": None} | facts
    assert image_detail(reason, row, similarity, rules) == expected


def test_an_image_that_was_assigned_no_text_has_none() -> None:
    fact, fate = {"matched_text_index": 2}, {"fate": "dropped", "reason": "no_matched_text"}
    score = {"similarity": 0.3, "assigned_text_index": None, "assigned_similarity": None}
    assert matched_text(fact, fate, {"scored": True, **score}, True) == (None, None)
    assert matched_text(fact, fate, {"scored": False, **score}, True) == (2, 0.3)
    assert matched_text(fact, fate, {"scored": True, **score}, False) == (2, 0.3)
    facts = {"original_width": 9, "original_height": 9, "http_code": None}
    reassigned = Rules.model_validate({"documents": {"reassign": True}})
    assert image_detail("no_matched_text", facts, None, reassigned) == "no text was assigned to it"
    assert image_detail("no_matched_text", facts, None, Rules()) == "no text was published for it"


def test_a_page_names_no_directory_of_the_machine(tmp_path: Path) -> None:
    folder = tmp_path / "it's: mine"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt":"","completion":""}\n{"prompt":"Yes?","completion":"No."}\n')
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: words\ncorpora: {words: {kind: text, files: [rows.jsonl]}}\n"
        "shards: {words: {corpus: words, view: conversations}}\n"
        "pack: {tokenizer: ../tokenizer, sequence_length: 512, tokens_per_image: 4}\n"
        "blend: {weight_counts: samples, sources: [{shards: words, weight: 1}]}\n"
    )
    shutil.copytree(Path(__file__).parents[2] / "shards" / "sample" / "tokenizer", tmp_path / "tokenizer")
    launch(load_recipe(folder / "recipe.yaml"), folder / "run", runner="local")
    lock = folder / "run" / "recipe.lock.yaml"
    lock.write_text(lock.read_text().replace(str(tmp_path / "tokenizer"), str(tmp_path / "gone")))
    report = preview(folder / "run", tmp_path / "page.html", Choice(packs=1))
    page = (tmp_path / "page.html").read_text()
    assert "…/rows.jsonl: row 0: every answer is empty" in page and "Tokens are not shown" in page
    assert str(tmp_path) not in page and "mine" not in page
    assert not any(str(tmp_path) in note for note in report.notes) and len(report.notes) == 2


# The page's file, and what goes wrong


def test_a_run_and_a_page_on_an_object_store(run: MadePreview, tmp_path: Path) -> None:
    remote = Store("memory://previewed")
    for path in run.store.files(""):
        remote.commit_bytes(run.store.read(path), path)
    here = preview(run.store.url, tmp_path / "page.html", Choice(count=30))
    there = preview(remote.url, "memory://pages/page.html", Choice(count=30))
    assert there.ids == here.ids
    assert Store("memory://pages").read("page.html") == (tmp_path / "page.html").read_bytes()


def test_the_same_call_gives_the_same_bytes(streamed: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        preview(streamed / "run", tmp_path / name, Choice(packs=4, count=80))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(streamed).encode() not in (tmp_path / "one").read_bytes()


def test_calls_that_cannot_be(run: MadePreview, streamed: Path, tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.yaml").write_text("version: 1")
    calls: list[tuple[Any, str, Choice, str]] = [
        (tmp_path / "empty", page, Choice(), "not a recipe"),
        (tmp_path / "none", page, Choice(), "not a recipe"),
        (tmp_path / "none.tar", page, Choice(), "no such file"),
        (tmp_path / "some.yaml", page, Choice(), "is a recipe"),
        (run.store.url, str(tmp_path / "no" / "page.html"), Choice(), "directory .* does not exist; create it first"),
        (run.store.url, str(tmp_path / "empty"), Choice(), "is a directory; pass a file"),
        (run.store.url, page, Choice(corpus="docs"), "--corpus docs: no such corpus; one of: web, alt, talk"),
        (run.store.url, page, Choice(corpus="tlk"), "--corpus tlk: no such corpus; did you mean talk"),
        (run.store.url, page, Choice(reason="min_imges"), "--reason min_imges: no such reason; this run has "),
        (streamed / "run", page, Choice(order="worst"), "--order worst needs similarity scores"),
    ]
    for path, out, choice, message in calls:
        with pytest.raises(VilaDataError, match=message) as error:
            preview(path, out, choice)
        assert isinstance(error.value, UsageError) and "\n" not in str(error.value)
    assert not Path(page).exists()
    wrong: list[dict[str, Any]] = [{"count": 0}, {"fate": "lost"}, {"packs": -1}, {"order": "first"}]
    for values in wrong:
        with pytest.raises(UsageError):
            Choice(**values)


def test_a_run_that_is_not_filtered_yet(run: MadePreview, tmp_path: Path) -> None:
    shutil.copytree(run.store.url, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "filter" / "alt")
    report = preview(tmp_path / "run", tmp_path / "page.html")
    assert set(report.corpora) == {"web", "talk"} and any("alt" in note for note in report.notes)
    shutil.rmtree(tmp_path / "run" / "filter")
    with pytest.raises(UsageError, match="no part is filtered yet"):
        preview(tmp_path / "run", tmp_path / "page.html")


def test_tables_that_do_not_fit_together(run: MadePreview, tmp_path: Path) -> None:
    shutil.copytree(run.store.url, tmp_path / "run")
    path = tmp_path / "run" / "filter" / "web" / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1).cast(FATES), path)
    with pytest.raises(DataError, match="run the recipe again"):
        preview(tmp_path / "run", tmp_path / "page.html", Choice(count=500))
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"not a whole Parquet table: .*; run check on the run"):
        preview(tmp_path / "run", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_image_is_counted_and_the_rest_is_shown(run: MadePreview, tmp_path: Path) -> None:
    shutil.copytree(run.store.url, tmp_path / "run")
    tar = tmp_path / "run" / "download" / "web" / "part-00000.tar"
    data = tar.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00", 1)
    tar.write_bytes(data)
    report = preview(tmp_path / "run", tmp_path / "page.html", Choice(count=500))
    assert report.pictures_broken == 1 and report.records == 151


class Counting:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def stage(self, name: str, total: int, done: int) -> None:
        self.totals[name], self.done[name] = total, 0

    def advance(self, name: str, items: int) -> None:
        self.done[name] += 1


def test_the_page_appears_whole_or_not_at_all(run: MadePreview, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")

    class Failing(Counting):
        def advance(self, name: str, items: int) -> None:
            super().advance(name, items)
            if self.done.get("draw", 0) == 20:
                raise DataError("in the middle")

    with pytest.raises(DataError, match="in the middle"):
        preview(run.store.url, page, watch=Failing())
    assert page.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["page.html"]
    preview(run.store.url, page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text().startswith("<!doctype html>") and page.read_text().endswith("</html>")


def test_progress_comes_to_its_end(run: MadePreview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Counting()
    preview(run.store.url, tmp_path / "page.html", Choice(count=50), watch=watch)
    assert watch.totals == watch.done == {"choose": 7, "draw": 50}
    monkeypatch.setattr(build, "_budgets_to_try", lambda page, max_bytes: build.PAGE_BUDGETS)
    monkeypatch.setattr(build, "PAGE_BYTES", 150_000)
    report = preview(run.store.url, tmp_path / "page.html", Choice(count=50), watch=watch)
    assert report.shrunk and watch.done["draw"] == 50


# Size


def noise(number: int, side: int = 336) -> bytes:
    """A photograph's worth of detail and more."""
    generator = np.random.default_rng(number)
    small = generator.integers(0, 256, (side // 4, side // 3, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def photographed(folder: Path, count: int, images: int) -> Store:
    """A run of documents with large pictures."""
    store = Store(str(folder))
    lock(store, RECIPE | {"filter": {}, "score": {}})
    photos = [noise(number) for number in range(12)]
    items: list[Item | None] = []
    for number in range(count):
        made = item(f"doc-{number}", ["A sentence of some words. " * 4] * 24, list(range(images)), number + 1)
        items.append(replace(made, jpegs=tuple(photos[(number + n) % len(photos)] for n in range(images))))
    filtered_parts(store, "web", items, 100, scored=False)
    return store


def test_large_photographs_are_made_smaller_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = photographed(tmp_path / "run", 6, 4)
    sizes = []
    for limit in (15_000_000, 800_000, 250_000):
        monkeypatch.setattr(build, "PAGE_BYTES", limit)
        report = preview(store.url, tmp_path / "page.html")
        assert report.bytes == (tmp_path / "page.html").stat().st_size <= limit
        assert report.shrunk == (report.side_px < build.PAGE_BUDGETS[0].side_px)
        assert report.pictures + report.pictures_left_out == 24
        assert any("so that the page stays below" in note for note in report.notes) == report.shrunk
        sizes.append(report.side_px)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3 and sizes[0] == 360


@pytest.mark.slow
def test_two_hundred_documents_with_large_photographs(tmp_path: Path) -> None:
    store = photographed(tmp_path / "run", 200, 8)
    report = preview(store.url, tmp_path / "page.html")
    assert report.records == 200 and report.pictures == 1_600
    assert 5_000_000 < report.bytes <= 15_000_000


# On the command line


def test_the_command(run: MadePreview, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    call = ["preview", run.store.url, "--out", str(page), "--order", "worst", "--count", "12", "--corpus", "web"]
    found = CliRunner().invoke(app, [*call, "--json"])
    assert found.exit_code == 0, found.output
    value = json.loads(found.stdout)
    assert value["records"] == len(value["ids"]) == 12 and value["bytes"] == page.stat().st_size
    assert value["corpora"] == {"web": {"records": 41, "matching": 41, "shown": 12}}
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 0 and "41" in found.stdout and "MB" in found.stdout
    assert CliRunner().invoke(app, [*call, "--fate", "lost"]).exit_code == 2
    assert isinstance(CliRunner().invoke(app, [*call, "--count", "0"]).exception, UsageError)
