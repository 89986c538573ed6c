"""The committed sample is what its scripts write, behaves over HTTP as its table says, and its CLIP can tell right."""

from __future__ import annotations

import filecmp
import http.client
import io
import json
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")

import clip_scores
import make
import metadata
import pictures
import plan
import rebase
import serve

SAMPLE = Path(make.__file__).resolve().parent
META, SITE, CLIP = SAMPLE / "meta", SAMPLE / "site", SAMPLE / "clip"
LARGEST_MEAN_DIFFERENCE = 2.0  # of 255: what another version of an encoder may change
DOCUMENT_KEYS = {"text_list", "url", "image_info", "similarity_matrix", "could_have_url_duplicate"}


def document_lines(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "docs_shard_0_v2.jsonl.zip") as archive:
        zipped = archive.read("docs_shard_0_v2.jsonl").decode()
    return (zipped + (folder / "docs_shard_1_v2.jsonl").read_text("utf-8")).splitlines()


def documents(folder: Path) -> list[dict[str, Any]]:
    found = []
    for line in document_lines(folder):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def links_by_behaviour() -> dict[str, list[plan.Link]]:
    found: dict[str, list[plan.Link]] = {}
    for link in plan.links():
        found.setdefault(link.behaviour, []).append(link)
    return found


LINKS = links_by_behaviour()


@pytest.fixture(scope="module")
def fresh_meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "meta"
    make.write_meta(out)
    return out


