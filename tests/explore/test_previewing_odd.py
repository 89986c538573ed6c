"""Previews of what nobody meant to be looked at: odd tars of others, cut ones, similarities that are no numbers."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.made_run import drawn
from vila_data.build import run
from vila_data.core.errors import DataError
from vila_data.explore.preview import Choice, PreviewReport, preview
from vila_data.explore.preview.draw import draw
from vila_data.explore.preview.run import RunSource
from vila_data.explore.preview.values import ROOMS, CorpusLine, PreviewPage, ShownRecord, ShownTokens, Tally, TokenPiece
from vila_data.explore.preview.why import image_value
from vila_data.filter.config import Rules
from vila_data.recipe.recipe import load_recipe


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
def test_a_similarity_that_is_no_number_is_none(tmp_path: Path, value: str, order: Any) -> None:
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
        assert report.records == 1 and "cut short" in report.notes[0]


def test_the_name_of_a_page_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    page = tmp_path / f"{'x' * 250}.html"
    preview(str(tar(tmp_path, {"a.jpg": drawn(1)})), str(page))
    assert page.is_file()


def test_texts_without_a_word_are_not_free() -> None:
    tokens = ShownTokens("set", tuple(TokenPiece("", image=n) for n in range(50_000)), 1, 1)
    records = [
        ShownRecord("made", "texts", "document", texts=("",) * 50_000),
        ShownRecord("made", "turns", "conversation", texts=("",) * 50_000, roles=("human",) * 50_000, tokens=tokens),
    ]
    page = PreviewPage("made", "2 of 2.", (CorpusLine("made", 2, 2, 2),), records)
    bare = "".join(draw(PreviewPage("made", "", (), []), ROOMS[0], Tally()))
    html = "".join(draw(page, ROOMS[0], Tally()))
    assert len(html) - len(bare) < 6 * ROOMS[0].text_bytes
    assert "more texts" in html and "the rest is not shown" in html


def test_an_image_that_got_no_text_when_they_were_assigned_stands_by_none() -> None:
    fact, fate = {"matched_text_index": 2}, {"fate": "dropped", "reason": "no_matched_text"}
    score = {"similarity": 0.3, "assigned_text_index": None, "assigned_similarity": None}
    assert RunSource._match(fact, fate, {"scored": True, **score}, True) == (None, None)
    assert RunSource._match(fact, fate, {"scored": False, **score}, True) == (2, 0.3)
    assert RunSource._match(fact, fate, {"scored": True, **score}, False) == (2, 0.3)
    facts = {"original_width": 9, "original_height": 9, "http_code": None}
    reassigned = Rules.model_validate({"documents": {"reassign": True}})
    assert image_value("no_matched_text", facts, None, reassigned) == "no text was assigned to it"
    assert image_value("no_matched_text", facts, None, Rules()) == "no text was published for it"


def test_a_page_tells_no_folder_of_the_machine(tmp_path: Path) -> None:
    folder = tmp_path / "it's: mine"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt":"","completion":""}\n{"prompt":"Yes?","completion":"No."}\n')
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: words\ncorpora: {words: {kind: text, files: [rows.jsonl]}}\n"
        "shards: {words: {corpus: words, view: conversations}}\n"
        "pack: {tokenizer: ../tokenizer, sequence_length: 512, tokens_per_image: 4}\n"
        "blend: {weight_unit: samples, sources: [{shards: words, weight: 1}]}\n"
    )
    shutil.copytree(Path(__file__).parents[2] / "shards" / "sample" / "tokenizer", tmp_path / "tokenizer")
    run(load_recipe(folder / "recipe.yaml"), folder / "run", runner="local")
    lock = folder / "run" / "recipe.lock.yaml"
    lock.write_text(lock.read_text().replace(str(tmp_path / "tokenizer"), str(tmp_path / "gone")))
    report = preview(folder / "run", tmp_path / "page.html", Choice(packs=1))
    page = (tmp_path / "page.html").read_text()
    assert "…/rows.jsonl: row 0: no answer" in page and "Tokens are not shown" in page
    assert str(tmp_path) not in page and "mine" not in page
    assert not any(str(tmp_path) in note for note in report.notes) and len(report.notes) == 2
