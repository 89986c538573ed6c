"""`vila-data search` on the sample, from the command to the page."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import vila_data as vd
from tests.conftest import SAMPLE
from vila_data.cli import app
from vila_data.cli.search_table import plain, print_search
from vila_data.cli.tables import print_shard
from vila_data.core.errors import DataError, UsageError
from vila_data.core.store import Store
from vila_data.explore.inspection import check
from vila_data.explore.search import index
from vila_data.explore.search import query as search_query
from vila_data.explore.search.query import Query, build_index, search
from vila_data.recipe.lock import LOCK
from vila_data.score.clip import ClipConfig, load_clip


@pytest.fixture(scope="module")
def run(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample downloaded, scored and filtered; not written to."""
    out = tmp_path_factory.mktemp("search") / "run"
    for stage in ("download", "score", "filter"):
        vd.run(sample_recipe, out, runner="local", only=stage)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index for corpora as small as the sample's, of several segments."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(index, "LEAST_ROWS", 100)
    monkeypatch.setattr(index.plan_segments, "__defaults__", (120,))


def rows(run: Path, corpus: str) -> list[dict[str, Any]]:
    """Metadata of a corpus's embeddings with the images' fates, by part."""
    found = []
    for path in sorted((run / "score" / corpus / "clip" / "embeddings" / "metadata").iterdir()):
        number = path.stem.removeprefix("metadata_")
        fates = {
            (row["record_id"], row["image_index"]): row["fate"]
            for row in pq.read_table(run / "filter" / corpus / f"part-{number}.parquet").to_pylist()
        }
        for row in pq.read_table(path).to_pylist():
            _, part, place = row["key"].rsplit("-", 2)
            fate = fates[row["record_id"], row["image_index"]]
            found.append({**row, "part": int(part), "row": int(place), "fate": fate})
    return found


def test_captions_find_their_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_clip(ClipConfig(backend="onnx", model=str(SAMPLE / "clip")))
    monkeypatch.setattr(ClipConfig, "open", lambda _: clip)
    kept = [row for row in rows(run, "pairs") if row["fate"] == "kept"][::3]
    places = []
    for row in kept:
        hits = search(run, Query(row["caption"], count=10)).hits
        places.append(next((rank for rank, hit in enumerate(hits) if hit.key == row["key"]), 99))
    assert len(kept) >= 40
    assert np.mean(np.array(places) == 0) >= 0.85  # all 142: 95%
    assert np.mean(np.array(places) < 5) >= 0.97  # all 142: every one


def test_an_image_finds_itself(run: Path, tmp_path: Path) -> None:
    for row in [row for row in rows(run, "docs") if row["fate"] == "kept"][::60]:
        jpeg = vd.open_run(run).evidence("docs").jpeg(row["part"], row["row"], row["image_index"])
        assert jpeg is not None
        (tmp_path / "it.jpg").write_bytes(jpeg)
        report = search(run, Query(image=str(tmp_path / "it.jpg"), count=3, fate="kept"))
        assert (report.hits[0].key, report.hits[0].image_index) == (row["key"], row["image_index"])
        assert 0.998 < report.hits[0].score < 1.002 and report.hits[1].score < report.hits[0].score


def test_an_image_of_unknown_length(run: Path) -> None:
    """Servers need not say how long a file is."""
    jpeg = next((SAMPLE / "site" / "pairs").glob("*.jpg")).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/it.jpg" else 404)
            self.end_headers()
            self.wfile.write(jpeg)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert len(search(run, Query(image=f"{place}/it.jpg", count=3)).hits) == 3
        with pytest.raises(UsageError, match=r"/gone\.jpg: no such file"):
            search(run, Query(image=f"{place}/gone.jpg"))
        server.shutdown()


def test_fates_corpora_and_captions(run: Path) -> None:
    there = {corpus: rows(run, corpus) for corpus in ("docs", "pairs")}
    everything = search(run, Query("a red boat", count=1000))
    assert len(everything.hits) == sum(map(len, there.values())) == sum(entry.vectors for entry in everything.searched)
    fates = {(row["key"], row["image_index"]): row["fate"] for found in there.values() for row in found}
    assert {(hit.key, hit.image_index): hit.fate for hit in everything.hits} == fates
    assert {"kept", "dropped"} == set(fates.values())
    kept = search(run, Query("a red boat", count=1000, fate="kept"))
    assert kept.hits == tuple(hit for hit in everything.hits if hit.fate == "kept")
    docs = search(run, Query("a red boat", count=1000, corpora=("docs",)))
    assert docs.hits == tuple(hit for hit in everything.hits if hit.corpus == "docs")
    caption = there["pairs"][0]["caption"]
    (best,) = search(run, Query(caption, kind="captions", count=1)).hits
    assert best.caption == caption and best.score > 0.998


