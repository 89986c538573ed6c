"""`preview` over runs, sets and shards: what is chosen, what is said of it, and that the page fits."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import vila_data as vd
from tests.loader.made_stream import opened
from tests.made_preview import RECIPE, MadePreview, fates, lock, make, streamed_run
from tests.made_run import (
    SETS,
    Item,
    filtered_parts,
    item,
)
from vila_data.cli import app
from vila_data.core.errors import DataError, UsageError, VilaDataError
from vila_data.core.store import Store
from vila_data.core.tables import FATES, IGNORED
from vila_data.explore.preview import Choice, preview
from vila_data.explore.preview import build as previewing
from vila_data.explore.preview import write as previewing_write
from vila_data.explore.preview.run import RunSource
from vila_data.explore.preview.source import Asked, Place
from vila_data.explore.preview.values import ROOMS
from vila_data.explore.preview.why import image_value
from vila_data.recipe.recipe import Recipe
from vila_data.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadePreview:
    return make(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with token files and a blend; not scored."""
    return streamed_run(tmp_path_factory.mktemp("stream")).parent


# What is said of it


def test_each_fate_is_there_with_the_value_that_failed(run: MadePreview, tmp_path: Path) -> None:
    source = RunSource(Run(run.store))
    seen: dict[str, set[str]] = {}
    for corpus, name in enumerate(source.corpora):
        items = run.items[name]
        size = {"web": 15, "alt": 35, "talk": 30}[name]
        tables = fates(run, name)
        for number, one in enumerate(items):
            record = source.record(Place(corpus, number // size, number % size), Asked(), None)
            if one is None:
                assert (record.fate, record.reason, record.value, record.kind) == (
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
                seen.setdefault(image.reason, set()).add(image.value)
            seen.setdefault(record.reason, set()).add(record.value)
    assert all(float(value.split(" < ")[0]) < 0.1 for value in seen["min_similarity"]) and seen["min_similarity"]
    assert all(int(value.split(" < ")[0]) < 55 and value.endswith(" < 55") for value in seen["min_side_px"])
    assert all(value.endswith(" outside 0.7 to 1.5") for value in seen["aspect_ratio"]) and seen["aspect_ratio"]
    assert seen["min_images"] == {"0 < 1"} and seen["record_dropped"] == {"with its record"}
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
    assert image_value(reason, row, similarity, rules) == expected


def test_trained_tokens_are_the_answers(streamed: Path) -> None:
    source = RunSource(vd.open_run(streamed / "run"))
    talk = source.corpora.index("talk")
    places = [Place(talk, part, row) for part in (0, 1) for row in range(20)]
    tokens = source.tokens(places)
    assert len(tokens) > 30
    fates: set[str] = set()
    for place, found in tokens.items():
        record = source.record(place, Asked(), found)
        assert record.tokens is found and found.shard_set == "chat"
        assert (found.fate == "ok") == (found.tokens > 0)
        fates.add(found.fate)
        trained = [piece.text for piece in found.pieces if piece.trained]
        asked = "".join(piece.text for piece in found.pieces if not piece.trained)
        images = [piece.image for piece in found.pieces if piece.image is not None]
        if found.tokens and not (found.cut or found.more or found.images_left_out):
            answers = [text for text, role in zip(record.texts, record.roles, strict=True) if role == "gpt"]
            said = "".join(trained)
            for answer in answers:
                words = answer.replace("<image>", "").split()
                assert all(word in said for word in words), (answer, said)
            assert images == list(range(len(record.images)))
            assert "USER:" in asked and "USER:" not in said
        assert (found.trained > 0) == (found.tokens > 0)
    assert len(fates) > 1


def test_packs_are_those_of_the_stream(streamed: Path, tmp_path: Path) -> None:
    packs, legend, missing = RunSource(vd.open_run(streamed / "run")).packs(9)
    assert len(packs) == 9 and legend.sets == ("docs", "pairs", "chat") and not missing
    with opened(streamed) as loader:
        for number, (pack, batch) in enumerate(zip(packs, loader, strict=False)):
            assert pack.number == number + 1 and pack.length == batch.labels.shape[1] == 512
            labels = np.asarray(batch.labels[0])
            mask = np.zeros(512, np.bool_)
            segments = np.zeros(512, np.int64)
            at = 0
            for sample_number, sample in enumerate(pack.samples, 1):
                for first, stop in sample.trained:
                    mask[at + first : at + stop] = True
                segments[at : at + sample.tokens] = sample_number
                at += sample.tokens
            shifted = np.flatnonzero(labels != IGNORED)
            assert np.array_equal(np.flatnonzero(mask), shifted)
            assert np.array_equal(np.asarray(batch.segments[0]) > 0, segments > 0)
    report = preview(streamed / "run", tmp_path / "page.html", Choice(packs=9))
    assert report.packs == 9 and (tmp_path / "page.html").read_text().count('class="card pack"') == 9


def test_tokens_without_their_tokenizer_are_left_out_with_a_note(streamed: Path, tmp_path: Path) -> None:
    shutil.copytree(streamed / "run", tmp_path / "run")
    path = tmp_path / "run" / "recipe.lock.yaml"
    text = path.read_text()
    line = next(line for line in text.splitlines() if "tokenizer:" in line)
    path.write_text(text.replace(line, f"    tokenizer: {tmp_path / 'gone'}"))
    report = preview(tmp_path / "run", tmp_path / "page.html", Choice(packs=2))
    assert report.packs == 0 and report.records == 151
    assert any("Tokens are not shown" in note for note in report.notes)
    assert any("No packs are shown" in note for note in report.notes)


# Sets and shards


def test_a_set_in_its_run_copied_alone_and_its_shards(streamed: Path, tmp_path: Path) -> None:
    inside = preview(streamed / "run" / "shards" / "chat", tmp_path / "inside.html", Choice(count=500))
    shutil.copytree(streamed / "run" / "shards" / "chat", tmp_path / "alone")
    alone = preview(tmp_path / "alone", tmp_path / "alone.html", Choice(count=500))
    assert set(inside.ids) == set(alone.ids) and inside.records == alone.records > 30
    assert "As it is trained" in (tmp_path / "inside.html").read_text()
    assert "As it is trained" not in (tmp_path / "alone.html").read_text()
    found: set[Any] = set()
    shards = sorted((tmp_path / "alone").glob("*.tar"))
    assert len(shards) > 1
    for shard in shards:
        shutil.copy(shard, tmp_path / "one.tar")
        report = preview(tmp_path / "one.tar", tmp_path / "one.html", Choice(count=500))
        assert not found & set(report.ids)
        found |= set(report.ids)
    assert found == set(alone.ids)


@pytest.mark.parametrize("name", list(SETS))
def test_samples_of_a_set_show_what_the_run_shows(run: MadePreview, tmp_path: Path, name: str) -> None:
    path = tmp_path / "page.html"
    report = preview(run.store.location(f"shards/{name}"), path, Choice(count=1000))
    manifest = json.loads(run.store.read(f"shards/{name}/manifest.json"))
    assert report.records == manifest["samples"] and report.pictures == manifest["images"]
    assert report.fates == {"kept": report.records}
    if name in ("docs", "pairs"):
        worst = preview(run.store.location(f"shards/{name}"), path, Choice(count=5, order="worst"))
        assert worst.records == 5
    for choice in (Choice(fate="dropped"), Choice(reason="min_similarity")):
        with pytest.raises(UsageError, match="give the run's folder"):
            preview(run.store.location(f"shards/{name}"), path, choice)


def test_tars_that_others_wrote(tmp_path: Path) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 10, 10)).save(photo, "JPEG")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in (
            ("a.jpg", photo.getvalue()),
            ("a.txt", b"A red card \xff"),
            ("a.json", b'{"caption": null, "url": "https://a.test/a.jpg"}'),
            ("b.jpg", photo.getvalue()),
            ("b.txt", b"Another"),
            ("folder/c.d.txt", b"words alone"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = preview(tmp_path / "00000.tar", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (
        report.records == 3 and report.pictures == 2 and "A red card" in text and 'href="https://a.test/a.jpg"' in text
    )
    (tmp_path / "bad.tar").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no sample in it"):
        preview(tmp_path / "bad.tar", tmp_path / "page.html")


# Where it lies, and what goes wrong


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
        (tmp_path / "empty", page, Choice(), "no recipe"),
        (tmp_path / "none", page, Choice(), "no recipe"),
        (tmp_path / "none.tar", page, Choice(), "no such file"),
        (tmp_path / "some.yaml", page, Choice(), "is a recipe"),
        (run.store.url, str(tmp_path / "no" / "page.html"), Choice(), "there is no folder"),
        (run.store.url, str(tmp_path / "empty"), Choice(), "is a folder"),
        (run.store.url, page, Choice(corpus="docs"), "--corpus docs: there is no such corpus; one of: web, alt, talk"),
        (run.store.url, page, Choice(corpus="tlk"), "--corpus tlk: there is no such corpus; nearest: talk"),
        (run.store.url, page, Choice(reason="min_imges"), "--reason min_imges: there is no such reason; this run has "),
        (streamed / "run", page, Choice(order="worst"), "nothing here has a similarity"),
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


def test_a_damaged_picture_is_said_and_the_rest_is_shown(run: MadePreview, tmp_path: Path) -> None:
    shutil.copytree(run.store.url, tmp_path / "run")
    tar = tmp_path / "run" / "download" / "web" / "part-00000.tar"
    data = tar.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00", 1)
    tar.write_bytes(data)
    report = preview(tmp_path / "run", tmp_path / "page.html", Choice(count=500))
    assert report.pictures_broken == 1 and report.records == 151


def test_the_page_appears_whole_or_not_at_all(
    run: MadePreview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    real = previewing_write.draw

    def fails(*values: Any) -> Any:
        pieces = real(*values)
        for _ in range(20):
            yield next(pieces)
        raise DataError("in the middle")

    monkeypatch.setattr(previewing_write, "_guess", lambda page, max_bytes: 0)
    monkeypatch.setattr(previewing_write, "draw", fails)
    with pytest.raises(DataError, match="in the middle"):
        preview(run.store.url, page)
    assert page.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["page.html"]
    monkeypatch.undo()
    preview(run.store.url, page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.read_text().startswith("<!doctype html>") and page.read_text().endswith("</html>")


class Counting:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}

    def stage(self, name: str, total: int, done: int) -> None:
        self.totals[name], self.done[name] = total, 0

    def advance(self, name: str, items: int) -> None:
        self.done[name] += 1


def test_progress_comes_to_its_end(run: MadePreview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Counting()
    preview(run.store.url, tmp_path / "page.html", Choice(count=50), watch=watch)
    assert watch.totals == watch.done == {"choose": 7, "draw": 50}
    monkeypatch.setattr(previewing_write, "_guess", lambda page, max_bytes: 0)
    monkeypatch.setattr(previewing, "_PAGE_BYTES", 150_000)
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
    for limit in (15_000_000, 300_000, 90_000):
        monkeypatch.setattr(previewing, "_PAGE_BYTES", limit)
        report = preview(store.url, tmp_path / "page.html")
        assert report.bytes == (tmp_path / "page.html").stat().st_size <= limit
        assert report.shrunk == (report.side_px < ROOMS[0].side_px)
        assert report.pictures + report.pictures_left_out == 24
        assert any("so that the page stays below" in note for note in report.notes) == (report.side_px < 200)
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
