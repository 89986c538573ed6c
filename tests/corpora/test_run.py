"""Every kind of corpus from metadata to shards, in one run: each row and image with its fate, samples as documented."""

from __future__ import annotations

import base64
import functools
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vila_data as vd
from tests.faults.kills import tree
from tests.made_run import drawn
from vila_data.explore.inspection import check
from vila_data.runs.plan_summary import summarize_plan
from vila_data.shard.read import Sample

RECIPE = """version: 1
name: kinds
seed: 5
corpora:
  chat: {{kind: llava, files: [chat.json], image_root: images, part_records: {part_records}}}
  flan: {{kind: text, files: [flan.jsonl, talks.json], system: "Be kind.", part_records: {part_records}}}
  hub: {{kind: text, dataset: hub, part_records: {part_records}}}
  vflan: {{kind: vflan, files: [vflan.parquet], part_records: {part_records}}}
  pages: {{kind: obelics, files: [pages.jsonl], part_records: {part_records}}}
  flickr: {{kind: flickr8k, files: [captions.csv], image_root: images, part_records: {part_records}}}
download: {{allow_private_hosts: ["{host}"], robots_txt: false}}
filter:
  images: {{min_side_px: 40, exact_duplicates: drop}}
  documents: {{on_missing_image: drop_image}}
  per_corpus: {{flickr: {{images: {{exact_duplicates: keep}}}}}}
shards:
  chat: {{corpus: chat, view: conversations}}
  flan: {{corpus: flan, view: conversations}}
  hub: {{corpus: hub, view: conversations}}
  vflan: {{corpus: vflan, view: conversations}}
  pages: {{corpus: pages, view: interleaved}}
  pages_pairs: {{corpus: pages, view: pairs}}
  flickr: {{corpus: flickr, view: pairs}}
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


def small() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(stream, "PNG")
    return stream.getvalue()


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


CHAT: list[Any] = [
    {"id": "a", "image": "0.jpg", "conversations": turns("<image>\nWhat?", "One.", "And?", "More.")},
    {"id": "a", "image": ["1.jpg", "0.jpg"], "conversations": turns("<image> or", "One.", "<image>?", "Two.")},
    {"id": "b", "conversations": turns("Hello", "Hi.")},
    {"id": "c", "image": "none.jpg", "conversations": turns("<image>", "Lost.")},
    {"id": "d", "image": ["1.jpg", "none.jpg"], "conversations": turns("<image><image>", "Lost.")},
    {"id": "e", "image": ["1.jpg", "small.png"], "conversations": turns("<image><image>", "One is too small.")},
    {"id": "f", "image": "../0.jpg", "conversations": turns("<image>", "Outside.")},
    {"id": "g", "image": "0.jpg", "conversations": turns("no mark", "x")},
    {"id": "h", "conversations": [{"from": "gpt", "value": "x"}, {"from": "gpt", "value": "y"}]},
    {"id": "i", "conversations": []},
    {"id": "j", "image": "2.gif", "conversations": turns("<image>", "Another suffix.")},
    {"id": "k", "image": "text.jpg", "conversations": turns("<image>", "No image.")},
    {"id": "l", "image": "1.jpg", "instruction": "What is it?", "output": "The same picture again."},
]
FLAN = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(5)] + [
    {"what": 1},
    {"prompt": "p", "completion": " "},
]
TALKS = [
    {"conversations": turns("p", "c"), "tools": '[{"name": "search"}]'},
    {"conversations": [{"from": "system", "value": "Own."}, *turns("p", "c")]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "images").mkdir()
    handler = functools.partial(Quiet, directory=str(folder / "images"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        write_inputs(folder, f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


def write_inputs(folder: Path, web: str) -> None:
    for n in range(2):
        (folder / "images" / f"{n}.jpg").write_bytes(drawn(n))
    (folder / "images" / "2.jpg").write_bytes(drawn(2))
    (folder / "images" / "small.png").write_bytes(small())
    (folder / "images" / "text.jpg").write_text("no image")
    (folder / "chat.json").write_text(json.dumps(CHAT, indent=1))
    (folder / "flan.jsonl").write_text("\n".join(map(json.dumps, FLAN)))
    (folder / "talks.json").write_text(json.dumps(TALKS))
    (folder / "hub").mkdir()
    (folder / "hub" / "train.jsonl").write_text('{"inputs": "p", "targets": "c"}\n')
    good, bad = base64.b64encode(drawn(7)).decode(), "no base64!"
    rows = [{"question": f"q{n} <image>", "answer": "a", "image": [good] * n} for n in (0, 1, 3, 9)]
    rows.append({"question": "q", "answer": "a", "image": [good, bad]})
    pq.write_table(pa.Table.from_pylist(rows), folder / "vflan.parquet")
    pages = [
        {"images": [f"{web}/0.jpg", None, None, f"{web}/1.jpg"], "texts": [None, "First.", "Second.", None]},
        {"images": [None, f"{web}/none.jpg"], "texts": ["Alone.", None]},
        {"images": [None], "texts": ["One", "two"]},
    ]
    (folder / "pages.jsonl").write_text("\n".join(map(json.dumps, pages)))
    (folder / "captions.csv").write_text('image,caption\n0.jpg,"One, two"\n0.jpg,Three\n1.jpg,Four\nnone.jpg,Five\n')
    for part_records in (2, 100):
        text = RECIPE.format(host=web.removeprefix("http://"), part_records=part_records)
        (folder / f"recipe{part_records}.yaml").write_text(text)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vd.RunReport]:
    out = tmp_path_factory.mktemp("run") / "run"
    return out, vd.run(folder / "recipe2.yaml", out, runner="local")


def by_record(out: Path, name: str) -> dict[str, Sample]:
    return {sample.json["source"]["record_id"]: sample for sample in vd.open_shards(out / "shards" / name)}


def test_every_row_and_image_has_its_fate(done: tuple[Path, vd.RunReport]) -> None:
    out, report = done
    funnel = report.funnel
    assert funnel["chat"]["download"] == {
        "records": {
            "kept": 10,
            "failed:image_count": 1,
            "failed:turn_order": 1,
            "failed:empty_conversation": 1,
        },
        "images": {"kept": 8, "failed:no_file": 2, "failed:bad_url": 1, "failed:not_an_image": 1},
    }
    assert funnel["chat"]["filter"] == {
        "records": {"kept": 5, "dropped:missing_image": 4, "dropped:dropped_image": 1},
        "images": {"kept": 5, "dropped:min_side_px": 1, "dropped:record_dropped": 2},
    }
    assert funnel["flan"]["download"]["records"] == {
        "kept": 7,
        "failed:missing_field": 1,
        "failed:empty_conversation": 1,
    }
    assert funnel["flan"]["filter"]["records"] == {"kept": 7}
    assert funnel["vflan"]["download"] == {
        "records": {"kept": 4, "failed:image_count": 1},
        "images": {"kept": 5, "failed:not_an_image": 1},
    }
    assert funnel["vflan"]["filter"]["records"] == {"kept": 3, "dropped:missing_image": 1}
    assert funnel["pages"]["download"]["records"] == {"kept": 2, "failed:wrong_type": 1}
    assert funnel["pages"]["filter"]["records"] == {"kept": 1, "dropped:min_images": 1}
    assert funnel["flickr"]["download"]["images"] == {"kept": 3, "failed:no_file": 1}
    assert funnel["flickr"]["filter"]["images"] == {"kept": 3}
    assert report.sets["hub"].samples == 1
    assert list(check(out)) == []


def test_details_of_failed_rows_name_file_and_row(folder: Path, done: tuple[Path, vd.RunReport]) -> None:
    details = [
        row["detail"]
        for path in sorted((done[0] / "download" / "chat").glob("*.records.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["detail"]
    ]
    assert details == [
        f"{folder}/chat.json: row 7: 0 <image> placeholders, but 1 images",
        f"{folder}/chat.json: row 8: turns 0 and 1 are both from gpt; turns must alternate",
        f"{folder}/chat.json: row 9: it has no turns",
    ]


def test_conversations_as_documented(done: tuple[Path, vd.RunReport]) -> None:
    samples = by_record(done[0], "chat")
    assert sorted(samples) == [f"chat-{row:09d}" for row in (0, 1, 2, 10, 12)]
    two = samples["chat-000000001"]
    info = two.json.pop("image_info")
    assert two.json == {
        "sample_id": two.key,
        "conversations": CHAT[1]["conversations"],
        "system": None,
        "images": [f"{two.key}.0.jpg", f"{two.key}.1.jpg"],
        "source": {"corpus": "chat", "record_id": "chat-000000001", "url": None},
        "schema": 1,
    }
    assert list(two.members) == ["json", "0.jpg", "1.jpg"]
    assert [two.members["0.jpg"], two.members["1.jpg"]] == [drawn(1), drawn(0)]
    assert [(one["url"], one["matched_text_index"], one["image_index"]) for one in info] == [
        ("1.jpg", 0, 0),
        ("0.jpg", 2, 1),
    ]
    none = samples["chat-000000002"]
    assert (list(none.members), none.json["images"], none.json["image_info"]) == (["json"], [], [])
    assert samples["chat-000000010"].members["0.jpg"] == drawn(2)
    assert samples["chat-000000012"].json["conversations"][0]["value"] == "<image>\nWhat is it?"


def test_system_prompts(done: tuple[Path, vd.RunReport]) -> None:
    systems = {record: sample.json["system"] for record, sample in by_record(done[0], "flan").items()}
    assert systems == {f"flan-{n:09d}": "Be kind." for n in range(5)} | {
        "talks-000000000": 'Be kind.\n\n[{"name": "search"}]',
        "talks-000000001": "Own.",
    }
    assert {sample.json["system"] for sample in by_record(done[0], "vflan").values()} == {""}
    assert {sample.json["system"] for sample in by_record(done[0], "hub").values()} == {None}


def test_vflan_pictures_come_from_the_row(done: tuple[Path, vd.RunReport]) -> None:
    samples = by_record(done[0], "vflan")
    three = samples["vflan-000000002"]
    assert three.json["conversations"][0]["value"] == "<image>\n<image>\n<image>\nq3 "
    assert [three.members[f"{n}.jpg"] for n in range(3)] == [drawn(7)] * 3
    assert list(samples["vflan-000000000"].members) == ["json"]


def test_an_image_behind_the_last_text_stays_there(done: tuple[Path, vd.RunReport]) -> None:
    (page,) = by_record(done[0], "pages").values()
    key = page.key
    assert page.json["texts"] == [None, "First.", "Second.", None]
    assert page.json["images"] == [f"{key}.0.jpg", None, None, f"{key}.1.jpg"]
    assert [one["matched_text_index"] for one in page.json["image_info"]] == [0, 2]
    captions = [sample.json["caption"] for sample in vd.open_shards(done[0] / "shards" / "pages_pairs")]
    assert sorted(captions) == ["First.", "Second."]  # the one behind all has the last text's


def test_captions_of_one_picture_are_pairs_each(done: tuple[Path, vd.RunReport]) -> None:
    found = {sample.json["caption"]: sample.members["jpg"] for sample in by_record(done[0], "flickr").values()}
    assert found == {"One, two": drawn(0), "Three": drawn(0), "Four": drawn(1)}


def test_other_parts_give_the_same_samples(folder: Path, done: tuple[Path, vd.RunReport], tmp_path: Path) -> None:
    """What a record is does not depend on the part that it was read in; only keys hold the part."""
    again = vd.run(folder / "recipe100.yaml", tmp_path / "run", runner="local")
    assert again.funnel == done[1].funnel

    def content(out: Path, name: str) -> dict[str, Any]:
        keep = ("conversations", "system", "texts", "image_info")
        return {
            record: ({key: sample.json.get(key) for key in keep}, list(sample.members.values())[1:])
            for record, sample in by_record(out, name).items()
        }

    for name in again.sets:
        if name != "pages_pairs":  # several samples a record
            assert content(tmp_path / "run", name) == content(done[0], name)


def test_relaunching_changes_nothing_and_the_forecast_knows(folder: Path, done: tuple[Path, vd.RunReport]) -> None:
    before = tree(done[0])
    assert vd.run(folder / "recipe2.yaml", done[0], runner="local").funnel == done[1].funnel
    assert tree(done[0]) == before
    nodes = {
        node["corpus"]: node for node in summarize_plan(folder / "recipe2.yaml", None)["children"] if "corpus" in node
    }
    assert nodes["flan"]["images_expected"] == 0
    assert nodes["chat"]["images_expected"] == 13