def test_through_an_index(copy: Path, small_index: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PROBED_SHARE", 1.0)
    before = search(copy, Query("two red cups", count=30))
    assert before.notes == () and all(entry.indexed == 0 for entry in before.searched)
    built = build_index(copy)
    assert [(entry.corpus, entry.segments, entry.made) for entry in built] == [("docs", 3, 3), ("pairs", 2, 2)]
    assert [entry.made for entry in build_index(copy)] == [0, 0]
    after = search(copy, Query("two red cups", count=30))
    assert all(entry.indexed == entry.vectors for entry in after.searched)
    assert after.hits == before.hits
    assert search(copy, Query("two red cups", count=30, exact=True)).searched == before.searched
    assert list(check(copy)) == []
    (one, *_) = sorted((copy / "search/docs/images").glob("*.faiss"))
    one.write_bytes(one.read_bytes()[:-1] + b"?")
    (problem,) = check(copy)
    assert "search/docs/images/segment-00000.faiss: sha256 does not match its receipt" in problem
    captions = search(copy, Query("two red cups", kind="captions"))
    assert all(entry.indexed == 0 for entry in captions.searched) and captions.notes == ()


def test_what_a_killed_build_left_goes_and_what_a_living_one_has_stays(copy: Path, small_index: None) -> None:
    store = Store(str(copy))
    for ask in (lambda: search(copy, Query("two red cups")), lambda: build_index(copy)):
        left = copy / ".scratch" / "0123456789abcdef"
        left.mkdir(parents=True)
        (left / "000").write_bytes(b"half of an index")
        with store.scratch() as living:
            (living / "000").write_bytes(b"half of another")
            ask()
            assert not left.exists() and (living / "000").exists()
    search(copy, Query("two red cups"))
    assert not (copy / ".scratch").exists()


def test_an_index_that_finds_too_few_gives_way(copy: Path, small_index: None) -> None:
    build_index(copy)
    asked = Query("two red cups", count=400, fate="kept")
    few, many = search(copy, asked), search(copy, Query("two red cups", count=400, fate="kept", exact=True))
    assert few.hits == many.hits and len(few.hits) == 400
    assert all(entry.indexed == 0 for entry in few.searched)


def test_a_stale_index_is_said_and_not_used(copy: Path, small_index: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PROBED_SHARE", 1.0)
    build_index(copy)
    receipt = copy / "score/docs/clip/part-00000.json"
    value = json.loads(receipt.read_text())
    value["outputs"]["score/docs/clip/embeddings/img_emb/img_emb_00000.npy"]["sha256"] = "0" * 64  # written anew
    receipt.write_text(json.dumps(value))
    stale = search(copy, Query("two red cups", count=30))
    assert [entry.indexed for entry in stale.searched] == [64, 167]
    (note,) = stale.notes
    assert note.startswith("docs: the index for 240 vectors is missing or out of date and was not used")
    assert stale.hits == search(copy, Query("two red cups", count=30, exact=True)).hits
    monkeypatch.setattr(index, "has_faiss", lambda: False)
    plainly = search(copy, Query("two red cups", count=30))
    assert plainly.hits == stale.hits and "pip install" in plainly.notes[0]
    with pytest.raises(UsageError, match=r'pip install "vila-data\[search\]"'):
        build_index(copy)
    monkeypatch.undo()
    assert [entry.segments for entry in build_index(copy)] == [0, 0]  # too small again: the folder is emptied
    assert not [path for path in (copy / "search").rglob("*") if path.is_file()]


def test_many_vectors_without_an_index(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_query, "MANY_ROWS", 200)
    told: list[tuple[str, int]] = []

    class Told:
        def stage(self, name: str, total: int, done: int) -> None:
            told.append((name, total))

        def advance(self, name: str, items: int) -> None:
            told.append((name, items))

    report = search(run, Query("a red boat"), Told())
    assert report.notes == ("docs: compared all 304 vectors; --build-index makes later searches fast",)
    assert told[0] == ("search", 5) and sum(items for _, items in told[1:]) == 471 and len(told) == 6


def test_in_memory(run: Path) -> None:
    store = Store("memory://search-run")
    for path in (path for path in run.rglob("*") if path.is_file() and "download" not in path.parts):
        store.commit_bytes(path.read_bytes(), str(path.relative_to(run)))
    question = Query("a blue butterfly", fate="kept")
    assert search(store.url, question).as_dict() == search(run, question).as_dict()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "pass either a query text"),
        ({"text": "a", "image": "b"}, "pass either a query text"),
        ({"text": " \n"}, "the query text is empty"),
        ({"text": "\udcff"}, "not valid Unicode"),
        ({"text": "a", "count": 0}, "--count must be at least 1, found 0"),
        (
            {"text": "a", "corpora": ("dogs",)},
            "--corpus dogs: no such corpus; the run has chat, docs, pairs, text",
        ),
        ({"text": "a", "corpora": ("text",)}, "--corpus text: has no embeddings"),
        ({"image": "none.jpg"}, "--image none.jpg: no such file"),
        ({"image": __file__}, "cannot be decoded as an image: not_an_image"),
    ],
)
def test_wrong_calls(run: Path, question: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(run, Query(**question))


def test_another_model_is_refused_and_a_moved_one_found(copy: Path, tmp_path: Path) -> None:
    lock = yaml.safe_load((copy / LOCK).read_text())
    lock["recipe"]["score"]["clip"]["model"] = str(tmp_path / "gone")
    (copy / LOCK).write_text(yaml.safe_dump(lock))
    with pytest.raises(UsageError, match=r"gone: .*pass its new path with --model"):
        search(copy, Query("a red boat"))
    moved = Path(shutil.copytree(SAMPLE / "clip", tmp_path / "moved"))
    assert search(copy, Query("a red boat", model=str(moved))).hits
    config = json.loads((moved / "config.json").read_text())
    config["text"]["max_tokens"] -= 1
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"moved \(\w+\) is not the model that made the run's embeddings \(\w+\)"):
        search(copy, Query("a red boat", model=str(moved)))


