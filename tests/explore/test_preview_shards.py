"""`preview` of shard sets and tars: in a run, copied alone, by other writers, odd and damaged."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.made_preview import MadePreview, make, streamed_run
from tests.made_run import SETS, drawn
from vila_data.core.errors import DataError, UsageError
from vila_data.explore.preview import Choice, PreviewReport, preview


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadePreview:
    return make(str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that has token files and a blend; not scored."""
    return streamed_run(tmp_path_factory.mktemp("stream")).parent


def test_a_set_in_its_run_copied_alone_and_its_shards(streamed: Path, tmp_path: Path) -> None:
    inside = preview(streamed / "run" / "shards" / "chat", tmp_path / "inside.html", Choice(count=500))
    shutil.copytree(streamed / "run" / "shards" / "chat", tmp_path / "alone")
    alone = preview(tmp_path / "alone", tmp_path / "alone.html", Choice(count=500))
    assert set(inside.ids) == set(alone.ids) and inside.records == alone.records > 30
    assert "Training sequence:" in (tmp_path / "inside.html").read_text()
    assert "Training sequence:" not in (tmp_path / "alone.html").read_text()
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
        with pytest.raises(UsageError, match="pass the run's directory"):
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
    with pytest.raises(DataError, match="contains no samples"):
        preview(tmp_path / "bad.tar", tmp_path / "page.html")


def tar(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "others.tar"
    with tarfile.open(path, "w") as stream:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            stream.addfile(info, io.BytesIO(data))
    return path


def shown(folder: Path, members: dict[str, bytes], choice: Choice | None = None) -> tuple[PreviewReport, str]:
    page = folder / "page.html"
    report = preview(str(tar(folder, members)), str(page), choice)
    return report, page.read_text()


def options(html: str, field: str) -> list[str]:
    select = html.split(f'<select id="{field}">')[1].split("</select>")[0]
    return re.findall(r'<option value="([^"]*)">', select)[1:]


def test_the_filter_by_corpus_has_each_corpus_of_a_tar(tmp_path: Path) -> None:
    _, html = shown(tmp_path, {"a.jpg": drawn(1), "b.jpg": drawn(2)})
    assert options(html, "corpus") == ["others"]
    assert html.count('data-corpus="others"') == 2
    of = {name: json.dumps({"caption": "x", "source": {"corpus": name}}).encode() for name in ("one", "other  one")}
    _, html = shown(tmp_path, {"a.jpg": drawn(1), "a.json": of["one"], "b.jpg": drawn(2), "b.json": of["other  one"]})
    assert options(html, "corpus") == ["one", "other  one"] == re.findall('data-corpus="([^"]*)"', html)


def test_a_turn_without_a_role_and_a_source_that_is_a_word(tmp_path: Path) -> None:
    turns = {"conversations": [{"from": "", "value": ""}, {"from": "gpt", "value": "an answer"}], "source": "web"}
    report, html = shown(tmp_path, {"a.json": json.dumps(turns).encode()})
    assert report.records == 1 and "an answer" in html


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"conversations": [], "images": ["a.0.jpg"], "image_info": [INFO]}']
)
def test_json_that_cannot_be_taken_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    data = text.replace(b"INFO", b'{"matched_text_index": Infinity}')
    with pytest.raises(DataError, match=r"others\.tar: a: not a sample"):
        shown(tmp_path, {"a.json": data})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("order", ["random", "worst", "best"])
def test_a_similarity_that_is_not_a_number_is_none(tmp_path: Path, value: str, order: Any) -> None:
    members = {"a.jpg": drawn(1), "a.json": b'{"similarity": %s}' % value.encode(), "b.jpg": drawn(2)}
    members |= {"b.json": b'{"similarity": 0.25}', "c.jpg": drawn(3), "c.json": b'{"similarity": 0.75}'}
    report, html = shown(tmp_path, members, Choice(order=order))
    scored = {"random": ["", "0.2500", "0.7500"], "worst": ["0.2500", "0.7500"], "best": ["0.7500", "0.2500"]}[order]
    assert sorted(re.findall('data-scores="([^"]*)"', html)) == sorted(scored)
    assert [name for _, name in report.ids if name != "a"] == ["c", "b"] if order == "best" else ["b", "c"]
    assert 'placeholder="0.250"' in html and 'placeholder="0.750"' in html


def test_a_tar_that_is_cut_short_says_so(tmp_path: Path) -> None:
    report, _ = shown(tmp_path, {"a.jpg": drawn(1), "b.jpg": drawn(2)})
    assert report.notes == ()
    path = tmp_path / "others.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as stream:
        second = stream.getmembers()[1]
    for size in (second.offset, second.offset + 700):
        path.write_bytes(whole[:size])
        report = preview(str(path), str(tmp_path / "page.html"))
        assert report.records == 1 and "truncated" in report.notes[0]


def test_the_name_of_a_page_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    page = tmp_path / f"{'x' * 250}.html"
    preview(str(tar(tmp_path, {"a.jpg": drawn(1)})), str(page))
    assert page.is_file()