class Web:
    """One fresh server, asked over one kept connection; no redirect is followed, no request repeated."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._connection = http.client.HTTPConnection(urlsplit(base_url).netloc)

    def get(self, url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(url)
        self._connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""))
        response = self._connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


@pytest.fixture
def web() -> Iterator[Web]:
    with serve.serving() as base_url:
        yield Web(base_url)


# The files


def test_metadata_is_what_make_writes(fresh_meta: Path) -> None:
    assert sorted(path.name for path in META.iterdir()) == sorted(path.name for path in fresh_meta.iterdir())
    assert document_lines(META) == document_lines(fresh_meta)
    for name in ("truth.json", "chat.json", "align.json", "talks.json", "instructions.jsonl", "captions.csv"):
        assert (META / name).read_bytes() == (fresh_meta / name).read_bytes(), name
    for path in sorted(META.glob("*.parquet")):
        committed, fresh = parquet.ParquetFile(path), parquet.ParquetFile(fresh_meta / path.name)
        assert committed.num_row_groups == fresh.num_row_groups > 1
        assert committed.read().equals(fresh.read())


def test_metadata_is_the_same_bytes_twice(fresh_meta: Path, tmp_path: Path) -> None:
    make.write_meta(tmp_path)
    names = [path.name for path in fresh_meta.iterdir()]
    assert filecmp.cmpfiles(fresh_meta, tmp_path, names, shallow=False) == (names, [], [])


def test_site_has_every_file_that_a_link_needs() -> None:
    wanted = {make.file_name(link) for link in plan.links() if has_file(link)} | {"robots.txt", "behaviour.json"}
    found = {path.relative_to(SITE).as_posix() for path in SITE.rglob("*") if path.is_file()}
    assert found == wanted
    assert json.loads((SITE / "behaviour.json").read_text("utf-8")) == make.behaviour_table(plan.links())
    assert sum((SITE / name).stat().st_size for name in found) < 5_000_000


def has_file(link: plan.Link) -> bool:
    no_file = ("missing", "gone_host", "redirect_loop", "huge", "copy", "forbidden", "broken_server")
    return link.behaviour not in no_file


def some_links() -> list[plan.Link]:
    """Every twelfth plain link, and of each other form or behaviour with a picture the first two."""
    odd = [link for name, links in LINKS.items() if name not in ("plain", "truncated") for link in links[:2]]
    forms: dict[str, list[plan.Link]] = {}
    for link in LINKS["plain"]:
        forms.setdefault(link.picture.form, []).append(link)
    chosen = odd + [link for links in forms.values() for link in links[:2]] + LINKS["plain"][::12]
    return [link for link in dict.fromkeys(chosen) if has_file(link) and link.outcome in ("ok", "opted_out")]


@pytest.mark.parametrize("link", some_links(), ids=lambda link: link.picture.name)
def test_committed_picture_is_what_the_script_draws(link: plan.Link) -> None:
    data = make.link_file(link)
    assert data is not None
    committed, fresh = (Image.open(source) for source in (SITE / make.file_name(link), io.BytesIO(data)))
    assert (committed.format, committed.mode, committed.size) == (fresh.format, fresh.mode, fresh.size)
    pixels = [np.asarray(clip_scores.upright_rgb(file), np.float32) for file in (committed_bytes(link), data)]
    assert np.abs(pixels[0] - pixels[1]).mean() < LARGEST_MEAN_DIFFERENCE


def committed_bytes(link: plan.Link) -> bytes:
    return (SITE / make.file_name(link)).read_bytes()


def test_a_picture_is_the_same_bytes_twice() -> None:
    picture = LINKS["plain"][0].picture
    assert pictures.picture_file(picture) == pictures.picture_file(picture)


def test_every_form_is_what_it_says() -> None:
    expected = {
        "jpeg": ("JPEG", "RGB"),
        "jpeg_progressive": ("JPEG", "RGB"),
        "jpeg_cmyk": ("JPEG", "CMYK"),
        "jpeg_turned": ("JPEG", "RGB"),
        "png_alpha": ("PNG", "RGBA"),
        "png_palette": ("PNG", "P"),
        "png_gray16": ("PNG", "I;16"),
        "webp": ("WEBP", "RGB"),
        "gif_animated": ("GIF", "P"),
    }
    seen: set[str] = set()
    for link in LINKS["plain"]:
        with Image.open(SITE / link.picture.name) as image:
            assert (image.format, image.mode) == expected[link.picture.form], link.url
            turned = link.picture.form == "jpeg_turned"
            assert image.size == (link.picture.size[::-1] if turned else link.picture.size)
            assert getattr(image, "n_frames", 1) == (3 if link.picture.form == "gif_animated" else 1)
            assert image.getexif().get(pictures.ORIENTATION_TAG, 1) == (pictures.TURNED if turned else 1)
        seen.add(link.picture.form)
    assert seen == set(expected)


def test_thumbnails_and_banners_have_their_shape() -> None:
    for behaviour, size in (("thumbnail", (48, 36)), ("banner", (728, 90))):
        for link in LINKS[behaviour]:
            assert Image.open(SITE / link.picture.name).size == size


# The metadata


def test_documents_are_mmc4_lines() -> None:
    lines, found = document_lines(META), documents(META)
    assert len(lines) == len(found) + 1, "one line is malformed"
    assert len({document["url"] for document in found}) == plan.DOCUMENTS == len(found) - 1, "one document comes twice"
    for document in found:
        images, texts = document["image_info"], document["text_list"]
        assert document.keys() == DOCUMENT_KEYS
        assert 2 <= len(images) <= 6 and 4 <= len(texts) <= 15
        assert [len(row) for row in document["similarity_matrix"]] == [len(texts)] * len(images)
        for image, row in zip(images, document["similarity_matrix"], strict=True):
            assert image.keys() == {"image_name", "raw_url", "matched_text_index", "matched_sim", "face_detections"}
            assert image["matched_sim"] == row[image["matched_text_index"]]
            assert min(row) >= 0.0 and max(row) <= 1.0


def test_published_matches_are_the_assignment_optimum() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    assigned = 0
    for document in documents(META):
        matrix = np.array(document["similarity_matrix"])
        if matrix.shape[0] > matrix.shape[1]:
            continue
        rows, columns = optimize.linear_sum_assignment(-matrix)
        assert [image["matched_text_index"] for image in document["image_info"]] == columns.tolist()
        assigned += len(rows)
    assert assigned > 300


def test_pairs_have_coyo_columns() -> None:
    tables = [parquet.read_table(path) for path in sorted(META.glob("coyo-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(table.schema.equals(metadata.COYO_SCHEMA) for table in tables)
    assert len(rows) == len({row["id"] for row in rows}) == plan.PAIRS
    assert all(row["text_length"] == len(row["text"]) for row in rows)


def test_truth_marks_the_wrong_captions() -> None:
    truth = json.loads((META / "truth.json").read_text("utf-8"))
    rows = {str(row["id"]): row for path in META.glob("coyo-*.parquet") for row in parquet.read_table(path).to_pylist()}
    wrong = {key for key, entry in truth["pairs"].items() if not entry["right"]}
    assert rows.keys() == truth["pairs"].keys()
    assert wrong == {key for key, row in rows.items() if row["text"] != truth["pairs"][key]["caption"]}
    assert len(wrong) == truth["expected"]["pairs"]["wrong_captions"] == len(plan.WRONG_CAPTIONS) > 15
    highest = max(rows[key]["clip_similarity_vitl14"] for key in wrong)
    assert highest < min(row["clip_similarity_vitl14"] for key, row in rows.items() if key not in wrong)


def test_expected_outcomes_count_every_image() -> None:
    expected = json.loads((META / "truth.json").read_text("utf-8"))["expected"]
    images = sum(len(document["image_info"]) for document in documents(META))
    assert sum(expected["image_outcomes"]["documents"].values()) == images == expected["documents"]["images"]
    assert sum(expected["image_outcomes"]["pairs"].values()) == expected["pairs"]["rows"]


def test_rebase_changes_the_host_and_nothing_else(tmp_path: Path) -> None:
    other = "http://127.0.0.1:1"
    rebase.rebase(META, tmp_path / "there", other)
    rebased = documents(tmp_path / "there")
    assert all(document["url"].startswith(other + "/") for document in rebased)
    assert json.loads(json.dumps(rebased).replace(other + "/", plan.HOST + "/")) == documents(META)
    for path in META.glob("coyo-*.parquet"):
        before, after = parquet.ParquetFile(path), parquet.ParquetFile(tmp_path / "there" / path.name)
        urls = [url.replace(plan.HOST, other) for url in before.read()["url"].to_pylist()]
        assert after.read()["url"].to_pylist() == urls
        assert after.num_row_groups == before.num_row_groups
        assert after.read().drop_columns("url").equals(before.read().drop_columns("url"))


# The server


def test_plain_links_send_their_files(web: Web) -> None:
    for link in LINKS["plain"]:
        status, headers, body = web.get(link.url)
        assert (status, body) == (200, committed_bytes(link))
        assert headers["Content-Type"].startswith("image/")
    assert any("?" in link.url for link in LINKS["plain"])


@pytest.mark.parametrize(("behaviour", "wanted"), [("missing", 404), ("forbidden", 403), ("broken_server", 500)])
def test_refusals_stay_refusals(web: Web, behaviour: str, wanted: int) -> None:
    for link in LINKS[behaviour]:
        assert [web.get(link.url)[0] for _ in range(2)] == [wanted, wanted]


def test_busy_and_limited_links_answer_the_second_time_on_every_server() -> None:
    links = LINKS["busy_once"] + LINKS["limited_once"]
    for _ in range(2):
        with serve.serving() as base_url:
            web = Web(base_url)
            firsts = [web.get(link.url) for link in links]
            assert [status for status, _, _ in firsts] == [503] * 4 + [429] * 2
            assert [headers.get("Retry-After") for _, headers, _ in firsts] == [None] * 4 + ["1"] * 2
            assert all(web.get(link.url)[::2] == (200, committed_bytes(link)) for link in links)


def test_redirects_lead_to_the_picture_or_round_in_a_circle(web: Web) -> None:
    for link in LINKS["redirect"]:
        status, headers, _ = web.get(link.url)
        assert (status, web.get(headers["Location"])[2]) == (302, committed_bytes(link))
    (loop,) = LINKS["redirect_loop"]
    assert web.get(loop.url)[1]["Location"] == urlsplit(loop.url).path


def test_broken_files_are_broken(web: Web) -> None:
    for link in LINKS["truncated"]:
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(web.get(link.url)[2])).load()
    for link in LINKS["html"]:
        _, headers, body = web.get(link.url)
        assert headers["Content-Type"] == "image/jpeg" and body.startswith(b"<!doctype html>")
    assert all(web.get(link.url)[2] == b"" for link in LINKS["empty"])
    assert web.get(LINKS["drawing"][0].url)[1]["Content-Type"] == "image/svg+xml"


def test_too_large_files_are_too_large(web: Web) -> None:
    status, headers, body = web.get(LINKS["huge"][0].url)
    assert status == 200 and int(headers["Content-Length"]) == len(body) == make.HUGE_BYTES
    bomb = web.get(LINKS["bomb"][0].url)[2]
    assert len(bomb) < 50_000
    with pytest.warns(Image.DecompressionBombWarning):
        assert Image.open(io.BytesIO(bomb)).size == pictures.BOMB_SIDE_PX


def test_owners_can_refuse(web: Web) -> None:
    assert all(web.get(link.url)[1]["X-Robots-Tag"] == "noai" for link in LINKS["opt_out"])
    assert "Disallow: /private/" in web.get("/robots.txt")[2].decode()
    for link in LINKS["private"]:
        assert urlsplit(link.url).path.startswith("/private/")
        assert web.get(link.url)[::2] == (200, committed_bytes(link)), "only robots.txt forbids it"
    assert all(link.url.startswith("http://gone.invalid/") for link in LINKS["gone_host"])


def test_copies_are_the_same_bytes_and_near_copies_are_not(web: Web) -> None:
    served = {link.picture.name: web.get(link.url)[2] for link in LINKS["plain"]}
    for link in LINKS["copy"]:
        assert web.get(link.url)[2] == served[link.picture.name]
    for link in LINKS["near_copy"]:
        original = metadata.original_of(link)
        near, far = (clip_scores.upright_rgb(data) for data in (web.get(link.url)[2], served[original.name]))
        assert near.size != far.size
        assert np.abs(np.asarray(far.resize(near.size), np.float32) - np.asarray(near, np.float32)).mean() < 12


def test_slow_links_send_their_files(web: Web) -> None:
    table = json.loads((SITE / "behaviour.json").read_text("utf-8"))
    assert all(table[urlsplit(link.url).path]["delay_s"] <= 0.3 for link in LINKS["slow"])
    assert web.get(LINKS["slow"][0].url)[2] == committed_bytes(LINKS["slow"][0])


def test_head_has_no_body_and_other_methods_are_refused(web: Web) -> None:
    link = LINKS["plain"][0]
    status, headers, body = web.get(link.url, "HEAD")
    assert (status, body, int(headers["Content-Length"])) == (200, b"", len(committed_bytes(link)))
    assert web.get(link.url, "DELETE")[0] == 405


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(SAMPLE / "serve.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)


def test_serve_exits_with_the_commands_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    fetch = f"import urllib.request as u, sys; sys.exit(u.urlopen('http://127.0.0.1:{port}/robots.txt').status - 193)"
    assert run_serve("--port", port, "--", sys.executable, "-c", fetch).returncode == 7


def test_serve_says_that_the_port_is_in_use() -> None:
    with serve.serving() as base_url:
        done = run_serve("--port", str(urlsplit(base_url).port), "--", "true")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot listen on" in done.stderr and base_url[7:] in done.stderr


# The model


@pytest.fixture(scope="module")
def clip() -> clip_scores.Clip:
    return clip_scores.Clip(CLIP)


def test_clip_tells_right_from_wrong_as_its_config_says(clip: clip_scores.Clip) -> None:
    figures: dict[str, Any] = clip_scores.measure_sample(clip)
    for name, numbers in figures.items():
        assert numbers == pytest.approx(clip.config["measured"][name], abs=0.02), name
        assert numbers.get("auc", 1.0) >= 0.95, name
    assert clip.config["measured"]["held_out"]["pair_accuracy"] >= 0.97
    assert figures["threshold"]["right_kept"] >= 0.95 and figures["threshold"]["wrong_kept"] <= 0.05


def test_readme_states_the_measured_threshold(clip: clip_scores.Clip) -> None:
    threshold = clip.config["measured"]["threshold"]["min_similarity"]
    assert f"min_similarity: {threshold:.2f}" in (SAMPLE / "README.md").read_text("utf-8")


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(clip: clip_scores.Clip) -> None:
    texts = ["", "a red boat", "three small blue fish on the open sea under white clouds, illustration", "zebra"]
    together = clip.embed_texts(texts)
    apart = np.concatenate([clip.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images = clip.embed_pixels(pixels)
    assert images.shape == (3, clip.config["embedding_dim"])
    np.testing.assert_allclose(images, clip.embed_pixels(pixels, batch=1), atol=1e-5)


def test_clip_is_small() -> None:
    names = {path.name for path in CLIP.iterdir()}
    assert names == {"image.onnx", "text.onnx", "tokenizer.json", "config.json"}
    assert sum((CLIP / name).stat().st_size for name in names) < 5_000_000