def test_vectors_of_another_width(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = SimpleNamespace(embed_texts=lambda texts: np.ones((len(texts), 5), np.float32))
    monkeypatch.setattr(ClipConfig, "open", lambda _: narrow)
    with pytest.raises(DataError, match="found vectors of length 128, but the model's have length 5"):
        search(run, Query("a red boat"))


def test_embeddings_may_be_asked_for_later(sample_recipe: Path, tmp_path: Path) -> None:
    without = sample_recipe.with_name("without.yaml")
    without.write_text(sample_recipe.read_text().replace("embeddings: true", "embeddings: false"))
    for stage in ("download", "score"):
        vd.run(without, tmp_path / "run", runner="local", only=stage, limit=6)
    with pytest.raises(UsageError, match=r"has no embeddings; set score.clip.embeddings: true .* run it again"):
        search(tmp_path / "run", Query("a red boat"))
    vd.run(sample_recipe, tmp_path / "run", runner="local", only="score", limit=6)
    hits = search(tmp_path / "run", Query("a red boat")).hits
    assert hits and {hit.fate for hit in hits} == {None}
    with pytest.raises(UsageError, match=r"score.clip.embeddings: True in the run, False now"):
        vd.run(without, tmp_path / "run", runner="local", only="score", limit=6)


def test_the_command(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    call = ["search", str(run), "a large red boat", "--count", "7", "--corpus", "docs", "--corpus", "pairs"]
    found = CliRunner().invoke(app, [*call, "--json", "--out", str(page)])
    assert found.exit_code == 0, found.output
    value = json.loads(found.output)
    assert [hit["rank"] for hit in value["hits"]] == list(range(1, 8))
    assert value["query"] == {"text": "a large red boat", "image": None, "in": "images", "fate": "any"}
    html = page.read_text()
    for hit in value["hits"]:
        assert hit["record_id"] in html and f"{hit['rank']}. score {hit['score']:.4f}" in html
    shown = CliRunner().invoke(app, [*call, "--build-index"])
    assert shown.exit_code == 0 and "index of docs: 304 vectors: exact search" in shown.output
    assert all(hit["record_id"] in shown.output for hit in value["hits"])
    for option in (["--in", "words"], ["--fate", "lost"]):
        assert isinstance(CliRunner().invoke(app, [*call, *option]).exception, UsageError)


def test_a_shard_of_texts_of_the_web() -> None:
    """`inspect SHARD.tar`: what looks like the terminal's own markup or control characters is text."""
    sample = {"key": "k", "record_id": "r[/b]", "members": {"json": 9}, "text": "[/bold] and\x1b[31m [red]"}
    screen = Console(width=120, record=True)
    faults = {"faults": ["a[/b].tar: byte 512:\x1b[32m [green]no header"], "n_faults": 3}
    print_shard(screen, {"shard": "a[/b].tar", "samples": [sample], "more": 0, **faults})
    text = screen.export_text(styles=True)
    assert "[32m [green]no header" in text and "… and 2 more errors" in text and "\x1b[32m" not in text
    assert "r[/b]" in text and "[/bold] and [31m [red]" in text and "a[/b].tar" in text and "\x1b[31m" not in text


def test_text_of_the_web_on_a_terminal() -> None:
    hostile = "\x1b[31mred\x07 \u202eleft\u202c [bold]not markup[/bold]\n\x9b2J " + "x" * 200
    assert plain(hostile, 30).plain == "[31mred left [bold]not markup…"
    hit = {"rank": 1, "score": 0.5, "corpus": "docs", "record_id": hostile, "image_index": 0, "fate": None}
    value = {"hits": [{**hit, "reason": None, "caption": hostile}], "searched": [], "notes": ["[red]a note"]}
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_search(console, value)
    text = console.export_text()
    assert "[bold]" in text and "[red]a note" in text
    assert not {letter for letter in text if letter < " " and letter != "\n"} | (set(text) & {"\u202e", "\x9b"})
